"""What is explained, by whom, and how it is scored. Importing this is light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Lt

from sae_lens_maira.errors import InterpretError
from sae_lens_maira.settings import AtLeastOne, AtLeastZero, Settings, Share

Positive: TypeAlias = Annotated[float, Gt(0)]
NotNegative: TypeAlias = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class TruthConfig(Settings):
    """The facts of the units themselves: exact on the phantom, and free."""

    GROUP = "judge."
    ERROR = InterpretError

    kind: Literal["truth"] = "truth"


@dataclass(frozen=True, kw_only=True)
class ServerConfig(Settings):
    """A server with OpenAI's chat interface.

    Args:
        url: up to and including ``/v1``.
        model: the model's name; null asks the server for its only one.
        api_key: name of the environment variable that holds the key.
        private_host: a host that may receive text and images of studies that are not shareable; loopback always may.
        sees: whether it reads images.
        concurrency: requests at a time.
        timeout: seconds until an answer has to be there.
        attempts: how often a question is sent at most.
        max_tokens: of a yes-or-no answer; more than 1 only for servers without log probabilities.
        price_prompt: price of a million tokens of questions, in any currency.
        price_completion: price of a million tokens of answers.
    """

    GROUP = "judge."
    ERROR = InterpretError

    kind: Literal["server"] = "server"
    url: str
    model: str | None = None
    api_key: str | None = None
    private_host: str | None = None
    sees: bool = False
    concurrency: AtLeastOne = 4
    timeout: Positive = 300.0
    attempts: AtLeastOne = 6
    max_tokens: AtLeastOne = 1
    price_prompt: NotNegative = 0.0
    price_completion: NotNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class LocalConfig(Settings):
    """A language model in this process, by transformers.

    Args:
        path: a folder, or a Hub id.
        device: where it runs.
    """

    GROUP = "judge."
    ERROR = InterpretError

    kind: Literal["local"] = "local"
    path: str
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class RulesConfig(Settings):
    """No model: the rule that fits best."""

    GROUP = "explainer."
    ERROR = InterpretError

    kind: Literal["rules"] = "rules"


@dataclass(frozen=True, kw_only=True)
class TableConfig(Settings):
    """Explanations that are there already, such as those of the released SAEs; they are scored again.

    Args:
        path: a table with a column of features and one of texts (CSV, TSV, JSON, JSON lines or Parquet);
            or the folder of Delphi's explanations.
    """

    GROUP = "explainer."
    ERROR = InterpretError

    kind: Literal["table"] = "table"
    path: str


@dataclass(frozen=True, kw_only=True)
class InterpretSettings(Settings):
    """What is explained, by whom, and how it is scored.

    Args:
        explainer: who writes the explanations: ``rules`` (no model), ``server``, ``local``, or a ``table``.
        judge: who says whether an explanation is true of a unit: ``truth``, ``server`` or ``local``.
        n_studies: use the first studies of the source; null for all.
        explain: share of the patients from whose studies explanations are made.
        choose: share of the patients on which the best candidate is chosen; the others are for scoring.
        seed: of the split of patients, of the choice of features and of examples.
        features: which features; null draws ``n_features`` of those that are on in enough studies.
        n_features: how many are drawn; null for all.
        min_studies: features that are on in fewer studies are left out.
        n_on: units per feature in which it is on, for the score.
        n_silent: silent units of each kind per feature, for the score.
        n_counterfactuals: phantom studies that are rendered again without a concept.
        n_shown: units in which a feature is on that an explainer sees; it sees half as many silent ones.
        n_candidates: explanations per feature that a model writes; the best on the second set of patients is scored.
        n_controls: features whose controls are scored as well; the truth judge scores those of all.
        intruder: also do the intruder test.
        false_discovery_rate: of the facts from which rules are made.
        n_audit: pairs with known truth that the judge answers first.
        least_accuracy: balanced accuracy below which a judge is refused.
        most_requests: stop before more requests than this; null for no limit.
        most_money: stop before more is spent by the given prices; null for no limit.
    """

    ERROR = InterpretError

    explainer: RulesConfig | TableConfig | ServerConfig | LocalConfig = RulesConfig()
    judge: TruthConfig | ServerConfig | LocalConfig = TruthConfig()
    n_studies: AtLeastOne | None = 600
    explain: Annotated[float, Gt(0), Lt(1)] = 0.5
    choose: Annotated[float, Gt(0), Lt(1)] = 0.2
    seed: AtLeastZero = 0
    features: tuple[AtLeastZero, ...] | None = None
    n_features: AtLeastOne | None = 100
    min_studies: AtLeastOne = 8
    n_on: AtLeastOne = 10
    n_silent: AtLeastOne = 4
    n_counterfactuals: AtLeastZero = 120
    n_shown: AtLeastOne = 10
    n_candidates: AtLeastOne = 3
    n_controls: AtLeastZero = 20
    intruder: bool = False
    false_discovery_rate: Share = 0.05
    n_audit: AtLeastOne = 100
    least_accuracy: Share = 0.7
    most_requests: AtLeastOne | None = None
    most_money: Positive | None = None

    def check(self) -> None:
        if self.explain + self.choose >= 1:
            raise InterpretError("explain and choose are shares of the patients; together they must be below 1.")

    @property
    def parts(self) -> dict[str, float]:
        """The shares of the three sets of patients."""
        return {"explain": self.explain, "choose": self.choose, "score": 1 - self.explain - self.choose}
