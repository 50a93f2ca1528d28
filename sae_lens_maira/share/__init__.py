"""SAEs in and out: dictionary_learning's format, the released MAIRA-2 SAEs, the Hugging Face Hub.

dictionary_learning.py  the format: read, check, convert to SAE-Lens's, write
loader.py               `maira2_sae_loader` for `SAE.from_pretrained`, the same from disk, `import_sae`
interpretations.py      feature descriptions of a release as one tidy table
card.py                 the model card
push.py                 upload, or a dry run into a folder
"""

from sae_lens_maira.features.interpretations import Interpretation, read_interpretations, write_interpretations
from sae_lens_maira.share.dictionary_learning import export_dictionary_learning
from sae_lens_maira.share.loader import ImportResult, import_sae, maira2_sae_disk_loader, maira2_sae_loader
from sae_lens_maira.share.push import PushResult, push_saes

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
