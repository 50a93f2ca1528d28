"""DICOM radiographs, written here by pydicom."""

import builtins

import numpy as np
import pytest

from sae_lens_maira.data import FileImage
from sae_lens_maira.errors import ImageError, UserError
from sae_lens_maira.maira2 import to_stretched_gray
from tests.data.dicom_files import dicom_file

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60


@pytest.fixture
def write(tmp_path):
    def write_dicom(pixels, photometric="MONOCHROME2", name="film.dcm", **tags):
        return dicom_file(tmp_path / name, pixels, photometric, **tags)

    return write_dicom


def grey(path):
    return np.array(to_stretched_gray(path)).astype(int)


def test_monochrome2_is_stretched(write):
    assert (grey(write(RAMP)) == np.floor(RAMP / RAMP.max() * 255)).all()


def test_a_dicom_file_is_known_by_its_content(write):
    path = write(RAMP, name="film")
    assert (grey(path) == np.floor(RAMP / RAMP.max() * 255)).all()


def test_monochrome1_is_inverted(write):
    assert (grey(write(RAMP, "MONOCHROME1")) == np.floor((RAMP.max() - RAMP) / RAMP.max() * 255)).all()


def test_the_voi_window_is_respected(write):
    """PS3.3 C.11.2.1.2: values beyond centre - 0.5 ± (width - 1) / 2 are black or white."""
    plane = grey(write(RAMP, WindowCenter=1000, WindowWidth=201))
    assert (plane[RAMP <= 899] == 0).all()
    assert (plane[RAMP > 1100] == 255).all()
    inside = (RAMP > 899) & (RAMP <= 1100)
    expected = ((RAMP[inside] - 999.5) / 200 + 0.5) * 255
    assert inside.sum() == 4
    assert np.abs(plane[inside] - expected).max() <= 1


def test_the_modality_rescale_comes_before_the_window(write):
    shifted = write(RAMP, RescaleSlope=2, RescaleIntercept=-500, WindowCenter=1500, WindowWidth=401)
    plain = write(RAMP, name="plain.dcm", WindowCenter=1000, WindowWidth=201)
    assert np.abs(grey(shifted) - grey(plain)).max() <= 1


def test_colour_becomes_luma(write):
    colour = np.zeros((1, 3, 3), dtype=np.uint8)
    colour[0, 0, 0] = colour[0, 1, 1] = colour[0, 2, 2] = 200
    assert grey(write(colour, "RGB")).tolist() == [[99, 255, 0]]


def test_colours_stored_as_ybr_are_converted_once(write):
    """Red, green and blue of 200 in YBR_FULL (PS3.3 C.7.6.3.1.2), rounded."""
    ybr = np.array([[[60, 94, 228], [117, 62, 44], [23, 228, 112]]], dtype=np.uint8)
    assert np.abs(grey(write(ybr, "YBR_FULL")) - [[99, 255, 0]]).max() <= 2


def test_of_several_frames_the_first_is_taken(write):
    frames = np.concatenate([RAMP, RAMP[::-1] * 2])
    path = write(frames, NumberOfFrames=2, Rows=8)
    assert (grey(path) == np.floor(RAMP / RAMP.max() * 255)).all()


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 65535, "Columns": 65535}, "too large to decode safely"),
        ({"Rows": 0}, "cannot be read as DICOM"),
        ({"Rows": 9}, "cannot be read as DICOM"),
        ({"BitsAllocated": 7}, "cannot be read as DICOM"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported photometric interpretation PALETTE COLOR"),
        ({"WindowCenter": 1, "WindowWidth": 0}, "cannot be read as DICOM"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(write, tags, message):
    path = write(RAMP, **tags)
    for image in (path, FileImage(path)):
        with pytest.raises(ImageError, match=message):
            to_stretched_gray(image)


def test_a_deflated_file_opens(write):
    assert (grey(write(RAMP, deflated=True)) == np.floor(RAMP / RAMP.max() * 255)).all()


def test_a_damaged_file_is_refused_by_name(write):
    path = write(RAMP)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError, match=r"film\.dcm' cannot be read as DICOM"):
        to_stretched_gray(path, "frontal image")


def test_without_pydicom_the_extra_is_named(write, monkeypatch):
    path = write(RAMP)
    real_import = builtins.__import__

    def import_without_pydicom(name, *args, **kwargs):
        if name.startswith("pydicom"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_pydicom)
    with pytest.raises(ImportError, match=r"pip install 'sae-lens-maira\[dicom\]'") as caught:
        to_stretched_gray(path)
    assert isinstance(caught.value, UserError)
    assert not isinstance(caught.value, ImageError)  # no study is to be left out for it
