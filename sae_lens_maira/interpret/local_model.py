"""A model in this process, by transformers, behind the interface of a server: no text leaves the process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from typing_extensions import override

from sae_lens_maira.errors import InterpretError, printable
from sae_lens_maira.interpret.chat import Chat, ChatFailure, ChatReply, ChatRequest, find_json

_N_TOP = 20


class LocalModel(Chat):
    """A causal language model that transformers can load without code of others.

    Args:
        path: a folder, or a Hub id.
        device: where it runs.

    Raises:
        InterpretError: it cannot be loaded.
    """

    def __init__(self, path: str, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
            model: Any = AutoModelForCausalLM.from_pretrained(path)
            self._model = model.to(device).eval()
        except (OSError, ValueError) as error:
            raise InterpretError(f"The language model '{path}' cannot be loaded ({printable(error)[:200]}).") from None
        self._device, self._lock = device, threading.Lock()
        self._name = Path(path).name

    @property
    @override
    def name(self) -> str:
        return self._name

    @torch.no_grad()
    @override
    def ask(self, request: ChatRequest) -> ChatReply:
        if request.images:
            raise ChatFailure("a model in this process reads no images; use a server that does")
        ids = self._prompt(request)
        with self._lock:
            torch.manual_seed(request.seed or 0)
            made = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.max_tokens,
                do_sample=request.seed is not None,
                return_dict_in_generate=True,
                output_scores=True,
                pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id or 0,
            )
        new = made.sequences[0, ids.shape[1] :]
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        if request.schema is not None:
            try:
                text = request.schema.model_validate_json(find_json(text)).model_dump_json()
            except (ValidationError, ValueError):
                raise ChatFailure(f"the answer has not the form that was asked for: {printable(text[:120])}") from None
        scores = torch.log_softmax(made.scores[0][0].float(), dim=-1)
        values, tokens = scores.topk(min(_N_TOP, len(scores)))
        top = tuple((self._tokenizer.decode([int(t)]), float(v)) for t, v in zip(tokens, values, strict=True))
        return ChatReply(text, top if request.wants_logprobs else (), "text", int(ids.shape[1]), len(new))

    def _prompt(self, request: ChatRequest) -> torch.Tensor:
        system = request.system
        if request.schema is not None:
            system += (
                f"\nAnswer with one JSON object of this schema, and nothing else: {request.schema.model_json_schema()}"
            )
        if self._tokenizer.chat_template:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": request.user}]
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = f"{system}\n\n{request.user}"
        return self._tokenizer(text, return_tensors="pt", add_special_tokens=not self._tokenizer.chat_template)[
            "input_ids"
        ].to(self._device)
