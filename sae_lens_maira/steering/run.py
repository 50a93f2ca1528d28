"""A steering experiment: choose latents, choose doses, and score both on patients that had no part in either.

1. *Contrast* (choice studies): each concept drawn into each study, and nothing; what differs at the last prompt token.
2. *Try* (some choice studies): candidates from the contrast write reports at a few doses.
3. *Dose* (dose studies): the best candidates at all doses. The best of each kind is kept; of single latents and groups
   together, the best one with at most ``max_latents`` latents.
4. *Test* (test studies): the chosen latents and the ceiling; on some of them, controls at the single latent's norm.
5. *Removal* and *prompt* (test studies): each concept drawn in and its latents ablated; the concept asked for in words.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from sae_lens_maira.data.source import StudySource
from sae_lens_maira.data.study import Study
from sae_lens_maira.hooked.dictionary import Dictionary, Firing
from sae_lens_maira.hooked.model import HookedVisionLanguageModel
from sae_lens_maira.interruption import noticed_interruptions
from sae_lens_maira.results import Units
from sae_lens_maira.steering.arms import (
    ABLATED,
    Arm,
    Proposal,
    matched_controls,
    propose,
    propose_random,
    random_directions,
    removals,
)
from sae_lens_maira.steering.choice import IMAGES, LAST_PROMPT_TOKEN, Contrast, means_at
from sae_lens_maira.steering.continuation import Row
from sae_lens_maira.steering.engine import SteeringEngine
from sae_lens_maira.steering.outcomes import Outcomes, best_arm, quality
from sae_lens_maira.steering.reports import write_reports
from sae_lens_maira.steering.settings import SteerConfig
from sae_lens_maira.steering.stages import Stages, divide
from sae_lens_maira.steering.world import World, check_concepts

_N_KEPT = {"latent": 2, "latents": 2, "random_dictionary": 1}
"""Proposals of each kind that go from the choice to the dose studies."""
_PLACES = {"last": LAST_PROMPT_TOKEN, "images": IMAGES}
"""Where studies with and without a concept are compared."""


@dataclass
class Chosen:
    """What was chosen for each concept: arms by name, in the order of the concepts."""

    arms: list[Arm]

    def of(self, concept: str) -> dict[str, Arm]:
        """A concept's arms by name."""
        return {arm.name: arm for arm in self.arms if arm.concept == concept}


class Experiment:
    """One experiment with one SAE.

    Args:
        model: the model.
        dictionary: the SAE, with strengths.
        firing: how often its latents fire.
        source: studies to choose and to score on.
        world: knows what they show, and reads reports.
        config: the settings.
        units: finished parts.
    """

    def __init__(
        self,
        model: HookedVisionLanguageModel,
        dictionary: Dictionary,
        firing: Firing,
        source: StudySource,
        world: World,
        config: SteerConfig,
        units: Units,
    ) -> None:
        self.dictionary, self.firing, self.config, self.world = dictionary, firing, config, world
        self.hook = dictionary.hook_name
        self.engine = SteeringEngine(model, {self.hook: dictionary})
        self.concepts = check_concepts(world, config.concepts)
        self.parts = divide(source, config)
        self._source = source
        self._stages = Stages(self.engine, world, config, source, units)
        self._directions: dict[str, torch.Tensor] = {}
        self._contrasts: dict[str, dict[str, Contrast]] = {}

    def run(self) -> tuple[dict[str, tuple[list[Arm], Outcomes]], Chosen]:
        """All stages; each one's arms and outcomes by name, and what was chosen.

        Raises:
            Interrupted: Ctrl-C; finished studies are kept.
        """
        answer = "Stopping after this study; run the same command again to go on."
        with noticed_interruptions(answer) as request:
            self._stages.stop = lambda: request.made
            self._contrasts = self._contrast()
            proposals = self._proposals(self._contrasts["last"])
            arms = self._tried(proposals)
            tried = self._stages.steer("try", self.parts["try"], arms)
            dose_arms = self._dosed(self._kept(proposals, arms, tried))
            dosed = self._stages.steer("dose", self.parts["dose"], dose_arms)
            chosen = self._choose(dose_arms, dosed)
            test_arms, control_arms = self._tested(chosen), self._controls(chosen)
            tested = self._stages.steer("test", self.parts["test"], test_arms, with_nats=True)
            controls = self.parts["test"][: self.config.n_controls]
            controlled = self._stages.steer("controls", controls, control_arms, with_nats=True)
            found = {"try": (arms, tried), "dose": (dose_arms, dosed), "test": (test_arms, tested)}
            found["controls"] = control_arms, controlled
            found |= self._drawn_in(chosen)
        return found, chosen

    def seconds_per_report(self) -> float:
        """The time of one report, measured on 64 rows of one study."""
        study = self._source[int(self.parts["dose"][0])]
        rows = [Row((edit,), self.config.where) for edit in self._some_edits(64)]
        start = time.perf_counter()
        write_reports(self.engine, study, rows, max_new_tokens=self.config.max_new_tokens)
        return (time.perf_counter() - start) / len(rows)

    def n_reports(self) -> dict[str, int]:
        """Upper bounds of the number of reports of each stage."""
        c, n = self.config, len(self.concepts)
        groups, n_doses = 2 * (c.max_latents - 1), len(c.doses[1::2] or c.doses)
        tried = (c.n_candidates + groups) * n_doses
        tried += c.n_candidates * n_doses * ("random_dictionary" in c.controls)
        dosed = (sum(_N_KEPT.values()) + 1) * len(c.doses)
        n_controls = sum(name not in ("prompt", "difference_of_means") for name in c.controls)
        return {
            "try": n * tried * len(self.parts["try"]),
            "dose": n * dosed * len(self.parts["dose"]),
            "test": n * 3 * len(self.parts["test"]),
            "controls": n * n_controls * c.n_controls,
            "removal": n * (2 + len(ABLATED)) * c.n_removal,
            "prompt": n * c.n_prompt * ("prompt" in c.controls),
        }

    # The stages.

    def _contrast(self) -> dict[str, dict[str, Contrast]]:
        """The contrast of each concept, by place."""
        units = list(self._stages.each("contrast", self.parts["choice"], self._contrast_of))

        def mean(place: str, concept: str, part: int) -> torch.Tensor:
            return torch.tensor([unit[place][concept][part] for unit in units]).mean(dim=0)

        return {
            place: {name: Contrast(mean(place, name, 0), mean(place, name, 1)) for name in self.concepts}
            for place in _PLACES
        }

    def _contrast_of(self, study: Study) -> dict[str, dict[str, list[list[float]]]]:
        absent: list[Contrast] = []
        found: dict[str, dict[str, list[list[float]]]] = {place: {} for place in _PLACES}
        for concept in self.concepts:
            shown, none = self.world.pair(study, concept)
            places = list(_PLACES.values())
            absent = absent or means_at(self.engine, self.hook, none, places)
            for place, a, b in zip(_PLACES, means_at(self.engine, self.hook, shown, places), absent, strict=True):
                difference = (a.activations - b.activations, a.residual - b.residual)
                found[place][concept] = [values.tolist() for values in difference]
        return found

    def _proposals(self, contrasts: dict[str, Contrast]) -> dict[str, list[Proposal]]:
        c = self.config
        self._directions["difference_of_means"] = torch.stack([contrasts[name].residual for name in self.concepts])
        d_sae, d_in = self.dictionary.decoder.shape
        self._directions["random_dictionary"] = random_directions(d_sae, d_in, c.seed)
        found: dict[str, list[Proposal]] = {}
        for concept in self.concepts:
            found[concept] = propose(self.dictionary, contrasts, concept, c.n_candidates, c.max_latents)
            if "random_dictionary" in c.controls:
                rows = self._directions["random_dictionary"]
                found[concept] += propose_random(rows, contrasts, concept, c.n_candidates)
        return found

    def _tried(self, proposals: dict[str, list[Proposal]]) -> list[Arm]:
        return [
            self._arm(concept, proposal, dose)
            for concept in self.concepts
            for proposal in proposals[concept]
            for dose in self.config.doses[1::2] or self.config.doses
        ]

    def _kept(
        self, proposals: dict[str, list[Proposal]], arms: list[Arm], outcomes: Outcomes
    ) -> dict[str, list[Proposal]]:
        kept: dict[str, list[Proposal]] = {}
        for concept in self.concepts:
            column = self._column(concept)
            scored: list[tuple[float, Proposal]] = []
            for proposal in proposals[concept]:
                own = [i for i, arm in enumerate(arms) if arm.concept == concept and arm.proposal == proposal]
                best = best_arm(outcomes, own, column, self.config.max_off_target)
                score, off = quality(outcomes, best, column)
                scored.append((score if off <= self.config.max_off_target else -off, proposal))
            scored.sort(key=lambda pair: -pair[0])
            kept[concept] = [
                proposal
                for kind, n in _N_KEPT.items()
                for _, proposal in [pair for pair in scored if pair[1].kind == kind][:n]
            ]
        return kept

    def _dosed(self, kept: dict[str, list[Proposal]]) -> list[Arm]:
        ceiling = Proposal("difference_of_means", (), ())
        return [
            self._arm(concept, proposal, dose)
            for concept in self.concepts
            for proposal in [*kept[concept], ceiling]
            for dose in self.config.doses
        ]

    def _choose(self, arms: list[Arm], outcomes: Outcomes) -> Chosen:
        chosen: list[Arm] = []
        pools = {
            "latent": ("latent",),
            "latents": ("latent", "latents"),
            "random_dictionary": ("random_dictionary",),
            "difference_of_means": ("difference_of_means",),
        }
        for concept in self.concepts:
            for name, kinds in pools.items():
                own = [i for i, arm in enumerate(arms) if arm.concept == concept and arm.proposal.kind in kinds]
                if own:
                    best = arms[best_arm(outcomes, own, self._column(concept), self.config.max_off_target)]
                    chosen.append(Arm(name, concept, best.edits, best.dose, best.proposal))
        return Chosen(chosen)

    def _tested(self, chosen: Chosen) -> list[Arm]:
        wanted = ["latent", "latents"]
        wanted += [name for name in ("difference_of_means",) if name in self.config.controls]
        return [arm for arm in chosen.arms if arm.name in wanted]

    def _controls(self, chosen: Chosen) -> list[Arm]:
        wanted, other = self.config.controls, self._other_hook()
        made: list[Arm] = []
        for concept in self.concepts:
            own = chosen.of(concept)
            made += [arm for name, arm in own.items() if name == "random_dictionary" and name in wanted]
            if "latent" in own:
                densities, seed = self.firing.densities, self.config.seed
                made += matched_controls(own["latent"], self.dictionary, densities, other, wanted, seed)
        return made

    def _drawn_in(self, chosen: Chosen) -> dict[str, tuple[list[Arm], Outcomes]]:
        """Removal and prompt: studies that are changed for each concept."""
        plans = {"removal": (self.config.n_removal, self.world.with_concept)}
        if "prompt" in self.config.controls:
            plans["prompt"] = (self.config.n_prompt, self.world.asking_for)
        found: dict[str, tuple[list[Arm], Outcomes]] = {}
        for stage, (n, change) in plans.items():
            if n:
                arms = [self._of_changed(stage, concept, chosen) for concept in self.concepts]
                outcomes = self._stages.steer_changed(stage, self.parts["test"][:n], arms, change)
                found[stage] = [arm for own in arms for arm in own], outcomes
        return found

    def _of_changed(self, stage: str, concept: str, chosen: Chosen) -> list[Arm]:
        none = Arm(stage, concept, (), 0.0, Proposal(stage, (), ()))
        if stage == "prompt":
            return [none]
        at_last, at_images = (self._contrasts[place][concept] for place in _PLACES)
        writers = chosen.of(concept).get("latents")
        group = writers.proposal if writers else Proposal("latents", (), ())
        return [none, *removals(concept, at_last, at_images, group, self.dictionary)]

    def _arm(self, concept: str, proposal: Proposal, dose: float) -> Arm:
        row = self.concepts.index(concept)
        edits = proposal.edits(dose, self.hook, self._directions, row)
        return Arm(proposal.kind, concept, tuple(edits), dose, proposal)

    def _column(self, concept: str) -> int:
        return self.world.concepts.index(concept)

    def _other_hook(self) -> str:
        """After the last layer: what is added before the SAE's layer would reach it along the residual stream."""
        last = self.engine.model.cfg.n_layers - 1
        return f"blocks.{0 if int(self.hook.split('.')[1]) == last else last}.hook_resid_post"

    def _some_edits(self, n: int) -> list[Any]:
        from sae_lens_maira.hooked.edits import Add

        alive = torch.nonzero(self.dictionary.strengths > 0)[:, 0].tolist()
        return [Add(alive[index % len(alive)], 0.5, self.hook) for index in range(n)]
