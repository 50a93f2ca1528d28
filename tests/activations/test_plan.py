"""Batches of similar length, and configurations of caches."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_maira.activations.block import SkippedStudy
from sae_lens_maira.activations.config import load_cache_config
from sae_lens_maira.activations.plan import Planner, cut_into_batches
from sae_lens_maira.errors import ConfigError
from tests.activations.conftest import make_studies


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
            load_cache_config(tmp_path / "x.yaml")
        return str(error.value)

    example = Path(__file__).parents[2] / "configs" / "cache_phantom.yaml"
    config = load_cache_config(example, {"dtype": "bfloat16", "source": {"n_studies": 7}})
    assert config.dtype == "bfloat16"
    assert config.source.n_studies == 7
    assert config.hook_names == ("blocks.2.hook_resid_post",)
    assert refused("hook_name: a") == "Unknown setting 'hook_name'; did you mean hook_names?"
    assert refused("dtype: float16") == (
        "hook_names is missing: hook points, such as ``[blocks.15.hook_resid_post]``; all are cached in one pass."
    )
    assert refused("hook_names: [a, a]") == "hook_names names a hook point twice."
    assert refused("{hook_names: [a], dtype: int8}") == "dtype 'int8' is unknown; choose float32, bfloat16 or float16."
    assert refused("{hook_names: [a], workers: 0}") == "workers is 0; it must be at least 1."
    assert refused("hook_names: blocks.0") == "hook_names is 'blocks.0'; it must be a list."
    assert refused("cache: {hook_names: [a]}") == "Unknown setting 'cache'."
    assert "Unknown setting 'polcy'" in refused(yaml.safe_dump({"polcy": {}}))


@pytest.mark.parametrize(
    ("field", "text"), [("findings", "x\ud800"), ("study_id", "x\ud800"), ("indication", "<obj>"), ("findings", "<x3>")]
)
def test_a_study_whose_text_cannot_be_encoded_is_skipped_with_its_id(cached_model, field, text):
    studies = make_studies(3)
    studies[1] = replace(studies[1], **{"sentences": (), field: text})
    plan = Planner(cached_model, studies, None, 4096).plan(range(3))
    assert [study.index for study in plan.in_order] == [0, 2]
    assert plan.skipped == (SkippedStudy(1, studies[1].study_id, "text that cannot be encoded"),)
