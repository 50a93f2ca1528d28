"""Tables as text (CSV and TSV), read so that no cell is lost: what would be guessed at elsewhere is an error here.

A quotation mark that is never closed, a row with more or fewer values than the header, a column that is named twice, a
byte that is no UTF-8: each ends reading with the file, the line and the way out.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from sae_lens_maira.errors import SourceError, UserError, quoted

_LONGEST_LINE = 1 << 24


def read_delimited(
    file: BinaryIO,
    path: Path,
    columns: Iterable[str] = (),
    *,
    error: type[UserError] = SourceError,
    delimiter: str = ",",
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows by column, each with the number of its first line (from 1). Empty lines are left out.

    Args:
        file: UTF-8, with or without a byte order mark.
        path: named in errors.
        columns: that the table must have; it may have others.
        error: their class.
        delimiter: between values.

    Raises:
        UserError: the table is damaged; the message names file and line.
    """
    reader = csv.reader(_lines(file, path, error), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for values in reader:
            if values and not header:
                header = values
                _check_header(header, columns, path, error)
            elif values:
                if len(values) != len(header):
                    raise error(
                        f"'{path}' line {line}: the row has {len(values)} values, but the header names {len(header)} "
                        "columns; put texts with commas between quotation marks, and write empty values as nothing."
                    )
                yield line, dict(zip(header, values, strict=True))
            line = reader.line_num + 1
    except csv.Error as problem:
        raise error(f"'{path}' line {line}: {_explain(problem)}.") from problem
    if not header:
        _check_header(header, columns, path, error)


def _lines(file: BinaryIO, path: Path, error: type[UserError]) -> Iterator[str]:
    line = 0
    while content := file.readline(_LONGEST_LINE + 1):
        line += 1
        if len(content) > _LONGEST_LINE:
            raise error(f"'{path}' line {line} is longer than {_LONGEST_LINE} bytes; it is no table of texts.")
        try:
            text = content.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as problem:
            raise error(
                f"'{path}' line {line} is not UTF-8 (byte 0x{content[problem.start]:02x}); save the table as UTF-8."
            ) from problem
        if "\0" in text:
            raise error(f"'{path}' line {line} holds a NUL character; save the table as text in UTF-8.")
        yield text


def _check_header(header: list[str], columns: Iterable[str], path: Path, error: type[UserError]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise error(f"'{path}' has the column {quoted(name)} twice; rename or remove one of them.")
    missing = sorted(set(columns) - set(header))
    if missing:
        raise error(f"'{path}' lacks the column {', '.join(missing)}.")


def _explain(problem: csv.Error) -> str:
    message = str(problem)
    if "unexpected end of data" in message:
        return "a quotation mark is opened here and never closed"
    if "expected after" in message:
        return "a text goes on after its closing quotation mark; write a quotation mark inside of a text twice"
    if "field limit" in message:
        return (
            f"a value is longer than {csv.field_size_limit()} characters; look for a quotation mark that is never "
            "closed, or write the table as JSON lines"
        )
    if "new-line" in message:
        return "a line ends with a lone carriage return; save the table with the line ends of Unix or Windows"
    return f"the row cannot be read ({message})"
