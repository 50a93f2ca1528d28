"""Checks of a cache: every byte of every unit against its checksum, and everything else against the units."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tqdm.auto import tqdm

from sae_lens_maira.activations.format import (
    MANIFEST_NAME,
    SKIPPED_NAME,
    UnitRecord,
    identity_hash,
    read_json,
    read_record,
    record_path,
    unit_path,
)
from sae_lens_maira.activations.header import read_header
from sae_lens_maira.activations.manifest import count_units, make_manifest, read_skipped
from sae_lens_maira.activations.unit_file import read_contents
from sae_lens_maira.errors import CacheError
from sae_lens_maira.files import hash_file


def verify_cache(path: Path, *, show_progress: bool = True) -> list[str]:
    """Read every file of a cache and check it.

    Args:
        path: its folder. Of an unfinished cache, only the finished units are read.
        show_progress: whether to show a progress bar.

    Returns:
        one sentence for each file that is damaged or does not match the others.

    Raises:
        FileNotFoundError: there is no cache.
        CacheError: its header is damaged.
    """
    identity = read_header(path)["identity"]
    units = range(count_units(identity))
    problems: list[str] = []
    records: list[UnitRecord] = []
    is_whole = (path / MANIFEST_NAME).is_file()
    for unit in tqdm(units, desc="verifying", unit="unit", disable=not show_progress):
        try:
            record = read_record(path, unit)
            if record is not None:
                _check_unit(path, unit, record, identity_hash(identity))
                records.append(record)
            elif is_whole:
                problems.append(f"'{record_path(path, unit)}' is missing; run caching again.")
        except (CacheError, OSError) as error:
            problems.append(str(error))
    if is_whole and not problems:
        problems += _check_whole(path, records)
    return problems


def _check_unit(path: Path, unit: int, record: UnitRecord, cache: str) -> None:
    file = unit_path(path, unit)
    if not file.is_file() or file.stat().st_size != record.n_bytes or hash_file(file) != record.sha256:
        raise CacheError(
            f"'{file}' is not as it was written; delete it and '{record_path(path, unit).name}' and run caching again."
        )
    contents = read_contents(file)
    if contents.cache != cache:
        raise CacheError(f"'{file}' belongs to another cache, or the header of this one was changed.")
    true = UnitRecord(
        unit, record.sha256, record.n_bytes, len(contents.studies), len(contents.skipped), contents.n_tokens
    )
    if contents.unit != unit or record != true:
        raise CacheError(f"'{record_path(path, unit)}' does not describe its file; delete both and run caching again.")


def _check_whole(path: Path, records: list[UnitRecord]) -> Iterator[str]:
    try:
        manifest = read_json(path / MANIFEST_NAME)
    except CacheError as error:
        manifest = {}
        yield str(error)
    if manifest and manifest != make_manifest(records):
        yield f"'{path / MANIFEST_NAME}' does not agree with the units; run caching again to rewrite it."
    skipped = path / SKIPPED_NAME
    true = "".join(json.dumps(asdict(s), sort_keys=True) + "\n" for s in read_skipped(path, range(len(records))))
    if not skipped.is_file() or skipped.read_text(encoding="utf-8") != true:
        yield f"'{skipped}' does not agree with the units; run caching again to rewrite it."
