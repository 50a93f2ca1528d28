"""kill -9 at random moments, a full disk and eight processes at once, for every verb that writes a folder at the end.

``tests/activations/test_resume.py`` does the same for caches, ``tests/training`` for checkpoints.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stress import N_KILLS, N_TOGETHER, VERBS

ROOT = Path(__file__).parents[1]
LIMIT = 600  # seconds, for processes that hang


@pytest.mark.parametrize("verb", ["push", pytest.param("import", marks=pytest.mark.slow)])
def test_a_folder_is_whole_old_or_new_whatever_happens(verb, tmp_path):
    report = run(verb, tmp_path)
    assert 0 < report["killed"]["killed"] <= N_KILLS
    assert sum(report["together"].values()) == N_TOGETHER
    assert report["full disk"] == "one sentence"


@pytest.mark.slow
@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"push", "import"}))
def test_the_same_for_verbs_that_read_activations(verb, tmp_path):
    test_a_folder_is_whole_old_or_new_whatever_happens(verb, tmp_path)


def run(verb: str, out: Path) -> dict:
    command = [sys.executable, "-m", "tests.stress", verb, str(out), "7"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])
