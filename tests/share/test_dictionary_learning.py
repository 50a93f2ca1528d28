"""Folders made by dictionary_learning are read with equal activations and written back; bad ones are refused."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionary_learning.dictionary import JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from sae_lens import SAE

from sae_lens_maira.errors import SaeFormatError
from sae_lens_maira.sae import MairaMatryoshkaTrainingSAE, MairaMatryoshkaTrainingSAEConfig
from sae_lens_maira.share import export_dictionary_learning, maira2_sae_disk_loader

D_IN, D_SAE, GROUPS = 12, 40, [4, 8, 28]


def make_theirs(threshold: float = 0.3) -> MatryoshkaBatchTopKSAE:
    torch.manual_seed(0)
    theirs = MatryoshkaBatchTopKSAE(D_IN, D_SAE, 5, GROUPS)
    with torch.no_grad():
        theirs.b_enc.normal_(std=0.1)
        theirs.b_dec.normal_(std=0.1)
        theirs.load_state_dict({"threshold": torch.tensor(threshold)}, strict=False)
    return theirs


def write_folder(path: Path, sae: torch.nn.Module, **trainer: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    torch.save(sae.state_dict(), path / "ae.pt")
    config = {"dict_class": type(sae).__name__, "layer": 15, "lm_name": "microsoft/maira-2", **trainer}
    (path / "config.json").write_text(json.dumps({"trainer": config, "buffer": {"ctx_len": 128}}))
    return path


@pytest.mark.parametrize("threshold", [0.3, 0.0, -1.0])
def test_a_folder_made_by_dictionary_learning_gives_its_own_activations(tmp_path: Path, threshold: float) -> None:
    theirs = make_theirs(threshold)
    sae = SAE.load_from_disk(write_folder(tmp_path, theirs), converter=maira2_sae_disk_loader)
    x = torch.randn(50, D_IN)
    torch.testing.assert_close(sae.encode(x), theirs.encode(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sae(x), theirs(x), rtol=1e-6, atol=1e-6)
    assert sae.cfg.metadata.hook_name == "blocks.15.hook_resid_post"
    assert sae.cfg.metadata.model_name == "microsoft/maira-2"
    assert sae.cfg.metadata.context_size == 128
    assert sae.cfg.metadata.matryoshka_widths == [4, 12, 40]
    assert sae.cfg.metadata.k == 5


def test_its_batch_topk_and_jumprelu_saes_load_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch_topk, jumprelu = BatchTopKSAE(D_IN, D_SAE, 5), JumpReluAutoEncoder(D_IN, D_SAE)
    with torch.no_grad():
        batch_topk.load_state_dict({"threshold": torch.tensor(0.2)}, strict=False)
        batch_topk.b_dec.normal_()
        jumprelu.threshold.uniform_(0, 0.5)
        jumprelu.b_dec.normal_()
    x = torch.randn(50, D_IN)
    for index, theirs in enumerate((batch_topk, jumprelu)):
        sae = SAE.load_from_disk(write_folder(tmp_path / str(index), theirs), converter=maira2_sae_disk_loader)
        torch.testing.assert_close(sae.encode(x), theirs.encode(x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(sae(x), theirs(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_our_saes_go_to_dictionary_learning_and_back(tmp_path: Path, apply_b_dec_to_input: bool) -> None:
    torch.manual_seed(0)
    config = MairaMatryoshkaTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=4, matryoshka_widths=[4, 12, 40], apply_b_dec_to_input=apply_b_dec_to_input
    )
    trained = MairaMatryoshkaTrainingSAE(config)
    with torch.no_grad():
        trained.b_dec.normal_()
        trained.topk_threshold.fill_(0.05)
    trained.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    trained.save_inference_model(tmp_path / "ours")
    sae = SAE.load_from_disk(tmp_path / "ours")
    folder = export_dictionary_learning(sae, tmp_path / "theirs")
    theirs = MatryoshkaBatchTopKSAE.from_pretrained(folder / "ae.pt")
    x = torch.randn(50, D_IN)
    torch.testing.assert_close(theirs.encode(x), sae.encode(x), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(theirs(x), sae(x), rtol=1e-6, atol=2e-6)
    assert theirs.state_dict()["group_sizes"].tolist() == GROUPS
    back = SAE.load_from_disk(folder, converter=maira2_sae_disk_loader)
    torch.testing.assert_close(back.encode(x), sae.encode(x), rtol=1e-6, atol=2e-6)
    assert back.cfg.metadata.hook_name == "blocks.3.hook_resid_post"


class Danger:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"W_enc": torch.zeros(2, 2), "x": Danger(tmp_path / "ran")}, tmp_path / "ae.pt")
    with pytest.raises(
        SaeFormatError, match="holds more than tensors and is refused, because loading it could run code"
    ):
        maira2_sae_disk_loader(tmp_path)
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Danger(tmp_path / "ran")))
    with pytest.raises(SaeFormatError, match="is refused|is not a file that PyTorch can read"):
        maira2_sae_disk_loader(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": torch.zeros(D_SAE, D_IN + 1)}, r"W_dec in .* has shape \(40, 13\), but W_enc \(12, 40\) calls for"),
        ({"b_enc": torch.zeros(3)}, "b_enc in .* has shape"),
        ({"threshold": torch.zeros(2, 2)}, "calls for a scalar"),
        ({"W_enc": torch.zeros(3)}, r"not \(d_in, d_sae\)"),
        ({"b_dec": torch.full((D_IN,), float("nan"))}, "b_dec in .* holds NaN or infinite values"),
        ({"group_sizes": torch.tensor([4, 8, 27])}, r"The groups \[4, 8, 27\] in .* sum to the 40 latents"),
        ({"group_sizes": torch.tensor([0, 40])}, "are not positive sizes"),
        ({"W_dec": None}, "lacks W_dec: it has"),
    ],
)
def test_broken_files_are_refused_in_one_sentence(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    state = make_theirs().state_dict() | change
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(SaeFormatError, match=message) as caught:
        maira2_sae_disk_loader(tmp_path)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_other_refusals_say_what_was_found(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", make_theirs(), dict_class="GatedAutoEncoder")
    with pytest.raises(SaeFormatError, match="is a GatedAutoEncoder; only MatryoshkaBatchTopKSAE"):
        maira2_sae_disk_loader(folder)
    write_folder(folder, make_theirs(), dict_size=41)
    with pytest.raises(SaeFormatError, match="says dict_size 41, but W_enc says 40"):
        maira2_sae_disk_loader(folder)
    write_folder(tmp_path / "b", make_theirs())
    with pytest.raises(SaeFormatError, match="several weights files in .*; found: a/ae.pt, b/ae.pt"):
        maira2_sae_disk_loader(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("hello")
    with pytest.raises(SaeFormatError, match="no weights file in .*; found: notes.txt"):
        maira2_sae_disk_loader(tmp_path / "c")
    with pytest.raises(SaeFormatError, match="does not exist"):
        maira2_sae_disk_loader(tmp_path / "d")


def test_an_sae_with_a_threshold_a_latent_cannot_be_exported(tmp_path: Path) -> None:
    sae = SAE.load_from_disk(write_folder(tmp_path, make_theirs()), converter=maira2_sae_disk_loader)
    sae.threshold.data[0] = 1.0  # pyright: ignore[reportIndexIssue]
    with pytest.raises(SaeFormatError, match="has one threshold, but this SAE has one for each latent"):
        export_dictionary_learning(sae, tmp_path / "out")
