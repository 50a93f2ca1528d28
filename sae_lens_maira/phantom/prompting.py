"""From a study to MAIRA-2's prompts."""

from __future__ import annotations

import numpy as np

from sae_lens_maira.data.study import LazyImage
from sae_lens_maira.maira2.images import ImageLike
from sae_lens_maira.maira2.prompts import FindingsPrompt
from sae_lens_maira.phantom.generate import PhantomStudy

_UNOPENED = np.zeros((1, 1), np.uint8)


def findings_prompt(
    study: PhantomStudy, *, grounded: bool = False, with_answer: bool = False, open_images: bool = True
) -> FindingsPrompt:
    """The prompt that asks for a study's findings; `with_answer` adds its own report, for teacher forcing.

    Without `open_images` the prompt can be rendered as text only.
    """

    def image(lazy: LazyImage | None) -> ImageLike | None:
        if lazy is None:
            return None
        return lazy.open() if open_images else _UNOPENED

    answer = (study.grounded_findings if grounded else study.findings) if with_answer else None
    frontal = image(study.frontal)
    assert frontal is not None
    return FindingsPrompt(
        frontal=frontal,
        lateral=image(study.lateral),
        prior=image(study.prior_frontal),
        indication=study.indication,
        technique=study.technique,
        comparison=study.comparison,
        prior_report=study.prior_report,
        grounded=grounded,
        assistant_text=answer,
    )
