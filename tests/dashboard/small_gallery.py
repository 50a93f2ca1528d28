"""A small model, SAE and studies, one of them hostile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_lens_maira import phantom
from sae_lens_maira.dashboard import DashboardResult
from sae_lens_maira.data.study import Label, Study
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.hooked.identity import METADATA_KEY, describe_model
from tests.plain_maira2 import REFERENCE_CHECKPOINT, still

HOOK = "blocks.1.hook_resid_post"
CONTEXT_SIZE = 96
D_IN, D_SAE = 64, 96
WIDTHS = [16, 48, 96]
ALWAYS, DEAD = 0, 1
N_STUDIES = 14
ATTACK = "<img src=x onerror=\"window.hacked='yes'\"></script><script>window.hacked='yes'</script>"
HOSTILE_STUDY = 2
EMPTY_STUDY = 12


@dataclass(frozen=True)
class Made:
    """A gallery and what it was made from."""

    sae: Any
    model: HookedMaira2
    studies: list[Study]
    path: Path
    result: DashboardResult


def make_studies() -> list[Study]:
    """With and without lateral and prior; one whose every text is an attack, one with an empty report."""
    drawn: list[Study] = [
        replace(
            still(study), study_id=f"study {index}", labels={**study.labels, "even": even if index % 2 == 0 else odd}
        )
        for index, study in enumerate(phantom.studies(N_STUDIES, seed=3))
        for even, odd in [(Label("present"), Label("absent"))]
    ]
    hostile = drawn[HOSTILE_STUDY]
    drawn[HOSTILE_STUDY] = replace(
        hostile,
        study_id=ATTACK,
        findings=f'"quoted" back\\slash \\u003c &lt;b&gt; <!-- {ATTACK} {hostile.findings}',
        labels={**hostile.labels, ATTACK: Label("present")},
    )
    drawn[EMPTY_STUDY] = replace(drawn[EMPTY_STUDY], findings=" ", sentences=())
    drawn[1] = replace(drawn[1], lateral=None, prior_frontal=None, prior_report=None)
    return drawn


def make_model(studies: list[Study]) -> HookedMaira2:
    return HookedMaira2.from_pretrained(REFERENCE_CHECKPOINT, studies, dtype=torch.float32)


def make_sae(model: HookedMaira2, d_sae: int = D_SAE, widths: list[int] | None = None, seed: int = 0) -> Any:
    """JumpReLU with random weights and decoder rows of any length; one feature always fires, one never does."""
    from sae_lens import SAE
    from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig

    sae: Any = SAE.from_dict(
        {
            **JumpReLUSAEConfig(d_in=D_IN, d_sae=d_sae).to_dict(),
            "architecture": "jumprelu",
            "dtype": "float32",
            "device": "cpu",
            "metadata": {
                "hook_name": HOOK,
                "model_name": "maira-2",
                "context_size": CONTEXT_SIZE,
                "matryoshka_widths": widths or WIDTHS,
                METADATA_KEY: describe_model(model),
            },
        }
    )
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in (sae.W_enc, sae.W_dec, sae.b_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        sae.b_dec.zero_()
        tokens = model.reader.rows(range(4), 48)
        activations = model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK].flatten(0, 1)
        hidden = activations @ sae.W_enc
        sae.threshold.copy_(hidden.quantile(0.9, dim=0).clamp(min=1e-3))
        sae.b_enc.zero_()
        sae.W_enc[:, [ALWAYS, DEAD]] = 0
        sae.b_enc[ALWAYS], sae.b_enc[DEAD] = 2.0, -1.0
        sae.threshold[[ALWAYS, DEAD]] = 0.5
    return sae


def plain_firings(made: Made, folded: bool = True) -> list[np.ndarray]:
    """Each study's (n_tokens, d_sae) activations from the model and SAE, one study at a time."""
    found: list[np.ndarray] = []
    scale = made.sae.W_dec.norm(dim=-1) if folded else 1.0
    for index in range(len(made.studies)):
        tokens = made.model.reader.rows([index], None)[:, :CONTEXT_SIZE]
        with torch.no_grad():
            activations = made.model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK][0]
            found.append((made.sae.encode(activations) * scale).numpy())
    return found
