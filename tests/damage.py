"""Files damaged by seed, and what a reader may do with them: give a result, or refuse them in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sae_lens_maira.errors import UserError

_TOKENS = [
    *(b'"', b"'", b",", b"\n", b"\r", b"\0", b"\xe9", b"\xff\xfe", b"[" * 3000, b"{", b"}", b"]", b":", b"&a ", b"*a "),
    *(
        b"\\ud800",
        b"NaN",
        b"Infinity",
        b"-1",
        b"1.5",
        b"null",
        b"true",
        b"1e400",
        b"9" * 5000,
        b"x" * 140_000,
        b"\x1b[2J",
    ),
    *(
        b"!!python/object:os.system ",
        b"!!int ''",
        b"2024-13-45",
        b"<!DOCTYPE a>",
        b"&#0;",
        b'encoding="utf-7"',
        b"<",
        b"- ",
    ),
]


def damaged(content: bytes, draw: np.random.Generator) -> bytes:
    """The content with up to four places changed: bytes flipped, replaced, removed or repeated, or something put in."""
    found = bytearray(content)
    for _ in range(draw.integers(1, 5)):
        place = int(draw.integers(0, max(len(found), 1)))
        kind = draw.integers(0, 5)
        if kind == 0 and found:
            found[min(place, len(found) - 1)] ^= 1 << int(draw.integers(8))
        elif kind == 1 and found:
            found[min(place, len(found) - 1)] = int(draw.integers(256))
        elif kind == 2:
            del found[place : place + int(draw.integers(1, 40))]
        elif kind == 3:
            found[place:place] = found[place : place + int(draw.integers(1, 60))]
        else:
            found[place:place] = _TOKENS[int(draw.integers(len(_TOKENS)))]
    return bytes(found[: int(draw.integers(0, len(found) + 1))] if draw.random() < 0.1 else found)


def outcomes(read: Callable[[Path], Any], path: Path, seed: int, n: int) -> dict[str, int]:
    """Read a file ``n`` times, each time damaged anew; it is whole again afterwards.

    Returns:
        how often there was a result, and how often one sentence that names the file.
    """
    content, draw = path.read_bytes(), np.random.default_rng(seed)
    found = {"result": 0, "sentence": 0}
    try:
        for _ in range(n):
            path.write_bytes(damaged(content, draw))
            try:
                read(path)
            except UserError as error:
                check_sentence(str(error), path.name)
                found["sentence"] += 1
            else:
                found["result"] += 1
    finally:
        path.write_bytes(content)
    return found


def check_sentence(message: str, name: str) -> None:
    """Check that a message is one printable line that names a file."""
    assert message.isprintable(), message
    assert name in message
    assert len(message) < 3000
