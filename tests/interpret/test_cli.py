"""The verb, with a small model, a server on loopback, and a model in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_lens_maira import phantom
from sae_lens_maira.cli.main import main
from sae_lens_maira.interpret.chat import ChatFailure
from sae_lens_maira.interpret.judges import probability_of_yes
from sae_lens_maira.interpret.local_model import LocalModel
from sae_lens_maira.results import read_result
from tests.conftest import CHECKPOINT_PATH
from tests.dashboard.small_gallery import HOOK, make_model, make_sae
from tests.interpret.chat_stand_in import ChatStandIn
from tests.interpret.test_server import ONE_WORD, WRITTEN

SMALL = ["--n-studies", "24", "--n-features", "6", "--min-studies", "2", "--n-on", "2", "--n-silent", "1"]
SMALL += ["--n-counterfactuals", "4", "--n-audit", "10", "--n-controls", "2"]


@pytest.fixture(scope="module")
def sae_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sae")
    sae = make_sae(make_model(list(phantom.studies(4, seed=3))))
    sae.save_model(folder)
    config = {
        "hook_name": HOOK,
        "context_size": 96,
        "model": {"name": str(CHECKPOINT_PATH), "dtype": "float32", "device": "cpu"},
        "source": {"kind": "phantom", "n_studies": 24, "seed": 3, "n_held_out": 4},
        "sae": {"architecture": "topk", "expansion_factor": 1.5, "k": 4},
        "runner": {"training_tokens": 100},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SAE_LENS_MAIRA_CACHE", str(tmp_path_factory.mktemp("rows")))


def test_without_a_model_every_table_and_every_export_is_written(sae_folder, tmp_path, capsys):
    out = tmp_path / "out"
    exports = ["--delphi", str(tmp_path / "delphi"), "--neuronpedia", str(tmp_path / "neuronpedia")]
    assert main(["interpret", str(sae_folder), "--out", str(out), *SMALL, *exports]) == 0
    printed = capsys.readouterr().out
    assert "main " in printed
    assert "random " in printed
    result = read_result(out)
    assert result.kind == "interpretation"
    assert result.table("features").num_rows == 6
    assert set(result.columns) <= set(result.table("features").column_names)
    assert [file.name for file in out.iterdir() if file.name.startswith(".scratch")] == []
    assert list((tmp_path / "delphi" / "latents" / HOOK).glob("*.safetensors"))
    assert list((tmp_path / "delphi" / "explanations").glob("*.txt"))


def test_a_server_is_asked_once_and_a_dry_run_says_how_often(sae_folder, tmp_path, capsys):
    with ChatStandIn() as server:
        judge = ["--judge.kind", "server", "--judge.url", server.url, "--judge.model", "stand-in"]
        command = ["interpret", str(sae_folder), "--out", str(tmp_path), *SMALL, *judge, "--accept-weak-judge"]
        assert main([*command, "--dry-run"]) == 0
        plan = capsys.readouterr().out
        assert server.bodies == []
        assert not (tmp_path / "summary.json").exists()
        assert main(command) == 0
        n_requests = len(server.bodies)
        assert f"judge: {n_requests} requests" in plan
        assert main(command) == 0
        assert len(server.bodies) == n_requests
        assert "asked now: 0 requests" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--explain", "0.8", "--choose", "0.3"], "together they must be below 1"),
        (["--judge.kind", "oracle"], "judge.kind 'oracle' is unknown; choose truth, server or local"),
        (["--judge.kind", "server", "--judge.url", "http://127.0.0.1:9/v1"], "does not say which model it serves"),
        (["--features", "[7, 9999]"], "There is no feature 9999; the SAE has 96"),
        (["--n-studies", "1"], "There are too few patients: none is left to"),
        (["--min-studies", "1000"], "No feature is on in 1000 studies"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(sae_folder, tmp_path, capsys, changes, message):
    assert main(["interpret", str(sae_folder), "--out", str(tmp_path / "out"), "--n-studies", "24", *changes]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0 or "it/s" in error or "study/s" in error


def test_a_folder_without_an_sae_is_refused(tmp_path, capsys):
    assert main(["interpret", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "There is no SAE in" in capsys.readouterr().err


@pytest.fixture(scope="module")
def local_path(tmp_path_factory) -> Path:
    """A tiny language model with random weights and a tokenizer of bytes, made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("local")
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**letters, "<end>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=257, max_position_embeddings=4096, num_attention_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_model_in_this_process_answers_as_a_server_does(local_path):
    chat = LocalModel(str(local_path))
    reply = chat.ask(ONE_WORD)
    assert reply == chat.ask(ONE_WORD)
    assert reply.n_completion == 1
    assert len(reply.top) == 20
    assert [value for _, value in reply.top] == sorted((value for _, value in reply.top), reverse=True)
    assert probability_of_yes(reply) is None  # single letters are neither yes nor no
    with pytest.raises(ChatFailure, match="not the form"):
        chat.ask(WRITTEN)


def test_the_log_probabilities_are_those_of_the_model(local_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reply = LocalModel(str(local_path)).ask(ONE_WORD)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(local_path), AutoTokenizer.from_pretrained(local_path)
    ids = tokenizer(f"{ONE_WORD.system}\n\n{ONE_WORD.user}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = torch.log_softmax(model(ids).logits[0, -1], dim=-1).topk(20).values
    assert [value for _, value in reply.top] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_changes_by_steering_reach_the_explainer(sae_folder, tmp_path):
    changes = tmp_path / "changes.jsonl"
    changes.write_text("".join(json.dumps({"feature": n, "text": f"adds finding {n}"}) + "\n" for n in range(96)))
    with ChatStandIn() as server:
        models = [f"--{who}.{key}" for who in ("explainer", "judge") for key in ("kind", "url", "model")]
        values = ["server", server.url, "stand-in"] * 2
        given = [part for pair in zip(models, values, strict=True) for part in pair]
        command = ["interpret", str(sae_folder), "--out", str(tmp_path / "out"), *SMALL, *given, "--accept-weak-judge"]
        assert main([*command, "--changes", str(changes), "--n-candidates", "1"]) == 0
        asked = [body["messages"][1]["content"] for body in server.bodies if "On:" in body["messages"][1]["content"]]
    assert len(asked) == 6
    assert all("adds finding" in question for question in asked)
