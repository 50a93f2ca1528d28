"""The token policy, which decides what tokens of a study are kept.

Bouzid et al. 2025 (arXiv 2507.12950, section 3) leave out the tokens of the boilerplate prompt and all intermediate
image tokens, which is the default policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from sae_lens_maira.data.study import IMAGE_KINDS, SECTION_KINDS, SectionName, TokenKind
from sae_lens_maira.settings import Settings


@dataclass(frozen=True)
class TokenPolicy(Settings):
    """Which tokens of a study a row keeps.

    Args:
        sections: sections whose text is kept, including the ``N/A`` of empty sections.
        image_tokens: ``last`` keeps the last token of each image, ``all`` keeps all of them. With ``none``, only the
            study token stays, at the start of each row; to train without it, use ``seqpos_slice=(1, None)``.
        template: ``keep`` also keeps boilerplate and the end of sequence.
        text: ``findings`` appends the study's report for teacher forcing; ``prompt`` has only the question.
    """

    GROUP = "policy."

    sections: tuple[SectionName, ...] = ("indication", "technique", "comparison", "prior_report", "findings")
    image_tokens: Literal["last", "none", "all"] = "last"
    template: Literal["drop", "keep"] = "drop"
    text: Literal["findings", "prompt"] = "findings"

    def keeps(self, kinds: Int[np.ndarray, " n_tokens"]) -> Bool[np.ndarray, " n_tokens"]:
        """Mask of the tokens of a full prompt that are kept, given their kinds."""
        kept_kinds = [SECTION_KINDS[name] for name in self.sections]
        if self.template == "keep":
            kept_kinds += [TokenKind.TEMPLATE, TokenKind.END]
        kept = np.isin(kinds, kept_kinds)
        if self.image_tokens == "all":
            return kept | np.isin(kinds, IMAGE_KINDS)
        if self.image_tokens == "last":
            for kind in IMAGE_KINDS:
                kept[np.flatnonzero(kinds == kind)[-1:]] = True
        return kept
