"""A small SAE with random weights for steering tests, and edits written out in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.standard_sae import StandardSAEConfig
from torch import Tensor

from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.hooked.edits import Ablate, Add, AddDirection, Cap, Clamp, Edit, Scale

HOOK = "blocks.2.hook_resid_post"
D_SAE = 24


def make_sae(d_in: int, hook: str = HOOK, seed: int = 0) -> Any:
    """A ReLU SAE whose weights are random numbers of a spread that suits the phantom's residual stream."""
    config = StandardSAEConfig(d_in=d_in, d_sae=D_SAE).to_dict()
    metadata = {"hook_name": hook, "model_name": "phantom", "context_size": 48, "prepend_bos": False}
    made = SAE.from_dict(
        {**config, "architecture": "standard", "dtype": "float32", "device": "cpu", "metadata": metadata}
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def make_dictionary(d_in: int, hook: str = HOOK, seed: int = 0) -> Dictionary:
    """The SAE with strengths 1, 2, 3, ..., so that a wrong unit is noticed."""
    return Dictionary(make_sae(d_in, hook, seed), torch.arange(1, D_SAE + 1).float())


def edited_plainly(x: Tensor, edits: tuple[Edit, ...], sae: Any) -> Tensor:
    """All edits at all positions, one position at a time, with the SAE's formulas written out."""
    out = x.clone()
    for place in torch.cartesian_prod(*[torch.arange(n) for n in x.shape[:-1]]).reshape(-1, x.ndim - 1).tolist():
        own = x[tuple(place)]
        acts = torch.relu((own - sae.b_dec) @ sae.W_enc + sae.b_enc)
        new = own.clone()
        for edit in edits:
            if isinstance(edit, AddDirection):
                new = new + edit.dose * edit.direction
            elif isinstance(edit, Add):
                new = new + edit.dose * (edit.feature + 1) * sae.W_dec[edit.feature]
            elif isinstance(edit, Clamp | Cap | Scale | Ablate):
                a = acts[edit.feature]
                s = float(edit.feature + 1)
                target = {
                    Clamp: lambda e, a, s: torch.tensor(e.dose * s),
                    Cap: lambda e, a, s: torch.minimum(a, torch.tensor(e.dose * s)),
                    Scale: lambda e, a, s: e.factor * a,
                    Ablate: lambda e, a, s: torch.tensor(0.0),
                }[type(edit)](edit, a, s)
                new = new + (target - a) * sae.W_dec[edit.feature]
            else:
                u = edit.direction / edit.direction.norm()
                new = new + (edit.factor - 1) * (own @ u) * u
        out[tuple(place)] = new
    return out
