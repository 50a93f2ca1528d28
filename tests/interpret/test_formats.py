"""Delphi's folders, written and read back; Neuronpedia's batches."""

import gzip
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from sae_lens_maira.errors import InterpretError
from sae_lens_maira.interpret.explain import explain_by_rules, explain_by_table
from sae_lens_maira.interpret.formats.delphi import (
    read_cache,
    read_explanations,
    read_scores,
    strengths_of,
    write_cache,
    write_explanations,
    write_scores,
)
from sae_lens_maira.interpret.formats.neuronpedia import write_batches
from sae_lens_maira.interpret.judges import TruthJudge
from sae_lens_maira.interpret.scoring import JudgeUse, score_arm
from tests.interpret.planted import EFFUSION, HOOK, PACEMAKER, WORD


@pytest.fixture(scope="module")
def scored(evidence):
    explanations = explain_by_rules(evidence, [PACEMAKER, EFFUSION, WORD])
    return score_arm(evidence, explanations, JudgeUse(TruthJudge(())), "main")


def write(folder, evidence, shareable=None, d_vocab=10**6):
    corpus = evidence.corpus
    shareable = [True] * len(corpus.studies) if shareable is None else shareable
    return write_cache(
        folder, corpus.recording, corpus.firings, shareable, d_vocab=d_vocab, pad_token_id=0, model_name="m", n_splits=3
    )


def test_a_cache_has_delphis_layout_and_is_read_back(evidence, tmp_path):
    path = write(tmp_path, evidence)
    assert path == tmp_path / "latents" / HOOK
    found = load_file(path / "0_2.safetensors")
    assert set(found) == {"locations", "activations", "tokens"}
    assert found["locations"].dtype == np.uint32
    assert found["activations"].dtype == np.float16
    cache, corpus = read_cache(path), evidence.corpus
    assert cache.model_name == "m"
    strongest = np.zeros((len(corpus.studies), corpus.n_features))
    coordinates = corpus.firings.tocoo()
    np.maximum.at(strongest, (corpus.recording.study_of_token[coordinates.row], coordinates.col), coordinates.data)
    assert strengths_of(cache) == pytest.approx(strongest, abs=1e-3)
    own = corpus.recording.tokens(5)
    assert cache.tokens[5, : own.stop - own.start].tolist() == corpus.recording.token_ids[own].tolist()


def test_private_rows_and_ids_that_delphi_does_not_know_are_padding(evidence, tmp_path):
    shareable = [number != 5 for number in range(len(evidence.corpus.studies))]
    cache = read_cache(write(tmp_path, evidence, shareable, d_vocab=40))
    assert cache.tokens[5].max() == 0
    assert cache.tokens.max() < 40
    assert strengths_of(cache)[5].max() == 0
    assert strengths_of(cache)[6].max() > 0


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x" * 9)])
def test_a_damaged_cache_is_an_error(evidence, tmp_path, damage):
    path = write(tmp_path, evidence)
    for file in path.glob("*.safetensors"):
        damage(file)
    with pytest.raises(InterpretError, match="Delphi"):
        read_cache(path)


def test_explanations_are_written_as_delphi_names_them_and_read_back(evidence, scored, tmp_path):
    texts = {one.feature: one.explanation.text for one in scored}
    path = write_explanations(tmp_path, HOOK, texts)
    assert json.loads((path / f"{HOOK}_latent{PACEMAKER}.txt").read_text()) == texts[PACEMAKER]
    assert read_explanations(path) == texts
    found = explain_by_table(path, [PACEMAKER, 5], 8)
    assert {feature: own.text for feature, own in found.items()} == {PACEMAKER: texts[PACEMAKER]}


def test_explanations_of_two_hook_points_or_of_none_are_refused(tmp_path):
    with pytest.raises(InterpretError, match="holds none"):
        read_explanations(tmp_path)
    write_explanations(tmp_path, "a", {1: "x"})
    write_explanations(tmp_path, "b", {1: "x"})
    with pytest.raises(InterpretError, match="holds those of a, b"):
        read_explanations(tmp_path / "explanations")


def test_scores_give_the_same_balanced_accuracy_when_read(evidence, scored, tmp_path):
    path = write_scores(tmp_path, HOOK, evidence, scored, 0.5)
    found = read_scores(path)
    assert found == {one.feature: pytest.approx(one.detection.balanced_accuracy.value) for one in scored}
    rows = json.loads((path / f"{HOOK}_latent{WORD}.txt").read_text())
    assert {"str_tokens", "activations", "distance", "activating", "prediction", "correct", "probability"} == set(
        rows[0]
    )


def test_neuronpedias_batches_hold_its_columns_and_the_score(scored, tmp_path):
    by_feature = {one.feature: one for one in scored}
    (path,) = write_batches(tmp_path, by_feature, model_id="maira-2", layer="15-sae", judge="truth")
    records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [record["index"] for record in records] == [str(feature) for feature in sorted(by_feature)]
    assert set(records[0]) == {
        *("id", "modelId", "layer", "index", "description", "authorId", "embedding", "triggeredById", "typeName"),
        *("explanationModelName", "notes", "createdAt"),
    }
    assert "judged by truth" in records[0]["notes"]
    again = write_batches(tmp_path / "again", by_feature, model_id="maira-2", layer="15-sae", judge="truth")
    assert again[0].read_bytes() == path.read_bytes()


def test_what_a_model_wrote_about_private_studies_is_left_out(scored, tmp_path):
    from dataclasses import replace

    written = {one.feature: replace(one, explanation=replace(one.explanation, author="model")) for one in scored}
    assert write_batches(tmp_path, written, model_id="m", layer="l", judge="j", all_shareable=False) == []
    assert len(write_batches(tmp_path, written, model_id="m", layer="l", judge="j")) == 1
