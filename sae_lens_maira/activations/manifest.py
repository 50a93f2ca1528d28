"""From units to a whole cache: finished units, the manifest, the list of skipped studies, and merging of shards."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sae_lens_maira.activations.block import SkippedStudy
from sae_lens_maira.activations.format import (
    FORMAT,
    HEADER_NAME,
    MANIFEST_NAME,
    SKIPPED_NAME,
    UNITS_NAME,
    VERSION,
    UnitRecord,
    read_record,
    record_path,
    remove_unfinished,
    unit_path,
)
from sae_lens_maira.activations.header import check_same, read_header
from sae_lens_maira.activations.unit_file import read_contents
from sae_lens_maira.errors import CacheError
from sae_lens_maira.files import replacing, sync_folder, to_json, write_text

logger = logging.getLogger(__name__)


def count_units(identity: Mapping[str, Any]) -> int:
    """Number of units of a whole cache."""
    return -(-identity["n_studies"] // identity["unit_size"])


def done_units(path: Path, units: Sequence[int]) -> dict[int, UnitRecord]:
    """Records of the finished units; a record does not count if its file is missing or has another size."""
    found: dict[int, UnitRecord] = {}
    for unit in units:
        record = read_record(path, unit)
        file = unit_path(path, unit)
        if record is not None and file.is_file() and file.stat().st_size == record.n_bytes:
            found[unit] = record
    return found


def read_skipped(path: Path, units: Sequence[int]) -> list[SkippedStudy]:
    """Skipped studies of units that are done, in the order of the source."""
    return [study for unit in units for study in read_contents(unit_path(path, unit)).skipped]


def describe_skipped(skipped: Sequence[SkippedStudy]) -> str:
    """Number of skipped studies for each reason, as text."""
    counts = Counter(study.reason for study in skipped)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "none"


def write_skipped(path: Path, skipped: Sequence[SkippedStudy]) -> None:
    """Write ``skipped.jsonl``."""
    write_text(path / SKIPPED_NAME, "".join(json.dumps(asdict(study), sort_keys=True) + "\n" for study in skipped))


def make_manifest(records: Sequence[UnitRecord]) -> dict[str, Any]:
    """The manifest of a whole cache."""
    totals = {name: sum(getattr(record, name) for record in records) for name in ("n_studies", "n_skipped", "n_tokens")}
    return {"format": FORMAT, "version": VERSION, **totals, "units": [asdict(record) for record in records]}


def finish(path: Path) -> dict[str, Any] | None:
    """Write the manifest and ``skipped.jsonl`` if all units are done.

    Returns:
        the manifest, or None if units are missing.
    """
    identity = read_header(path)["identity"]
    units = range(count_units(identity))
    records = done_units(path, units)
    if len(records) < len(units):
        return None
    remove_unfinished(path, units)
    manifest = make_manifest([records[unit] for unit in units])
    write_skipped(path, read_skipped(path, units))
    write_text(path / MANIFEST_NAME, to_json(manifest))
    for name in (HEADER_NAME, SKIPPED_NAME, MANIFEST_NAME):
        for leftover in path.glob(f".{name}.*.tmp"):
            leftover.unlink(missing_ok=True)
    return manifest


def merge_caches(parts: Sequence[Path], path: Path) -> dict[str, Any]:
    """Merge caches made by shards; files are hard-linked where the file system allows it, else copied.

    Args:
        parts: caches of the same identity that hold different units.
        path: folder of the merged cache; it may be one of the parts.

    Returns:
        the manifest.

    Raises:
        CacheMismatch: a part has another identity.
        CacheError: a unit is in none of the parts.
    """
    header = read_header(parts[0])
    for part in parts[1:]:
        check_same(part, read_header(part)["identity"], header["identity"])
    units = range(count_units(header["identity"]))
    (path / UNITS_NAME).mkdir(parents=True, exist_ok=True)
    if (path / HEADER_NAME).is_file():
        check_same(path, read_header(path)["identity"], header["identity"])
    else:
        write_text(path / HEADER_NAME, to_json(header))
    for part in parts:
        here = done_units(path, units)
        for unit in done_units(part, [unit for unit in units if unit not in here]):
            _link(unit_path(part, unit), unit_path(path, unit))
            _link(record_path(part, unit), record_path(path, unit))
    manifest = finish(path)
    if manifest is None:
        missing = sorted(set(units) - set(done_units(path, units)))
        raise CacheError(
            f"'{path}' still lacks {len(missing)} of {len(units)} units, from unit {missing[0]} on; cache the shards "
            "that hold them and merge again."
        )
    return manifest


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
        sync_folder(target.parent)
    except OSError:  # another file system, or one without links
        logger.info("Copying '%s', which cannot be linked.", source)
        with source.open("rb") as reading, replacing(target) as writing:
            shutil.copyfileobj(reading, writing, 1 << 22)
