"""Sparse autoencoders for MAIRA-2, Microsoft's radiology vision-language model, in the SAE-Lens ecosystem.

Importing the package registers MAIRA-2 with transformers' Auto classes, and the Matryoshka variant with SAE-Lens as
soon as that is imported; nothing is printed, and neither SAE-Lens, sae-dashboard nor nnsight is imported before it is
needed.
"""

from sae_lens_maira import maira2 as maira2
from sae_lens_maira.registration import register_with_sae_lens

register_with_sae_lens()

__version__ = "0.1.0"
