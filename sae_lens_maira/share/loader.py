"""Load released SAEs from the Hub or from disk, and import them into SAE-Lens's format.

``SAE.from_pretrained(repo, folder, converter=maira2_sae_loader)`` assumes nothing about the folder names of
``microsoft/maira-2-sae``: it searches a folder for one weights file, with a ``config.json`` beside it. If there is not
exactly one, the error lists the files. A folder in SAE-Lens's own format is passed on to SAE-Lens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader, sae_lens_huggingface_loader
from sae_lens.util import str_to_dtype

from sae_lens_maira.errors import SaeFormatError, quoted
from sae_lens_maira.features.interpretations import (
    TABLE_SUFFIXES,
    find_tables,
    read_interpretations,
    write_interpretations,
)
from sae_lens_maira.files import MARKER, link_tree, mark, read_mark, replace_folder, unfinished_folder
from sae_lens_maira.share.dictionary_learning import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    DictionaryLearningSae,
    read_dictionary_learning,
)
from sae_lens_maira.share.foreign_files import group_of, load_object, read_shape, whole_number
from sae_lens_maira.share.hub import clear_hub_errors

RELEASE = "microsoft/maira-2-sae"
RELEASE_MODEL = "microsoft/maira-2"
WEIGHT_SUFFIXES = (".pt", ".pth", ".safetensors")
INTERPRETATIONS_NAME = "interpretations.csv"
_OWN_FILES = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME, INTERPRETATIONS_NAME)
_KIND, _RUN_KIND = "import", "run"


@dataclass(frozen=True)
class ImportResult:
    """What `import_sae` wrote."""

    path: Path
    """Folder in SAE-Lens's format: `SAE.load_from_disk(path)`."""
    interpretations_path: Path | None
    n_interpretations: int


def maira2_sae_loader(
    repo_id: str,
    folder_name: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor], torch.Tensor | None]:
    """SAE-Lens's `PretrainedSaeHuggingfaceLoader` for dictionary_learning folders on the Hub."""
    files = HfApi().list_repo_files(repo_id)
    if _join(folder_name, SAE_CFG_FILENAME) in files:
        return sae_lens_huggingface_loader(repo_id, folder_name, device, force_download, cfg_overrides)
    weights, config = _find_weights(files, folder_name, source=repo_id)
    paths = [
        None if name is None else Path(hf_hub_download(repo_id, name, force_download=force_download))
        for name in (weights, config)
    ]
    assert paths[0] is not None
    found = read_dictionary_learning(paths[0], paths[1])
    config_dict, tensors = _convert(found, RELEASE_MODEL if repo_id == RELEASE else None, device, cfg_overrides)
    config_dict["metadata"] |= {"source_repo": repo_id, "source_folder": folder_name}
    return config_dict, tensors, None


def maira2_sae_disk_loader(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The same from disk, for `SAE.load_from_disk(path, converter=...)`: a folder or a weights file."""
    folder = Path(path)
    if (folder / SAE_CFG_FILENAME).exists():
        _check_sae_lens_folder(folder)
        return sae_lens_disk_loader(path, device, cfg_overrides)
    if not folder.exists():
        raise SaeFormatError(f"{folder} does not exist.")
    if folder.is_file():
        config = folder.parent / CONFIG_NAME
        found = read_dictionary_learning(folder, config if config.exists() else None)
    else:
        files = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
        weights, config_name = _find_weights(files, "", source=str(folder))
        found = read_dictionary_learning(folder / weights, None if config_name is None else folder / config_name)
    return _convert(found, None, device, cfg_overrides)


def import_sae(
    source: str, out: str | Path, folder: str = "", interpretations: str | None = None, *, overwrite: bool = False
) -> ImportResult:
    """Bring an SAE from disk or the Hub into SAE-Lens's format, with its interpretations where there are any.

    Args:
        source: a folder or weights file, or the name of a Hub repository.
        out: folder to write.
        folder: folder of the SAE within the Hub repository.
        interpretations: a table of feature descriptions, on disk or (by its path) in the repository. None looks for a
            single table beside the weights.
        overwrite: remove an earlier import, or a training run with its checkpoints, from ``out`` first.

    Raises:
        SaeFormatError: there is no SAE, it or the table is damaged, it is in SAE-Lens's format already, or ``out``
            holds something that may not be replaced.
    """
    _check_out(Path(out), overwrite)
    local = Path(source).exists()
    if local:
        _refuse_sae_lens_format(Path(source))
        sae = SAE.load_from_disk(source, converter=maira2_sae_disk_loader)
        table = _local_table(Path(source), interpretations)
    elif source.count("/") == 1 and not source.startswith((".", "/")):
        with clear_hub_errors(source):
            sae = SAE.from_pretrained(source, folder, converter=maira2_sae_loader)
            table = _hub_table(source, folder, interpretations)
    else:
        raise SaeFormatError(f"{source} is neither a path that exists nor the name of a Hub repository (owner/name).")
    out = Path(out)
    rows = [] if table is None else read_interpretations(table, n_features=sae.cfg.d_sae)
    with unfinished_folder(out, SaeFormatError) as unfinished:
        made = unfinished / "import"
        _check_out(out, overwrite)
        with _hold_run(out):
            _copy_the_rest(out, made)
            sae.save_model(made)
            if rows:
                write_interpretations(rows, made / INTERPRETATIONS_NAME)
            mark(made, _KIND)
            replace_folder(made, out)
    return ImportResult(out, out / INTERPRETATIONS_NAME if rows else None, len(rows))


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse a folder whose SAE would be replaced without being asked, or whose files were written by someone else."""
    is_own = any(read_mark(out, kind) is not None for kind in (_KIND, _RUN_KIND))
    taken = next((out / name for name in _OWN_FILES if os.path.lexists(out / name)), None)
    if is_own and not overwrite:
        raise SaeFormatError(f"'{out}' holds an SAE already; choose another folder, or pass --overwrite.")
    if not is_own and taken is not None:
        raise SaeFormatError(f"'{taken}' is there already and was not written by this package; choose another folder.")


def _hold_run(out: Path) -> AbstractContextManager[None]:
    """Keep trainings out of a folder whose run is replaced."""
    if read_mark(out, _RUN_KIND) is None:
        return nullcontext()
    from sae_lens_maira.training.result import hold_folder

    return hold_folder(out)


def _copy_the_rest(out: Path, made: Path) -> None:
    """Link into a new folder what lies in ``out`` and belongs neither to an import nor to a run."""
    if not out.exists():
        made.mkdir(parents=True)
        return
    is_import = read_mark(out, _KIND) is not None
    link_tree(out, made, without=(*_OWN_FILES, MARKER) if is_import else ())
    if read_mark(made, _RUN_KIND) is not None:
        from sae_lens_maira.training.result import remove_run

        remove_run(made)


def _refuse_sae_lens_format(source: Path) -> None:
    folder = source if source.is_dir() else source.parent
    if (folder / SAE_CFG_FILENAME).exists():
        raise SaeFormatError(
            f"'{folder}' is in SAE-Lens's format already ({SAE_CFG_FILENAME}), so there is nothing to import; use it "
            "as it is, or give a folder of dictionary_learning (ae.pt and config.json)."
        )


def _check_sae_lens_folder(folder: Path) -> None:
    """Check what SAE-Lens takes for granted of a folder in its format.

    Raises:
        SaeFormatError: configuration or weights are damaged, or do not fit each other.
    """
    path, weights_path = folder / SAE_CFG_FILENAME, folder / SAE_WEIGHTS_FILENAME
    config = load_object(path)
    for name in ("architecture", "dtype"):
        if not isinstance(config.get(name), str):
            raise SaeFormatError(f"{name} in '{path}' is {quoted(config.get(name))}; it must be a text.")
    d_in, d_sae = (whole_number(config.get(name), name, f"'{path}'") for name in ("d_in", "d_sae"))
    group_of(config, "metadata", f"'{folder}'")
    if not weights_path.is_file():
        raise SaeFormatError(f"'{folder}' has a configuration but no {SAE_WEIGHTS_FILENAME}.")
    shape = read_shape(weights_path, "W_enc")
    if shape not in (None, (d_in, d_sae)):
        raise SaeFormatError(f"'{path}' says d_in {d_in} and d_sae {d_sae}, but W_enc has shape {shape}.")


def _convert(
    found: DictionaryLearningSae, model_name: str | None, device: str, overrides: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config = found.to_sae_lens(model_name, device=device) | (overrides or {})
    dtype = str_to_dtype(config["dtype"])
    return config, {name: tensor.to(device=config["device"], dtype=dtype) for name, tensor in found.tensors.items()}


def _find_weights(files: Sequence[str], folder: str, source: str) -> tuple[str, str | None]:
    """The one weights file in or below a folder, and the `config.json` beside it."""
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    inside = [name for name in files if name.startswith(prefix)]
    weights = [name for name in inside if PurePosixPath(name).suffix in WEIGHT_SUFFIXES]
    named = [name for name in weights if PurePosixPath(name).name == WEIGHTS_NAME]
    direct = [name for name in named or weights if "/" not in name[len(prefix) :]]
    choices = direct or named or weights
    if len(choices) != 1:
        where = f"folder {folder!r} of {source}" if prefix else source
        listed = ", ".join(choices or inside or files) or "nothing"
        what = "several weights files" if choices else "no weights file"
        raise SaeFormatError(f"There is {what} in {where}; found: {_shorten(listed)}.")
    config = str(PurePosixPath(choices[0]).parent / CONFIG_NAME)
    return choices[0], config if config in files else None


def _local_table(source: Path, interpretations: str | None) -> Path | None:
    if interpretations is not None:
        return Path(interpretations)
    folder = source if source.is_dir() else source.parent
    tables = find_tables([file.name for file in folder.iterdir() if file.is_file()])
    return folder / tables[0] if len(tables) == 1 else None


def _hub_table(repo_id: str, folder: str, interpretations: str | None) -> Path | None:
    if interpretations is None:
        prefix = _join(folder, "")
        tables = find_tables([name for name in HfApi().list_repo_files(repo_id) if name.startswith(prefix)])
        interpretations = tables[0] if len(tables) == 1 else None
    elif Path(interpretations).exists():
        return Path(interpretations)
    elif PurePosixPath(interpretations).suffix not in TABLE_SUFFIXES:
        raise SaeFormatError(f"{interpretations} is not a table ({', '.join(TABLE_SUFFIXES)}).")
    return None if interpretations is None else Path(hf_hub_download(repo_id, interpretations))


def _join(folder: str, name: str) -> str:
    return f"{folder.strip('/')}/{name}" if folder.strip("/") else name


def _shorten(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[:limit] + " ..."
