"""Sparse autoencoders for MAIRA-2, Microsoft's radiology vision-language model, in the SAE-Lens ecosystem.

Importing the package registers MAIRA-2 with transformers' Auto classes; nothing is printed, and neither SAE-Lens,
sae-dashboard nor nnsight is imported before it is needed.
"""

from sae_lens_maira import maira2 as maira2

__version__ = "0.1.0"
