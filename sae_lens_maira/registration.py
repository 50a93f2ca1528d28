"""Registers the Matryoshka variant with SAE-Lens without importing SAE-Lens.

SAE-Lens takes seconds to import, and its registry cannot be read without importing it. So registration waits for that
import: an import hook, once, runs `sae_lens_maira.sae` right after `sae_lens` itself. Whoever imports both, in either
order, finds the architecture registered; whoever imports only this package does not pay for SAE-Lens.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType


def register_with_sae_lens() -> None:
    """Register now where SAE-Lens is imported already, otherwise as soon as it is."""
    if "sae_lens" in sys.modules:
        importlib.import_module("sae_lens_maira.sae")
    elif not any(isinstance(finder, _AfterSaeLens) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterSaeLens())


class _AfterSaeLens(importlib.abc.MetaPathFinder):
    """Lets the other finders find `sae_lens`, and has its loader register the variant afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname != "sae_lens":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module("sae_lens_maira.sae")
