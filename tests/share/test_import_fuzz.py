"""SAEs from elsewhere, damaged or of odd types, end as an SAE or as one sentence that names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import save_file

from sae_lens_maira.errors import SaeFormatError
from sae_lens_maira.share import import_sae, maira2_sae_disk_loader
from sae_lens_maira.share.dictionary_learning import read_dictionary_learning
from tests.damage import check_sentence, outcomes
from tests.share.test_dictionary_learning import D_IN, D_SAE, make_theirs, write_folder


@pytest.fixture(scope="module")
def theirs():
    return make_theirs()


@pytest.fixture
def folder(tmp_path, theirs):
    """A folder of dictionary_learning, and the same SAE as safetensors and in SAE-Lens's format."""
    write_folder(tmp_path / "theirs", theirs)
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, tmp_path / "sae.safetensors")
    SAE.load_from_disk(tmp_path / "theirs", converter=maira2_sae_disk_loader).save_model(tmp_path / "ours")
    return tmp_path


READERS: dict[str, Callable[[Path], Any]] = {
    "theirs/ae.pt": read_dictionary_learning,
    "sae.safetensors": read_dictionary_learning,
    "theirs/config.json": lambda path: read_dictionary_learning(path.parent / "ae.pt", path).to_sae_lens(None),
    "ours/cfg.json": lambda path: maira2_sae_disk_loader(path.parent),
    "ours/sae_weights.safetensors": lambda path: maira2_sae_disk_loader(path.parent),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_saes_end_as_an_sae_or_as_a_sentence(folder, name):
    def read(path: Path) -> None:
        try:
            READERS[name](path)
        except SaeFormatError as error:
            # What does not fit together is named by either file.
            raise SaeFormatError(f"{error} [{path.name}]") from error

    READERS[name](folder / name)
    assert outcomes(read, folder / name, seed=7, n=40)["sentence"] > 0


def odd_tensors() -> dict[str, Any]:
    plain = torch.randn(D_IN, D_SAE)
    return {
        "sparse": plain.to_sparse(),
        "sparse rows": plain.to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "meta": plain.to("meta"),
        "whole numbers": plain.long(),
        "complex": plain.to(torch.complex64),
        "repeated": torch.zeros(1).expand(D_IN, D_SAE),
        "empty": torch.zeros(0, D_SAE),
        "one axis": torch.zeros(D_SAE),
        "text": "W_enc",
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", odd_tensors())
def test_odd_tensors_are_refused_in_one_sentence(tmp_path, theirs, kind):
    torch.save(theirs.state_dict() | {"W_enc": odd_tensors()[kind]}, tmp_path / "ae.pt")
    with pytest.raises(SaeFormatError, match="W_enc") as caught:
        maira2_sae_disk_loader(tmp_path)
    check_sentence(str(caught.value), "ae.pt")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *(("trainer", "layer", value) for value in ("x", -1, 1.5, [15], {}, True)),
        *(("trainer", "k", value) for value in ("x", [5], 1e30)),
        *(("trainer", "lm_name", value) for value in (3, ["a"])),
        *(("trainer", "dict_class", value) for value in (3, ["a\n"])),
        *(("buffer", "ctx_len", value) for value in ("128", 0, [])),
    ],
)
def test_odd_values_of_a_configuration_are_named(folder, part, name, value):
    path = folder / "theirs" / "config.json"
    config = json.loads(path.read_text())
    config[part][name] = value
    path.write_text(json.dumps(config))
    weights = torch.load(folder / "theirs" / "ae.pt", weights_only=True)
    torch.save({name: value for name, value in weights.items() if name != "k"}, folder / "theirs" / "ae.pt")
    with pytest.raises(SaeFormatError, match=rf"{name} |is a ") as caught:
        maira2_sae_disk_loader(folder / "theirs")
    check_sentence(str(caught.value), "ae.pt")


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"trainer": 3}', '{"buffer": "x"}', "[" * 9000, '{"a": 1, "a": 2}', "\xff"]
)
def test_a_configuration_that_is_no_object_is_one_sentence(folder, text):
    (folder / "theirs" / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(SaeFormatError) as caught:
        maira2_sae_disk_loader(folder / "theirs")
    check_sentence(str(caught.value), str(folder / "theirs"))


@pytest.mark.parametrize("source", ["ours", "ours/sae_weights.safetensors"])
def test_a_folder_of_sae_lens_needs_no_import(folder, source):
    with pytest.raises(SaeFormatError, match=r"is in SAE-Lens's format already \(cfg\.json\), so there is nothing to"):
        import_sae(str(folder / source), folder / "out")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_in": "12"}, "d_in of .*cfg.json' is '12'; it must be a whole number"),
        ({"d_sae": 41}, r"says d_in 12 and d_sae 41, but W_enc has shape \(12, 40\)"),
        ({"architecture": None}, "architecture in .*cfg.json' is 'None'; it must be a text"),
        ({"dtype": 3}, "dtype in .*cfg.json' is '3'"),
        ({"metadata": []}, "metadata in the configuration of .* is"),
    ],
)
def test_odd_values_in_a_folder_of_sae_lens_are_named(folder, change, message):
    path = folder / "ours" / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SaeFormatError, match=message):
        maira2_sae_disk_loader(folder / "ours")


def test_a_folder_of_sae_lens_without_weights_is_named(folder):
    shutil.copytree(folder / "ours", folder / "other")
    (folder / "other" / "sae_weights.safetensors").unlink()
    with pytest.raises(SaeFormatError, match=r"other' has a configuration but no sae_weights\.safetensors"):
        maira2_sae_disk_loader(folder / "other")
