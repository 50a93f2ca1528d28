"""Packages whose names are imported when they are first used, so that importing the package itself is light.

Type checkers and editors read ordinary imports; at run time, a table says which module defines each name::

    if TYPE_CHECKING:
        from sae_lens_maira.training.run import train as train
    else:
        __getattr__, __dir__ = lazy_names(__name__, {"train": "sae_lens_maira.training.run"})
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: the package's ``__name__``.
        homes: the module that defines each name. If it is ``package.name``, the name is that submodule itself.

    Returns:
        ``__getattr__``, which imports a name's home and remembers the value, and ``__dir__``, which lists all names.
    """

    def get_attribute(name: str) -> Any:
        module = sys.modules[package]
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module)
        try:
            home = importlib.import_module(homes[name])
        except AttributeError as error:  # Python would take it for a missing name, and drop the cause
            raise ImportError(f"importing {homes[name]} failed: {error}") from error
        value = home if home.__name__ == f"{package}.{name}" else getattr(home, name)
        setattr(module, name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get_attribute, list_names
