"""Shape annotations are checked while the tests run: by beartype, in every module that imports jaxtyping."""

import re
from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ROOT = Path(__file__).parent.parent
LEFT_OUT = {
    "sae_lens_maira.maira2.padding": "its own messages about arguments of a wrong type are tested",
    "sae_lens_maira.maira2.processing": "transformers reads the code object of a processor's `__init__`",
    "sae_lens_maira.hooked.where": "its own messages about settings of a wrong type are tested",
    "sae_lens_maira.rows.policy": "its own messages about settings of a wrong type are tested",
}

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand where a float is asked for


def checked_modules() -> list[str]:
    """All modules with shapes, except those left out. A package's name stands for all modules in it."""
    files = (ROOT / "sae_lens_maira").rglob("*.py")
    annotated = [file for file in files if re.search(r"^from jaxtyping import", file.read_text(), re.MULTILINE)]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in annotated}
    assert not any(name.endswith("__init__") for name in names), "put annotated functions into a module"
    assert names >= set(LEFT_OUT), f"Not annotated any more: {set(LEFT_OUT) - names}; leave it out no longer."
    return sorted(names - set(LEFT_OUT))


def install() -> None:
    """Check every annotated module that is imported from here on."""
    install_import_hook(checked_modules(), f"{__name__}.check")
