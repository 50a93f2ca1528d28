"""From a study to MAIRA-2's prompts."""

from __future__ import annotations

from dataclasses import replace

from sae_lens_maira.data.study import Study
from sae_lens_maira.maira2.adapter import study_prompt
from sae_lens_maira.maira2.prompts import FindingsPrompt


def findings_prompt(study: Study, *, grounded: bool = False) -> FindingsPrompt:
    """The prompt that asks for a study's findings, with boxes if `grounded`."""
    return replace(study_prompt(study, "prompt"), grounded=grounded)
