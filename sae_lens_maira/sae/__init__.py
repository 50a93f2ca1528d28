"""The registered Matryoshka variant and its kernels; importing this package registers it with SAE-Lens.

config.py       settings                        variant.py     the training SAE
prefixes.py     groups of the dictionary        passes.py      sparse and dense pass of a step
selection.py    exact top-k without a sort      pattern.py     active pairs in two orders
kernels.py      sparse encoder, nested decoder  auxiliary.py   losses of dead latents
optimizer.py    fused Adam, unit-norm decoder   activation.py  dense top-k
statistics.py   geometric median, logged metrics
"""

from sae_lens import register_sae_training_class
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

from sae_lens_maira.sae.config import ARCHITECTURE, MairaMatryoshkaTrainingSAEConfig
from sae_lens_maira.sae.variant import MairaMatryoshkaTrainingSAE

if ARCHITECTURE not in SAE_TRAINING_CLASS_REGISTRY:
    register_sae_training_class(ARCHITECTURE, MairaMatryoshkaTrainingSAE, MairaMatryoshkaTrainingSAEConfig)

__all__ = ["ARCHITECTURE", "MairaMatryoshkaTrainingSAE", "MairaMatryoshkaTrainingSAEConfig"]
