"""The phantom, a small SAE with random weights, and the engine."""

import pytest
import torch

from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.steering.engine import SteeringEngine
from tests.plain_maira2 import phantom_studies
from tests.steered_sae import HOOK, make_dictionary


@pytest.fixture(scope="session")
def studies():
    return phantom_studies()


@pytest.fixture(scope="session")
def model(studies):
    return HookedMaira2.from_pretrained("phantom", studies, dtype=torch.float32)


@pytest.fixture(scope="session")
def dictionary(model):
    return make_dictionary(model.cfg.d_model)


@pytest.fixture(scope="session")
def engine(model, dictionary):
    return SteeringEngine(model, {HOOK: dictionary})
