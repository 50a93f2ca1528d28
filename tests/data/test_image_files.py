"""Every image there is, by one function, and every way in which it can fail."""

import errno
import io
import os
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sae_lens_maira.data import FileImage, image_files
from sae_lens_maira.data.contact_sheet import contact_sheet
from sae_lens_maira.data.image_files import MAX_MEMORY, MAX_PIXELS, open_image
from sae_lens_maira.data.openi_images import find_images, image_key
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import ImageError, MissingImageError
from sae_lens_maira.maira2 import to_stretched_gray
from tests.data.dicom_files import dicom_file

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A whole PNG by its checksums, without a single row of pixels: what a bomb begins with."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + bytes([8, 0, 0, 0, 0]))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def every_way(path: Path):
    """Functions that open the file at a path, one for each way there is."""
    return {
        "path": lambda: to_stretched_gray(path),
        "string": lambda: to_stretched_gray(str(path)),
        "bytes": lambda: to_stretched_gray(path.read_bytes()),
        "manifest": lambda: to_stretched_gray(FileImage(path)),
        "opened": lambda: to_stretched_gray(FileImage(path).open()),
    }


@pytest.mark.parametrize("way", ["path", "string", "bytes", "manifest", "opened"])
@pytest.mark.parametrize("name", ["film.dcm", "film", "film.png"])
def test_dicom_opens_by_its_content_in_every_way(tmp_path, way, name):
    path = dicom_file(tmp_path / name, RAMP)
    expected = np.floor(RAMP / RAMP.max() * 255)
    assert np.array_equal(np.asarray(every_way(path)[way]()), expected)


def test_a_picture_that_is_called_dicom_opens_too(tmp_path):
    path = tmp_path / "picture.dcm"
    path.write_bytes(png(RAMP.astype(np.uint8)))
    assert np.asarray(open_image(path)).shape == (8, 8)


def test_an_archives_member_is_opened_like_a_file(tmp_path):
    contents = {"CXR1_1_IM-0001-1001.png": png(RAMP.astype(np.uint8)), "CXR2_1_IM-0002-1001.png": b"no image"}
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    found = find_images(tmp_path / "images.tar", {image_key(name) for name in contents})
    assert np.array_equal(np.asarray(found[image_key("CXR1_1_IM-0001-1001.png")][0].open()), RAMP.astype(np.uint8))
    with pytest.raises(ImageError, match=r"image at byte \d+ of '.*images\.tar' cannot be read"):
        found[image_key("CXR2_1_IM-0002-1001.png")][0].open()


@pytest.mark.parametrize("way", ["path", "string", "bytes", "manifest", "opened"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image at all", "cannot be read"),
        (b"", "cannot be read"),
        (png(RAMP)[:60], "cannot be read"),
        (png_header(20_000, 20_000), "too large to decode safely"),
        (png_header(13_000, 13_000), "too large to decode safely"),
        (png_header(0, 5), "cannot be read|no pixels"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 40, "cannot be read as DICOM"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
    ],
    ids=["text", "empty", "cut", "bomb", "large", "no rows", "dicom", "postscript"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_sound_image_is_refused_in_every_way(tmp_path, way, content, message):
    path = tmp_path / "film.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        every_way(path)[way]()
    assert way == "bytes" or "film.png'" in str(caught.value)


def test_a_picture_that_pillow_opened_is_decoded_with_the_same_care(tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(png_header(9000, 9000))
    with pytest.raises(ImageError, match=r"film\.png' is too large to decode safely: it has 81,000,000 pixels"):
        to_stretched_gray(Image.open(path))
    closed = Image.open(io.BytesIO(png(RAMP)))
    closed.close()
    with pytest.raises(ImageError, match="cannot be read"):
        to_stretched_gray(closed)


def test_large_arrays_are_refused():
    array = np.broadcast_to(np.uint8(0), (1 << 13, (1 << 13) + 1))
    with pytest.raises(ImageError, match="too large to decode safely"):
        to_stretched_gray(array)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.png", "does not exist"),
        ("file.png/within.png", "does not exist"),
        ("folder", "is no file"),
        ("pipe", "is no file"),
        ("x" * 5000, "File name too long"),
        ("nul\0byte.png", "is no path"),
    ],
)
def test_a_path_that_leads_nowhere(tmp_path, name, message):
    (tmp_path / "file.png").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match=message):
        FileImage(tmp_path / name).open()


def test_a_missing_file_is_also_a_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        FileImage(tmp_path / "nowhere.png").open()
    assert isinstance(caught.value, MissingImageError)


def test_a_file_larger_than_an_image_is_not_read(tmp_path):
    path = tmp_path / "film.png"
    with path.open("wb") as file:
        file.truncate((1 << 28) + 1)
    with pytest.raises(ImageError, match="has 268,435,457 bytes; the largest that are read have 268,435,456"):
        open_image(path)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_trouble_of_the_machine_is_no_fault_of_the_image(tmp_path, monkeypatch, number):
    path = tmp_path / "film.png"
    path.write_bytes(png(RAMP))

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        FileImage(path).open()
    assert not isinstance(caught.value, ImageError)
    assert caught.value.errno == number


def test_memory_that_runs_out_while_decoding_is_a_sentence(tmp_path, monkeypatch):
    path = tmp_path / "film.png"
    path.write_bytes(png(RAMP))

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(image_files.Image, "open", fail)
    with pytest.raises(ImageError, match=r"film\.png' needs more memory than there is"):
        open_image(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, np.nan], "NaN or infinite"),
        ([0.0, np.inf], "NaN or infinite"),
        ([-np.inf, 0.0], "NaN or infinite"),
        ([-1.7e308, 1.7e308], r"values from -1\.7e\+308 to 1\.7e\+308, which are too far apart"),
    ],
)
def test_floats_that_cannot_be_stretched_are_refused(values, message):
    for array in (np.array([values]), np.array([[[value] * 3 for value in values]])):
        with pytest.raises(ImageError, match=message):
            to_stretched_gray(array)


def test_float_extremes_that_can_be_stretched_are():
    assert np.asarray(to_stretched_gray(np.array([[0.0, 1e308, 1.7e308]]))).tolist() == [[0, 150, 255]]
    assert np.asarray(to_stretched_gray(np.array([[0.0, 5e-324]]))).tolist() == [[0, 255]]


def test_a_contact_sheet_shows_deep_images(tmp_path):
    """Pillow alone would show anything over 255 as white."""
    pixels = np.repeat(np.array([[0, 4000]], np.uint16), 4, axis=0).repeat(2, axis=1)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    for path in (tmp_path / "deep.png", dicom_file(tmp_path / "film", pixels)):
        sheet = np.asarray(contact_sheet([Study("s", "p", FileImage(path))], columns=1, image_side=64))
        assert (sheet[40, 12], sheet[40, 68]) == (0, 255)


# Memory. The images are the largest that are read, of each kind; a limit of the process is the judge.

_IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from sae_lens_maira.maira2 import to_stretched_gray
from sae_lens_maira.maira2.images import fit_to_crop
from sae_lens_maira.errors import ImageError
import pydicom.pixels, pydicom.pixels.processing
from PIL import Image
Image.init()

class Official:
    do_resize = do_center_crop = True
    size, crop_size, resample = {"shortest_edge": 518}, {"width": 518, "height": 518}, 3

now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
for path, n_bytes in zip(sys.argv[1::2], sys.argv[2::2]):
    resource.setrlimit(resource.RLIMIT_AS, (now + int(n_bytes), resource.RLIM_INFINITY))
    try:
        image = fit_to_crop(to_stretched_gray(path), Official)
        print(min(image.size), max(image.size))
    except ImageError as error:
        print(error)
"""


def open_in_little_memory(n_bytes: dict[Path, int]) -> list[str]:
    """What came of each path, with so many bytes more than Python and its libraries take."""
    pairs = [part for path, limit in n_bytes.items() for part in (str(path), str(limit))]
    run = subprocess.run(
        [sys.executable, "-c", _IN_LITTLE_MEMORY, *pairs],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.splitlines()


def save_large(folder: Path, kind: str) -> Path:
    """An image of as many pixels as are read."""
    side = 1 << 13
    line = (np.arange(side) % 4096).astype(np.uint16)
    path = folder / f"{kind}.image"
    if kind in ("grey16", "float", "dicom16"):
        pixels = np.broadcast_to(line, (side, side))
        if kind == "grey16":
            Image.fromarray(np.ascontiguousarray(pixels)).save(path, "png", compress_level=1)
        elif kind == "float":
            Image.fromarray(pixels[:, : side - 64].astype(np.float32)).save(path, "tiff")
        else:
            dicom_file(path, np.ascontiguousarray(pixels), "MONOCHROME1", WindowCenter=1000, WindowWidth=900)
    elif kind == "strip":
        Image.fromarray(np.arange(MAX_PIXELS // 2, dtype=np.uint32).astype(np.uint8).reshape(1, -1)).save(path, "png")
    else:
        colour = np.broadcast_to((line % 256).astype(np.uint8)[:, None], (side, side, 3))
        Image.fromarray(np.ascontiguousarray(colour)).save(path, kind)
    return path


_needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")


@_needs_limits
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grey16", "float", "dicom16", "strip", "png", "jpeg", "bmp", "tiff", "webp"])
def test_the_largest_images_stay_within_the_bound(tmp_path, kind):
    (outcome,) = open_in_little_memory({save_large(tmp_path, kind): MAX_MEMORY})
    assert outcome == "518 518"


@_needs_limits
def test_strips_and_bombs_take_little_memory(tmp_path):
    """Enlarged before it is cut, the strip would have 1.3 billion pixels; the bomb has 128 MiB in 128 KiB."""
    strip = tmp_path / "strip.png"
    Image.fromarray((np.arange(80_000) % 251).astype(np.uint8).reshape(4, 20_000)).save(strip)
    bomb = dicom_file(tmp_path / "bomb", np.zeros((1 << 12, 1 << 13), np.uint32), deflated=True)
    assert bomb.stat().st_size < 1 << 18
    of_strip, of_bomb = open_in_little_memory({strip: 1 << 27, bomb: 1 << 28})
    assert of_strip == "518 518"
    assert "too large to decode safely" in of_bomb
