"""The settings of ``maira_matryoshka`` for ``train --help``, read from its source to avoid importing SAE-Lens."""

from __future__ import annotations

import ast
import textwrap
from functools import cache
from pathlib import Path

from sae_lens_maira.cli.help import sentence
from sae_lens_maira.settings import arguments_of

_SOURCE = Path(__file__).parents[1] / "sae" / "config.py"


@cache
def describe_architecture() -> str:
    """Every setting of the architecture with its default and sentence."""
    tree = ast.parse(_SOURCE.read_text(encoding="utf-8"))
    (kind,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    texts = dict(arguments_of(ast.get_docstring(kind, clean=False) or ""))
    lines = ["settings of --sae.architecture maira_matryoshka, besides those of SAE-Lens's matryoshka_batchtopk:"]
    for node in kind.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            name, default = node.target.id, ast.unparse(node.value).strip("'")
            shown = {"field(default_factory=list)": "[]", "None": "null", "True": "true", "False": "false"}
            text = f"{sentence(texts.get(name, '')).replace('`', '')} (default: {shown.get(default, default)})"
            lines += [f"  --sae.{name} VALUE", textwrap.indent(textwrap.fill(text, 72), " " * 8)]
    return "\n".join(lines)
