"""Drawn concepts: visible, where their boxes say, on the right side, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest

from sae_lens_maira import phantom
from sae_lens_maira.data import Box
from sae_lens_maira.phantom.world.concepts import CONCEPTS, SIDES, VISIBLE, Appearance, as_state
from sae_lens_maira.phantom.world.film import Film, Shot, blob, curve, ellipse, smooth_step, tube
from sae_lens_maira.phantom.world.scene import RESHAPING, PhantomImage, boxes

LOOKS = [
    (name, Appearance(extent, subtle))
    for name in VISIBLE
    for extent in CONCEPTS[name].extents
    for subtle in ((False, True) if CONCEPTS[name].subtle else (False,))
]


def inside(found: tuple[Box, ...], size: int, margin: int) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    for box in found:
        x_min, y_min, x_max, y_max = (round(edge * size) for edge in box)
        mask[max(y_min - margin, 0) : y_max + margin, max(x_min - margin, 0) : x_max + margin] = True
    return mask


@pytest.mark.parametrize(("name", "look"), LOOKS, ids=lambda value: str(value))
def test_a_concept_changes_pixels_inside_of_its_boxes_and_no_others(name: str, look: Appearance) -> None:
    for seed in range(4):
        shot = Shot.sample(np.random.default_rng(seed))
        without = PhantomImage(seed, {}, shot)
        with_it = replace(without, state={name: look})
        found = boxes(with_it)[name]
        assert found
        assert all(0.0 <= b.x_min < b.x_max <= 1.0 and 0.0 <= b.y_min < b.y_max <= 1.0 for b in found)
        change = np.abs(with_it.pixels().astype(int) - without.pixels())
        assert change.max() >= 15  # seen
        if name in RESHAPING:  # the heart's and the diaphragm's soft edges reach a little further
            assert change[~inside(found, 112, 4)].sum() < 0.1 * change.sum()
        else:
            margin = inside(found, 112, 3)
            assert change[~margin].max(initial=0) <= 12
            assert change[margin].sum() > 0.97 * change.sum()


def test_a_concept_looks_the_same_whatever_else_is_present() -> None:
    shot = Shot(noise_seed=3)
    others = as_state(["sternotomy_wires", "effusion_right_small"])
    for name in ("pacemaker", "nodule_left", "consolidation_left"):
        alone = boxes(PhantomImage(2, as_state([name]), shot))[name]
        assert boxes(PhantomImage(2, as_state([*others, name]), shot))[name] == alone


def test_counterfactual_pairs_differ_only_around_the_concept() -> None:
    base = ["cardiomegaly", "effusion_right_small", "central_line_left"]
    first = phantom.render(base, 6, seed=1)
    second = phantom.render([*base, "nodule_left"], 6, seed=1)
    change = first.frontal.pixels() != second.frontal.pixels()
    assert change.any()
    assert not change[~inside(boxes(second.frontal)["nodule_left"], 112, 3)].any()
    assert first.indication == second.indication
    assert first.technique == second.technique


def test_the_patients_right_is_on_the_images_left() -> None:
    for name in VISIBLE:
        side = CONCEPTS[name].side
        if side is None or name.startswith("central_line"):
            continue
        for seed in range(3):
            (box,) = boxes(PhantomImage(seed, as_state([name]), Shot()))[name]
            middle = (box.x_min + box.x_max) / 2
            assert middle < 0.45 if side == SIDES[0] else middle > 0.55, name


def test_the_larger_extent_is_larger() -> None:
    def area(name: str, extent: int) -> float:
        state = {name: Appearance(extent)}  # pyright: ignore[reportArgumentType]
        image = PhantomImage(1, state, Shot())
        change = np.abs(image.pixels().astype(int) - replace(image, state={}).pixels())
        return float(change.sum())

    for name in VISIBLE:
        if CONCEPTS[name].extents == (1, 2):
            assert area(name, 2) > 1.4 * area(name, 1), name
    small, large = area("effusion_left_small", 1), area("effusion_left_large", 2)
    assert large > 2 * small


def test_a_faint_finding_is_fainter() -> None:
    for name in VISIBLE:
        if CONCEPTS[name].subtle:
            base = PhantomImage(1, {}, Shot())
            plain, faint = (
                np.abs(replace(base, state={name: Appearance(1, subtle)}).pixels().astype(int) - base.pixels()).sum()
                for subtle in (False, True)
            )
            assert 0.3 * plain < faint < 0.9 * plain, name


def test_boxes_move_with_the_body() -> None:
    image = PhantomImage(1, as_state(["nodule_left"]), Shot())
    moved = replace(image, shot=Shot(shift_x=0.125, shift_y=-0.0625))  # 14 and 7 of 112 pixels
    (before,), (after,) = (boxes(i)["nodule_left"] for i in (image, moved))
    np.testing.assert_allclose(np.subtract(after, before), [0.125, -0.0625, 0.125, -0.0625], atol=1e-6)


def test_the_lateral_view_shows_what_it_can() -> None:
    base = PhantomImage(1, {}, Shot(), view="lateral")
    for name in VISIBLE:
        shown = replace(base, state=as_state([name]))
        change = np.abs(shown.pixels().astype(int) - base.pixels()).max()
        hidden = name.startswith(("pneumothorax", "rib_fracture"))
        assert (change == 0) if hidden else (change >= 10), name


def test_lungs_are_dark_and_the_heart_and_the_outside_are_as_on_a_film() -> None:
    pixels = PhantomImage(3, {}, Shot()).pixels().astype(float)
    lung, heart, liver, air = pixels[45:60, 25:35], pixels[70:80, 60:68], pixels[98:108, 30:50], pixels[0:6, 20:35]
    assert air.mean() < 40 < lung.mean() < heart.mean() - 60
    assert abs(liver.mean() - heart.mean()) < 60


def test_shapes_have_sharp_ends() -> None:
    film = Film(100, Shot())
    disc = ellipse(film, (0.0, 0.5), (0.2, 0.2), 0.02)
    distance = np.hypot(film.x, film.y - 0.5)
    assert (disc[distance > 0.22] == 0).all()
    assert (disc[distance < 0.18] == 1).all()
    hump = blob(film, (0.0, 0.5), (0.2, 0.2))
    assert (hump[distance > 0.2] == 0).all()
    line = tube(film, [(-0.3, 0.5), (0.3, 0.5)], 0.05, 0.01)
    assert line[50, 50] == 1
    assert (line[np.abs(film.y - 0.5) > 0.06] == 0).all()
    assert smooth_step(np.array([-1.0, 0.0, 1.0]), 0.5).tolist() == [0.0, 0.5, 1.0]


def test_a_curve_starts_and_ends_at_its_points() -> None:
    points = curve([(0.0, 0.0), (0.5, 1.0), (1.0, 0.0)], n=3)
    assert points == [
        (0.0, 0.0),
        (0.5, 0.5),
        (1.0, 0.0),
    ]  # a quadratic Bezier's middle is half way to its control point
