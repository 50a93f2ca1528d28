"""The plain model, read and edited only with PyTorch hooks: the reference for HookedMaira2."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from sae_lens_maira import phantom
from sae_lens_maira.data.study import Study, TokenKind
from sae_lens_maira.maira2 import FindingsPrompt
from sae_lens_maira.phantom.model.pretrained import PHANTOM_PATH

REFERENCE_CHECKPOINT = Path(__file__).parent / "maira2" / "reference" / "checkpoint"
CHECKPOINTS = [REFERENCE_CHECKPOINT, PHANTOM_PATH]
SECTIONS = (
    TokenKind.INDICATION,
    TokenKind.TECHNIQUE,
    TokenKind.COMPARISON,
    TokenKind.PRIOR_REPORT,
    TokenKind.FINDINGS,
)


@dataclass(frozen=True)
class StillImage:
    """An image that is already drawn."""

    image: Image

    def open(self) -> Image:
        return self.image


def still(study: Study) -> Study:
    """A phantom study with images drawn in advance, because tests open them many times."""
    images = {name: getattr(study, name) for name in ("frontal", "lateral", "prior_frontal")}
    return replace(study, **{name: image and StillImage(image.open()) for name, image in images.items()})


def phantom_studies() -> list[Study]:
    """Four studies: with a prior image and report, with the frontal only, with a lateral, and with everything."""
    drawn = [
        phantom.render(["pacemaker"], 1, prior=["cardiomegaly"], lateral=False, indication="chest_pain"),
        phantom.render([], 2, lateral=False),
        phantom.render(["effusion_left_small"], 3),
        phantom.render(["effusion_left_small", "cardiomegaly"], 4, prior=[], indication="fever"),
    ]
    assert [(study.lateral is not None, bool(study.prior_report)) for study in drawn] == [
        (False, True),
        (False, False),
        (True, False),
        (True, True),
    ]
    return [replace(still(study), study_id=f"study {index}") for index, study in enumerate(drawn)]


def prompt_of(study: Study, with_findings: bool = True) -> FindingsPrompt:
    return FindingsPrompt(
        study.frontal,
        study.lateral,
        study.prior_frontal,
        study.indication,
        study.technique,
        study.comparison,
        study.prior_report,
        assistant_text=study.findings if with_findings else None,
    )


def kept_by_the_paper(kinds: list[int]) -> list[int]:
    """Positions that the paper keeps, the frontal image's last token first."""
    frontal = max(position for position, kind in enumerate(kinds) if kind == TokenKind.FRONTAL_IMAGE)
    last_of_image = [
        position
        for position, kind in enumerate(kinds[:-1])
        if kind in (TokenKind.LATERAL_IMAGE, TokenKind.PRIOR_IMAGE) and kinds[position + 1] != kind
    ]
    text = [position for position, kind in enumerate(kinds) if kind in SECTIONS]
    return [frontal, *sorted(last_of_image + text)]


@dataclass(frozen=True)
class PlainBatch:
    """Inputs of the plain model, and the positions that rows keep of each."""

    inputs: dict[str, Tensor]
    kept: list[list[int]]

    @classmethod
    def of(cls, processor: Any, studies: Sequence[Study]) -> PlainBatch:
        inputs = processor([prompt_of(study) for study in studies], padding_side="right")
        return cls(dict(inputs), [kept_by_the_paper(kinds) for kinds in inputs["token_kinds"].tolist()])

    def mask(self) -> Tensor:
        """True at kept positions, of shape (batch, sequence)."""
        mask = torch.zeros_like(self.inputs["input_ids"], dtype=torch.bool)
        for row, positions in zip(mask, self.kept, strict=True):
            row[positions] = True
        return mask


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


@contextmanager
def raw_hook(model: Any, name: str, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call a function at a hook point of the plain model; its result replaces the value unless it is None."""

    def on_input(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = function(args[0] if args else kwargs["hidden_states"])
        if answer is None:
            return None
        return ((answer, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": answer})

    def on_output(_module: Any, _args: Any, output: Any) -> Any:
        answer = function(first(output))
        return (answer, *output[1:]) if answer is not None and isinstance(output, tuple) else answer

    if name == "hook_image_embeds":
        handle = model.model.multi_modal_projector.register_forward_hook(on_output)
    else:
        _, index, point = name.split(".")
        layer = model.model.language_model.layers[int(index)]
        if point == "hook_resid_pre":
            handle = layer.register_forward_pre_hook(on_input, with_kwargs=True)
        else:
            module = {"hook_attn_out": "self_attn", "hook_mlp_out": "mlp"}.get(point)
            handle = (getattr(layer, module) if module else layer).register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


def plain_activations(model: Any, inputs: dict[str, Tensor], name: str) -> Tensor:
    """The plain model's values at a hook point, at all positions."""
    found: list[Tensor] = []
    with raw_hook(model, name, lambda value: found.append(value)):
        model(**inputs)
    return found[0]


def edited_at(mask: Tensor, edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An edit of the plain model's activations at some positions."""

    def function(value: Tensor) -> Tensor:
        changed = value.clone()
        changed[mask] = edit(value[mask])
        return changed

    return function


def assert_rows_equal(rows: Tensor, full: Tensor, kept: list[list[int]]) -> None:
    """Bit for bit at kept positions, and zero at padding."""
    for row, everything, positions in zip(rows, full, kept, strict=True):
        assert torch.equal(row[: len(positions)], everything[positions])
        assert not row[len(positions) :].any()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@contextmanager
def count_calls(*modules: Any) -> Iterator[list[int]]:
    """Count how often modules are called in the ``with`` block."""
    counts = [0] * len(modules)

    def counter(index: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            counts[index] += 1

        return count

    handles = [module.register_forward_pre_hook(counter(index)) for index, module in enumerate(modules)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
