"""The command line: every verb's help and errors, light until something runs, and the verbs that no other test runs."""

import json
import logging
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.errors import OfflineModeIsEnabled
from sae_lens import SAE

import sae_lens_maira
from sae_lens_maira import phantom
from sae_lens_maira.activations.config import CacheConfig
from sae_lens_maira.cli import main as cli
from sae_lens_maira.cli.main import VERBS, _log_handler, main
from sae_lens_maira.data.study import FileImage, Study
from sae_lens_maira.errors import UserError, printable_lines
from sae_lens_maira.files import mark
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.sae import MairaMatryoshkaTrainingSAE, MairaMatryoshkaTrainingSAEConfig
from sae_lens_maira.training.config import TrainConfig
from tests.conftest import CHECKPOINT_PATH
from tests.share.test_dictionary_learning import make_theirs, write_folder

CONFIG_PATH = Path(__file__).parents[2] / "configs"
TRAIN = ["train", "--config", str(CONFIG_PATH / "phantom.yaml"), "--out", "out"]
CACHE = ["cache", "--config", str(CONFIG_PATH / "cache_phantom.yaml"), "--out", "out"]


def help_of(*arguments: str, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_names_every_verb_and_what_it_does(capsys):
    text = help_of(capsys=capsys)
    for name, (_, summary) in VERBS.items():
        assert f"{name} {summary}" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_of_every_verb_has_a_sentence_in_its_help(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out
    settings = re.split(r"\n  (?=--?[a-zA-Z]|[A-Z])", text)[1:]
    assert settings
    for setting in settings:
        name, _, rest = " ".join(setting.split()).partition(" ")
        words = re.sub(r"^(\{\S*\}|[A-Z_|]+|true\|false|VALUE)( \[.*?\])?", "", rest).strip()
        assert len(words.split()) >= 2, f"{name} has no sentence: {setting}"


def test_the_helps_of_train_and_cache_list_every_field_with_its_default(capsys):
    text = help_of("train", capsys=capsys)
    for field in fields(TrainConfig):
        assert re.search(rf"--{field.name}\b", text), field.name
    assert "--model.dtype {float32,bfloat16,float16,auto} data type of the weights" in text
    assert "--shuffle_seed N determines the order of the rows (default: 0)" in text
    assert "--source.seed N phantom: of the studies (default: 0)" in text
    assert "--hook_name HOOK_NAME the SAE's hook point, such as blocks.15.hook_resid_post (required)" in text
    assert "SAE-Lens's LanguageModelSAERunnerConfig, by their own names. Written --runner.NAME VALUE" in text
    own = set(MairaMatryoshkaTrainingSAEConfig.__annotations__)
    assert own == set(re.findall(r"--sae\.(\w+) VALUE", text)) - {"NAME"}
    text = help_of("cache", capsys=capsys)
    for field in fields(CacheConfig):
        assert re.search(rf"--{field.name}\b", text), field.name


HEAVY = """
import sys, types
from pathlib import Path
parent = types.ModuleType("sae_lens_maira")  # an empty stand-in: what the package itself imports is tested elsewhere
parent.__path__, parent.__version__ = [{path!r}], "1"
sys.modules["sae_lens_maira"] = parent
for package in {packages!r}:
    stand_in = types.ModuleType("sae_lens_maira." + package)
    stand_in.__path__ = [{path!r} + "/" + package]
    sys.modules["sae_lens_maira." + package] = stand_in
from sae_lens_maira.cli.main import main
try:
    code = main({arguments!r})
except SystemExit as ended:
    code = ended.code
heavy = [name for name in ("torch", "transformers", "sae_lens", "nnsight", "datasets") if name in sys.modules]
sys.stderr.write("HEAVY " + " ".join(heavy) + "\\n")
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["train", "--help"], 0), ([*TRAIN, "--model.dtype", "float7"], 2), (["view", "--port", "x"], 2)],
    ids=["help", "verb", "wrong-setting", "wrong-option"],
)
def test_help_and_wrong_arguments_import_no_torch(arguments, code):
    path = str(Path(sae_lens_maira.__file__).parent)
    packages = ("activations", "dashboard", "rows", "training")
    program = HEAVY.format(path=path, packages=packages, arguments=arguments)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == code, ran.stderr
    assert ran.stderr.splitlines()[-1].split() == ["HEAVY"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Unknown verb 'trian'; did you mean train?"),
        ([*TRAIN, "--source.path", "x"], "source.path means nothing to kind phantom; its settings are n_studies, seed"),
        ([*TRAIN, "--source.kind=manifest"], "source.path is missing: the manifest's file"),
        ([*TRAIN, "--source.kind", "no"], "source.kind 'no' is unknown; choose phantom, manifest, openi or mimic_cxr."),
        ([*TRAIN, "--source.sed", "2"], "Unknown setting '--source.sed'; did you mean --source.seed"),
        ([*TRAIN, "--model.dtype", "float7"], "model.dtype 'float7' is unknown; choose float32, bfloat16, float16 or"),
        ([*TRAIN, "--model.dtyp", "float32"], "Unknown setting '--model.dtyp'; did you mean --model.dtype"),
        ([*TRAIN, "--policy.sections", "findings", "end"], "policy.sections 'end' is unknown; choose indication,"),
        ([*TRAIN, "--context_size", "1.5"], "context_size is '1.5'; it must be a whole number."),
        ([*TRAIN, "--n_eval_batches", "-1"], "n_eval_batches is -1; it must be at least 1."),
        ([*TRAIN, "--max_norm_multiple", "-1e-3"], "max_norm_multiple -0.001 would leave out half of all tokens"),
        ([*TRAIN, "--sae.k", "abc"], "sae.k is 'abc'; it must be a number."),
        ([*TRAIN, "--sae.kk", "3"], "Unknown setting 'sae.kk'; did you mean sae.k?"),
        ([*TRAIN, "--sae", "3"], "--sae is a group of settings; write --sae.NAME VALUE."),
        ([*TRAIN, "--runner.train_batch_size_tokens", "-8"], "runner.train_batch_size_tokens is -8; it must be at le"),
        ([*TRAIN, "--model.device", "gpu"], "model.device 'gpu' is unknown; choose auto, cpu, cuda or cuda:1."),
        (
            [*TRAIN, "--model.name", "no/such folder"],
            "'no/such folder' is neither a folder here nor a re",
        ),
        ([*TRAIN, "--activations.cache", "none"], "There is no cache of activations in 'none'; make one with"),
        ([*TRAIN, "--hook_name", "blocks.2.hook_resid_pos"], "did you mean hook_name blocks.2.hook_resid_post"),
        ([*TRAIN, "findings"], "'findings' is not a setting; write --name value."),
        (["train", "--config", "none.yaml", "--out", "out"], "There is no configuration 'none.yaml'."),
        (["train", "--config", "none.yaml", "--out"], "--out lacks a value."),
        (["train", "--out", "out"], "--config is missing: a YAML such as configs/phantom.yaml."),
        (["train"], "The command lacks --config, --out."),
        ([*CACHE, "--unit-size", "0"], "unit_size is 0; it must be at least 1."),
        ([*CACHE, "--shard", "3/2"], "There is no shard 3/2; the first is 0/2."),
        (["cache", "--verify", "none"], "There is no cache of activations in 'none'"),
        (["push", "none", "a/b", "--license"], "--license lacks a value."),
        ([*CACHE, "--hook_names", "blocks.2.hook_resid"], "There is no hook point 'blocks.2.hook_resid'"),
        ([*TRAIN[:-1], f"{CONFIG_PATH}/phantom.yaml/out"], "phantom.yaml' is a file; choose another folder."),
        (["view"], "FOLDER is missing: the gallery's folder"),
        (["view", "x", "--port", "99999"], "--port is 99999; it must be at most 65535."),
        (["view", "x", "--no-brwser"], "Unknown setting '--no-brwser'; did you mean --no-browser?"),
        (["dashboard", "x", "--out", "y", "--image-size", "big"], "image_size is 'big'; it must be a whole number."),
        (["report", "none.png", "--model", "phantom"], "none.png"),
        (["report", "x.png", "--model", "none", "--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least"),
        (["import", "none", "--out", "out"], "none is neither a path that exists nor the name of a Hub repository"),
        (["push", "none", "a/b", "--dry-run", "out"], "There is no SAE in SAE-Lens's format"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_nothing_is_written(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAE_LENS_MAIRA_CACHE", str(tmp_path.parent / "rows"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("sae-lens-maira: ")
    assert message in error.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_pages_need_sae_dashboard(tmp_path, monkeypatch, capsys):
    for name in ("cfg.json", "sae_weights.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "config.yaml").write_text((CONFIG_PATH / "phantom.yaml").read_text())
    monkeypatch.setattr("sae_lens_maira.dashboard.settings.find_spec", lambda _: None)
    assert main(["dashboard", str(tmp_path), "--out", str(tmp_path / "gallery")]) == 2
    assert "pip install 'sae-lens-maira[dashboard]', or leave them out with --pages none." in capsys.readouterr().err


def test_a_repository_that_cannot_be_reached_is_one_sentence(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OfflineModeIsEnabled("offline mode\nis enabled")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", refuse)
    assert main(["import", "some/thing", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "sae-lens-maira: The repository 'some/thing' cannot be reached on the Hub (offline mode is enabled); check its "
        "name and the network, or log in with `hf auth login`.\n"
    )


def test_an_error_from_inside_keeps_its_traceback(monkeypatch):
    def break_down(*_, **__):
        raise ValueError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(cli, "read_arguments", break_down)
    with pytest.raises(ValueError, match="shapes cannot be multiplied"):
        main(["train"])


@pytest.mark.parametrize("kind", [UserError, KeyboardInterrupt])
def test_what_a_terminal_would_obey_is_written_out(kind, monkeypatch, capsys):
    def refuse(*_, **__):
        raise kind("the study '\x1b[2J\x07\r\n\x9b\u202e\ud800 Épanchement' is broken")

    monkeypatch.setattr(cli, "read_arguments", refuse)
    assert main(["train"]) in (2, 130)
    assert capsys.readouterr().err == (
        "sae-lens-maira: the study '\\x1b[2J\\x07\\r\\n\\x9b\\u202e\\ud800 Épanchement' is broken\n"
    )


def test_ctrl_c_exits_with_130(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "read_arguments", interrupt)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "sae-lens-maira: interrupted\n"


def test_the_package_is_a_program_with_a_version():
    command = [sys.executable, "-m", "sae_lens_maira", "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == f"{sae_lens_maira.__version__}\n"


@pytest.mark.parametrize("model", ["phantom", str(CHECKPOINT_PATH)], ids=["phantom", "reference"])
def test_report_writes_what_the_model_generates(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    study = phantom.render(["pacemaker"], anatomy_seed=7)
    study.frontal.open().save(tmp_path / "frontal.png")
    arguments = [str(tmp_path / "frontal.png"), "--indication", "Chest pain.", "--max-new-tokens", "12"]
    assert main(["report", *arguments, "--model", model, "--model.dtype", "float32"]) == 0
    written = capsys.readouterr().out
    asked = Study("s", "p", FileImage(tmp_path / "frontal.png"), indication="Chest pain.")
    (expected,) = HookedMaira2.from_pretrained(model, dtype=torch.float32).generate(asked, max_new_tokens=12)
    assert written == f"{expected}\n"


def test_import_brings_a_dictionary_learning_folder_into_sae_lens(tmp_path, capsys):
    theirs = make_theirs()
    folder = write_folder(tmp_path / "theirs", theirs)
    (folder / "interpretations.csv").write_text("latent,explanation\n3,edema\n")
    assert main(["import", str(folder), "--out", str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'ours'}: SAE-Lens's format, 1 interpretations\n"
    x = torch.randn(9, theirs.activation_dim)
    torch.testing.assert_close(SAE.load_from_disk(tmp_path / "ours").encode(x), theirs.encode(x))


def test_import_replaces_an_earlier_import_or_run_only_when_asked(tmp_path, capsys):
    folder, out = write_folder(tmp_path / "theirs", make_theirs()), tmp_path / "ours"
    arguments = ["import", str(folder), "--out", str(out)]
    (out / "checkpoints" / "128").mkdir(parents=True)
    for name in ("config.yaml", "scores.json", "cfg.json", "sae_weights.safetensors", "notes.txt"):
        (out / name).write_text("of another")
    assert main(arguments) == 2
    assert main([*arguments, "--overwrite"]) == 2
    assert "cfg.json' is there already and was not written by this package" in capsys.readouterr().err
    mark(out, "run")
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith("holds an SAE already; choose another folder, or pass --overwrite.\n")
    assert (out / "sae_weights.safetensors").read_text() == "of another"
    assert main([*arguments, "--overwrite"]) == 0
    left = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert left == {"cfg.json", "sae_weights.safetensors", "notes.txt"}
    assert main(arguments) == 2
    assert main([*arguments, "--overwrite"]) == 0


def test_push_stages_an_sae_with_its_scores(tmp_path, capsys):
    torch.manual_seed(0)
    sae = MairaMatryoshkaTrainingSAE(
        MairaMatryoshkaTrainingSAEConfig(d_in=8, d_sae=32, k=4, group_fractions=[0.5, 0.5])
    )
    sae.save_inference_model(tmp_path / "sae")
    (tmp_path / "sae" / "scores.json").write_text(json.dumps({"explained variance": 0.625}))
    arguments = ["push", str(tmp_path / "sae"), "someone/saes", "--dry-run", str(tmp_path / "dry"), "--name", "layer2"]
    assert main([*arguments, "--note", "Of a test."]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'dry'}: README.md, layer2/cfg.json, layer2/sae_weights.safetensors; left out: sae/scores.json\n"
    )
    card = (tmp_path / "dry" / "README.md").read_text()
    assert "| explained variance | 0.625 |" in card
    assert "Of a test." in card


@pytest.mark.parametrize("scores", ["{", "[1]", '{"l0": "many"}', '{"l0": [1]}', "[" * 100_000])
def test_push_names_scores_that_training_did_not_write(tmp_path, capsys, scores):
    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / "scores.json").write_text(scores)
    assert main(["push", str(tmp_path), "someone/saes", "--dry-run", str(tmp_path / "dry")]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"sae-lens-maira: '.*scores\.json' is not what training wrote \(.*\n", error)
    assert not (tmp_path / "dry").exists()


def test_log_lines_and_reports_show_what_a_terminal_would_obey():
    formatter = _log_handler().formatter
    assert formatter is not None
    record = logging.LogRecord("x", logging.INFO, "", 0, "Study %s is left out:\n  why", ("a\x1b[31m\u202eb",), None)
    assert formatter.format(record) == "Study a\\x1b[31m\\u202eb is left out:\n  why"
    assert printable_lines("No \x1b]0;title\x07 effusion.\nEnd.") == "No \\x1b]0;title\\x07 effusion.\nEnd."


def test_the_command_line_is_laid_over_the_file_with_the_types_of_the_settings(tmp_path, monkeypatch):
    path = tmp_path / "run.yaml"
    sae = {"architecture": "topk", "d_sae": 8}
    path.write_text(yaml.safe_dump({"hook_name": "h", "context_size": 64, "sae": sae}))
    seen = {}

    def train(config, *_, **__):
        seen["config"] = config
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_lens_maira.training.run.train", train)
    given = ["--context-size", "1e4", "--sae.k", "12", "--runner.lr=1e-3", "--runner.seed", "-1", "--model", "here"]
    given += ["--model.revision", "12345678", "--policy.sections", "[findings, indication]", "--source.n_studies=9"]
    given += ["--activations.kinds", "findings", "end", "--activations.cache", "null", "--logger.run_name", "a b"]
    assert main(["train", "--config", str(path), "--out", str(tmp_path / "out"), *given]) == 130
    config = seen["config"]
    assert config.context_size == 10_000
    assert config.sae == {**sae, "k": 12}
    assert config.runner == {"lr": 0.001, "seed": -1}
    assert (config.model.name, config.model.revision, config.model.dtype) == ("here", "12345678", "float32")
    assert config.policy.sections == ("findings", "indication")
    assert (config.source.kind, config.source.n_studies) == ("phantom", 9)
    assert (config.activations.kinds, config.activations.cache) == (("findings", "end"), None)
    assert config.logger == {"run_name": "a b"}
