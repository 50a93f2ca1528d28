"""Loading by a Hub id, over HTTP from a stand-in for the Hub on loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CHECKPOINT_PATH
from tests.hub_stand_in import HubStandIn, Repository


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A Hub with the reference checkpoint as `tiny/maira-2`, and with `gated/maira-2`, which it shows to nobody."""
    with HubStandIn() as hub:
        files = {file.name: file.read_bytes() for file in CHECKPOINT_PATH.iterdir()}
        hub.repositories["tiny/maira-2"] = Repository(private=False, files=files)
        hub.repositories["gated/maira-2"] = Repository(private=False, gated=True)
        yield hub.url


def run(code: str, endpoint: str, cache_path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, since the Hub's address is read at import."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache_path),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


def test_a_hub_id_loads_model_and_processor(endpoint, tmp_path):
    code = f"""
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
import sae_lens_maira
from sae_lens_maira.maira2 import FindingsPrompt
processor = AutoProcessor.from_pretrained("tiny/maira-2")
inputs = processor(FindingsPrompt({str(CHECKPOINT_PATH.parent / "images" / "frontal.png")!r}))
remote = AutoModelForImageTextToText.from_pretrained("tiny/maira-2")
local = AutoModelForImageTextToText.from_pretrained({str(CHECKPOINT_PATH)!r})
assert torch.equal(remote(**inputs).logits, local(**inputs).logits)
print(type(remote).__name__, type(processor).__name__)
"""
    result = run(code, endpoint, tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["Maira2ForConditionalGeneration", "Maira2Processor"]


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        (
            "gated/maira-2",
            "No access to the gated repository 'gated/maira-2': accept its license at https://huggingface.co/",
        ),
        ("absent/maira-2", "'absent/maira-2' is neither a folder here nor a repository on the Hub"),
    ],
)
def test_a_repository_without_access_is_one_sentence(endpoint, tmp_path, repository, message):
    code = f"""
from sae_lens_maira.maira2 import Maira2ForConditionalGeneration, Maira2Processor
from sae_lens_maira.errors import CheckpointError
for cls in (Maira2ForConditionalGeneration, Maira2Processor):
    try:
        cls.from_pretrained({repository!r})
    except CheckpointError as error:
        print(error)
"""
    result = run(code, endpoint, tmp_path)
    lines = result.stdout.splitlines()
    assert len(lines) == 2, result.stderr[-2000:]
    assert all(line.startswith(message) for line in lines)
