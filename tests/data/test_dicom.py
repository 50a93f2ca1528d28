"""DICOM radiographs, written here by pydicom."""

import builtins

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from sae_lens_maira.errors import ImageError
from sae_lens_maira.maira2 import to_stretched_grey

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60


@pytest.fixture
def write(tmp_path):
    def write_dicom(pixels, photometric="MONOCHROME2", name="film.dcm", **tags):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = tmp_path / name
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID = meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        is_colour = pixels.ndim == 3
        dataset.Rows, dataset.Columns = pixels.shape[:2]
        dataset.SamplesPerPixel = 3 if is_colour else 1
        if is_colour:
            dataset.PlanarConfiguration = 0
        dataset.PhotometricInterpretation = photometric
        dataset.BitsAllocated = 8 * pixels.dtype.itemsize
        dataset.BitsStored = dataset.BitsAllocated
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = 0
        dataset.PixelData = pixels.tobytes()
        for tag, value in tags.items():
            setattr(dataset, tag, value)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write_dicom


def grey(path):
    return np.array(to_stretched_grey(path)).astype(int)


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


def test_a_damaged_file_is_refused_by_name(write):
    path = write(RAMP)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError, match=r"film\.dcm' cannot be read as DICOM"):
        to_stretched_grey(path, "frontal image")


def test_without_pydicom_the_extra_is_named(write, monkeypatch):
    path = write(RAMP)
    real_import = builtins.__import__

    def import_without_pydicom(name, *args, **kwargs):
        if name.startswith("pydicom"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_pydicom)
    with pytest.raises(ImportError, match=r"pip install 'sae-lens-maira\[dicom\]'"):
        to_stretched_grey(path)
