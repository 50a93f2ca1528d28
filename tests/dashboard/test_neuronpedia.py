"""Neuronpedia's files: made by sae-dashboard, checked against its classes, equal to the SAE's numbers."""

import copy
import json

import numpy as np
import pytest

from sae_lens_maira.dashboard.standard.neuronpedia import NeuronpediaError, check_batch
from tests.dashboard.small_gallery import ALWAYS, DEAD, plain_firings


@pytest.fixture(scope="module")
def batch(made):
    (path,) = (made.path / "neuronpedia").iterdir()
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_batch_can_be_uploaded_as_sae_dashboard_declares_it(made, batch):
    check_batch(batch)
    assert [feature["feature_index"] for feature in batch["features"]] == [ALWAYS, DEAD, 5, 30]
    assert batch["layer"] == 1
    assert batch["sae_set"] == "maira-2-sae"
    assert [path.name for path in made.result.neuronpedia] == ["batch-0.json"]


def test_its_numbers_are_those_of_the_sae(made, batch):
    firings = plain_firings(made)
    every = np.concatenate(firings)
    rows = [made.model.reader.rows([k], None)[0].tolist()[: len(own)] for k, own in enumerate(firings)]
    texts = [made.model.tokenizer.row_to_texts(row) for row in rows]
    for feature in batch["features"]:
        own = feature["feature_index"]
        assert feature["frac_nonzero"] == pytest.approx((every[:, own] > 0).mean(), abs=1e-5)
        for activation in feature["activations"]:
            study = texts.index(activation["tokens"])
            expected = firings[study][:, own]
            assert activation["values"] == pytest.approx(expected.tolist(), rel=1e-5, abs=6e-4)
        top = [activation for activation in feature["activations"] if activation["bin_min"] == -1]
        largest = [activation["values"][activation["qualifying_token_index"]] for activation in top]
        assert largest == pytest.approx(np.sort(every[:, own])[::-1][: len(top)], rel=1e-5, abs=6e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch["features"][0].pop("pos_str"), r"missing fields \['pos_str'\]"),
        (lambda batch: batch.update(extra=1), r"unknown fields \['extra'\]"),
        (lambda batch: batch["features"][1].update(frac_nonzero="0.1"), "frac_nonzero is str"),
        (lambda batch: batch["features"][2]["pos_values"].append(None), "pos_values is list"),
        (lambda batch: batch["features"][2]["activations"][0]["values"].pop(), "tokens have"),
        (lambda batch: batch["features"][2]["activations"][0].update(qualifying_token_index=-1), "qualifying token"),
    ],
)
def test_what_does_not_fit_is_named(batch, change, message):
    changed = copy.deepcopy(batch)
    change(changed)
    with pytest.raises(NeuronpediaError, match=message):
        check_batch(changed)
