"""sae-dashboard's own ``SaeVisRunner``, fed with recorded activations instead of a model.

sae-dashboard runs its model again for every few features. Here it gets a :class:`ReplayedModel`, which has only a hook
point with recorded activations, the unembedding, and the texts of tokens. Three things need care:

1. Rows get margins, because sae-dashboard never shows a token with fewer than ``buffer`` neighbors in its row.
2. The first column, which is never shown, holds the row's number.
3. At padding, features get a value just below zero, so that padding adds to no statistic and no example. Shares that
   sae-dashboard computes over all cells of the table are corrected afterwards.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.features.firings import folded_copy
from sae_lens_maira.features.recording import Recording
from sae_lens_maira.rows.row import RowVocabulary

_AT_PADDING = -1e-9
_MAX_ENTRIES = 1 << 26
"""Most entries of sae-dashboard's table of features by cells: 256 MB in fp32, of which it makes a few copies."""
_INTERVAL = re.compile(r"(INTERVAL .*<br>CONTAINS )([0-9.]+)%")


@dataclass(frozen=True)
class RowTexts:
    """What sae-dashboard reads of a tokenizer: ``vocab.items()``, pairs of text and id."""

    texts: tuple[str, ...]

    @property
    def vocab(self) -> RowTexts:
        return self

    def items(self) -> Iterator[tuple[str, int]]:
        for token_id, text in enumerate(self.texts):
            yield text, token_id


class ReplayedModel:
    """The part of a model that sae-dashboard uses, for recorded studies only.

    Args:
        recording: the recording to replay.
        vocabulary: ids of rows. Study tokens are mapped to the frontal image's id, so ids end below the first study's.
        texts: the texts of all ids.
        unembedding: the real model's, (d_model, d_vocab).
        hook_name: the recorded hook point.
        margins: cells before and after a row; the first one holds the row's number.
        pad_token_id: the id in cells without a token.
    """

    def __init__(
        self,
        recording: Recording,
        vocabulary: RowVocabulary,
        texts: Sequence[str],
        unembedding: Float[Tensor, "d_model d_vocab"],
        hook_name: str,
        margins: tuple[int, int],
        pad_token_id: int,
    ) -> None:
        from transformer_lens.hook_points import HookPoint

        n_ids = vocabulary.study_token(0)
        self.W_U = torch.nn.functional.pad(unembedding, (0, n_ids - unembedding.shape[1]))
        self.tokenizer = RowTexts(tuple(texts[:n_ids]))
        self.cfg = SimpleNamespace(d_vocab=n_ids)
        self.hook_dict = {hook_name: HookPoint()}
        self._recording, self._margins = recording, margins
        frontal = vocabulary.image_token(TokenKind.FRONTAL_IMAGE)
        ids = np.where(recording.token_ids >= n_ids, frontal, recording.token_ids)
        lengths = np.diff(recording.offsets)
        width = int(lengths.max()) + sum(margins)
        tokens = np.full((recording.n_studies, width), pad_token_id, dtype=np.int64)
        within = np.arange(recording.n_tokens) - np.repeat(recording.offsets[:-1], lengths)
        tokens[recording.study_of_token, within + margins[0]] = ids
        tokens[:, 0] = np.arange(recording.n_studies)
        self.tokens = torch.from_numpy(tokens)
        self._lengths = torch.from_numpy(lengths)
        self.is_token = torch.zeros(0)

    def run_with_hooks(self, tokens: Tensor, *, fwd_hooks: Iterable[tuple[str, Any]], **_: Any) -> None:
        """Pass the recorded activations of rows to the hooks."""
        numbers = tokens[:, 0].tolist()
        first = self._margins[0]
        found = [self._recording.activations(study) for study in numbers]
        activations = torch.zeros(*tokens.shape, found[0].shape[1])
        for row, own in enumerate(found):
            activations[row, first : first + len(own)] = own
        cells = torch.arange(tokens.shape[1]) - first
        self.is_token = (cells >= 0) & (cells < self._lengths[tokens[:, 0]][:, None])
        for name, function in fwd_hooks:
            function(activations, hook=self.hook_dict[name])


def run_sae_vis(
    sae: Any, model: ReplayedModel, features: Sequence[int], hook_name: str, layout: Any, max_features: int = 256
) -> Iterator[Any]:
    """sae-dashboard's data of features, in pieces, so that memory does not grow with their number.

    Args:
        sae: the SAE, which is not changed.
        model: the replayed model.
        features: which ones.
        hook_name: the recorded hook point.
        layout: sae-dashboard's ``SaeVisLayoutConfig``.
        max_features: features per piece, at most; correlated features are looked for within a piece.

    Yields:
        ``SaeVisData``.
    """
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner

    encoder = folded_copy(sae).cpu()
    encoder.hook_sae_acts_post.register_forward_hook(
        lambda _module, _args, output: torch.where(model.is_token[..., None], output, _AT_PADDING)
    )
    size = max(min(max_features, _MAX_ENTRIES // model.tokens.numel()), 1)
    for start in range(0, len(features), size):
        config = SaeVisConfig(
            hook_point=hook_name,
            features=list(features[start : start + size]),
            minibatch_size_features=size,
            feature_centric_layout=layout,
        )
        runner: Any = SaeVisRunner(config)
        with warnings.catch_warnings():
            # eindex, with which sae-dashboard indexes, warns about its own code.
            warnings.filterwarnings("ignore", module="eindex")
            data = runner.run(encoder=encoder, model=model, tokens=model.tokens)
        _set_shares_right(data, model)
        yield data


def _set_shares_right(data: Any, model: ReplayedModel) -> None:
    """Replace shares of cells by shares of tokens."""
    n_tokens = int(model._lengths.sum())
    ratio = model.tokens.numel() / n_tokens
    densities: list[float] = []
    for feature in data.feature_data_dict.values():
        histogram = feature.acts_histogram_data
        densities.append(sum(histogram.bar_heights) / n_tokens)
        if not histogram.bar_heights:
            histogram.bar_heights, histogram.bar_values, histogram.tick_vals = [0], [0.0], [0.0]
        histogram.title = f"ACTIVATIONS<br>DENSITY = {densities[-1]:.3%}"
        for group in feature.sequence_data.seq_group_data:
            found = _INTERVAL.fullmatch(group.title)
            if found is not None:
                group.title = f"{found[1]}{float(found[2]) * ratio:.3f}%"
    data.feature_stats.frac_nonzero = densities
