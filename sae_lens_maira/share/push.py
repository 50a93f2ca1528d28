"""Upload SAEs with SAE-Lens's own function, from a staging folder that contains only what may leave the machine.

1. Each SAE's ``cfg.json`` is copied with known keys only; its weights and sparsity are copied unchanged. Nothing else
   is copied: runner configurations, for example, contain local paths and names of data sets.
2. A model card is written from these configurations.
3. The repository is created, private by default, and the staging folder is uploaded. A dry run stops before this.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from sae_lens import upload_saes_to_huggingface
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME

from sae_lens_maira.errors import SaeFormatError
from sae_lens_maira.files import unfinished_folder
from sae_lens_maira.hooked.identity import METADATA_KEY, public_model_name
from sae_lens_maira.share.card import make_card
from sae_lens_maira.share.foreign_files import group_of, load_object
from sae_lens_maira.share.hub import clear_hub_errors

CARD_NAME = "README.md"
_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)
CONFIG_KEYS = (
    *("architecture", "d_in", "d_sae", "dtype", "apply_b_dec_to_input", "normalize_activations", "reshape_activations"),
    *("k", "rescale_acts_by_decoder_norm"),
)
METADATA_KEYS = (
    *("sae_lens_version", "sae_lens_training_version", "model_name", "hook_name", "context_size", "prepend_bos"),
    *("exclude_special_tokens", "seqpos_slice", "matryoshka_widths", "training_architecture", "k", "l0"),
    *("training_architecture_details", "num_dead_features", "source_format", "source_repo", "source_folder"),
    METADATA_KEY,
)


@dataclass(frozen=True)
class PushResult:
    """What was uploaded, or would have been."""

    repo_id: str
    url: str | None
    """None for a dry run."""
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    """Files and metadata keys that stayed behind."""


def push_saes(
    source: str | Path,
    repo_id: str,
    sae_id: str | None = None,
    public: bool = False,
    dry_run_path: str | Path | None = None,
    license: str = "mit",
    note: str = "",
    metrics: Mapping[str, Mapping[str, float]] | None = None,
) -> PushResult:
    """Upload one SAE, or every SAE of a folder, with a model card.

    Args:
        source: folder of an SAE in SAE-Lens's format (saved for inference), or a folder of such folders.
        repo_id: repository on the Hub, `owner/name`.
        sae_id: folder name on the Hub of a single SAE; its own folder's name where None.
        public: make the repository public when it is created. One that exists keeps its visibility.
        dry_run_path: write what would be uploaded here, and upload nothing.
        license: the SAE's license, as the Hub spells it.
        note: a paragraph for the card.
        metrics: figures for the card, by SAE id.
    """
    if repo_id.count("/") != 1:
        raise SaeFormatError(f"{repo_id!r} is not the name of a Hub repository (owner/name).")
    if sae_id is not None and not _ID.fullmatch(sae_id):
        raise SaeFormatError(
            f"{sae_id!r} is not a name for an SAE's folder; use letters, digits, '.', '-', '_', and single '/' between."
        )
    folders = _find_saes(Path(source), sae_id)
    with _staging(None if dry_run_path is None else Path(dry_run_path)) as staged:
        left_out: list[str] = []
        configs = {name: _stage(folder, staged / name, left_out) for name, folder in folders.items()}
        staged.joinpath(CARD_NAME).write_text(make_card(repo_id, configs, metrics, license, note), encoding="utf-8")
        files = tuple(sorted(file.relative_to(staged).as_posix() for file in staged.rglob("*") if file.is_file()))
        url = None
        if dry_run_path is None:
            with clear_hub_errors(repo_id):
                url = _upload(repo_id, staged, list(folders), public)
    return PushResult(repo_id=repo_id, url=url, files=files, left_out=tuple(left_out))


@contextmanager
def _staging(path: Path | None) -> Iterator[Path]:
    """An empty folder for what may leave the machine; it becomes ``path`` once it is complete, or goes."""
    if path is None:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SaeFormatError(f"'{path}' is not empty; choose another folder.")
    with unfinished_folder(path, SaeFormatError) as unfinished:
        staged = unfinished / "staged"
        staged.mkdir()
        yield staged
        if path.exists() and any(path.iterdir()):
            raise SaeFormatError(f"'{path}' was filled in the meantime; choose another folder.")
        staged.rename(path)  # an empty folder gives way


def _upload(repo_id: str, staged: Path, names: Sequence[str], public: bool) -> str:
    api = HfApi()
    url = str(api.create_repo(repo_id, private=not public, exist_ok=True))
    saes: dict[str, Any] = {name: staged / name for name in names}
    upload_saes_to_huggingface(saes, repo_id, show_progress=False, add_default_readme=False)
    api.upload_file(
        path_or_fileobj=staged / CARD_NAME,
        path_in_repo=CARD_NAME,
        repo_id=repo_id,
        commit_message="Write the model card",
    )
    return url


def _find_saes(source: Path, sae_id: str | None) -> dict[str, Path]:
    if (source / SAE_CFG_FILENAME).exists():
        return {sae_id or source.resolve().name: source}
    folders = sorted(file.parent for file in source.glob(f"*/{SAE_CFG_FILENAME}"))
    if not folders:
        raise SaeFormatError(f"There is no SAE in SAE-Lens's format ({SAE_CFG_FILENAME}) in {source} or its folders.")
    if sae_id is not None:
        raise SaeFormatError(f"{source} holds {len(folders)} SAEs, so one id for them makes no sense.")
    return {folder.name: folder for folder in folders}


def _stage(folder: Path, out: Path, left_out: list[str]) -> dict[str, Any]:
    if not (folder / SAE_WEIGHTS_FILENAME).exists():
        raise SaeFormatError(f"{folder} has a configuration but no {SAE_WEIGHTS_FILENAME}.")
    out.mkdir(parents=True)
    shared = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME)
    for file in sorted(folder.iterdir()):
        if file.name not in shared:
            left_out.append(f"{folder.name}/{file.name}")
        elif file.name != SAE_CFG_FILENAME:
            shutil.copyfile(file, out / file.name)
    config = load_object(folder / SAE_CFG_FILENAME)
    metadata = group_of(config, "metadata", f"'{folder}'")
    kept = {name: config[name] for name in CONFIG_KEYS if name in config}
    kept["device"] = "cpu"
    kept["metadata"] = {name: metadata[name] for name in METADATA_KEYS if name in metadata}
    _drop_local_paths(kept["metadata"])
    left_out += [
        f"{folder.name}/{SAE_CFG_FILENAME}: metadata.{name}" for name in metadata if name not in kept["metadata"]
    ]
    (out / SAE_CFG_FILENAME).write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
    return kept


def _drop_local_paths(metadata: dict[str, Any]) -> None:
    """A model that was loaded from disk is named by its folder's last part only."""
    for holder, key in ((metadata, "model_name"), (metadata.get(METADATA_KEY) or {}, "model")):
        name = holder.get(key)
        if isinstance(name, str):
            holder[key] = " ".join(public_model_name(name).split())
