"""Stages of an experiment: arms on studies, each study a unit on disk.

A stopped run goes on where it was, and ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from sae_lens_maira.data.source import StudySource
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import Interrupted, SteeringError
from sae_lens_maira.measures.splits import split_patients
from sae_lens_maira.results import Units
from sae_lens_maira.steering.arms import Arm
from sae_lens_maira.steering.choice import wording_log_probs
from sae_lens_maira.steering.continuation import Prefill, Row
from sae_lens_maira.steering.engine import SteeringEngine
from sae_lens_maira.steering.outcomes import Outcomes, as_unit, gather
from sae_lens_maira.steering.reports import SteeredReport, write_reports
from sae_lens_maira.steering.settings import SteerConfig
from sae_lens_maira.steering.world import World

_NATS_BATCH = 64


class Stages:
    """Runs stages, and keeps their finished studies.

    Args:
        engine: runs the model.
        world: knows what studies show, and reads reports.
        config: the settings.
        source: the studies.
        units: finished parts.

    Attributes:
        stop: whether to stop after the study at hand.
    """

    def __init__(
        self, engine: SteeringEngine, world: World, config: SteerConfig, source: StudySource, units: Units
    ) -> None:
        self._engine, self._world, self._config = engine, world, config
        self._source, self._units = source, units
        self.stop: Callable[[], bool] = lambda: False

    def each(self, stage: str, indices: Sequence[int], make: Callable[[Study], Any]) -> Iterator[Any]:
        """A value of every study, computed unless it is on disk.

        Args:
            stage: name of the units.
            indices: of the studies.
            make: computes a study's plain values.

        Raises:
            Interrupted: Ctrl-C; finished studies are kept.
        """
        for number, index in enumerate(tqdm(indices, desc=stage, unit="study")):
            if self.stop():
                raise Interrupted("Stopped; finished studies are kept, and the same command goes on.")
            name = f"{stage}-{number:04d}"
            if not self._units.is_done(name):
                self._units.write(name, make(self._source[index]))
            yield self._units.read(name)

    def steer(self, stage: str, indices: Sequence[int], arms: Sequence[Arm], *, with_nats: bool = False) -> Outcomes:
        """Reports of studies under all arms.

        Args:
            stage: its name.
            indices: of the studies.
            arms: what is done.
            with_nats: also measure how likely the reports are under the unsteered model.
        """
        units = list(self.each(stage, indices, lambda study: self._unit(study, arms, with_nats=with_nats)))
        return gather(units, len(self._world.concepts))

    def steer_changed(
        self,
        stage: str,
        indices: Sequence[int],
        arms: Sequence[Sequence[Arm]],
        change: Callable[[Study, str], Study],
    ) -> Outcomes:
        """Reports of studies that are changed for each concept: ``before`` is the unchanged study's report.

        Args:
            stage: its name.
            indices: of the studies.
            arms: those of each concept.
            change: a study changed for a concept.
        """

        def make(study: Study) -> dict[str, Any]:
            reports: list[dict[str, Any]] = []
            for own in arms:
                reports += self._unit(change(study, own[0].concept), own)["arms"]
            return {**self._unit(study, []), "arms": reports}

        return gather(list(self.each(stage, indices, make)), len(self._world.concepts))

    def _unit(self, study: Study, arms: Sequence[Arm], *, with_nats: bool = False) -> dict[str, Any]:
        world, c = self._world, self._config
        prefill = self._engine.prefill(study)
        reports = self._reports(prefill, arms)
        (before,) = self._write(prefill, [Row()])
        nats = self._nats(prefill, reports) if with_nats else {}
        keep = c.keep_texts and study.shareable
        return {
            "study": study.study_id,
            "patient": study.patient_id,
            "shown": sorted(world.concepts.index(name) for name in world.shown(study)),
            "before": as_unit(before, world, None, keep_text=keep),
            "arms": [as_unit(own, world, nats.get(own.tokens), keep_text=keep) for own in reports],
        }

    def _reports(self, prefill: Prefill, arms: Sequence[Arm]) -> list[SteeredReport]:
        """Reports of all arms; those at one hook point are one batch, because they share the most."""
        groups: dict[str | None, list[int]] = {}
        for index, arm in enumerate(arms):
            groups.setdefault(arm.edits[0].hook if arm.edits else None, []).append(index)
        found: dict[int, SteeredReport] = {}
        for own in groups.values():
            rows = [Row(arms[index].edits, self._config.where) for index in own]
            found |= dict(zip(own, self._write(prefill, rows), strict=True))
        return [found[index] for index in range(len(arms))]

    def _write(self, prefill: Prefill, rows: Sequence[Row]) -> list[SteeredReport]:
        c = self._config
        return write_reports(self._engine, prefill, rows, max_new_tokens=c.max_new_tokens, max_rows=c.max_rows)

    @torch.no_grad()
    def _nats(self, prefill: Prefill, reports: Sequence[SteeredReport]) -> dict[tuple[int, ...], float]:
        """Nats per token of each report under the unsteered model."""
        texts = sorted({own.tokens for own in reports if own.tokens}, key=lambda own: (len(own), own))
        found: dict[tuple[int, ...], float] = {}
        for start in range(0, len(texts), _NATS_BATCH):
            batch = texts[start : start + _NATS_BATCH]
            log_p = wording_log_probs(self._engine, prefill, [Row()], batch)[0].tolist()
            found |= {own: -value / len(own) for own, value in zip(batch, log_p, strict=True)}
        return found


def divide(source: StudySource, config: SteerConfig) -> dict[str, list[int]]:
    """Studies of disjoint patients: to choose latents on, to choose doses on, and to score on.

    Raises:
        SteeringError: there are too few studies.
    """
    wanted = {"choice": config.n_choice, "dose": config.n_dose, "test": config.n_test}
    total = sum(wanted.values())
    shares = {name: n / total for name, n in wanted.items()}
    patients = [source[index].patient_id for index in range(len(source))]
    found = split_patients(patients, shares, config.seed)
    for name, n in wanted.items():
        if len(found[name]) < n:
            raise SteeringError(
                f"n_{name} is {n}, but only {len(found[name])} of the {len(source)} studies are in that part; "
                "raise studies.n_studies, or ask for less."
            )
    parts = {name: [int(index) for index in found[name][:n]] for name, n in wanted.items()}
    return {**parts, "try": parts["choice"][: config.n_tried]}
