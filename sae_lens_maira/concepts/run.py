"""From a configuration to a folder of results."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_lens_maira.activations.block import Block
from sae_lens_maira.activations.header import check_cache_fits
from sae_lens_maira.activations.live import LiveActivations, StudyProgress
from sae_lens_maira.concepts.config import ConceptConfig
from sae_lens_maira.concepts.evaluate import EVERY_SCORE, LATENTS, ConceptSubject, evaluate, make_exam
from sae_lens_maira.concepts.exam import Exam
from sae_lens_maira.concepts.random_model import random_copy
from sae_lens_maira.concepts.summary import describe, figures
from sae_lens_maira.concepts.tables import COLUMNS, concept_rows, concept_table, feature_table
from sae_lens_maira.errors import SaeMismatch
from sae_lens_maira.features.recording import Recording, record
from sae_lens_maira.hooked import HookedMaira2, HookedVisionLanguageModel
from sae_lens_maira.hooked.identity import METADATA_KEY, check_sae_fits, fingerprint_weights
from sae_lens_maira.results import Result, Units, write_result
from sae_lens_maira.rows.policy import TokenPolicy

if TYPE_CHECKING:
    from sae_lens_maira.activations.read import ActivationCache

STUDIES = "studies"
"""The part that says how many studies were scored."""


@dataclass(frozen=True, eq=False)
class ConceptRun:
    """One run.

    Args:
        sae: the SAE as SAE-Lens loads it.
        sae_path: its folder.
        model: the model, bound to the studies with the policy of the configuration.
        config: the configuration.
        scored: indices of the studies that are scored.
        cache: activations to read instead of running the model.
        show_progress: whether to show progress bars.
    """

    sae: Any
    sae_path: Path
    model: HookedMaira2
    config: ConceptConfig
    scored: range
    cache: ActivationCache | None = None
    show_progress: bool = True

    @property
    def hook_name(self) -> str:
        """The SAE's hook point."""
        return self.sae.cfg.metadata.hook_name

    def write(self, out: Path, *, overwrite: bool = False) -> Result:
        """Score, and write the tables.

        Raises:
            SaeMismatch: the SAE belongs to another model.
            ResultError: the folder holds parts of a run with other settings.
        """
        trained_policy = check_sae_reads(self.sae, self.model)
        settings = self.config.concepts
        units = Units(out, self._key(), overwrite=overwrite)
        names = (LATENTS, *settings.controls)
        files = [EVERY_SCORE] if settings.every_score else []
        if not all(units.is_done(name) for name in (*names, STUDIES)) or not all(
            (out / name).is_file() for name in files
        ):
            with tempfile.TemporaryDirectory(dir=out, prefix=".recording-") as scratch:
                subject = self._subject(Path(scratch))
                exam = make_exam(subject, settings)
                units.write(STUDIES, _counts(exam))
                evaluate(subject, exam, settings, units, out, self.show_progress)
        parts = {name: units.read(name) for name in names}
        rows = concept_rows(parts)
        found = figures(rows)
        summary = {
            **self._key(),
            "policy_of_training": trained_policy,
            **units.read(STUDIES),
            "latents_per_token": parts[LATENTS]["per_token"],
            "figures": found,
            "text": describe(found),
        }
        tables = {"features": feature_table(parts[LATENTS], rows), "concepts": concept_table(rows)}
        return write_result(out, "concepts", tables, summary, columns=COLUMNS, files=files)

    def _key(self) -> dict[str, Any]:
        source = self.model.studies.description
        return {
            "sae": fingerprint_weights(self.sae),
            "hook_name": self.hook_name,
            "source": source,
            "studies": [self.scored.start, self.scored.stop],
            "policy": self.model.policy.to_dict(),
            "settings": self.config.concepts.to_dict(),
        }

    def _subject(self, scratch: Path) -> ConceptSubject:
        if self.cache is None:
            recording = self._record(self.model, scratch / "model", "activations")
        else:
            check_cache_fits(self.cache.path, self.cache.identity, self.model)
            recording = Recording(self._with_scored(self.cache.blocks(self.hook_name)), self.hook_name)
            recording = recording.only(np.isin(recording.studies, self.scored))
        return ConceptSubject(
            sae=self.sae,
            recording=recording,
            studies=[self.model.studies[index] for index in recording.studies.tolist()],
            texts_of=self.model.tokenizer.row_to_texts,
            n_words=self.model.row_vocabulary.d_vocab,
            record_random=lambda: self._record(random_copy(self.model), scratch / "random", "random model"),
        )

    def _record(self, model: HookedVisionLanguageModel, folder: Path, name: str) -> Recording:
        stream = LiveActivations(
            model,
            [self.hook_name],
            indices=self.scored,
            max_batch_tokens=self.config.max_batch_tokens,
            progress=StudyProgress(name, shown=self.show_progress),
        )
        return record(stream, self.hook_name, folder)

    def _with_scored(self, blocks: Iterator[Block]) -> Iterator[Block]:
        return (block for block in blocks if np.isin(np.asarray(block.study_index), self.scored).any())


def _counts(exam: Exam) -> dict[str, int]:
    return {
        "n_studies": len(exam.patients),
        "n_studies_choice": int(exam.is_choice.sum()),
        "n_patients": len(set(exam.patients)),
    }


def check_sae_reads(sae: Any, model: HookedVisionLanguageModel) -> dict[str, Any] | None:
    """Check that an SAE was trained on a model, whatever tokens are scored.

    Returns:
        the token policy that it was trained with; None if it says nothing.

    Raises:
        SaeMismatch: the SAE belongs to another model, or has no hook point.
    """
    if not sae.cfg.metadata.hook_name:
        raise SaeMismatch("The SAE's metadata has no hook_name, so its hook point is unknown.")
    policy = (sae.cfg.metadata.get(METADATA_KEY) or {}).get("token_policy")
    check_sae_fits(sae, model.with_studies((), None if policy is None else TokenPolicy.from_dict(policy)))
    return policy
