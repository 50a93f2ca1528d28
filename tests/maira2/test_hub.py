"""Loading by a Hub id, over HTTP from a stand-in for the Hub on loopback."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import CHECKPOINT_PATH

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandInHub(BaseHTTPRequestHandler):
    """Serves the reference checkpoint as `tiny/maira-2`, and refuses `gated/maira-2` as the Hub does."""

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        if "gated/maira-2" in path:
            self._send(403, b"{}", with_body, {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/tiny/maira-2/resolve/"):
            self._send_file(path.rsplit("/", 1)[-1], with_body)
        elif path.startswith("/api/models/tiny/maira-2"):
            siblings = [{"rfilename": file.name} for file in CHECKPOINT_PATH.iterdir()]
            body = [] if "/tree/" in path else {"id": "tiny/maira-2", "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(body).encode(), with_body, {"Content-Type": "application/json"})
        else:
            self._send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})

    def _send_file(self, name: str, with_body: bool) -> None:
        file = CHECKPOINT_PATH / name
        if not file.is_file():
            self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = file.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._send(200, content, with_body, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, with_body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandInHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


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
            "No access to the gated repository 'gated/maira-2': accept its licence at https://huggingface.co/",
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
