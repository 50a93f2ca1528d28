"""The configuration of a run: which studies, which tokens, and how they are scored."""

from __future__ import annotations

from dataclasses import dataclass, field

from sae_lens_maira.concepts.settings import ConceptSettings
from sae_lens_maira.data.source import PhantomConfig, SourceConfig
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.settings import AtLeastOne, ModelConfig, Settings


@dataclass(frozen=True)
class ConceptConfig(Settings):
    """Studies, tokens and scores; what is not given is as in the SAE's own config.yaml.

    Args:
        model: the model whose activations are read.
        source: where studies come from.
        policy: which tokens are scored; it may keep more than the SAE was trained on, such as all image tokens.
        concepts: how features are compared with labels.
        n_studies: score at most this many studies, from the first that training did not see.
        max_batch_tokens: padded tokens per forward pass.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    source: SourceConfig = field(default_factory=lambda: PhantomConfig(n_studies=2000))
    policy: TokenPolicy = field(default_factory=TokenPolicy)
    concepts: ConceptSettings = field(default_factory=ConceptSettings)
    n_studies: AtLeastOne | None = None
    max_batch_tokens: AtLeastOne = 8192


def scored_studies(config: ConceptConfig, trained_on: SourceConfig | None, n_studies: int) -> range:
    """Indices of the studies that are scored.

    Args:
        config: the configuration.
        trained_on: the source of the SAE's training; None if unknown.
        n_studies: number of studies of the source.
    """
    first = first_unseen_study(config.source, trained_on)
    return range(first, n_studies if config.n_studies is None else min(n_studies, first + config.n_studies))


def first_unseen_study(source: SourceConfig, trained_on: SourceConfig | None) -> int:
    """Index of the first study that the SAE was not trained on.

    Studies of the training's source are scored only if training held them out; all studies of another source are new.

    Args:
        source: whose studies are scored.
        trained_on: the source of the SAE's training; None if unknown.
    """
    if trained_on is None or _identity(source) != _identity(trained_on) or trained_on.n_studies is None:
        return 0
    return max(trained_on.n_studies - trained_on.n_held_out, 0)


def _identity(source: SourceConfig) -> dict[str, object]:
    return {name: value for name, value in source.to_dict().items() if name not in ("n_studies", "n_held_out")}
