"""Checkpoints that can be trusted: each is sealed with the checksums of its files and the hash of its configuration.

1. SAE-Lens writes a checkpoint's files one after another; the seal (the mark of :mod:`~sae_lens_maira.files`) comes
   last, as a whole. A folder without a seal was cut short.
2. A resumed run takes the newest checkpoint whose files still have their checksums; a damaged one is passed over, and
   the log says so.
3. A checkpoint of another configuration is refused: weights of one run are never trained on with the settings of
   another.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.files import hash_file, list_files, mark, read_mark
from sae_lens_maira.training.config import TrainConfig

logger = logging.getLogger(__name__)

KIND = "checkpoint"
_NAME = re.compile(r"(final_)?\d+")


def hash_config(config: TrainConfig) -> str:
    """sha256 of the settings that decide what a run trains."""
    return hashlib.sha256(json.dumps(config.identity(), sort_keys=True).encode()).hexdigest()


def seal(checkpoint: Path, config_hash: str) -> None:
    """Write down what a complete checkpoint holds, and whose it is."""
    checksums = {name: hash_file(checkpoint / name) for name in list_files(checkpoint)}
    mark(checkpoint, KIND, config=config_hash, checksums=checksums)


def newest_whole(folder: Path, config_hash: str) -> Path | None:
    """The checkpoint with the most training samples whose files are as they were written, if there is one.

    Raises:
        ConfigError: it was written with another configuration.
    """
    for checkpoint in sorted(_checkpoints(folder), key=lambda path: int(path.name), reverse=True):
        found = read_mark(checkpoint, KIND)
        problem = "it was not written to its end" if found is None else _damage(checkpoint, found.get("checksums"))
        if found is None or problem:
            logger.warning("The checkpoint '%s' is passed over: %s.", checkpoint, problem)
        elif found.get("config") != config_hash:
            raise ConfigError(
                f"The checkpoint '{checkpoint}' belongs to a run with other settings; remove it, or pass "
                "--overwrite to train from the start."
            )
        else:
            return checkpoint
    return None


def has_checkpoints(folder: Path) -> bool:
    """Whether a run can be resumed, as far as can be said without reading weights."""
    return any(read_mark(checkpoint, KIND) is not None for checkpoint in _checkpoints(folder))


def remove_checkpoints(folder: Path) -> None:
    """Remove a run's checkpoints, whole ones or not, and nothing else that lies beside them."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    if not any(folder.iterdir()):
        folder.rmdir()


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if re.fullmatch(r"\d+", path.name)]


def _damage(checkpoint: Path, checksums: object) -> str:
    """What is wrong with the files of a checkpoint; nothing if they are as they were written."""
    if not isinstance(checksums, dict) or not checksums:
        return "its checksums are missing"
    for name, checksum in checksums.items():
        try:
            if hash_file(checkpoint / str(name)) != checksum:
                return f"'{name}' is damaged"
        except OSError as error:
            return f"'{name}' cannot be read ({error.strerror})"
    return ""
