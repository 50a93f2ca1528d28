"""Makes pages safe to open: report text is untrusted, so it is escaped, and a page may load and run only our files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

_ENTITY = re.compile(r"&(?=#?\w+;)")
_LOOKALIKES = str.maketrans({"<": "\u2039", ">": "\u203a"})
_SCRIPT = re.compile(r"<script>(.*)</script>", re.DOTALL)
_DATA_LINE = re.compile(r"^(    return )(\{.*\})(;)$", re.MULTILINE)
_LIBRARIES = {
    "https://d3js.org/d3.v6.min.js": "../vendor/d3.min.js",
    "https://cdn.plot.ly/plotly-latest.min.js": "../vendor/plotly-basic.min.js",
}


class PageError(RuntimeError):
    """sae-dashboard wrote a page that this package cannot make safe; the message says which part is unknown."""


def to_script_json(value: Any) -> str:
    """JSON that is safe in a script, in its own file or inside HTML: no ``<``, no line separators."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return escape_script(text)


def escape_script(text: str) -> str:
    """The same JSON text without characters that end a script element or a line of JavaScript."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def inert(text: str) -> str:
    """A token's text, made safe for sae-dashboard.

    sae-dashboard decodes HTML entities and then inserts tokens as text in one place and as HTML in another. So angle
    brackets become single quotation marks that look alike, and an ampersand that starts an entity is followed by a
    zero-width character.
    """
    return _ENTITY.sub("&\u200c", text).translate(_LOOKALIKES)


def secure_page(page: str, title: str, banner: str) -> str:
    """sae-dashboard's page as a full document that loads nothing from elsewhere and runs only its own script.

    Args:
        page: the HTML that sae-dashboard wrote.
        title: the document's title; plain text of ours.
        banner: a line above the page; plain text of ours, none if empty.

    Raises:
        PageError: the page differs from what sae-dashboard 0.8 writes.
    """
    for address, local in _LIBRARIES.items():
        if page.count(f'<script src="{address}"></script>') != 1:
            raise PageError(f"sae-dashboard's page does not load {address}; use sae-dashboard 0.8.")
        page = page.replace(address, local)
    if len(_DATA_LINE.findall(page)) != 1:
        raise PageError("sae-dashboard's page holds no data where it was expected; use sae-dashboard 0.8.")
    page = _DATA_LINE.sub(lambda found: found[1] + escape_script(found[2]) + found[3], page)
    script = _SCRIPT.search(page[page.rindex("<script>") :])
    if script is None:
        raise PageError("sae-dashboard's page holds no script where it was expected; use sae-dashboard 0.8.")
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'self' file: 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    note = f'<p role="note" style="margin:0 0 12px;font-weight:bold">{banner}</p>' if banner else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n</head>\n'
        f"<body>\n{note}{page}</body>\n</html>\n"
    )
