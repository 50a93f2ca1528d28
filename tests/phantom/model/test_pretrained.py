"""The shipped weights: small, quick to load, offline, and as good as their card says."""

import json
import os
import subprocess
import sys

import pytest

from sae_lens_maira import phantom
from sae_lens_maira.phantom.generate import studies
from sae_lens_maira.phantom.model.pretrained import PHANTOM_PATH, load_phantom
from sae_lens_maira.phantom.training.evaluate import Reporter, evaluate, score

SAMPLE_SEED = 77
"""Neither trained on nor used for the card."""


def test_everything_shipped_weighs_at_most_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in PHANTOM_PATH.iterdir()) <= 12e6
    assert json.loads((PHANTOM_PATH / "config.json").read_text())["model_type"] == "maira2"


def test_it_loads_offline_in_under_three_seconds() -> None:
    program = (
        "import time\n"
        "from sae_lens_maira.phantom.model.pretrained import load_phantom\n"
        "import sae_lens_maira.maira2\n"
        "began = time.process_time()\n"
        "model, _ = load_phantom()\n"
        "assert time.process_time() - began < 3, time.process_time() - began\n"
        "assert 2e6 < sum(p.numel() for p in model.parameters()) < 6e6\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr


def card_scores() -> dict[str, float]:
    """The first number in each row of the card's first table."""
    card = (PHANTOM_PATH / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in card.splitlines() if line.count("|") == 4]
    return {cells[1].strip(): float(cells[2].split()[0]) for cells in rows if cells[2].strip()[:1].isdigit()}


def test_a_small_sample_scores_as_the_card_says() -> None:
    evaluation = score(Reporter(*load_phantom(), batch_size=20), list(studies(40, SAMPLE_SEED)))
    said = card_scores()
    assert evaluation.micro_f1 == pytest.approx(said["micro-F1 of findings"], abs=0.05)
    assert evaluation.box_iou == pytest.approx(said["mean box IoU, grounded"], abs=0.1)
    assert evaluation.micro_f1 >= 0.90
    assert evaluation.box_iou >= 0.50
    assert evaluation.micro_f1_blank < 0.35
    assert evaluation.well_formed_share >= 0.95
    assert evaluation.unparsed_share <= 0.05


def test_the_report_follows_a_counterfactual_image() -> None:
    reporter = Reporter(*load_phantom(), batch_size=8)
    pairs = [
        (name, phantom.render([], 40 + k), phantom.render([name], 40 + k))
        for k, name in enumerate(["pacemaker", "edema"])
    ]
    before = reporter.reports([pair[1] for pair in pairs], "before")
    after = reporter.reports([pair[2] for pair in pairs], "after")
    for (name, _, _), old, new in zip(pairs, before, after, strict=True):
        assert name not in old.positives
        assert name in new.positives


@pytest.mark.slow
def test_the_card_says_what_the_weights_score() -> None:
    said, found = card_scores(), evaluate(PHANTOM_PATH, 500)
    # Another CPU may round otherwise and turn a word or two.
    assert found.micro_f1 == pytest.approx(said["micro-F1 of findings"], abs=0.005)
    assert found.box_iou == pytest.approx(said["mean box IoU, grounded"], abs=0.005)


def test_the_cards_own_numbers_meet_what_is_asked() -> None:
    scores = card_scores()
    assert scores["micro-F1 of findings"] >= 0.90
    assert scores["lowest F1 of a visible concept"] >= 0.70
    assert scores["micro-F1 with blanked images"] < 0.35
    assert scores['"unchanged" becomes "new" when the prior loses the finding'] >= 0.80
    assert scores["mean box IoU, grounded"] >= 0.50
