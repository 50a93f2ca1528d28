"""Any radiograph to stretched 8-bit grey."""

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from sae_lens_maira.errors import ImageError
from sae_lens_maira.maira2 import FindingsPrompt, to_stretched_gray
from sae_lens_maira.maira2.images import fit_to_crop


def stretched_by_hand(plane):
    plane = np.asarray(plane, dtype=float)
    return np.floor((plane - plane.min()) / (plane - plane.min()).max() * 255)


def test_8_bit_grey_is_stretched_and_truncated():
    image = np.array([[10, 20], [30, 61]], dtype=np.uint8)
    # (20 - 10) / 51 * 255 = 50, (30 - 10) / 51 * 255 = 100
    assert np.array(to_stretched_gray(image)).tolist() == [[0, 50], [100, 255]]


@given(st_numpy.arrays(np.uint8, (3, 4), elements=st.integers(0, 255)).filter(lambda plane: plane.min() < plane.max()))
@settings(deadline=None)
def test_arrays_and_pil_images_agree(plane):
    from_array = np.array(to_stretched_gray(plane))
    assert (from_array == np.array(to_stretched_gray(Image.fromarray(plane)))).all()
    assert from_array.min() == 0
    assert from_array.max() == 255


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (1000, 4095), (300, 900)])
def test_16_bit_keeps_its_gradations(low, high, tmp_path):
    """PIL's own conversion to 8 bits clips everything over 255 to white."""
    plane = np.linspace(low, high, 64).astype(np.uint16).reshape(8, 8)
    path = tmp_path / "deep.png"
    Image.fromarray(plane).save(path)
    for image in (plane, Image.open(path), path, str(path)):
        grey = np.array(to_stretched_gray(image))
        assert len(np.unique(grey)) == 64
        # One step of tolerance: the hand formula divides and multiplies in another order.
        assert np.abs(grey - stretched_by_hand(plane)).max() <= 1


def test_float_images_of_any_range():
    plane = np.array([[-1.5, 0.0], [0.25, 2.5]])
    expected = [[0, 95], [111, 255]]  # 1.5 / 4 * 255 = 95.6, 1.75 / 4 * 255 = 111.6
    for image in (plane, plane.astype(np.float32), Image.fromarray(plane.astype(np.float32))):
        assert np.array(to_stretched_gray(image)).tolist() == expected


def test_colour_becomes_luma():
    colour = np.zeros((1, 3, 3), dtype=np.uint8)
    colour[0, 0, 0] = colour[0, 1, 1] = colour[0, 2, 2] = 200
    pil = np.array(Image.fromarray(colour).convert("L")).astype(float)
    expected = stretched_by_hand(pil)
    opaque = np.concatenate([colour, np.full((1, 3, 1), 255, np.uint8)], axis=-1)
    for image in (colour, Image.fromarray(colour), opaque, Image.fromarray(opaque)):
        assert (np.array(to_stretched_gray(image)) == expected).all()


def test_deep_colour_becomes_luma():
    colour = np.zeros((1, 3, 3), dtype=np.uint16)
    colour[0, 0, 0] = colour[0, 1, 1] = colour[0, 2, 2] = 50000
    # (0.299 - 0.114) / (0.587 - 0.114) * 255 = 99.7
    assert np.array(to_stretched_gray(colour)).tolist() == [[99, 255, 0]]


def test_palette_black_and_white_and_one_channel_images():
    plane = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    for image in (
        Image.fromarray(plane).convert("P"),
        Image.fromarray(plane).convert("1"),
        Image.fromarray(plane).convert("LA"),
        plane[..., None],
        plane > 0,
    ):
        assert (np.array(to_stretched_gray(image)) == plane).all()


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_image_is_refused(value):
    with pytest.raises(ImageError, match="The lateral image is constant"):
        to_stretched_gray(np.full((4, 4), value, dtype=np.uint8), "lateral image")


def test_a_truncated_file_is_refused_by_name(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(buffer, "png")
    path = tmp_path / "cut.png"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    for image in (path, Image.open(path)):
        with pytest.raises(ImageError, match=r"The frontal image '.*cut\.png' cannot be read"):
            to_stretched_gray(image, "frontal image")


def test_a_text_file_and_a_missing_file_are_refused_by_name(tmp_path):
    path = tmp_path / "report.png"
    path.write_text("no image")
    with pytest.raises(ImageError, match=r"report\.png' cannot be read"):
        to_stretched_gray(path)
    with pytest.raises(ImageError, match=r"nowhere\.png' does not exist"):
        to_stretched_gray(tmp_path / "nowhere.png")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.array([[1.0, np.nan]]), "NaN or infinite"),
        (np.array([[1.0, np.inf]]), "NaN or infinite"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros((4,), np.uint8), r"has shape \(4,\)"),
        (np.zeros((4, 4, 2), np.uint8), r"has shape \(4, 4, 2\)"),
        (np.array([["a"]]), "values of type"),
        (object(), "is a object; expected a PIL image"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ImageError, match=message):
        to_stretched_gray(image)


def test_the_processor_names_the_image_that_is_wrong(processor, frontal):
    with pytest.raises(ImageError, match="The prior image is constant"):
        processor(FindingsPrompt(frontal, prior=np.zeros((80, 80), np.uint8)))


def test_pixel_values_by_hand(processor):
    """A square image of the model's size is only stretched, scaled and normalised."""
    plane = np.arange(70 * 70).reshape(70, 70) % 256
    inputs = processor(FindingsPrompt(plane.astype(np.uint8)))
    expected = (plane / 255 - 0.5307) / 0.2583
    assert inputs["pixel_values"].shape == (1, 3, 70, 70)
    for channel in inputs["pixel_values"][0].numpy():
        assert np.abs(channel - expected).max() < 1e-6


sides = st.integers(1, 400)


def pixels_both_ways(processor, width, height, seed=0):
    """Grey levels of the processor's pixel values; those of Pillow's whole resized image; and the fitted image."""
    plane = np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8)
    image = Image.fromarray(plane)
    fitted = fit_to_crop(image, processor.image_processor)
    pixels = np.asarray(processor.image_processor(fitted, return_tensors="np")["pixel_values"])[0, 0]
    size = (70, int(70 * height / width)) if width <= height else (int(70 * width / height), 70)
    left, top = (size[0] - 70) // 2, (size[1] - 70) // 2
    expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC))[top : top + 70, left : left + 70]
    return np.rint((pixels * 0.2583 + 0.5307) * 255), expected.astype(float), fitted


@given(short=sides, ratio=st.floats(1, 7.99), is_tall=st.booleans(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fitting_changes_no_pixel(processor, short, ratio, is_tall, seed):
    size = (short, int(short * ratio)) if is_tall else (int(short * ratio), short)
    found, expected, _ = pixels_both_ways(processor, *size, seed)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "size", [(3000, 3), (3, 3000), (701, 70), (70, 999), (5000, 1), (1, 5000), (60, 6000), (8000, 90)]
)
def test_a_strip_is_cut_to_its_middle_before_it_is_enlarged(processor, size):
    """No value is off by more than the rounding of one grey level, and hardly one by that."""
    found, expected, fitted = pixels_both_ways(processor, *size)
    assert fitted.size == (70, 70)
    assert np.abs(found - expected).max() < 1.01
    assert (found != expected).mean() < 0.001


@pytest.mark.parametrize("size", [(90, 8000), (700, 6000)])
def test_a_tall_strip_that_is_shrunk_keeps_its_place(processor, size):
    """Pillow shrinks tall images column first, and so rounds in another order; a shift by one row would be seen."""
    found, expected, fitted = pixels_both_ways(processor, *size)
    assert fitted.size == (70, 70)
    assert np.abs(found - expected).mean() < 0.5
    assert np.abs(found[..., 1:, :] - expected[..., :-1, :]).mean() > 5
