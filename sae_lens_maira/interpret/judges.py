"""Judges: they say whether an explanation is true of a unit, and which of five units does not belong.

:class:`TruthJudge` reads the unit's facts and cannot err where they are known; :class:`LanguageJudge` asks a model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

from typing_extensions import override

from sae_lens_maira.interpret.answers import Answers
from sae_lens_maira.interpret.chat import ChatFailure, ChatReply, Purpose
from sae_lens_maira.interpret.explanation import Explanation
from sae_lens_maira.interpret.facts import Fact, Rule, holds
from sae_lens_maira.interpret.prompts import IntruderAnswer, intruder_request, judge_request
from sae_lens_maira.interpret.shown import ShownUnit


class Pair(NamedTuple):
    """An explanation and a unit of which it may be true."""

    explanation: Explanation
    unit: ShownUnit


@dataclass(frozen=True)
class Judgement:
    """One answer.

    Args:
        probability: that the explanation is true of the unit; None if the judge abstained.
        failure: why there is no answer, if there is none.
    """

    probability: float | None
    failure: str | None = None


@runtime_checkable
class Judge(Protocol):
    """Says whether explanations are true of units."""

    @property
    def name(self) -> str:
        """How the judge is called in results."""
        ...

    def judge(self, pairs: Sequence[Pair], purpose: Purpose) -> list[Judgement]:
        """A judgement of each pair, in order."""
        ...

    def find_intruders(self, groups: Sequence[Sequence[ShownUnit]]) -> list[int | None]:
        """For each group of five units, which one does not belong, from 0; None if the judge does not say."""
        ...


class TruthJudge(Judge):
    """Reads the facts: an explanation is true of a unit if its rule holds there.

    Explanations without a rule are read for the names of the given facts; one that names none is abstained from.

    Args:
        known: facts that explanations may name.
    """

    def __init__(self, known: Iterable[Fact]) -> None:
        self._known = sorted(set(known))

    @property
    @override
    def name(self) -> str:
        return "truth"

    @override
    def judge(self, pairs: Sequence[Pair], purpose: Purpose) -> list[Judgement]:
        return [self._one(pair) for pair in pairs]

    @override
    def find_intruders(self, groups: Sequence[Sequence[ShownUnit]]) -> list[int | None]:
        return [_least_alike(group) for group in groups]

    def _one(self, pair: Pair) -> Judgement:
        if pair.explanation.rule is not None:
            return Judgement(float(holds(pair.explanation.rule, pair.unit.facts)))
        rule = rule_of_words(pair.explanation, self._known)
        return Judgement(float(holds(rule, pair.unit.facts)) if rule else None)


class LanguageJudge(Judge):
    """Asks a model, one request per judgement; the answer is the probability of "yes" against "no".

    Args:
        answers: the model and its answers on disk.
        max_tokens: of an answer; more than 1 only for servers without log probabilities.
    """

    def __init__(self, answers: Answers, *, max_tokens: int = 1) -> None:
        self.answers = answers
        self._max_tokens = max_tokens

    @property
    @override
    def name(self) -> str:
        return self.answers.chat.name

    @override
    def judge(self, pairs: Sequence[Pair], purpose: Purpose) -> list[Judgement]:
        requests = [replace(judge_request(*pair, self._max_tokens), purpose=purpose) for pair in pairs]
        found = self.answers.ask_all(requests, "judgements")
        return [
            Judgement(None, str(answer)) if isinstance(answer, ChatFailure) else Judgement(probability_of_yes(answer))
            for answer in found
        ]

    @override
    def find_intruders(self, groups: Sequence[Sequence[ShownUnit]]) -> list[int | None]:
        found = self.answers.ask_all([intruder_request([unit.text for unit in group]) for group in groups], "intruders")
        return [
            None if isinstance(answer, ChatFailure) else IntruderAnswer.model_validate_json(answer.text).number - 1
            for answer in found
        ]


def probability_of_yes(reply: ChatReply) -> float | None:
    """The probability of "yes" against "no" as first token; without log probabilities 1 or 0; None for other words."""
    mass = {"yes": 0.0, "no": 0.0}
    for token, logprob in reply.top:
        word = re.sub(r"[^a-z]", "", token.lower())
        if word in mass and math.isfinite(logprob):
            mass[word] += math.exp(min(logprob, 0.0))
    total = mass["yes"] + mass["no"]
    if total > 0:
        return mass["yes"] / total
    if reply.top:
        return None
    first = re.match(r"[^A-Za-z]*([A-Za-z]+)", reply.text)
    word = first[1].lower() if first else ""
    return {"yes": 1.0, "no": 0.0}.get(word)


def rule_of_words(explanation: Explanation, known: Sequence[Fact]) -> Rule:
    """The rule that an explanation in words stands for: the most specific known facts that it names.

    Its fields count first (concept, side, change, section, polarity); then the concept or finding whose words all occur
    in the sentence, the one with most words.
    """
    said = set(re.findall(r"[a-z]+", f"{explanation.concept or ''} {explanation.text}".lower()))
    kinds = ("absent",) if explanation.polarity == "absent" else ("concept", "finding", "label")
    named = [fact for fact in known if fact.kind in kinds and set(re.findall(r"[a-z]+", fact.value.lower())) <= said]
    best = max(named, key=lambda fact: len(re.findall(r"[a-z]+", fact.value)), default=None)
    facts = [] if best is None else [best]
    for kind, value in (("side", explanation.side), ("change", explanation.change), ("section", explanation.section)):
        facts += [fact for fact in known if value is not None and fact == (kind, value)]
    return tuple(sorted(facts))


def _least_alike(group: Sequence[ShownUnit]) -> int | None:
    """The unit that shares fewest facts with the others (Jaccard index); None if several share as few."""
    sets = [unit.facts for unit in group]
    likeness = [sum(len(own & other) / max(len(own | other), 1) for other in sets if other is not own) for own in sets]
    least = min(likeness)
    places = [place for place, value in enumerate(likeness) if value <= least + 1e-12]
    return places[0] if len(places) == 1 else None
