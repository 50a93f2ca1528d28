"""Open-i: invented reports in its format, and the 3,955 real ones."""

import io
import pickle
import tarfile
import textwrap
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest

from sae_lens_maira import phantom
from sae_lens_maira.data import FileImage
from sae_lens_maira.data.openi_reports import packaged_reports, parse_openi_report, read_reports
from sae_lens_maira.data.sections import parse_sections
from sae_lens_maira.data.source import OpeniConfig
from sae_lens_maira.data.study import Label
from sae_lens_maira.errors import SourceError
from sae_lens_maira.phantom.world.scene import PhantomImage
from sae_lens_maira.sources import open_source
from tests.damage import check_sentence
from tests.data.miniature_openi import add_images, openi, write_archive, write_report

SECTIONS = ("INDICATION", "COMPARISON", "FINDINGS", "IMPRESSION")


@pytest.fixture
def reports():
    return {
        "2.xml": write_report(2, major=["Cardiomegaly/mild"], automatic=["Cardiomegaly"]),
        "10.xml": write_report(10, images=1, findings="Clear.", major=["normal"]),
        "3.xml": write_report(3, findings="", major=["No Indexing"]),
        "4.xml": write_report(4, findings="", impression=""),
        "5.xml": write_report(5, images=0),
    }


@pytest.fixture
def folder(tmp_path, reports):
    root = tmp_path / "openi"
    root.mkdir()
    for name, xml in reports.items():
        (root / name).write_bytes(xml)
    return root


def test_studies_of_a_folder_with_images(folder):
    add_images(folder, "CXR2_IM-0002-1001", "CXR2_IM-0002-2001", "CXR10_IM-0010-1001", "CXR3_IM-0003-1001")
    source = openi(folder)
    assert [study.study_id for study in source] == ["CXR2", "CXR10"]
    assert source.unusable == {"no findings": 2, "no frontal image": 1}
    first, second = source
    assert first.indication == "Cough & fever"
    assert (first.comparison, first.findings, first.technique) == ("None.", "Small left effusion.", None)
    assert first.view == "PA"
    assert not first.shareable
    assert first.labels == {
        "Cardiomegaly": Label("present"),
        "Cardiomegaly/mild": Label("present"),
        "automatic/Cardiomegaly": Label("present"),
    }
    assert first.lateral is not None
    assert [np.asarray(image.open())[0, 0] for image in (first.frontal, first.lateral, second.frontal)] == [1, 2, 3]
    assert second.lateral is None
    assert second.prior_frontal is None


def test_an_impression_can_stand_in_for_missing_findings(folder):
    add_images(folder, "CXR3_IM-0003-1001")
    source = openi(folder, missing_findings="substitute")
    assert [(study.study_id, study.findings) for study in source] == [("CXR3", "Effusion.")]
    assert source.unusable["no findings"] == 1


def test_a_table_of_projections_says_which_image_is_frontal(folder):
    add_images(folder, "CXR2_IM-0002-1001", "CXR2_IM-0002-2001", "CXR10_IM-0010-1001")
    (folder / "indiana_projections.csv").write_text(
        "uid,filename,projection\n2,2_IM-0002-1001.dcm.png,Lateral\n2,2_IM-0002-2001.dcm.png,Frontal\n"
        "10,10_IM-0010-1001.dcm.png,Lateral\n"
    )
    (study,) = openi(folder)
    assert study.lateral is not None
    assert [np.asarray(image.open())[0, 0] for image in (study.frontal, study.lateral)] == [2, 1]


def test_an_archive_gives_what_a_folder_gives(folder, tmp_path, reports):
    add_images(folder, "CXR2_IM-0002-1001", "CXR10_IM-0010-1001")
    archive = write_archive(tmp_path / "reports.tgz", {f"deep/er/{name}": xml for name, xml in reports.items()})
    images = {f"x/{path.name}": path.read_bytes() for path in folder.glob("*.png")}
    tar = write_archive(tmp_path / "images.tar", images, "w")
    packed, plain = openi(archive, images=str(tar)), openi(folder)
    assert packed.description["content"] == plain.description["content"]
    for one, other in zip(packed, plain, strict=True):
        np.testing.assert_array_equal(np.asarray(one.frontal.open()), np.asarray(other.frontal.open()))
        assert (one.study_id, one.findings) == (other.study_id, other.findings)
    again = pickle.loads(pickle.dumps(packed))
    assert np.asarray(again[0].frontal.open()).shape == (4, 4)


def test_nothing_is_written_and_no_link_is_followed(tmp_path, reports):
    path = tmp_path / "in" / "reports.tar"
    path.parent.mkdir()
    (tmp_path / "secret.xml").write_bytes(write_report(99))
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"{kind!r}.xml")
            link.type, link.linkname = kind, "../secret.xml"
            archive.addfile(link)
        outside = tarfile.TarInfo("../../outside.xml")
        outside.size = len(reports["2.xml"])
        archive.addfile(outside, io.BytesIO(reports["2.xml"]))
    source = openi(path, missing_images="phantom")
    assert [study.study_id for study in source] == ["CXR2"]
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["in", "reports.tar", "secret.xml"]


def test_the_content_is_part_of_the_fingerprint(folder):
    add_images(folder, "CXR2_IM-0002-1001")
    fingerprints = {openi(folder).fingerprint}
    fingerprints.add(openi(folder, missing_images="phantom").fingerprint)
    add_images(folder, "CXR10_IM-0010-1001")
    fingerprints.add(openi(folder).fingerprint)
    (folder / "2.xml").write_bytes(write_report(2, findings="Large left effusion."))
    fingerprints.add(openi(folder).fingerprint)
    assert len(fingerprints) == 4
    assert openi(folder).fingerprint == openi(folder, shareable=True).fingerprint


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]>',
        '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_and_with_them_entities_are_refused(doctype, encoding):
    xml = f'<?xml version="1.0" encoding="{encoding}"?>{doctype}<a><uId id="CXR1"/></a>'.encode(encoding)
    with pytest.raises(SourceError, match="'evil.xml' declares a document type"):
        parse_openi_report(xml, "evil.xml")


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (b"<a>", "'r.xml' is not valid XML"),
        (b"<a>&x;</a>", "'r.xml' is not valid XML"),
        (b"", "'r.xml' is not valid XML"),
        (b"<a/>", "'r.xml' is not an Open-i report: it has no uId"),
    ],
)
def test_what_is_no_report_is_named(xml, message):
    with pytest.raises(SourceError, match=message):
        parse_openi_report(xml, "r.xml")


def test_what_is_no_source_is_named(tmp_path, folder):
    with pytest.raises(SourceError, match="There is no folder or archive of Open-i reports"):
        openi(tmp_path / "none")
    (tmp_path / "broken.tgz").write_bytes(b"no archive")
    with pytest.raises(SourceError, match=r"broken\.tgz' is not a complete archive"):
        openi(tmp_path / "broken.tgz")
    whole = write_archive(tmp_path / "cut.tgz", {"1.xml": write_report(1) + bytes(range(256)) * 40}).read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"cut\.tgz' is not a complete archive"):
        openi(tmp_path / "cut.tgz")
    with pytest.raises(
        SourceError, match=r"holds no study that can be used: no frontal image \(3\), no findings \(2\)"
    ):
        openi(folder)
    with pytest.raises(SourceError, match="There are no Open-i images"):
        openi(folder, images=str(tmp_path / "none"))
    with pytest.raises(SourceError, match=r"broken\.tgz' is neither a folder of images nor a \.tar or \.tgz of them"):
        openi(folder, images=str(tmp_path / "broken.tgz"))
    (folder / "9.xml").write_bytes(b" " * (1 << 20) + b" ")
    with pytest.raises(SourceError, match=r"'9\.xml' in .* has 1048577 bytes; no Open-i report is larger"):
        openi(folder)


def test_tags_become_labels():
    xml = write_report(1, major=["Pleural Effusion/left/small", "No Indexing"], automatic=["effusion"])
    assert parse_openi_report(xml).labels == {
        "Pleural Effusion": Label("present"),
        "Pleural Effusion/left/small": Label("present"),
        "automatic/effusion": Label("present"),
    }


def test_drawn_images_show_the_tags(folder):
    (folder / "2.xml").write_bytes(write_report(2, major=["Implanted Medical Device/left"]))
    first, second, third = openi(folder, missing_images="phantom")
    assert (first.study_id, second.study_id, third.study_id) == ("CXR2", "CXR5", "CXR10")
    assert isinstance(first.frontal, PhantomImage)
    assert list(first.frontal.state) == ["pacemaker"]
    assert first.lateral is not None
    assert third.lateral is None
    np.testing.assert_array_equal(
        np.asarray(first.frontal.open()), np.asarray(openi(folder, missing_images="phantom")[0].frontal.open())
    )
    assert first.frontal.open().size == (phantom.IMAGE_SIZE, phantom.IMAGE_SIZE)


def test_real_images_are_preferred_to_drawn_ones(folder):
    add_images(folder, "CXR2_IM-0002-1001")
    first, *others = openi(folder, missing_images="phantom")
    assert isinstance(first.frontal, FileImage)
    assert first.lateral is None
    assert all(isinstance(study.frontal, PhantomImage) for study in others)


@pytest.fixture(scope="module")
def labeled():
    """Every real report, and its sections as its own XML labels them, read independently of the package's parser."""
    found = {}
    for name, xml in read_reports(packaged_reports()):
        elements = ElementTree.fromstring(xml).iter("AbstractText")
        found[name] = xml, {element.get("Label"): " ".join((element.text or "").split()) for element in elements}
    return found


def test_all_real_reports_parse_into_the_sections_that_their_xml_labels(labeled):
    assert len(labeled) == 3955
    for name, (xml, sections) in labeled.items():
        report = parse_openi_report(xml, name)
        parsed = [report.indication, report.comparison, report.findings, report.impression]
        assert parsed == [sections[section] or None for section in SECTIONS]
        assert report.license == "http://creativecommons.org/licenses/by-nc-nd/4.0/"


def test_all_real_reports_are_studies_or_counted():
    source = open_source(OpeniConfig(missing_images="phantom"))
    assert (len(source), source.unusable) == (3425, {"no findings": 530})
    source = open_source(OpeniConfig(missing_images="phantom", missing_findings="substitute"))
    assert (len(source), source.unusable) == (3927, {"no findings": 28})
    drawn = Counter(name for study in source for name in study.frontal.state)  # pyright: ignore[reportAttributeAccessIssue]
    assert drawn["cardiomegaly"] > 300
    assert len(drawn) > 20
    ids = [int(study.study_id.removeprefix("CXR")) for study in source]
    assert ids == sorted(ids)


def written_as(sections, names, preamble, *, dense, one_line):
    """A report as free text of 78 columns."""
    lines = list(preamble)
    for section in SECTIONS:
        if sections[section]:
            lines += textwrap.wrap(
                f"{names[section]}: {sections[section]}", 78, break_long_words=False, break_on_hyphens=False
            )
            lines += [] if dense else [" "]
    return " ".join(line.strip() for line in lines) if one_line else "\n".join(f" {line}" for line in lines)


STYLES = {
    "mimic": ({}, ["FINAL REPORT", "EXAMINATION: CHEST (PA AND LAT)", " "], {}),
    "dense": ({}, ["FINAL REPORT"], {"dense": True}),
    "capitalized": ({section: section.capitalize() for section in SECTIONS}, [], {"dense": True}),
    "synonyms": (
        {"INDICATION": "REASON FOR EXAM", "COMPARISON": "COMPARISON FILM", "IMPRESSION": "CONCLUSION"},
        ["FINAL REPORT", "CHEST RADIOGRAPH PERFORMED ON ___.", " "],
        {},
    ),
    "wet read": (
        {"INDICATION": "CLINICAL HISTORY", "COMPARISON": "COMPARISONS"},
        ["WET READ: ___ 9:14 PM", " IMPRESSION: No pneumonia.", "_" * 78, "FINAL REPORT"],
        {},
    ),
    "one line": ({}, ["FINAL REPORT"], {"one_line": True}),
}


@pytest.mark.parametrize("style", STYLES)
def test_the_free_text_parser_recovers_the_labeled_sections(labeled, style):
    names, preamble, layout = STYLES[style]
    n_exact, n_whole = Counter(), 0
    for _, sections in labeled.values():
        text = written_as(
            sections, {**{s: s for s in SECTIONS}, **names}, preamble, **{"dense": False, "one_line": False, **layout}
        )
        parsed = parse_sections(text)
        exact = [getattr(parsed, section.lower()) == (sections[section] or None) for section in SECTIONS]
        n_exact.update(section for section, right in zip(SECTIONS, exact, strict=True) if right)
        n_whole += all(exact)
    # The others hold a heading inside a section, such as "INDICATION: INDICATION: PAIN".
    assert min(n_exact[section] / len(labeled) for section in SECTIONS) >= 0.995
    assert n_whole / len(labeled) >= 0.995


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_every_flipped_bit_of_an_archive_changes_nothing_or_is_noticed(tmp_path, mode):
    path = write_archive(tmp_path / "reports.tgz", {f"{n}.xml": write_report(n) for n in range(12)}, mode)
    whole, expected = path.read_bytes(), list(read_reports(path))
    assert len(expected) == 12
    with tarfile.open(path) as archive:
        headers = [member.offset for member in archive]
    draw = np.random.default_rng(0)
    n_noticed = 0
    # Beyond the header of gzip. A plain archive has checksums of its headers only, so only those are damaged there.
    places = draw.integers(10, len(whole), 60) if mode == "w:gz" else draw.choice(headers, 60) + 60
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << draw.integers(8))]) + whole[place + 1 :])
        try:
            assert list(read_reports(path)) == expected
        except SourceError as error:
            check_sentence(str(error), "reports.tgz")
            n_noticed += 1
    assert n_noticed > 55


def test_the_archive_of_reports_is_read_to_its_checksum(tmp_path):
    path = write_archive(tmp_path / "reports.tgz", {"1.xml": write_report(1)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    with pytest.raises(
        SourceError, match=r"reports\.tgz' is not a complete archive of Open-i reports \(CRC check failed"
    ):
        openi(path, missing_images="phantom")


@pytest.mark.parametrize("encoding", ["klingon", "utf-7", "utf-32", "shift_jis", "idna", "hex"])
def test_an_encoding_that_xml_readers_do_not_know_is_one_sentence(encoding):
    xml = f'<?xml version="1.0" encoding="{encoding}"?><a><uId id="CXR1"/></a>'.encode()
    with pytest.raises(SourceError, match=r"'r\.xml' is not valid XML \(.*\)\."):
        parse_openi_report(xml, "r.xml")


def test_two_reports_with_one_id_are_refused(folder):
    (folder / "copy.xml").write_bytes(write_report(2))
    with pytest.raises(SourceError, match="holds 2 reports with the id 'CXR2'; remove all but one"):
        openi(folder, missing_images="phantom")


def test_a_damaged_table_of_projections_is_named_with_its_line(folder):
    add_images(folder, "CXR2_IM-0002-1001")
    (folder / "indiana_projections.csv").write_text("uid,filename,projection\n2,2_IM-0002-1001.dcm.png\n")
    with pytest.raises(SourceError, match=r"indiana_projections\.csv' line 2: the row has 2 values"):
        openi(folder)
