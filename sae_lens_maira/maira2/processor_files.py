"""A processor's files, in the official layout, which both transformers 4 and 5 read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def write_processor(processor: Any, folder: Path) -> list[str]:
    """Write a processor's files.

    Args:
        processor: a ``Maira2Processor``.
        folder: an existing folder.

    Returns:
        The names of the files.
    """
    all_image_fields = processor.image_processor.to_dict()
    image_fields = {name: all_image_fields[name] for name in all_image_fields if not name.startswith("_")}
    specials = {
        name: str(getattr(processor.tokenizer, name))
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if getattr(processor.tokenizer, name) is not None
    }
    class_fields = {"processor_class": type(processor).__name__}
    files = {
        "preprocessor_config.json": {
            **image_fields,
            "image_processor_type": "BitImageProcessor",
            **class_fields,
        },
        "processor_config.json": {**processor.saved_fields, **class_fields},
        "chat_template.json": {"chat_template": processor.chat_template or processor.tokenizer.chat_template},
        "tokenizer_config.json": {
            **specials,
            "additional_special_tokens": [processor.image_token],
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": TOKENIZER_CLASS,
        },
        "special_tokens_map.json": {**specials, "additional_special_tokens": [processor.image_token]},
    }
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return [*files, "tokenizer.json"]


def upload_files(
    folder: Path,
    names: list[str],
    *,
    repo_id: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload processor",
    create_pr: bool = False,
) -> str:
    """Upload these files of a folder to the Hub, and no others.

    Args:
        folder: the folder with the files.
        names: the files' names.
        repo_id: the repository; the folder's name in the user's namespace if None.
        token, private, revision, commit_message, create_pr: as for ``huggingface_hub``.

    Returns:
        The repository's full name.
    """
    api = HfApi(token=token)
    repository = api.create_repo(repo_id or folder.resolve().name, private=private, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        allow_patterns=names,
        revision=revision,
        commit_message=commit_message,
        create_pr=create_pr,
    )
    return repository


@contextmanager
def tokenizer_class_is_meant() -> Iterator[None]:
    """Keep transformers 4 from warning that the checkpoint names another tokenizer class."""
    logger = logging.getLogger("transformers.tokenization_utils_base")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
