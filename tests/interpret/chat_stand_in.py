"""A real HTTP server on loopback with OpenAI's chat interface, which misbehaves on purpose."""

from __future__ import annotations

import hashlib
import json
import math
import re
import socket
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Trouble = Literal["429", "500", "cut", "no json", "no choices", "hang up"]
_COMMON = {
    "a",
    "the",
    "of",
    "that",
    "says",
    "is",
    "are",
    "sentence",
    "there",
    "no",
    "present",
    "and",
    "it",
    "in",
    "any",
}


def shares_a_word(body: dict[str, Any]) -> float:
    """A simple judge: yes if the description and the text share a word that is not a common one."""
    question = body["messages"][-1]["content"]
    quoted = re.search(r"Description: (\".*?\") Section: .*? Text: (\".*\") Answer:", question)
    assert quoted is not None, question
    description, text = (set(re.findall(r"[a-z]+", json.loads(part).lower())) for part in quoted.groups())
    return 0.9 if (description & text) - _COMMON else 0.1


class ChatStandIn(ThreadingHTTPServer):
    """``with ChatStandIn() as server:`` answers at ``server.url``.

    Args:
        troubles: what goes wrong with the first requests, in order.
        refuses: forms of questions that are answered with status 400.
        judge: probability of yes, from the request's body.
        write: a structured answer's text, from the request's body.
        retry_after: what status 429 asks for, in seconds.
    """

    daemon_threads = True

    def __init__(
        self,
        *,
        troubles: Sequence[Trouble] = (),
        refuses: tuple[str, ...] = (),
        judge: Callable[[dict[str, Any]], float] = shares_a_word,
        write: Callable[[dict[str, Any]], str] | None = None,
        retry_after: str = "0.05",
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.troubles: list[Trouble] = list(troubles)
        self.refuses, self.judge, self.retry_after = refuses, judge, retry_after
        self.write = write or (lambda body: json.dumps({"sentence": f"A sentence with code {_hash(body)}."}))
        self.bodies: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.on_request: Callable[[int], None] = lambda n: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> ChatStandIn:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:6]


class _Handler(BaseHTTPRequestHandler):
    server: ChatStandIn  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "stand-in"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            trouble = self.server.troubles.pop(0) if self.server.troubles else None
            n_requests = len(self.server.bodies)
        self.server.on_request(n_requests)
        if trouble == "429":
            self._answer(429, {"error": "slow down"}, {"Retry-After": self.server.retry_after})
        elif trouble == "500":
            self._answer(500, {"error": "oops"})
        elif trouble in ("cut", "hang up"):
            self.close_connection = True
            if trouble == "cut":
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"choices": [')
            self.connection.shutdown(socket.SHUT_RDWR)
        elif trouble == "no json":
            self._raw(200, b"<html>busy</html>")
        elif trouble == "no choices":
            self._answer(200, {"choices": []})
        else:
            self._reply(body)

    def _reply(self, body: dict[str, Any]) -> None:
        form = body.get("response_format", {}).get("type", "text")
        asked = {form} | ({"logprobs"} if body.get("logprobs") else set())
        if asked & set(self.server.refuses):
            self._answer(400, {"error": f"unsupported: {asked}"})
            return
        usage = {"prompt_tokens": 50, "completion_tokens": body["max_tokens"]}
        if "Description:" not in body["messages"][-1]["content"]:
            self._answer(200, {"choices": [{"message": {"content": self.server.write(body)}}], "usage": usage})
            return
        yes = self.server.judge(body)
        choice: dict[str, Any] = {"message": {"content": "Yes" if yes >= 0.5 else " no."}}
        if body.get("logprobs"):
            first = [{"token": " Yes", "logprob": math.log(yes)}, {"token": "No", "logprob": math.log(1 - yes)}]
            choice["logprobs"] = {"content": [{"top_logprobs": first}]}
        self._answer(200, {"choices": [choice], "usage": usage})

    def _answer(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._raw(status, json.dumps(content).encode(), headers)

    def _raw(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
