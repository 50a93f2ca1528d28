"""Open-i's reports: one XML file each, from a folder or from an archive that is read in place, never unpacked.

The format: ``AbstractText`` elements labeled COMPARISON, INDICATION, FINDINGS and IMPRESSION; MeSH tags, the ``major``
ones given by people and the ``automatic`` ones by a program; and one ``parentImage`` per image, whose id is the image's
file name. A tag is a heading and its qualifiers: ``Pleural Effusion/left/small``.

The files come from elsewhere, so they are read with care: document types, and hence entities, are refused, and so are
files that are larger than any report.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from sae_lens_maira.data.archives import DamagedArchive, read_members
from sae_lens_maira.data.study import Label
from sae_lens_maira.errors import SourceError, printable, quoted

_LARGEST_REPORT = 1 << 20
_SECTIONS = ("indication", "comparison", "findings", "impression")
_UNINDEXED = "No Indexing"


@dataclass(frozen=True, slots=True)
class OpeniReport:
    """One report. Runs of white space in its texts are single spaces; an empty section is None."""

    report_id: str
    indication: str | None
    comparison: str | None
    findings: str | None
    impression: str | None
    major: tuple[str, ...]
    """MeSH tags given by people: a heading and its qualifiers, joined by slashes."""
    automatic: tuple[str, ...]
    image_ids: tuple[str, ...]
    """In the report's order; a file name without its ending."""
    caption: str | None
    license: str | None

    @property
    def labels(self) -> dict[str, Label]:
        """Every major tag and its heading, and every automatic tag as ``automatic/tag``.

        All of them are present: tags say what is there, and never what is not.
        """
        names: list[str] = []
        for tag in self.major:
            if tag != _UNINDEXED:
                names += [tag.split("/")[0].strip(), tag]
        names += [f"automatic/{tag}" for tag in self.automatic]
        return dict.fromkeys(names, Label("present"))


def packaged_reports() -> Path:
    """The archive of all 3,955 reports inside the installed package torchxrayvision, which is not imported.

    Raises:
        SourceError: the package is not installed.
    """
    spec = importlib.util.find_spec("torchxrayvision")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "data" / "NLMCXR_reports.tgz"
        if path.is_file():
            return path
    raise SourceError(
        "There are no Open-i reports: give source.path, or 'pip install --no-deps torchxrayvision', which holds them."
    )


def read_reports(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all XML files of a folder or an archive (``.tgz``, ``.tar``), in no particular order.

    Raises:
        SourceError: there is no such folder or archive, or a file is larger than any report.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*.xml")):
            _check_size(file.name, file.stat().st_size, path)
            yield file.name, file.read_bytes()
        return
    if not path.is_file():
        raise SourceError(f"There is no folder or archive of Open-i reports '{path}'.")

    def is_report(name: str, n_bytes: int) -> bool:
        if name.endswith(".xml"):
            _check_size(name, n_bytes, path)
        return name.endswith(".xml")

    try:
        for name, xml in read_members(path, is_report):
            yield Path(name).name, xml
    except DamagedArchive as error:
        raise SourceError(
            f"'{path}' is not a complete archive of Open-i reports ({printable(error)}); download it again."
        ) from error


def parse_openi_report(xml: bytes, name: str = "report") -> OpeniReport:
    """Parse one report's XML.

    Raises:
        SourceError: it is not XML, declares a document type, or is not an Open-i report.
    """
    root = _parse(xml, name)
    identity = root.find("uId")
    report_id = None if identity is None else identity.get("id")
    if not report_id:
        raise SourceError(f"'{name}' is not an Open-i report: it has no uId.")
    sections: dict[str, str] = {}
    for element in root.iter("AbstractText"):
        label, text = element.get("Label", "").lower(), _text(element)
        if text:
            sections[label] = f"{sections[label]} {text}" if label in sections else text
    images = [element for element in root.iter("parentImage") if element.get("id")]
    return OpeniReport(
        report_id=report_id,
        **{section: sections.get(section) for section in _SECTIONS},
        major=_texts(root, "major"),
        automatic=_texts(root, "automatic"),
        image_ids=tuple(element.get("id", "") for element in images),
        caption=next((text for element in root.iter("caption") if (text := _text(element))), None),
        license=next((text for element in root.iter("licenseURL") if (text := _text(element))), None),
    )


def report_number(report: OpeniReport) -> tuple[int, str]:
    """The key by which reports are ordered: the number in their id."""
    digits = re.search(r"\d+", report.report_id)
    return int(digits[0]) if digits else 0, report.report_id


def _parse(xml: bytes, name: str) -> Element:
    def refuse(*_: object) -> None:
        raise SourceError(f"'{name}' declares a document type, which no Open-i report does; it is not read.")

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(xml, True)
    except SourceError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # an unknown encoding is one of the last two
        raise SourceError(f"'{name}' is not valid XML ({printable(error)}).") from error
    return builder.close()


def _check_size(name: str, size: int, path: Path) -> None:
    if size > _LARGEST_REPORT:
        raise SourceError(
            f"{quoted(name)} in '{path}' has {size} bytes; no Open-i report is larger than {_LARGEST_REPORT}."
        )


def _text(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def _texts(root: Element, tag: str) -> tuple[str, ...]:
    return tuple(text for element in root.iter(tag) if (text := _text(element)))
