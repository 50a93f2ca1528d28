"""`sae-lens-maira studies`: what a source holds, before anything is trained on it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_maira.data.source import KINDS, SourceConfig, StudySource
from sae_lens_maira.data.study import Study
from sae_lens_maira.sources import open_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_N_SHOWN = 12  # studies on a contact sheet


def add_studies(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    verb = verbs.add_parser("studies", help="say what a source of studies holds, and what in it cannot be used")
    verb.add_argument("path", nargs="?", help="folder, table or archive; the phantom has none")
    verb.add_argument("--source", required=True, choices=KINDS, help="what it is")
    verb.add_argument("--n-studies", type=int, help="so many from the start (needed for the phantom)")
    verb.add_argument("--seed", type=int, help="of the phantom's studies")
    verb.add_argument("--images", help="Open-i's images, if not beside the reports")
    verb.add_argument("--reports", help="MIMIC-CXR's reports, if not beside the images")
    verb.add_argument("--missing-images", help="Open-i: skip (default), or phantom to draw them")
    verb.add_argument("--missing-findings", help="skip (default), or substitute the untitled body or the impression")
    verb.add_argument("--labels", help="MIMIC-CXR: chexpert (default) or negbio")
    verb.add_argument("--split", help="MIMIC-CXR: train, validate or test")
    verb.add_argument("--model", help="count tokens of this model (a folder, a Hub id, or phantom) in place of words")
    verb.add_argument("--contact-sheet", type=Path, metavar="PNG", help=f"write a page that shows {_N_SHOWN} studies")
    verb.set_defaults(run=_studies)


def _studies(options: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from sae_lens_maira.data.summary import summarize

    names = ("n_studies", "seed", "images", "reports", "missing_images", "missing_findings", "labels", "split")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    source = open_source(SourceConfig(kind=options.source, path=options.path, **given))
    studies = tqdm(source, desc="studies", delay=3)
    if options.model is None:
        summary = summarize(source, studies)
    else:
        tokenizer = _tokenizer(options.model)
        summary = summarize(
            source, studies, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]), "tokens"
        )
    sys.stdout.write(summary.describe() + "\n")
    if options.contact_sheet is not None:
        write_contact_sheet(source, options.contact_sheet)


def write_contact_sheet(source: StudySource, path: Path) -> None:
    """Write a PNG that shows some studies, evenly spread over a source, and warn if they may not be shared."""
    from sae_lens_maira.data.contact_sheet import contact_sheet

    shown = list(_spread(source, _N_SHOWN))
    sheet = contact_sheet(shown)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        sheet.save(unfinished, format="PNG")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sys.stdout.write(f"{path}: {len(shown)} studies\n")
    n_private = sum(not study.shareable for study in shown)
    if n_private:
        logger.warning(
            "'%s' shows images and text of %d studies that may not be shared: keep it where they may be.",
            path,
            n_private,
        )


def _spread(source: Sequence[Study], n: int) -> Iterator[Study]:
    n = min(n, len(source))
    return (source[k * len(source) // n] for k in range(n))


def _tokenizer(model: str) -> PreTrainedTokenizerBase:
    from sae_lens_maira.maira2 import Maira2Processor
    from sae_lens_maira.phantom.model.pretrained import PHANTOM_PATH

    return Maira2Processor.from_pretrained(str(PHANTOM_PATH) if model == "phantom" else model).tokenizer
