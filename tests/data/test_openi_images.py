"""Open-i's images in a compressed archive: unpacked once, gone on with, and never outside of the cache."""

import io
import json
import logging
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sae_lens_maira.data import FileImage
from sae_lens_maira.errors import SourceError
from tests.data.miniature_openi import openi, write_archive, write_report

N_REPORTS = 4
NAMES = [f"CXR{number}_IM-{number:04d}-{view}001" for number in range(1, N_REPORTS + 1) for view in (1, 2)]


def png(value):
    file = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (24, 24), np.uint8)
    pixels[0, 0] = value
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


CONTENTS = {name: png(value) for value, name in enumerate(NAMES)}


@pytest.fixture
def reports(tmp_path):
    return write_archive(
        tmp_path / "reports.tgz", {f"{number}.xml": write_report(number) for number in range(1, N_REPORTS + 1)}
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_LENS_MAIRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openi-images"


@pytest.fixture
def images(tmp_path):
    files = {f"./{name}.png": content for name, content in CONTENTS.items()}
    return write_archive(tmp_path / "NLMCXR_png.tgz", {"README": b"about", **files, "./CXR99_IM-0099-1001.png": b"x"})


def unpacked(cache):
    return {path.name: path.read_bytes() for path in cache.glob("*/*") if path.suffix != ".json"}


def expected(names=NAMES):
    return {f"{name.removeprefix('CXR')}.png": CONTENTS[name] for name in names}


def first_pixels(source):
    return [
        np.asarray(image.open())[0, 0]
        for study in source
        for image in (study.frontal, study.lateral)
        if image is not None
    ]


def test_the_images_that_reports_name_are_unpacked_and_are_the_folders(tmp_path, reports, images, cache, caplog):
    with caplog.at_level(logging.INFO):
        source = openi(reports, images=str(images))
    assert first_pixels(source) == list(range(len(NAMES)))
    assert unpacked(cache) == expected()
    start, end = (record.getMessage() for record in caplog.records if "NLMCXR_png.tgz" in record.getMessage())
    assert start.startswith("Unpacking the images of")
    assert str(cache) in start
    assert end.startswith("8 images of 'NLMCXR_png.tgz' (0 MB) are in")
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, content in CONTENTS.items():
        (plain / f"{name}.png").write_bytes(content)
    assert source.description["content"] == openi(reports, images=str(plain)).description["content"]
    again = pickle.loads(pickle.dumps(source))
    assert isinstance(again[0].frontal, FileImage)
    assert first_pixels(again) == list(range(len(NAMES)))


def test_a_second_opening_does_not_read_the_archive(reports, images, caplog):
    fingerprint = openi(reports, images=str(images)).fingerprint
    status = images.stat()
    images.write_bytes(b"\x1f\x8b" + bytes(status.st_size - 2))
    os.utime(images, ns=(status.st_atime_ns, status.st_mtime_ns))
    with caplog.at_level(logging.INFO):
        source = openi(reports, images=str(images))
    assert source.fingerprint == fingerprint
    assert first_pixels(source) == list(range(len(NAMES)))
    assert "Unpacking" not in caplog.text
    os.utime(images, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(SourceError, match="is not a complete"):
        openi(reports, images=str(images))


def test_an_archive_that_changed_is_unpacked_anew(tmp_path, reports, images, cache):
    openi(reports, images=str(images))
    write_archive(
        images, {f"{name}.png": content for name, content in zip(NAMES, reversed(CONTENTS.values()), strict=True)}
    )
    assert first_pixels(openi(reports, images=str(images))) == list(reversed(range(len(NAMES))))
    assert len(list(cache.iterdir())) == 2


def test_other_reports_and_lost_files_are_unpacked_later(tmp_path, reports, images, cache):
    few = write_archive(tmp_path / "few.tgz", {"2.xml": write_report(2)})
    alone = openi(few, images=str(images))
    assert unpacked(cache) == expected(NAMES[2:4])
    openi(reports, images=str(images))
    assert unpacked(cache) == expected()
    assert openi(few, images=str(images)).fingerprint == alone.fingerprint
    next(cache.glob("*/3_IM-0003-1001.png")).unlink()
    assert first_pixels(openi(reports, images=str(images))) == list(range(len(NAMES)))


@pytest.mark.parametrize("n_written", range(len(NAMES) + 1))
def test_an_interrupted_unpacking_goes_on(reports, images, cache, monkeypatch, n_written):
    replace, renamed = Path.replace, []

    def interrupted(self, target):
        if len(renamed) == n_written:
            raise KeyboardInterrupt
        renamed.append(target)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            openi(reports, images=str(images))
    assert unpacked(cache) == expected(NAMES[:n_written])
    assert not list(cache.rglob("*.json"))
    (cache / "left-by-a-kill").mkdir()
    before = {path.name: path.stat() for path in cache.glob("*/*.png")}
    (folder,) = {path.parent for path in cache.glob("*/*.png")} or {next(iter(cache.iterdir()))}
    (folder / f".{NAMES[0]}.png-killed.part").write_bytes(b"half")
    assert first_pixels(openi(reports, images=str(images))) == list(range(len(NAMES)))
    after = {path.name: path.stat() for path in cache.glob("*/*.png")}
    assert {name: (after[name].st_ino, after[name].st_mtime_ns) for name in before} == {
        name: (status.st_ino, status.st_mtime_ns) for name, status in before.items()
    }


def test_hostile_members_are_passed_over(tmp_path, reports, cache):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(77))
    path = tmp_path / "in" / "images.tgz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:

        def add(name, content=b"", kind=tarfile.REGTYPE, target=""):
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, target
            archive.addfile(member, io.BytesIO(content))

        add(f"../{NAMES[0]}.png", png(70))
        add(f"a/../../{NAMES[0]}.png", png(70))
        add(f"/{NAMES[1]}.png", png(71))
        add(str(tmp_path / f"{NAMES[1]}.png"), png(71))
        for kind, name in zip(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE), NAMES[2:6], strict=True
        ):
            add(f"{name}.png", kind=kind, target=str(secret))
        add("d", kind=tarfile.SYMTYPE, target=str(tmp_path))
        add(f"d/{NAMES[6]}.png", CONTENTS[NAMES[6]])
        add(f"e/{NAMES[6]}.png", png(76))
        add(f"..\\\x01{NAMES[7]}.png", CONTENTS[NAMES[7]])
    before = set(tmp_path.rglob("*"))
    (study,) = openi(reports, images=str(path))
    assert study.study_id == "CXR4"
    assert unpacked(cache) == expected(NAMES[6:])
    new = set(tmp_path.rglob("*")) - before
    assert all(file.is_relative_to(tmp_path / "cache") and not file.is_symlink() for file in new)


@pytest.mark.parametrize("damage", ["", "{", "[]", "[" * 100_000, json.dumps({NAMES[0]: "../../x.png"}), '{"a": 3}'])
def test_a_damaged_list_of_what_was_unpacked_is_made_again(reports, images, cache, damage):
    before = [study.study_id for study in openi(reports, images=str(images))]
    (marker,) = cache.rglob("unpacked.json")
    written = marker.read_text()
    marker.write_text(damage)
    assert [study.study_id for study in openi(reports, images=str(images))] == before
    assert marker.read_text() == written


def test_an_image_that_is_too_large_is_refused(tmp_path, reports, cache):
    path = write_archive(tmp_path / "bomb.tgz", {f"{NAMES[0]}.png": bytes((1 << 26) + 1)})
    with pytest.raises(
        SourceError, match=r"'CXR1_IM-0001-1001\.png' in .*bomb\.tgz' has 67108865 bytes; no Open-i image"
    ):
        openi(reports, images=str(path))
    assert unpacked(cache) == {}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_archive_that_is_cut_short_or_damaged_is_named_and_leaves_nothing(reports, images, cache, data):
    whole = images.read_bytes()
    # The header of 10 bytes and the file's name come first; damage to them does no harm.
    position = data.draw(st.integers(32, len(whole) - 1))
    is_cut = data.draw(st.booleans())
    damaged = images.with_name("damaged.tgz")
    damaged.write_bytes(
        whole[:position] if is_cut else whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
    )
    with pytest.raises(
        SourceError, match=r"^'.*damaged\.tgz' is not a complete \.tgz of images \([^\n]*\); download it again\.$"
    ):
        openi(reports, images=str(damaged))
    assert not cache.exists() or list(cache.iterdir()) == []
