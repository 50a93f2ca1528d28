"""The closed list of concepts, states, and what a change is."""

import pytest

from sae_lens_maira.phantom.world.concepts import (
    CONCEPTS,
    FAMILIES,
    TEXT_ONLY,
    VISIBLE,
    Appearance,
    as_state,
    compare,
    visible_labels,
)


def test_there_are_at_least_24_visible_concepts_beside_those_of_text() -> None:
    kinds = {
        kind: sum(concept.kind == kind for concept in CONCEPTS.values()) for kind in ("device", "pathology", "text")
    }
    assert kinds == {"device": 7, "pathology": 17, "text": 14}
    assert len(VISIBLE) == 24
    assert set(VISIBLE).isdisjoint(TEXT_ONLY)


@pytest.mark.parametrize(
    ("name", "now", "before", "change"),
    [
        ("pacemaker", {"pacemaker": Appearance()}, {}, "new"),
        ("pacemaker", {"pacemaker": Appearance()}, {"pacemaker": Appearance()}, "unchanged"),
        ("pacemaker", {}, {"pacemaker": Appearance()}, "removed"),
        ("pacemaker", {}, {}, None),
        ("edema", {"edema": Appearance(2)}, {"edema": Appearance(1)}, "larger"),
        ("edema", {"edema": Appearance(1)}, {"edema": Appearance(2)}, "smaller"),
        ("edema", {"edema": Appearance(1, subtle=True)}, {"edema": Appearance(1)}, "unchanged"),
        # Sizes of an effusion are one family ...
        (
            "effusion_left_large",
            {"effusion_left_large": Appearance(2)},
            {"effusion_left_small": Appearance(1)},
            "larger",
        ),
        ("effusion_left_small", {"effusion_left_large": Appearance(2)}, {"effusion_left_small": Appearance(1)}, None),
        ("effusion_left_large", {}, {"effusion_left_small": Appearance(1)}, "removed"),
        ("effusion_right_small", {}, {"effusion_left_small": Appearance(1)}, None),
        # ... positions of a tube have no order.
        (
            "endotracheal_tube_too_low",
            {"endotracheal_tube_too_low": Appearance()},
            {"endotracheal_tube_well_placed": Appearance()},
            "new",
        ),
    ],
)
def test_changes_are_measured_on_families(name: str, now: dict, before: dict, change: str | None) -> None:
    assert compare(name, now, before) == change


def test_without_a_prior_nothing_has_a_change() -> None:
    labels = visible_labels(as_state(["edema"]), None)
    assert {label.change for label in labels.values()} == {None}
    assert [name for name, label in labels.items() if label.positive] == ["edema"]


def test_a_state_is_put_in_order_and_bare_names_get_their_smallest_extent() -> None:
    state = as_state(["nodule_left", "effusion_right_large", "pacemaker"])
    assert list(state.items()) == [
        ("pacemaker", Appearance(1, False)),
        ("effusion_right_large", Appearance(2, False)),
        ("nodule_left", Appearance(1, False)),
    ]


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (["stethoscope"], "'stethoscope' is not a visible concept of the phantom; choose from: pacemaker, "),
        (["indication_fever"], "'indication_fever' is not a visible concept"),
        ({"pacemaker": Appearance(2)}, "pacemaker cannot look like Appearance"),
        ({"effusion_left_small": Appearance(1, subtle=True)}, "subtle allowed: False"),
        (["effusion_left_small", "effusion_left_large"], "they are states of one effusion_left"),
    ],
)
def test_a_state_that_cannot_be_is_refused(concepts: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_state(concepts)  # pyright: ignore[reportArgumentType]


def test_every_family_is_on_one_side() -> None:
    for members in FAMILIES.values():
        assert len({CONCEPTS[name].side for name in members}) == 1
