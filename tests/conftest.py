"""Shared fixtures. Types and shapes are checked at run time throughout the suite: see `typechecker.py`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tests.typechecker

tests.typechecker.install()

from safetensors.torch import load_file

from sae_lens_maira.maira2 import FindingsPrompt, Maira2ForConditionalGeneration, Maira2Processor

REFERENCE_PATH = Path(__file__).parent / "maira2" / "reference"
CHECKPOINT_PATH = REFERENCE_PATH / "checkpoint"


@dataclass(frozen=True)
class ReferenceCase:
    """One input, and the official model's output for it."""

    name: str
    prompt: FindingsPrompt
    rendered: str
    tensors: dict[str, Any]


def reference_image(name: str | None) -> Path | None:
    return None if name is None else REFERENCE_PATH / "images" / f"{name}.png"


def load_reference_cases() -> list[ReferenceCase]:
    tensors = load_file(REFERENCE_PATH / "reference.safetensors")
    cases = json.loads((REFERENCE_PATH / "cases.json").read_text())
    found = []
    for name, case in cases.items():
        inputs = case["inputs"]
        frontal = reference_image(inputs["current_frontal"])
        assert frontal is not None
        prompt = FindingsPrompt(
            frontal=frontal,
            lateral=reference_image(inputs["current_lateral"]),
            prior=reference_image(inputs["prior_frontal"]),
            indication=inputs["indication"],
            technique=inputs["technique"],
            comparison=inputs["comparison"],
            prior_report=inputs["prior_report"],
            assistant_text=inputs.get("assistant_text"),
        )
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        found.append(ReferenceCase(name, prompt, case["prompt"], own))
    return found


@pytest.fixture(scope="session")
def checkpoint_path() -> Path:
    return CHECKPOINT_PATH


@pytest.fixture(scope="session")
def tiny_model() -> Maira2ForConditionalGeneration:
    """The reference checkpoint's model, fp32, in eval mode."""
    return Maira2ForConditionalGeneration.from_pretrained(CHECKPOINT_PATH).eval()


@pytest.fixture(scope="session")
def processor() -> Maira2Processor:
    """The reference checkpoint's processor."""
    return Maira2Processor.from_pretrained(CHECKPOINT_PATH)


@pytest.fixture
def frontal() -> Path:
    return REFERENCE_PATH / "images" / "frontal.png"


@pytest.fixture
def lateral() -> Path:
    return REFERENCE_PATH / "images" / "lateral.png"


@pytest.fixture
def prior() -> Path:
    return REFERENCE_PATH / "images" / "prior.png"
