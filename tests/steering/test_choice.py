"""Scores of latents from one prefill, against one full pass of the plain model per latent."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from sae_lens_maira.hooked import Add, Where
from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.steering.choice import (
    IMAGES,
    LAST_PROMPT_TOKEN,
    contrast,
    gradient_scores,
    means_at,
    next_token_logits,
    next_token_scores,
    sparse_fit,
    wording_log_probs,
    wording_scores,
)
from sae_lens_maira.steering.continuation import Row
from tests.plain_maira2 import plain_activations, prompt_of, raw_hook, relative_error
from tests.steered_sae import D_SAE, HOOK, make_sae

WORDINGS = [[416, 864, 675], [394, 799], [421, 888, 516, 336]]


def question(model, study):
    inputs = dict(model.processor(prompt_of(study, with_findings=False)))
    return inputs, inputs.pop("token_kinds")[0]


@torch.no_grad()
def test_next_token_logits_are_those_of_one_pass_per_latent(engine, model, studies, dictionary):
    inputs, _ = question(model, studies[0])
    found = next_token_logits(engine, engine.prefill(studies[0]), range(D_SAE), 2.0, max_rows=7)

    for feature in (0, 5, 13):
        vector = 2.0 * (feature + 1) * dictionary.decoder[feature]

        def edit(value, vector=vector):
            value = value.clone()
            value[:, -1] += vector
            return value

        with raw_hook(model.maira2, HOOK, edit):
            expected = model.maira2(**inputs, use_cache=False).logits[0, -1]
        assert relative_error(found[feature], expected) < 1e-4


@torch.no_grad()
def test_next_token_scores_follow_their_formulas(engine, model, studies, dictionary):
    prefill = engine.prefill(studies[0])
    logits = next_token_logits(engine, prefill, range(D_SAE), 2.0)
    scores = next_token_scores(engine, prefill, range(D_SAE), 2.0, HOOK, n_lens=5)
    before = prefill.logits[0].softmax(0).numpy()
    unembedding = model.maira2.lm_head.weight.numpy()
    for feature in range(D_SAE):
        p = logits[feature].softmax(0).numpy()
        lens = np.argsort(-(unembedding @ dictionary.decoder[feature].numpy()))[:5]
        rank = min(int((p > p[token]).sum()) for token in lens)
        assert float(scores.output[feature]) == pytest.approx((1 - rank / len(p)) * p[lens].max(), rel=1e-3, abs=1e-7)
        assert float(scores.confidence[feature]) == pytest.approx(p.max() - before.max(), abs=1e-5)
        assert float(scores.divergence[feature]) == pytest.approx((p * np.log(p / before)).sum(), rel=1e-3, abs=1e-5)


@torch.no_grad()
def test_wordings_are_scored_by_forced_decoding(engine, model, studies):
    inputs, _ = question(model, studies[0])
    row = Row((Add(4, 2.0),), Where(include=("report", "last_prompt_token")))
    found = wording_log_probs(engine, engine.prefill(studies[0]), [Row(), row, row], WORDINGS, max_rows=6)
    n_prompt = inputs["input_ids"].shape[1]
    vector = 2.0 * 5 * engine.dictionaries[HOOK].decoder[4]

    for column, wording in enumerate(WORDINGS):
        ids = torch.cat([inputs["input_ids"], torch.tensor([wording])], dim=1)
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def edit(value):
            value = value.clone()
            value[:, n_prompt - 1 :] += vector
            return value

        plain = model.maira2(**whole, use_cache=False).logits[0]
        with raw_hook(model.maira2, HOOK, edit):
            steered = model.maira2(**whole, use_cache=False).logits[0]
        for index, logits in ((0, plain), (1, steered), (2, steered)):
            log_p = logits[n_prompt - 1 : -1].log_softmax(-1)
            expected = float(sum(log_p[place, token] for place, token in enumerate(wording)))
            assert float(found[index, column]) == pytest.approx(expected, rel=1e-4)


def test_gradients_predict_small_doses(engine, studies, dictionary):
    prefill, where = engine.prefill(studies[0]), Where()
    gradient = gradient_scores(engine, prefill, HOOK, WORDINGS, where)
    # Central differences; in smaller steps, rounding would show.
    step, slopes = 0.02, []
    for sign in (1, -1):
        rows = [Row((Add(feature, sign * step / (feature + 1)),), where) for feature in range(D_SAE)]
        slopes.append(wording_scores(engine, prefill, rows, WORDINGS))
    exact = (slopes[0] - slopes[1]) / (2 * step)
    first_order = gradient / dictionary.strengths
    assert np.corrcoef(first_order.numpy(), exact.numpy())[0, 1] > 0.99


@torch.no_grad()
def test_the_contrast_is_a_difference_of_means_at_a_place(engine, model, studies, dictionary):
    shown, absent = studies[2:4], studies[0:2]
    for where, places in ((LAST_PROMPT_TOKEN, lambda kinds: [-1]), (IMAGES, lambda kinds: (kinds >= 9).tolist())):
        found = contrast(engine, HOOK, shown, absent, where)
        means = []
        for study in (*shown, *absent):
            inputs, kinds = question(model, study)
            x = plain_activations(model.maira2, inputs, HOOK)[0, places(kinds)]
            means.append((dictionary.sae.encode(x).mean(0), x.mean(0)))
        for part, own in enumerate((found.activations, found.residual)):
            expected = (means[0][part] + means[1][part] - means[2][part] - means[3][part]) / 2
            assert relative_error(own, expected) < 1e-4
    both = means_at(engine, HOOK, studies[0], [LAST_PROMPT_TOKEN, IMAGES])
    assert len(both) == 2


def test_a_sparse_fit_finds_the_latents_that_a_direction_is_made_of():
    sae = make_sae(12)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(D_SAE, 12, generator=torch.Generator().manual_seed(5)))
    dictionary = Dictionary(sae, torch.arange(1, D_SAE + 1).float())
    direction = 4.0 * sae.W_dec[7] + 1.0 * sae.W_dec[2]
    features, weights = sparse_fit(dictionary, direction.detach(), 2)
    assert sorted(features.tolist()) == [2, 7]
    made = {int(f): float(w) * (int(f) + 1) for f, w in zip(features, weights, strict=True)}
    assert made == pytest.approx({7: 4.0, 2: 1.0}, rel=1e-4)
    best, _ = sparse_fit(dictionary, direction.detach(), 1)
    rows = sae.W_dec.detach().numpy()
    cosines = rows @ direction.detach().numpy() / np.linalg.norm(rows, axis=1)
    assert best.tolist() == [int(cosines.argmax())]
    assert nnls(rows[[7, 2]].T, direction.detach().numpy())[1] < 1e-4


def test_a_latent_that_never_fires_is_not_chosen():
    sae = make_sae(12)
    dictionary = Dictionary(sae, torch.zeros(D_SAE))
    features, weights = sparse_fit(dictionary, torch.ones(12), 3)
    assert (len(features), len(weights)) == (0, 0)
