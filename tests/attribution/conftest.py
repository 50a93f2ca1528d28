"""The phantom's model with an SAE of random directions, and the tiny reference model: both need no training."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from sae_lens import SAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_maira import phantom
from sae_lens_maira.attribution.reading import FeatureReader
from sae_lens_maira.hooked import HookedMaira2
from tests.plain_maira2 import CHECKPOINTS, phantom_studies, still


def random_sae(d_in: int, hook_name: str, d_sae: int = 12, seed: int = 0) -> Any:
    """An SAE with random weights, decoder rows of several norms, and thresholds that about half of all values pass."""
    generator = torch.Generator().manual_seed(seed)
    metadata = SAEMetadata(hook_name=hook_name, context_size=64)
    sae: Any = SAE.from_dict(
        JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, dtype="float32", device="cpu", metadata=metadata).to_dict()
    )
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(d_in, d_sae, generator=generator) / d_in**0.5)
        sae.W_dec.copy_(torch.randn(d_sae, d_in, generator=generator) / d_in**0.5)
        sae.b_enc.copy_(0.1 * torch.randn(d_sae, generator=generator))
        sae.b_dec.copy_(0.1 * torch.randn(d_in, generator=generator))
        sae.threshold.fill_(0.2)
    return sae


@pytest.fixture(scope="session")
def studies():
    """Four studies that differ in what they have, as in the tests of the hooked model."""
    return phantom_studies()


@pytest.fixture(scope="session", params=CHECKPOINTS, ids=lambda path: path.name)
def model(request, studies):
    return HookedMaira2.from_pretrained(request.param, studies, dtype=torch.float32)


@pytest.fixture(scope="session")
def reader(model):
    return FeatureReader(model, random_sae(model.cfg.d_model, "blocks.1.hook_resid_post"))


@pytest.fixture(scope="session")
def some_studies():
    """Studies of several patients, drawn in advance."""
    return [replace(still(study), study_id=study.study_id) for study in phantom.studies(8, seed=5)]
