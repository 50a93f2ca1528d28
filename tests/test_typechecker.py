"""Wrong shapes and types are refused while the tests run."""

import pytest
import torch

from sae_lens_maira.hooked.points import gather
from tests.typechecker import LEFT_OUT, checked_modules


def test_a_wrong_shape_is_refused():
    values, positions = torch.zeros(2, 5, 3), torch.zeros(2, 4, dtype=torch.int64)
    assert gather(values, positions).shape == (2, 4, 3)
    with pytest.raises(TypeError, match="positions"):
        gather(values, positions[0])
    with pytest.raises(TypeError, match="positions"):
        gather(values, torch.zeros(3, 4, dtype=torch.int64))  # another batch
    with pytest.raises(TypeError, match="positions"):
        gather(values, positions.float())


def test_modules_of_every_room_with_shapes_are_checked():
    rooms = {name.split(".")[1] for name in checked_modules()}
    assert rooms >= {"activations", "dashboard", "features", "hooked", "maira2", "phantom", "rows", "sae", "training"}
    assert not set(checked_modules()) & set(LEFT_OUT)
