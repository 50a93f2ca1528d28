"""Whole runs: controls, truth, resuming, and what a result holds."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sae_lens_maira.errors import InterpretError, Interrupted
from sae_lens_maira.interpret.answers import Answers
from sae_lens_maira.interpret.evidence import Evidence
from sae_lens_maira.interpret.judges import LanguageJudge, TruthJudge
from sae_lens_maira.interpret.run import Findings, Models, interpret_features, write_findings
from sae_lens_maira.interpret.scoring import JudgeUse
from sae_lens_maira.interpret.server import ChatServer
from sae_lens_maira.interpret.settings import InterpretSettings, TableConfig
from sae_lens_maira.results import read_result
from tests.interpret.chat_stand_in import ChatStandIn, Trouble
from tests.interpret.planted import EFFUSION, IMAGE, PACEMAKER, UNCHANGED, WORD, make_evidence

SETTINGS = InterpretSettings(n_features=None, n_on=4, n_silent=1, n_audit=20, n_controls=3, n_candidates=2, n_shown=4)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Evidence:
    return make_evidence(tmp_path_factory.mktemp("small"), n_studies=120, settings=SETTINGS)


def truth() -> Models:
    return Models(JudgeUse(TruthJudge(())))


def by_server(server: ChatStandIn, folder: Path, *, explains: bool = True) -> Models:
    answers = Answers(ChatServer(server.url, "stand-in", first_pause=0.01), folder / "answers", show_progress=False)
    return Models(JudgeUse(LanguageJudge(answers)), answers, answers if explains else None)


def run(evidence: Evidence, models: Models, folder: Path) -> Findings:
    findings = interpret_features(evidence, evidence, models, accept_weak_judge=True)
    write_findings(folder, evidence, findings, models, {"sae": "0"})
    return findings


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_without_a_model_right_explanations_stand_above_every_control(evidence, tmp_path):
    findings = run(evidence, truth(), tmp_path)
    result = read_result(tmp_path)
    rows = {row["feature"]: row for row in result.table("features").to_pylist()}
    for feature in (PACEMAKER, EFFUSION, IMAGE, WORD, UNCHANGED):
        row = rows[feature]
        assert row["score"] > 0.95
        assert row["score_low"] <= row["score"] <= row["score_high"]
        assert row["control_other"] < 0.7
        assert row["control_empty"] == 0.5
        assert abs(row["control_shuffled"] - 0.5) < 0.1
        assert row["rule_score"] == row["score"]
        assert row["n_abstained"] == 0
    assert rows[PACEMAKER]["label"] == "pacemaker"
    assert rows[PACEMAKER]["differs"] is False
    assert rows[WORD]["concept"] is not None
    assert result.summary["rules_name_the_concept"]["share"]["value"] == 1
    assert result.summary["audit"] is None
    assert len(findings.scored["random"]) == len(findings.features)


def test_all_tables_have_their_rows_and_private_text_is_in_none(tmp_path):
    hidden = make_evidence(tmp_path / "units", n_studies=120, settings=SETTINGS, shareable=False)
    run(hidden, truth(), tmp_path / "result")
    result = read_result(tmp_path / "result")
    assert set(result.table_names) == {"candidates", "examples", "features", "judgements", "scores"}
    assert result.table("examples").num_rows > 20
    assert set(result.table("examples")["text"].to_pylist()) == {None}
    everything = b"".join(bytes_of(tmp_path / "result").values()).decode("utf-8", "replace")
    for study in hidden.corpus.studies[:20]:
        assert study.findings is not None
        assert study.findings.split(".")[0] not in everything


def test_a_table_is_scored_again_and_wrong_rows_score_low(small, tmp_path):
    table = tmp_path / "theirs.csv"
    table.write_text(f"latent,interpretation,score\n{PACEMAKER},Mentions a pacemaker.,0.1\n{IMAGE},A pacemaker.,0.99\n")
    settings = replace(SETTINGS, explainer=TableConfig(path=str(table)))
    findings = run(replace(small, settings=settings), truth(), tmp_path / "result")
    rows = {row["feature"]: row for row in read_result(tmp_path / "result").table("features").to_pylist()}
    assert set(findings.explanations) == {PACEMAKER, IMAGE}
    assert rows[PACEMAKER]["sensitivity"] == 1  # it also holds of images, where this feature is silent
    assert rows[PACEMAKER]["score"] > 0.8
    assert rows[IMAGE]["score"] < 0.7
    assert rows[IMAGE]["differs"] is True
    assert rows[IMAGE]["rule_score"] > 0.9
    assert rows[WORD]["explanation"] is None


def test_a_model_explains_and_judges_and_every_figure_stands_beside_the_truth(small, tmp_path):
    def write(body) -> str:
        on = body["messages"][-1]["content"].split("Off:")[0].lower()
        what = "pacemaker" if on.count("«") and on.count("pace") >= 3 else "nothing in particular"
        return json.dumps({"sentence": f"A sentence that mentions {what}.", "concept": what})

    with ChatStandIn(write=write) as server:
        run(small, by_server(server, tmp_path), tmp_path)
    result = read_result(tmp_path)
    summary = result.summary
    assert summary["judge"] == "stand-in"
    assert summary["one_model_explains_and_judges"] is True
    assert summary["audit"]["n_pairs"] > 5
    assert summary["score_against_truth"]["n"] > 5
    assert summary["models"]["judge"]["requests"]["judge"] > 50
    assert summary["models"]["judge"]["failures"] == []
    assert result.table("candidates").num_rows == 2 * summary["n_features"]
    rows = {row["feature"]: row for row in result.table("features").to_pylist()}
    assert rows[PACEMAKER]["author"] == "model"
    assert rows[PACEMAKER]["rule_score"] is not None


def test_a_second_run_asks_nothing_and_gives_the_same_bytes(small, tmp_path):
    with ChatStandIn() as server:
        run(small, by_server(server, tmp_path), tmp_path)
        first, n_requests = bytes_of(tmp_path), len(server.bodies)
        run(small, by_server(server, tmp_path), tmp_path)
        assert len(server.bodies) == n_requests
    assert bytes_of(tmp_path) == first


def test_interrupted_and_resumed_equals_uninterrupted(small, tmp_path):
    with ChatStandIn() as server:
        run(small, by_server(server, tmp_path / "whole"), tmp_path / "whole")
        n_requests = len(server.bodies)
    with ChatStandIn() as server:
        server.on_request = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == 30 else None
        with pytest.raises(Interrupted, match="the same command goes on"):
            run(small, by_server(server, tmp_path / "parts"), tmp_path / "parts")
        assert not (tmp_path / "parts" / "summary.json").exists()
        assert 30 <= len(server.bodies) < n_requests
        run(small, by_server(server, tmp_path / "parts"), tmp_path / "parts")
        assert len(server.bodies) == n_requests
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


_KILLED = """
import sys
from pathlib import Path
from tests.interpret.planted import make_evidence
from tests.interpret.test_run import SETTINGS, run
from sae_lens_maira.interpret.answers import Answers
from sae_lens_maira.interpret.judges import LanguageJudge
from sae_lens_maira.interpret.run import Models
from sae_lens_maira.interpret.scoring import JudgeUse
from sae_lens_maira.interpret.server import ChatServer
folder = Path(sys.argv[2])
answers = Answers(ChatServer(sys.argv[1], "stand-in"), folder / "answers", show_progress=False)
evidence = make_evidence(folder / "units", n_studies=120, settings=SETTINGS)
run(evidence, Models(JudgeUse(LanguageJudge(answers)), answers, answers), folder)
"""


def test_killed_and_resumed_equals_uninterrupted(small, tmp_path):
    """kill -9 in the middle of the requests, in a process of its own."""
    with ChatStandIn() as server:
        run(small, by_server(server, tmp_path / "whole"), tmp_path / "whole")
    with ChatStandIn() as server:
        command = [sys.executable, "-c", _KILLED, server.url, str(tmp_path / "parts")]
        (tmp_path / "parts").mkdir()
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."})
        server.on_request = lambda number: process.kill() if number == 40 else None
        assert process.wait(timeout=120) == -signal.SIGKILL
        n_killed = len(server.bodies)
        run(small, by_server(server, tmp_path / "parts"), tmp_path / "parts")
        assert len(server.bodies) > n_killed
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_a_server_that_fails_now_and_then_loses_no_feature_and_lists_what_failed(small, tmp_path):
    troubles: list[Trouble] = ["429", "cut", "500", "no json", "hang up", "no choices"]
    with ChatStandIn(troubles=troubles * 3, retry_after="0") as server:
        findings = run(small, by_server(server, tmp_path), tmp_path)
    assert {one.feature for one in findings.scored["main"]} == set(findings.features)
    with ChatStandIn(write=lambda _: "no object at all") as server:
        findings = run(small, by_server(server, tmp_path / "b"), tmp_path / "b")
    result = read_result(tmp_path / "b")
    assert findings.explanations == {}
    failures = result.summary["models"]["explainer"]["failures"]
    assert len(failures) == 2 * len(findings.features)
    assert {row["failure"][:30] for row in result.table("candidates").to_pylist()} == {"the answer has not the form th"}
    assert [row["explanation"] for row in result.table("features").to_pylist()] == [None] * len(findings.features)
    assert all(row["rule_score"] is not None for row in result.table("features").to_pylist() if row["rule"])


def test_a_weak_judge_ends_the_run_before_it_explains(small, tmp_path):
    with ChatStandIn(judge=lambda _: 0.7) as server:
        models = by_server(server, tmp_path)
        with pytest.raises(InterpretError, match="too weak"):
            interpret_features(small, small, models)
        assert len(server.bodies) <= 20 + 2 * SETTINGS.n_audit // 5


def test_degraded_answers_are_recorded(small, tmp_path):
    with ChatStandIn(refuses=("json_schema", "logprobs")) as server:
        run(small, by_server(server, tmp_path), tmp_path)
    degraded = read_result(tmp_path).summary["models"]["judge"]["degraded"]
    assert degraded == ["json_object in place of json_schema", "no log probabilities"]


def test_settings_that_belong_to_this_machine_are_in_no_result(small, tmp_path):
    run(small, truth(), tmp_path)
    text = (tmp_path / "summary.json").read_text()
    assert str(tmp_path) not in text
    assert "most_requests" not in text


def test_shuffled_labels_of_random_directions_score_at_chance(evidence):
    findings = interpret_features(evidence, evidence, truth())
    values = np.array([one.shuffled for one in findings.scored["random"]])
    assert abs(np.nanmean(values) - 0.5) < 0.02
