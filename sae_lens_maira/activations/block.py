"""The type in which activations of whole studies are passed to the code that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class BlockStudy:
    """A study of a block.

    Args:
        index: index of the study in the source.
        study_id: the study's name in the source.
        n_tokens: number of the block's tokens that belong to the study.
        images: checksum of each image's pixels, by the image's name.
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
        activations: by hook point. They may be memory-mapped, and must not be modified.
        norms: Euclidean norms of the activations, by hook point.
        token_ids: ids of rows: the model's vocabulary, then one id per image, then one id per study.
        study_index: index of each token's study in the source.
        position: position of each token in its study's row; 0 is the study token.
        kind: kind of each token, as :class:`~sae_lens_maira.data.study.TokenKind` values.
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
        """Number of tokens of all studies."""
        return len(self.token_ids)

    def keep(self, mask: Bool[Tensor, " n_tokens"]) -> Block:
        """The tokens where a mask is true; ``studies`` and ``skipped`` are left empty."""
        return Block(
            activations={name: values[mask.to(values.device)] for name, values in self.activations.items()},
            norms={name: values[mask] for name, values in self.norms.items()},
            token_ids=self.token_ids[mask],
            study_index=self.study_index[mask],
            position=self.position[mask],
            kind=self.kind[mask],
        )
