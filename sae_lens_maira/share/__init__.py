"""Import and export of SAEs: dictionary_learning's format, the released MAIRA-2 SAEs, the Hugging Face Hub.

dictionary_learning.py  dictionary_learning's format: read, check, convert to SAE-Lens's, write
loader.py               ``maira2_sae_loader`` for ``SAE.from_pretrained``, a loader from disk, ``import_sae``
hub.py                  errors of the Hub's client in one sentence
card.py                 the model card
push.py                 upload, or a dry run into a folder
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_maira.lazy import lazy_names

if TYPE_CHECKING:
    from sae_lens_maira.features.interpretations import Interpretation, read_interpretations, write_interpretations
    from sae_lens_maira.share.dictionary_learning import export_dictionary_learning
    from sae_lens_maira.share.loader import ImportResult, import_sae, maira2_sae_disk_loader, maira2_sae_loader
    from sae_lens_maira.share.push import PushResult, push_saes
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ImportResult": "sae_lens_maira.share.loader",
            "Interpretation": "sae_lens_maira.features.interpretations",
            "PushResult": "sae_lens_maira.share.push",
            "export_dictionary_learning": "sae_lens_maira.share.dictionary_learning",
            "import_sae": "sae_lens_maira.share.loader",
            "maira2_sae_disk_loader": "sae_lens_maira.share.loader",
            "maira2_sae_loader": "sae_lens_maira.share.loader",
            "push_saes": "sae_lens_maira.share.push",
            "read_interpretations": "sae_lens_maira.features.interpretations",
            "write_interpretations": "sae_lens_maira.features.interpretations",
        },
    )

__all__ = [
    "ImportResult",
    "Interpretation",
    "PushResult",
    "export_dictionary_learning",
    "import_sae",
    "maira2_sae_disk_loader",
    "maira2_sae_loader",
    "push_saes",
    "read_interpretations",
    "write_interpretations",
]
