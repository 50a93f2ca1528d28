"""A client of any server with OpenAI's chat interface: vLLM, llama.cpp, Ollama, and hosted ones.

1. Connections that break, status 408, 409, 429 and 5xx, and answers that are no JSON are tried again, after the
   server's ``Retry-After`` or else exponentially longer pauses.
2. Structured answers are asked for by ``json_schema``; a server that refuses that is asked for ``json_object``, then
   for plain text. What worked is remembered, and every reply says how it was asked for.
3. A server that refuses ``logprobs`` is asked without; its one-word answers are then read as text.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any, get_args

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from typing_extensions import override

from sae_lens_maira.errors import InterpretError, printable
from sae_lens_maira.interpret.chat import AnswerMode, Chat, ChatFailure, ChatReply, ChatRequest, find_json
from sae_lens_maira.interpret.privacy import is_loopback

_MODES: tuple[AnswerMode, ...] = get_args(AnswerMode)
_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_N_TOP = 20
_LONGEST_PAUSE = 60.0
_LARGEST_ANSWER = 1 << 22


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Token(_Lenient):
    token: str
    logprob: float


class _FirstTokens(_Lenient):
    top_logprobs: list[_Token] = []


class _Logprobs(_Lenient):
    content: list[_FirstTokens] | None = None


class _Message(_Lenient):
    content: str | None = None


class _Choice(_Lenient):
    message: _Message
    logprobs: _Logprobs | None = None


class _Usage(_Lenient):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(_Lenient):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Transient(Exception):
    """A failure that may pass; ``pause`` is what the server asked for, in seconds."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class _Refused(Exception):
    """The server understood the question and refuses its form."""


class ChatServer(Chat):
    """A model behind a server.

    Args:
        url: up to and including ``/v1``.
        model: the model's name; None asks the server for its only one.
        api_key: name of the environment variable with the key; None sends none.
        timeout: seconds until an answer has to be there.
        attempts: how often a question is sent at most.
        first_pause: seconds before the first repetition, where the server does not say.

    Raises:
        InterpretError: the server is not there, serves several models, or the variable is not set.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 300.0,
        attempts: int = 6,
        first_pause: float = 1.0,
    ) -> None:
        headers = {}
        if api_key is not None:
            if not os.environ.get(api_key):
                raise InterpretError(f"The environment variable {api_key} for the server's key is not set; export it.")
            headers["Authorization"] = f"Bearer {os.environ[api_key]}"
        # Proxies are never used for loopback: they would carry private text elsewhere.
        self._client = httpx.Client(
            base_url=url.rstrip("/") + "/", headers=headers, timeout=timeout, trust_env=not is_loopback(url)
        )
        self._attempts, self._first_pause = attempts, first_pause
        self._lock = threading.Lock()
        self._mode_number = 0
        self._logprobs = True
        self._name = model or self._only_model(url)

    @property
    @override
    def name(self) -> str:
        return self._name

    @property
    def degraded(self) -> list[str]:
        """What the server refused, as it stands in results."""
        refused: list[str] = [*_MODES[: self._mode_number]]
        return refused if self._logprobs else [*refused, "logprobs"]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @override
    def ask(self, request: ChatRequest) -> ChatReply:
        number, logprobs = self._mode_number, self._logprobs
        while True:
            mode = _MODES[number] if request.schema is not None else "text"
            try:
                return self._checked(request, self._send(request, mode, logprobs), mode)
            except _Refused as error:
                if request.schema is None and logprobs:
                    logprobs = False
                elif request.schema is not None and number + 1 < len(_MODES):
                    number += 1
                else:
                    raise ChatFailure(f"the server refuses the question: {error}") from None
                with self._lock:
                    self._mode_number = max(self._mode_number, number)
                    self._logprobs = self._logprobs and logprobs

    def _checked(self, request: ChatRequest, found: _Completion, mode: AnswerMode) -> ChatReply:
        text = found.choices[0].message.content or ""
        if request.schema is not None:
            try:
                text = request.schema.model_validate_json(find_json(text)).model_dump_json()
            except (ValidationError, ValueError):
                raise ChatFailure(f"the answer has not the form that was asked for: {printable(text[:120])}") from None
        logprobs = found.choices[0].logprobs
        first = logprobs.content[0].top_logprobs if logprobs and logprobs.content else []
        usage = found.usage or _Usage()
        top = tuple((token.token, token.logprob) for token in first)
        return ChatReply(text, top, mode, usage.prompt_tokens, usage.completion_tokens)

    def _send(self, request: ChatRequest, mode: AnswerMode, logprobs: bool) -> _Completion:
        retrying = Retrying(
            retry=retry_if_exception_type(_Transient),
            stop=stop_after_attempt(self._attempts),
            wait=self._pause,
            reraise=True,
        )
        try:
            return retrying(self._post, self._body(request, mode, logprobs))
        except _Transient as error:
            raise ChatFailure(f"{error} ({self._attempts} attempts)") from None

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Transient) and error.pause is not None:
            return min(error.pause, _LONGEST_PAUSE)
        return wait_random_exponential(multiplier=self._first_pause, max=_LONGEST_PAUSE)(state)

    def _post(self, body: dict[str, Any]) -> _Completion:
        try:
            response = self._client.post("chat/completions", json=body)
        except httpx.TransportError as error:
            raise _Transient(f"the connection failed: {printable(error) or type(error).__name__}") from None
        if response.status_code in _TRANSIENT:
            raise _Transient(f"the server answered {response.status_code}", _retry_after(response))
        if response.status_code in (400, 404, 415, 422):
            raise _Refused(f"status {response.status_code}: {printable(response.text[:120])}")
        if response.status_code != 200:
            raise ChatFailure(f"the server answered {response.status_code}: {printable(response.text[:120])}")
        if len(response.content) > _LARGEST_ANSWER:
            raise ChatFailure(f"the server's answer has {len(response.content)} bytes")
        try:
            found = _Completion.model_validate_json(response.content)
        except ValidationError:
            raise _Transient("the server's answer is no chat completion") from None
        if not found.choices:
            raise _Transient("the server's answer holds no choice")
        return found

    def _body(self, request: ChatRequest, mode: AnswerMode, logprobs: bool) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in request.images]
        system, content = request.system, [{"type": "text", "text": request.user}, *parts] if parts else request.user
        body: dict[str, Any] = {"model": self._name, "max_tokens": request.max_tokens, "temperature": 0.0}
        if request.seed is not None:
            body |= {"temperature": 0.7, "seed": request.seed}
        if request.schema is not None:
            schema = request.schema.model_json_schema()
            if mode == "json_schema":
                named = {"name": "answer", "schema": schema, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": named}
            else:
                system += f"\nAnswer with one JSON object of this schema, and nothing else: {json.dumps(schema)}"
                body |= {"response_format": {"type": "json_object"}} if mode == "json_object" else {}
        elif logprobs:
            body |= {"logprobs": True, "top_logprobs": _N_TOP}
        body["messages"] = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        return body

    def _only_model(self, url: str) -> str:
        try:
            response = self._client.get("models")
            names = [str(model["id"]) for model in response.raise_for_status().json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise InterpretError(
                f"The server '{url}' does not say which model it serves ({printable(error)})."
            ) from None
        if len(names) != 1:
            raise InterpretError(f"The server '{url}' serves {', '.join(names) or 'no model'}; choose one by its name.")
        return names[0].rsplit("/", 1)[-1]


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of the header ``Retry-After``; dates are left to the usual pauses."""
    try:
        return max(float(response.headers["Retry-After"]), 0.0)
    except (KeyError, ValueError):
        return None
