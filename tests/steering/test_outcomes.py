"""Measures of steered reports, computed by hand on a small world."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from sae_lens_maira.hooked import Add
from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.phantom.world.concepts import VISIBLE
from sae_lens_maira.steering.arms import Arm, Proposal
from sae_lens_maira.steering.outcomes import as_unit, best_arm, gather, off_target, on_target, quality
from sae_lens_maira.steering.reports import SteeredReport
from sae_lens_maira.steering.tables import arm_row, feature_table, figures, removal_table, slope_table
from sae_lens_maira.steering.world import PhantomWorld
from tests.steered_sae import HOOK, make_sae

WORLD = PhantomWorld()
A, B = VISIBLE.index("effusion_right_small"), VISIBLE.index("effusion_right_large")
LEFT, PACER = VISIBLE.index("effusion_left_small"), VISIBLE.index("pacemaker")


def report(*mentions, ending="end", n_unread=0, n_tokens=10, nats=0.5):
    return {
        "mentions": list(mentions),
        "n_sentences": 4,
        "n_unread": n_unread,
        "n_tokens": n_tokens,
        "ending": ending,
        "n_asked": 7,
        "n_edited": 7,
        "nats": nats,
    }


def unit(patient, shown, before, *arms):
    return {"patient": patient, "shown": shown, "before": report(*before), "arms": list(arms)}


# Three studies without A and one with it; two arms.
UNITS = [
    unit("p0", [], [], report(A), report(A, B, LEFT, PACER, ending="repetition")),
    unit("p1", [PACER], [PACER], report(A, PACER), report(A)),
    unit("p2", [], [A], report(A), report(n_unread=2)),
    unit("p3", [A], [A], report(A), report(A)),
]
OUTCOMES = gather(UNITS, len(VISIBLE))


def arms(*doses):
    return [
        Arm("latent", "effusion_right_small", (Add(3, dose, HOOK),), dose, Proposal("latent", (3,), (1.0,)))
        for dose in doses
    ]


@pytest.fixture(scope="module")
def dictionary():
    return Dictionary(make_sae(12), torch.full((24,), 2.0))


def test_on_target_counts_studies_that_do_not_show_the_concept():
    np.testing.assert_array_equal(on_target(OUTCOMES, 0, A), [1, 1, 0, np.nan])
    np.testing.assert_array_equal(on_target(OUTCOMES, 1, A), [1, 1, -1, np.nan])


def test_off_target_counts_every_flip_of_every_other_concept():
    assert np.nansum(off_target(OUTCOMES, 0, A)) == 0
    changed = off_target(OUTCOMES, 1, A)
    assert np.isnan(changed[:, A]).all()
    assert np.nansum(changed, axis=1).tolist() == [3, 1, 0, 0]


def test_quality_multiplies_and_the_best_arm_must_be_tame():
    score, off = quality(OUTCOMES, 0, A)
    assert (score, off) == (pytest.approx(2 / 3), 0)
    n_others = len(VISIBLE) - 1
    score, off = quality(OUTCOMES, 1, A)
    assert off == pytest.approx(4 / (4 * n_others))
    assert score == pytest.approx(1 / 3 * (1 - off) * 0.5)  # two of four reports are coherent
    assert best_arm(OUTCOMES, [0, 1], A, 0.05) == 0
    assert best_arm(OUTCOMES, [1], A, 0.0) == 1


def test_a_row_of_the_table_by_hand(dictionary):
    row = arm_row(arms(1.0, 2.0)[1], OUTCOMES, 1, WORLD, dictionary)
    assert row["rise"] == pytest.approx(100 / 3)
    assert row["rise_low"] <= row["rise"] <= row["rise_high"]
    assert row["n_studies"] == 3
    assert row["off_target"] == pytest.approx(100 * 4 / (4 * 23))
    assert (row["worst_concept"], row["off_target_worst"]) == ("pacemaker", 50)
    assert row["off_target_family"] == 25  # the large effusion, in one of four
    assert row["off_target_side"] == pytest.approx(25 / 2)  # the left one, small but not large
    assert row["share_wrong_way"] == pytest.approx(1 / 3)
    assert (row["share_looped"], row["share_coherent"], row["share_unread"]) == (0.25, 0.5, 0.125)
    assert row["nats_per_token"] == 0.5
    assert row["norm"] == pytest.approx(2.0 * 2.0 * float(dictionary.decoder[3].norm()))
    assert row["doses"] == [2.0]


def test_slopes_by_hand():
    """Over the multiples 0, 1, 2: study 0 says 0, 1, 1 (slope 1/2), study 1 the same, study 2 says 1, 1, 0."""
    table = slope_table(arms(1.0, 2.0), OUTCOMES, WORLD).to_pylist()
    assert len(table) == 1
    assert table[0]["slope"] == pytest.approx(100 * (0.5 + 0.5 - 0.5) / 3)
    assert table[0]["share_wrong_way"] == pytest.approx(1 / 3)


def test_removal_compares_with_the_same_study_not_ablated():
    none = Arm("removal", "effusion_right_small", (), 0.0, Proposal("removal", (), ()))
    ablated = Arm("ablation_1", "effusion_right_small", arms(1.0)[0].edits, 0.0, Proposal("ablation", (3,), (0.0,)))
    units = [
        unit("p0", [], [], report(A), report(PACER)),
        unit("p1", [], [], report(A), report(A)),
        unit("p2", [], [], report(), report()),
        unit("p3", [], [], report(A), report()),
    ]
    (row,) = removal_table([none, ablated], gather(units, len(VISIBLE)), WORLD).to_pylist()
    assert (row["mentioned_before"], row["fall"]) == (75, 50)
    assert row["off_target"] == pytest.approx(100 / (4 * 23))


def test_figures_and_features_take_the_latents_row():
    rows = [
        {"arm": "latent", "concept": "a", "features": [3], "doses": [1.5], "rise": 60.0, "off_target": 5.0},
        {"arm": "latent", "concept": "b", "features": [3], "doses": [1.0], "rise": 70.0, "off_target": 5.1},
        {"arm": "random_direction", "concept": "a", "features": [3], "doses": [1.0], "rise": 11.0, "off_target": 1.0},
    ]
    ends = {"rise_low": 0.0, "rise_high": 99.0, "off_target_low": 0.0, "off_target_high": 9.0}
    table = pa.Table.from_pylist([{**row, **ends, "worst_concept": "c", "off_target_worst": 9.0} for row in rows])
    found = figures(table, None)
    assert found["latent"]["n_raised_60_with_5_elsewhere"] == 1
    assert found["random_direction"]["n_raised_10"] == 1
    (feature,) = feature_table(table, None).to_pylist()
    assert (feature["feature"], feature["concept"], feature["rise"], feature["dose"]) == (3, "b", 70.0, 1.0)
    assert np.isnan(feature["rise_random"])


def test_a_reports_unit_has_no_text_unless_it_may_be_kept():
    written = SteeredReport("There is a pacemaker. Nonsense here.", (1, 2, 3), "end", 5, 5)
    values = as_unit(written, WORLD, None, keep_text=False)
    assert values["mentions"] == [PACER]
    assert (values["n_sentences"], values["n_unread"], "text" in values) == (2, 1, False)
    assert as_unit(written, WORLD, None, keep_text=True)["text"] == written.text


def test_the_phantoms_relations():
    assert WORLD.relation("effusion_right_small", "effusion_right_large") == "family"
    assert WORLD.relation("effusion_right_small", "effusion_left_large") == "side"
    assert WORLD.relation("effusion_right_small", "pacemaker") == "other"
    assert WORLD.relation("nodule_left", "rib_fracture_right") == "other"
