"""Sparse autoencoders for MAIRA-2, Microsoft's radiology vision-language model, in the SAE-Lens ecosystem.

::

    HookedMaira2     the model with hook points, over compact rows of tokens
    TokenPolicy      which tokens of a study are kept
    train            an SAE from a TrainConfig; load_config reads one from YAML
    write_cache      activations to disk, once; ActivationCache reads them
    make_dashboards  a gallery of every feature
    open_source      a data set of Study objects
    phantom          a small world with known truth, and a tiny MAIRA-2 trained on it
    maira2           the native model, processor and prompts

Importing the package is silent and quick: each name is imported when it is first used. MAIRA-2 is registered with
transformers' Auto classes, and the Matryoshka variant with SAE-Lens, as soon as those libraries are imported, before
or after this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_maira.errors import UserError as UserError
from sae_lens_maira.lazy import lazy_names
from sae_lens_maira.registration import register_on_import

if TYPE_CHECKING:
    from sae_lens_maira import maira2, phantom
    from sae_lens_maira.activations.read import ActivationCache
    from sae_lens_maira.activations.write import write_cache
    from sae_lens_maira.dashboard.make import make_dashboards
    from sae_lens_maira.data.study import Study
    from sae_lens_maira.hooked.maira2 import HookedMaira2
    from sae_lens_maira.rows.policy import TokenPolicy
    from sae_lens_maira.sources import open_source
    from sae_lens_maira.training.config import TrainConfig, load_config
    from sae_lens_maira.training.run import train
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ActivationCache": "sae_lens_maira.activations.read",
            "HookedMaira2": "sae_lens_maira.hooked.maira2",
            "Study": "sae_lens_maira.data.study",
            "TokenPolicy": "sae_lens_maira.rows.policy",
            "TrainConfig": "sae_lens_maira.training.config",
            "load_config": "sae_lens_maira.training.config",
            "maira2": "sae_lens_maira.maira2",
            "make_dashboards": "sae_lens_maira.dashboard.make",
            "open_source": "sae_lens_maira.sources",
            "phantom": "sae_lens_maira.phantom",
            "train": "sae_lens_maira.training.run",
            "write_cache": "sae_lens_maira.activations.write",
        },
    )

__all__ = [
    "ActivationCache",
    "HookedMaira2",
    "Study",
    "TokenPolicy",
    "TrainConfig",
    "UserError",
    "load_config",
    "maira2",
    "make_dashboards",
    "open_source",
    "phantom",
    "train",
    "write_cache",
]
__version__ = "0.1.0"

register_on_import()
