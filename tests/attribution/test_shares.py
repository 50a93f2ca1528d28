"""Shares of sources: sums, intervals, planted features, and what is done when nothing drives a feature."""

import numpy as np
import pytest
import torch

from sae_lens_maira.attribution.combinations import PLACES, play
from sae_lens_maira.attribution.reading import FeatureReader
from sae_lens_maira.attribution.shares import DRIVERS, MIN_STUDIES, SOURCES, Effects, summarize, used_studies
from sae_lens_maira.attribution.swaps import Donors
from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.hooked.embedded import embed_images, embed_prompt
from tests.attribution.conftest import random_sae


def effects_of(shapley, fires=None):
    """Effects of one study at one place, from Shapley values of (n_sources, n_features)."""
    values = np.asarray(shapley, dtype=np.float32)[:, None]
    fires = np.ones((1, values.shape[2]), dtype=bool) if fires is None else np.asarray([fires])
    own = values.sum(axis=0)
    return Effects(values, np.zeros_like(own), own, fires)


def test_shares_are_ratios_of_sums_and_sum_to_one():
    # Two patients: totals 4 and 2; the images give 3 and 0, the prompt 1 and 2.
    studies = [
        effects_of([[3.0], [0], [0], [1], [0]]),
        effects_of([[0.0], [0], [0], [2], [0]]),
    ] * 4
    found = summarize(studies, [str(index) for index in range(8)], n_resamples=50)
    shares = dict(zip(DRIVERS, found.shares[:, 0, 0, 0], strict=True))
    assert shares == pytest.approx({"image": 0.5, "prior": 0, "text": 0.5, "report": 0})
    assert found.total[0, 0, 0] == pytest.approx(3.0)
    assert found.total[0, 0, 1] < 3.0 < found.total[0, 0, 2]


def test_prior_image_and_prior_report_are_one_driver():
    studies = [effects_of([[1.0], [2], [3], [0], [0]])] * MIN_STUDIES
    found = summarize(studies, [str(index) for index in range(MIN_STUDIES)], n_resamples=20)
    assert found.shares[DRIVERS.index("prior"), 0, 0].tolist() == pytest.approx([5 / 6] * 3)
    assert found.driver(0, 0) == "prior"


def test_a_feature_without_a_surely_positive_effect_has_no_driver():
    signs = [1, -1] * 6
    studies = [effects_of([[1.0 * sign], [0], [0], [0], [0]]) for sign in signs]
    found = summarize(studies, [str(index) for index in range(12)], n_resamples=200)
    assert not found.is_driven[0, 0]
    assert found.driver(0, 0) is None
    assert np.isnan(found.shares[:, 0, 0]).all()


def test_intervals_treat_a_patient_as_one():
    studies = [effects_of([[float(value)], [0], [0], [0], [0]]) for value in (1, 1, 1, 1, 9, 9, 9, 9)]
    alone = summarize(studies, list("abcdefgh"), n_resamples=2000)
    paired = summarize(studies, list("aaaabbbb"), n_resamples=2000)
    width = lambda found: found.total[0, 0, 2] - found.total[0, 0, 1]  # noqa: E731
    assert width(paired) > 1.3 * width(alone)
    assert paired.total[0, 0].tolist() == [5, 1, 9]


def test_shares_use_the_studies_in_which_a_feature_fires():
    fires = np.zeros((20, 1, 2), dtype=bool)
    fires[:10, 0, 0] = True  # the second feature never fires
    own = np.arange(20.0).reshape(20, 1, 1).repeat(2, axis=2)
    used = used_studies(own, fires)
    assert used[:, 0, 0].tolist() == [True] * 10 + [False] * 10
    assert used[:, 0, 1].tolist() == [False] * (20 - MIN_STUDIES) + [True] * MIN_STUDIES


def test_effects_survive_json():
    effects = effects_of(np.random.default_rng(0).normal(size=(5, 7)), fires=[True, False] * 3 + [True])
    again = Effects.unpack(effects.pack())
    for name in ("shapley", "interaction", "own", "fires"):
        np.testing.assert_array_equal(getattr(again, name), getattr(effects, name))


@pytest.mark.parametrize("source", SOURCES)
def test_a_feature_planted_on_one_source_is_given_to_it(model, some_studies, source):
    """One coordinate of the residual stream, before the first layer, is raised by the tokens of one source alone.

    The features read that coordinate, so no other source can act on them; the largest value over the tokens of the
    report sees it through the first layer's attention only. Here the first layer's input is read, at the source itself.
    """
    direction = 0
    sae = random_sae(model.cfg.d_model, "blocks.0.hook_resid_post", d_sae=1)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.W_enc[direction, 0] = 1.0
        sae.b_dec.zero_()
        sae.b_enc.zero_()
        sae.threshold.fill_(0.0)
    reader = FeatureReader(model, sae)
    study = next(study for study in some_studies if study.prior_report)
    donors = Donors([study, *(other for other in some_studies if other is not study)], seed=0)
    replacement = donors.replacement(0, "different")
    with _planted(reader, study, replacement, source, direction):
        game = play(reader, study, replacement)
    effects = Effects.of(game)
    found = effects.shapley[:, PLACES.index("findings"), 0]
    assert int(found.argmax()) == SOURCES.index(source)
    assert found[SOURCES.index(source)] > 0.9 * found.sum() > 10


class _planted:
    """The feature's value is 100 times whether the prompt holds a source's own tokens: seen through the last layer."""

    def __init__(self, reader, study, replacement, source, direction):
        self.reader, self.direction = reader, direction
        self.seen = torch.tensor([False])
        vlm = reader.vlm
        images = embed_images(vlm, [study])[0]
        prompt = embed_prompt(vlm, vlm.processor.encode(study, "findings"), images)
        kinds = {
            "current_images": (TokenKind.FRONTAL_IMAGE,),
            "prior_image": (TokenKind.PRIOR_IMAGE,),
            "prior_report": (TokenKind.PRIOR_REPORT,),
            "prompt": (TokenKind.INDICATION,),
            "report": (TokenKind.FINDINGS,),
        }[source]
        self.wanted = prompt.embeddings[prompt.positions(*kinds)].detach()

    def __enter__(self):
        layers = self.reader.vlm.layers(self.reader.vlm.module)
        self.memory = None

        def mark(_module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            n = len(self.wanted)
            near = torch.stack(
                [
                    torch.stack(
                        [
                            (row[start : start + n] - self.wanted).abs().max() < 1e-4
                            if start + n <= len(row)
                            else torch.tensor(False)
                            for start in range(len(row))
                        ]
                    ).any()
                    for row in hidden
                ]
            )
            if hidden.shape[0] == 1 and kwargs.get("past_key_values") is not None and self.memory is None:
                self.memory = bool(near[0])
                self.seen = near
            else:
                self.seen = near | bool(self.memory)
                self.memory = None

        def add(_module, _args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            raised = hidden.clone()
            raised[..., self.direction] = 100.0 * self.seen[:, None].to(hidden)
            return (raised, *output[1:]) if isinstance(output, tuple) else raised

        self.handles = [
            layers[0].register_forward_pre_hook(mark, with_kwargs=True),
            layers[0].register_forward_hook(add),
        ]
        return self

    def __exit__(self, *_error):
        for handle in self.handles:
            handle.remove()
