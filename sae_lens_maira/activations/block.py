"""Activations of whole studies: the one type that passes between whoever makes activations and whoever reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class BlockStudy:
    """A study of a block.

    Args:
        index: into the source.
        study_id: the source's name of it.
        n_tokens: tokens of the block that belong to it.
        images: checksums of its images' pixels, by the images' names.
    """

    index: int
    study_id: str
    n_tokens: int
    images: dict[str, str]


@dataclass(frozen=True)
class SkippedStudy:
    """A study that has no activations, and why. ``detail`` never holds report text."""

    index: int
    study_id: str | None
    reason: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Block:
    """Tokens of whole studies, one study after another in the order of the source, without padding.

    Args:
        activations: at each hook point. They may be memory mapped, and must not be written to.
        norms: Euclidean norms of the activations, at each hook point.
        token_ids: as in rows: the model's ids, then those of images, then those of studies.
        study_index: index of each token's study in the source.
        position: in the study's row; 0 is the study token.
        kind: :class:`~sae_lens_maira.data.study.TokenKind` values.
        studies: the studies, in the order of their tokens.
        skipped: studies that belong here but have no activations.
    """

    activations: Mapping[str, Float[Tensor, "n_tokens d_in"]]
    norms: Mapping[str, Float[Tensor, " n_tokens"]]
    token_ids: Int[Tensor, " n_tokens"]
    study_index: Int[Tensor, " n_tokens"]
    position: Int[Tensor, " n_tokens"]
    kind: UInt8[Tensor, " n_tokens"]
    studies: Sequence[BlockStudy] = ()
    skipped: Sequence[SkippedStudy] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens of all studies."""
        return len(self.token_ids)

    def keep(self, mask: Bool[Tensor, " n_tokens"]) -> Block:
        """The tokens that a mask keeps, without notes on the studies."""
        return Block(
            activations={name: values[mask.to(values.device)] for name, values in self.activations.items()},
            norms={name: values[mask] for name, values in self.norms.items()},
            token_ids=self.token_ids[mask],
            study_index=self.study_index[mask],
            position=self.position[mask],
            kind=self.kind[mask],
        )
