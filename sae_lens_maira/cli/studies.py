"""``sae-lens-maira studies``."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from sae_lens_maira.data.source import SourceConfig, StudySource
from sae_lens_maira.errors import SourceError, printable_lines
from sae_lens_maira.files import replacing
from sae_lens_maira.settings import ModelConfig, Settings
from sae_lens_maira.sources import open_source

logger = logging.getLogger(__name__)

_N_SHOWN = 12  # studies on a contact sheet


@dataclass(frozen=True)
class StudiesOptions(Settings):
    """Options of the verb.

    Args:
        source: where studies come from.
        model: count the tokens of this model (a folder, a Hub id, or ``phantom``) instead of words.
        contact_sheet: show twelve studies in this PNG file.
    """

    GROUP = "--"

    source: SourceConfig
    model: str | None = None
    contact_sheet: Path | None = None


def studies(options: StudiesOptions) -> None:
    """Summarize a source of studies, and what in it cannot be used, before anything is trained on it."""
    from tqdm.auto import tqdm

    from sae_lens_maira.data.summary import summarize

    source = open_source(options.source)
    studies = tqdm(source, desc="studies", delay=3)
    if options.model is None:
        summary = summarize(source, studies)
    else:
        from sae_lens_maira.hooked.loading import load_processor

        tokenizer = load_processor(ModelConfig(options.model)).tokenizer
        summary = summarize(
            source, studies, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]), "tokens"
        )
    sys.stdout.write(printable_lines(summary.describe()) + "\n")
    if options.contact_sheet is not None:
        _write_contact_sheet(source, options.contact_sheet)


def _write_contact_sheet(source: StudySource, path: Path) -> None:
    """Write a PNG that shows some studies, evenly spread over a source, and warn if they may not be shared."""
    from sae_lens_maira.data.contact_sheet import contact_sheet

    if not path.parent.is_dir() or path.is_dir():
        raise SourceError(f"--contact-sheet '{path}' is not a file in an existing folder; give the path of a PNG.")
    n_shown = min(_N_SHOWN, len(source))
    shown = [source[k * len(source) // n_shown] for k in range(n_shown)]
    with replacing(path) as file:
        contact_sheet(shown).save(file, format="PNG")
    sys.stdout.write(f"{path}: {len(shown)} studies\n")
    n_private = sum(not study.shareable for study in shown)
    if n_private:
        logger.warning(
            "'%s' shows images and text of %d studies that may not be shared: keep it where they may be.",
            path,
            n_private,
        )
