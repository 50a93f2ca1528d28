"""What the pipeline asks of a language model: one interface for a server, a model in this process, and a dry run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from pydantic import BaseModel, ConfigDict

Purpose: TypeAlias = Literal["audit", "explain", "judge", "intruder"]
AnswerMode: TypeAlias = Literal["json_schema", "json_object", "text"]
"""How a server was asked for structured answers; the later ones are fallbacks."""
_FORMAT = 1
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 800


class AnswerForm(BaseModel):
    """The form of a structured answer.

    Attributes:
        PLACEHOLDER: an answer of this form, which stands for one in a dry run; ``KEY`` is replaced.
    """

    PLACEHOLDER: ClassVar[str]

    model_config = ConfigDict(extra="ignore")


@dataclass(frozen=True)
class ChatRequest:
    """One question.

    Args:
        purpose: what it is for; not part of the question.
        system: the instructions.
        user: the question itself, in which all foreign text stands as JSON strings.
        schema: the form of the answer; None asks for one word.
        max_tokens: of the answer.
        images: data URLs of PNG images, for models that see.
        seed: of the sampling; None asks for the most likely answer.
    """

    purpose: Purpose
    system: str
    user: str
    schema: type[AnswerForm] | None = None
    max_tokens: int = 1
    images: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the probabilities of the first token are asked for: in one-word answers they are the answer."""
        return self.schema is None

    def key(self, model: str) -> str:
        """A hash of everything that determines the answer, by which answers are found again."""
        schema = None if self.schema is None else self.schema.model_json_schema()
        parts = [_FORMAT, model, self.system, self.user, schema, self.max_tokens, self.images, self.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def n_tokens(self) -> int:
        """About how many tokens the question has: one per four characters, and 800 per image."""
        return (len(self.system) + len(self.user)) // _CHARACTERS_PER_TOKEN + _TOKENS_PER_IMAGE * len(self.images) + 8


@dataclass(frozen=True)
class ChatReply:
    """One answer.

    Args:
        text: what the model wrote.
        top: the likeliest first tokens and their log probabilities; empty if they are unknown.
        mode: how a structured answer was asked for.
        n_prompt: tokens of the question, as the server counted them.
        n_completion: tokens of the answer.
    """

    text: str
    top: tuple[tuple[str, float], ...] = ()
    mode: AnswerMode = "text"
    n_prompt: int = 0
    n_completion: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ChatReply:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "top": tuple((str(token), float(value)) for token, value in values["top"])})


def placeholder(request: ChatRequest, key: str) -> ChatReply:
    """What stands for an answer in a dry run."""
    if request.schema is None:
        return ChatReply("Yes", (("Yes", -0.7), ("No", -0.7)))
    return ChatReply(request.schema.PLACEHOLDER.replace("KEY", key[:12]), mode="json_schema")


class ChatFailure(Exception):
    """A question got no usable answer; the message says why. It is listed in the result, and asked again next time."""


@runtime_checkable
class Chat(Protocol):
    """A language model."""

    @property
    def name(self) -> str:
        """The model's name, which stands in results and in the keys of answers."""
        ...

    def ask(self, request: ChatRequest) -> ChatReply:
        """Answer one question; called from several threads.

        Raises:
            ChatFailure: there is no usable answer.
        """
        ...


def find_json(text: str) -> str:
    """The first JSON object in a text, which may stand between other words or in a code fence.

    Raises:
        ValueError: there is none.
    """
    decoder = json.JSONDecoder()
    place = text.find("{")
    while place >= 0:
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place = text.find("{", place + 1)
            continue
        return text[place:end]
    raise ValueError("there is no JSON object in the answer")
