"""Steering in other tools' files."""

import pytest
import torch

from sae_lens_maira import phantom
from sae_lens_maira.errors import SteeringError
from sae_lens_maira.hooked import Ablate, Add
from sae_lens_maira.hooked.edits import compile_rows
from sae_lens_maira.steering.exchange import neuronpedia_record, read_lm_eval
from tests.steered_sae import HOOK, make_dictionary

HEADER = "loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,sae_id,description\n"
DICTIONARY = make_dictionary(12)


@torch.no_grad()
def test_the_harness_table_means_what_the_harness_does(tmp_path):
    path = tmp_path / "steer.csv"
    path.write_text(
        f"{HEADER}sparsify,add,some/sae,language_model.layers.2,3,2.5,,a\nsparsify,clamp,some/sae,layers.2,5,-4,,b\n"
    )
    sae, x = DICTIONARY.sae, torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(0))
    edits = read_lm_eval(path, DICTIONARY)
    added = x + compile_rows([edits[:1]], {HOOK: DICTIONARY}, 12, "cpu")[HOOK].change(x)
    torch.testing.assert_close(added, x + 2.5 * sae.W_dec[3])
    clamped = x + compile_rows([edits[1:]], {HOOK: DICTIONARY}, 12, "cpu")[HOOK].change(x)
    unit = sae.W_dec[5] / sae.W_dec[5].norm()
    along = (x - sae.b_dec) @ unit
    torch.testing.assert_close(clamped, x + (-4 - along)[..., None] * unit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((clamped - sae.b_dec) @ unit, torch.full((1, 6), -4.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sparsify,add,m,layers.3,3,2.5,,a", f"line 2: hookpoint 'blocks.3.hook_resid_post' is not the SAE's, {HOOK}."),
        ("sparsify,add,m,layers.2,24,2.5,,a", "line 2: there is no latent '24'; the SAE has 24."),
        ("sparsify,add,m,layers.2,3,nan,,a", "line 2: steering_coefficient is no finite number; give one."),
        ("sparsify,turn,m,layers.2,3,1,,a", "line 2: action 'turn' is unknown; choose add or clamp."),
        ("sparsify,add,m,layers.2,,1,,a", "line 2: feature_index is missing; the columns are action,"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "steer.csv"
    path.write_text(f"{HEADER}{line}\n")
    with pytest.raises(SteeringError) as error:
        read_lm_eval(path, DICTIONARY)
    assert message in str(error.value)


def test_a_missing_or_empty_table_is_refused(tmp_path):
    with pytest.raises(SteeringError, match="cannot be read"):
        read_lm_eval(tmp_path / "none.csv", DICTIONARY)
    (tmp_path / "empty.csv").write_text(HEADER)
    with pytest.raises(SteeringError, match="has no line of steering"):
        read_lm_eval(tmp_path / "empty.csv", DICTIONARY)


def test_a_record_keeps_private_reports_to_itself():
    from dataclasses import replace

    study = phantom.render(["pacemaker"], 1)
    options = {"model_id": "maira-2", "layer_id": "2-maira", "default": "A.", "steered": "B.", "settings": {"seed": 3}}
    record = neuronpedia_record(study, [Add(4, 2.0)], DICTIONARY, **options)
    norm = float(DICTIONARY.decoder[4].norm())
    assert record["features"] == [{"modelId": "maira-2", "layer": "2-maira", "index": 4, "strength": 2.0 * 5 * norm}]
    assert (record["DEFAULT"], record["STEERED"], record["seed"]) == ("A.", "B.", 3)
    private = neuronpedia_record(replace(study, shareable=False), [Add(4, 2.0)], DICTIONARY, **options)
    assert not {"DEFAULT", "STEERED", "study"} & private.keys()
    with pytest.raises(SteeringError, match="know only additions to latents, not Ablate."):
        neuronpedia_record(study, [Ablate(4)], DICTIONARY, **options)
