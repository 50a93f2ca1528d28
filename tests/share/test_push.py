"""Push, import and load against a local stand-in of the Hub's HTTP API; the libraries run unchanged in a subprocess."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from sae_lens import SAE
from safetensors.torch import load_file

from sae_lens_maira.errors import SaeFormatError
from sae_lens_maira.sae import MairaMatryoshkaTrainingSAE, MairaMatryoshkaTrainingSAEConfig
from sae_lens_maira.share import push_saes
from tests.hub_stand_in import HubStandIn, Repository
from tests.share.test_dictionary_learning import make_theirs, write_folder

SECRET = "/data/mimic-cxr/reports with Mr. Secret"


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


@pytest.fixture
def sae_path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = MairaMatryoshkaTrainingSAEConfig(d_in=8, d_sae=32, k=4, matryoshka_widths=[4, 8, 32])
    sae = MairaMatryoshkaTrainingSAE(config)
    sae.cfg.metadata.hook_name = "blocks.15.hook_resid_post"
    sae.cfg.metadata.model_name = "microsoft/maira-2"
    sae.cfg.metadata.dataset_path = SECRET
    sae.cfg.metadata.l0 = 3.97531
    sae.cfg.metadata.sae_lens_maira = {
        "model": "/models/maira-2",
        "revision": "795a2b1",
        "token_policy": {"image_tokens": "last"},
    }
    path = tmp_path / "layer15"
    sae.save_inference_model(path)
    (path / "runner_cfg.json").write_text(json.dumps({"dataset_path": SECRET}))
    (path / "interpretations.csv").write_text(f"feature,text\n1,{SECRET}\n")
    return path


def run(hub: HubStandIn, tmp_path: Path, code: str) -> str:
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "token-for-tests",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_push_makes_a_private_repository_with_a_card_that_loads_back(
    hub: HubStandIn, sae_path: Path, tmp_path: Path
) -> None:
    out = run(
        hub,
        tmp_path,
        f"""
import torch
from sae_lens_maira.share import push_saes
result = push_saes({str(sae_path)!r}, "someone/saes", metrics={{"layer15": {{"explained variance": 0.87}}}})
print(result.url, *result.left_out, sep="|")
from sae_lens import SAE
torch.manual_seed(1)
print(SAE.from_pretrained("someone/saes", "layer15").encode(torch.randn(5, 8)).sum().item())
""",
    )
    repository = hub.repositories["someone/saes"]
    assert repository.private
    assert sorted(repository.files) == ["README.md", "layer15/cfg.json", "layer15/sae_weights.safetensors"]
    assert b"Secret" not in b"".join(repository.files.values())
    assert "/models" not in repository.files["layer15/cfg.json"].decode()
    url, *left_out = out.splitlines()[0].split("|")
    assert url == f"{hub.url}/someone/saes"
    assert {"layer15/runner_cfg.json", "layer15/interpretations.csv", "layer15/cfg.json: metadata.dataset_path"} <= set(
        left_out
    )
    torch.manual_seed(1)
    expected = SAE.load_from_disk(sae_path).encode(torch.randn(5, 8)).sum().item()
    assert float(out.splitlines()[1]) == pytest.approx(expected, rel=1e-5)

    card = repository.files["README.md"].decode()
    for part in (
        "library_name: saelens",
        "- saelens",
        "license: mit",
        "| revision | 795a2b1 |",
        '| token policy | {"image_tokens": "last"} |',
        "| hook point | blocks.15.hook_resid_post |",
        "| groups | 4, 4, 24 |",
        "| mean active latents | 3.975 |",
        "| explained variance | 0.87 |",
        'SAE.from_pretrained("someone/saes", "layer15")',
        "MSRLA",
        "| trained as | maira_matryoshka |",
    ):
        assert part in card, part


def test_public_is_asked_for(hub: HubStandIn, sae_path: Path, tmp_path: Path) -> None:
    code = f"from sae_lens_maira.share import push_saes; push_saes({str(sae_path.parent)!r}, 'a/b', public=True)"
    run(hub, tmp_path, code)
    assert not hub.repositories["a/b"].private
    assert "layer15/sae_weights.safetensors" in hub.repositories["a/b"].files


def test_a_dry_run_writes_the_folder_and_asks_the_hub_nothing(
    sae_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = push_saes(sae_path, "a/b", dry_run_path=tmp_path / "dry", sae_id="x")
    assert result.url is None
    assert result.files == ("README.md", "x/cfg.json", "x/sae_weights.safetensors")
    assert SAE.load_from_disk(tmp_path / "dry" / "x").cfg.metadata.matryoshka_widths == [4, 8, 32]
    weights = [load_file(folder / "sae_weights.safetensors") for folder in (sae_path, tmp_path / "dry" / "x")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(SaeFormatError, match="is not empty"):
        push_saes(sae_path, "a/b", dry_run_path=tmp_path / "dry")


def test_push_refuses_what_is_no_sae_or_no_repository(sae_path: Path, tmp_path: Path) -> None:
    with pytest.raises(SaeFormatError, match="is not the name of a Hub repository"):
        push_saes(sae_path, "nameonly", dry_run_path=tmp_path / "dry")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaeFormatError, match="There is no SAE in SAE-Lens's format"):
        push_saes(tmp_path / "empty", "a/b", dry_run_path=tmp_path / "dry")


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../b", "", ".", "a//b", "a\nb", ".hidden"])
def test_a_name_that_leaves_the_folder_is_refused(sae_path: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SaeFormatError, match="is not a name for an SAE's folder"):
        push_saes(sae_path, "a/b", dry_run_path=tmp_path / "deep" / "er" / "dry", sae_id=name)
    assert not (tmp_path / "deep").exists()


def test_a_models_name_adds_no_keys_to_the_card(sae_path: Path, tmp_path: Path) -> None:
    config = json.loads((sae_path / "cfg.json").read_text())
    config["metadata"]["model_name"] = "a/b\nlicense: stolen\nx: y"
    config["metadata"]["sae_lens_maira"]["model"] = "a/b\nlicense: stolen"
    (sae_path / "cfg.json").write_text(json.dumps(config))
    push_saes(sae_path, "a/b", dry_run_path=tmp_path / "dry", license="mit\ntags: [x]")
    header = yaml.safe_load((tmp_path / "dry" / "README.md").read_text().split("---")[1])
    assert header.keys() == {"library_name", "license", "tags"}
    assert header["license"] == "mit\ntags: [x]"


def test_a_release_on_the_hub_loads_and_imports(hub: HubStandIn, tmp_path: Path) -> None:
    theirs = make_theirs()
    folder = write_folder(tmp_path / "release", theirs)
    files = {f"ef4/trainer_0/{file.name}": file.read_bytes() for file in folder.iterdir()}
    files["ef4/interpretations.csv"] = b"latent,explanation,score\n3,edema,0.8\n"
    files["ef2/trainer_0/ae.pt"] = files["ef4/trainer_0/ae.pt"]
    hub.repositories["microsoft/maira-2-sae"] = Repository(private=False, files=files)
    out = run(
        hub,
        tmp_path,
        f"""
import torch
from sae_lens import SAE
from sae_lens_maira.share import import_sae, maira2_sae_loader
sae = SAE.from_pretrained("microsoft/maira-2-sae", "ef4", converter=maira2_sae_loader)
torch.manual_seed(1)
print(sae.encode(torch.randn(5, 12)).sum().item(), sae.cfg.metadata.source_folder, sae.cfg.metadata.model_name)
bare = SAE.from_pretrained("microsoft/maira-2-sae", "ef2", converter=maira2_sae_loader)
print(bare.cfg.metadata.model_name, bare.cfg.metadata.hook_name)
try:
    SAE.from_pretrained("microsoft/maira-2-sae", "ef8", converter=maira2_sae_loader)
except ValueError as error:
    print(error)
result = import_sae("microsoft/maira-2-sae", {str(tmp_path / "out")!r}, folder="ef4")
print(result.n_interpretations)
""",
    ).splitlines()
    torch.manual_seed(1)
    activations = theirs.encode(torch.randn(5, 12))
    assert isinstance(activations, torch.Tensor)
    expected = activations.sum().item()
    assert float(out[0].split()[0]) == pytest.approx(expected, rel=1e-6)
    assert out[0].split()[1:] == ["ef4", "microsoft/maira-2"]
    assert out[1] == "microsoft/maira-2 None"
    assert out[2].startswith(
        "There is no weights file in folder 'ef8' of microsoft/maira-2-sae; found: ef2/trainer_0/ae.pt"
    )
    assert out[3] == "1"
    assert (tmp_path / "out" / "interpretations.csv").read_text() == "feature,text,score\n3,edema,0.8\n"
    torch.manual_seed(1)
    loaded = SAE.load_from_disk(tmp_path / "out")
    assert loaded.encode(torch.randn(5, 12)).sum().item() == pytest.approx(expected, rel=1e-6)
