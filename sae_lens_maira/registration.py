"""Registers our classes with transformers and SAE-Lens without importing either.

Both take seconds to import, and a class can be registered only with an imported library. So registration waits: a
finder at the front of ``sys.meta_path`` lets the other finders find these two libraries, and imports our registering
package right after the library's own code has run. If both are imported, in either order, our classes are registered;
if only this package is imported, neither library is loaded.

- ``importlib.util.find_spec("transformers")`` gives the usual spec and has no side effects.
- Our registering packages import the library in their first lines. If they are imported first, the hook finds them
  partially imported and does nothing more; they register when their own code has run.
- Another thread may import our package while this thread holds the library's import lock. The ``import`` statement
  (``__import__``) detects this deadlock and continues; ``importlib.import_module`` raises.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_REGISTERING_PACKAGES = {"transformers": "sae_lens_maira.maira2", "sae_lens": "sae_lens_maira.sae"}


def register_on_import() -> None:
    """Register with each library now if it is imported already, otherwise as soon as it is."""
    waiting = set()
    for library in _REGISTERING_PACKAGES:
        if library in sys.modules:
            _register(library)
        else:
            waiting.add(library)
    if waiting and not any(isinstance(finder, _RegisteringFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisteringFinder(waiting))


def _register(library: str) -> None:
    __import__(_REGISTERING_PACKAGES[library])


class _RegisteringFinder(importlib.abc.MetaPathFinder):
    """Delegates to the other finders, and wraps the loaders of the libraries that it waits for."""

    def __init__(self, waiting: set[str]) -> None:
        self.waiting = waiting

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, self.waiting)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """Loads a library with its own loader, then registers; everything else is delegated to that loader."""

    def __init__(self, loader: importlib.abc.Loader, waiting: set[str]) -> None:
        self.loader = loader
        self.waiting = waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.waiting.discard(module.__name__)
        _register(module.__name__)
