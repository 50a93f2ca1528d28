"""Batches of similar length, and configurations of caches."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_maira.activations.config import load_cache_config
from sae_lens_maira.activations.plan import cut_into_batches
from sae_lens_maira.errors import ConfigError


@given(lengths=st.lists(st.integers(1, 500), max_size=60), budget=st.integers(1, 2000))
def test_batches_cover_everything_in_order_within_the_budget(lengths, budget):
    cuts = cut_into_batches(lengths, budget)
    assert [index for cut in cuts for index in cut] == list(range(len(lengths)))
    for cut in cuts:
        assert len(cut) == 1 or len(cut) * max(lengths[index] for index in cut) <= budget
    for cut, following in pairwise(cuts):
        joined = [*cut, following[0]]
        assert len(joined) * max(lengths[index] for index in joined) > budget, "a batch was cut too early"


def test_the_example_is_read_and_wrong_settings_are_named(tmp_path):
    def refused(text: str) -> str:
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError) as error:
            load_cache_config(tmp_path / "x.yaml", [])
        return str(error.value)

    example = Path(__file__).parents[2] / "configs" / "cache_phantom.yaml"
    config = load_cache_config(example, ["--cache.dtype", "bfloat16", "--source.n_studies", "7"])
    assert config.cache.dtype == "bfloat16"
    assert config.source.n_studies == 7
    assert config.cache.hook_names == ("blocks.2.hook_resid_post",)
    assert refused("cache: {hook_name: a}") == "Unknown setting 'cache.hook_name'; did you mean cache.hook_names?"
    assert refused("cache: {dtype: float16}") == "cache.hook_names is missing: a list of hook points."
    assert refused("cache: {hook_names: [a, a]}") == "cache.hook_names names a hook point twice."
    assert "choose float32, bfloat16 or float16" in refused("cache: {hook_names: [a], dtype: int8}")
    assert "cache.workers is 0" in refused("cache: {hook_names: [a], workers: 0}")
    assert "Unknown setting 'polcy'" in refused(yaml.safe_dump({"polcy": {}}))
