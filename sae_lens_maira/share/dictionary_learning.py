"""Reads and writes dictionary_learning's folder format without loss.

A folder holds ``ae.pt`` (a state dict) and ``config.json`` (``{"trainer": {...}, "buffer": {...}}``), for one of three
kinds of SAE:

1. The Matryoshka SAE has ``W_enc (d_in, d_sae)``, ``b_enc``, ``W_dec (d_sae, d_in)``, ``b_dec``, a scalar
   ``threshold``, ``k`` and ``group_sizes``. It computes ``relu((x - b_dec) @ W_enc + b_enc)`` and keeps values above
   the threshold, as SAE-Lens's ``jumprelu`` does.
2. The BatchTopK SAE is the same with ``torch.nn.Linear`` layers.
3. The JumpReLU SAE has one threshold per latent and does not subtract ``b_dec`` from the input.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor

from sae_lens_maira.errors import SaeFormatError, printable, quoted
from sae_lens_maira.sae.prefixes import sizes_from_widths, widths_from_sizes
from sae_lens_maira.share.foreign_files import (
    dense_tensor,
    group_of,
    load_object,
    load_tensors,
    plain_value,
    whole_number,
)

WEIGHTS_NAME = "ae.pt"
CONFIG_NAME = "config.json"
CLASSES = ("MatryoshkaBatchTopKSAE", "BatchTopKSAE", "JumpReluAutoEncoder")


@dataclass(frozen=True)
class DictionaryLearningSae:
    """A checked SAE: tensors with SAE-Lens's names and shapes, and the file's configuration."""

    tensors: dict[str, Tensor]
    """``W_enc``, ``b_enc``, ``W_dec``, ``b_dec`` and ``threshold (d_sae,)``."""
    apply_b_dec_to_input: bool
    k: int | None
    group_sizes: tuple[int, ...] | None
    trainer: dict[str, Any]
    """The ``trainer`` part of ``config.json``; empty if there is none."""
    buffer: dict[str, Any]

    @property
    def d_in(self) -> int:
        return self.tensors["W_enc"].shape[0]

    @property
    def d_sae(self) -> int:
        return self.tensors["W_enc"].shape[1]

    def to_sae_lens(self, model_name: str | None, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
        """The configuration of a ``jumprelu`` SAE; ``model_name`` is used if the file names no model."""
        layer = self.trainer.get("layer")
        metadata: dict[str, Any] = {
            "sae_lens_version": _sae_lens_version(),
            "model_name": self.trainer.get("lm_name") or model_name,
            "hook_name": None if layer is None else f"blocks.{layer}.hook_resid_post",
            "context_size": self.buffer.get("ctx_len"),
            "source_format": "dictionary_learning",
            "k": self.k,
        }
        if self.group_sizes is not None:
            metadata["matryoshka_widths"] = widths_from_sizes(self.group_sizes, self.d_sae)
        return {
            "architecture": "jumprelu",
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": dtype,
            "device": device,
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {name: value for name, value in metadata.items() if value is not None},
        }


def read_dictionary_learning(weights_path: Path, config_path: Path | None = None) -> DictionaryLearningSae:
    """Read and check a weights file (``.pt``, or safetensors) and its configuration.

    Raises:
        SaeFormatError: the file cannot be read; the message says why.
    """
    state = load_tensors(weights_path)
    config = {} if config_path is None else load_object(config_path)
    return check_state(state, config, source=str(weights_path))


def check_state(state: dict[str, Any], config: dict[str, Any], source: str) -> DictionaryLearningSae:
    """Check a state dict of one of the three classes and rename its tensors.

    Args:
        source: the file's name, for error messages.
    """
    trainer, buffer = (group_of(config, name, source) for name in ("trainer", "buffer"))
    dict_class = trainer.get("dict_class")
    if dict_class is not None and dict_class not in CLASSES:
        raise SaeFormatError(
            f"{source} is a {printable(dict_class)}; only {', '.join(CLASSES)} can be converted exactly."
        )
    tensors = _rename(state, source)
    d_sae = _check_shapes(tensors, trainer, source)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SaeFormatError(f"{name} in {source} holds NaN or infinite values.")
    per_latent = tensors["threshold"].ndim == 1
    tensors["threshold"] = tensors["threshold"].expand(d_sae).contiguous()
    given_sizes = state.get("group_sizes", trainer.get("group_sizes"))
    group_sizes = None
    if given_sizes is not None:
        sizes = plain_value(given_sizes)
        if not isinstance(sizes, list):
            raise SaeFormatError(f"group_sizes in {source} is {quoted(sizes)}; it must be a list of whole numbers.")
        group_sizes = tuple(whole_number(size, "group_sizes", source) for size in sizes)
        if any(size <= 0 for size in group_sizes) or sum(group_sizes) != d_sae:
            raise SaeFormatError(
                f"The groups {list(group_sizes)} in {source} are not positive sizes that sum to the {d_sae} latents."
            )
    k = plain_value(state.get("k", trainer.get("k")))
    trainer, buffer = _check_notes(trainer, buffer, source)
    return DictionaryLearningSae(
        tensors=tensors,
        apply_b_dec_to_input=dict_class != "JumpReluAutoEncoder" if dict_class else not per_latent,
        k=None if k is None else whole_number(k, "k", source),
        group_sizes=group_sizes,
        trainer=trainer,
        buffer=buffer,
    )


def export_dictionary_learning(sae: SAE[Any], path: str | Path, k: int | None = None) -> Path:
    """Write a ``jumprelu`` SAE as a ``MatryoshkaBatchTopKSAE`` folder whose ``encode`` gives the same activations.

    Groups come from the metadata's ``matryoshka_widths``; without it there is one group.

    Args:
        sae: an SAE for inference. Its thresholds must all be equal, because that class has a single threshold.
        k: mean number of active latents, as the whole number that the class requires; from the metadata if None.

    Returns:
        The folder.
    """
    if sae.cfg.architecture() != "jumprelu":
        raise SaeFormatError(
            f"Only SAEs saved for inference (jumprelu) can be exported, not {sae.cfg.architecture()}: save it with "
            "save_inference_model and load that."
        )
    state = {name: value.detach().to("cpu", torch.float32) for name, value in sae.state_dict().items()}
    threshold = state["threshold"]
    if threshold.numel() and not (threshold == threshold[0]).all():
        raise SaeFormatError("dictionary_learning's format has one threshold, but this SAE has one for each latent.")
    if sae.cfg.normalize_activations != "none":
        raise SaeFormatError(
            f"Activations are normalized at run time ({sae.cfg.normalize_activations}); fold them into the SAE."
        )
    metadata = sae.cfg.metadata
    details = metadata.get("training_architecture_details") or {}
    k = k or metadata.get("k") or details.get("k")
    if k is None:
        raise SaeFormatError("The metadata has no k, which dictionary_learning's format needs; pass k.")
    b_enc = state["b_enc"]
    if not sae.cfg.apply_b_dec_to_input:
        # That class always subtracts b_dec from the input; adding b_dec @ W_enc to b_enc compensates for it.
        b_enc = b_enc + state["b_dec"] @ state["W_enc"]
    sizes = sizes_from_widths(metadata.get("matryoshka_widths") or [sae.cfg.d_sae])
    k = max(round(k), 1)
    tensors = {
        "W_enc": state["W_enc"].contiguous(),
        "b_enc": b_enc,
        "W_dec": state["W_dec"].contiguous(),
        "b_dec": state["b_dec"],
        "k": torch.tensor(k, dtype=torch.int),
        "threshold": threshold[0].clone() if threshold.numel() else torch.tensor(-1.0),
        "group_sizes": torch.tensor(sizes),
    }
    trainer = {
        "trainer_class": "MatryoshkaBatchTopKTrainer",
        "dict_class": "MatryoshkaBatchTopKSAE",
        "activation_dim": sae.cfg.d_in,
        "dict_size": sae.cfg.d_sae,
        "k": k,
        "group_sizes": sizes,
        "group_fractions": [size / sae.cfg.d_sae for size in sizes],
        "layer": _layer(metadata.get("hook_name")),
        "lm_name": metadata.get("model_name"),
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / WEIGHTS_NAME)
    config = {"trainer": trainer, "buffer": {"ctx_len": metadata.get("context_size"), "d_submodule": sae.cfg.d_in}}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    return folder


def _check_notes(trainer: dict[str, Any], buffer: dict[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The notes on model, layer and context size, checked to be what they are taken for."""
    trainer, buffer = dict(trainer), dict(buffer)
    for group, name, least in ((trainer, "layer", 0), (buffer, "ctx_len", 1)):
        if group.get(name) is not None:
            group[name] = whole_number(group[name], name, source)
            if group[name] < least:
                raise SaeFormatError(f"{name} in the configuration of {source} is {group[name]}, not {least} or more.")
    name = trainer.get("lm_name")
    if name is not None and not isinstance(name, str):
        raise SaeFormatError(f"lm_name in the configuration of {source} is {quoted(name)}; it must be a text.")
    return trainer, buffer


def _rename(state: dict[str, Any], source: str) -> dict[str, Tensor]:
    names = dict(state)
    for old, new in (("encoder.weight", "W_enc"), ("decoder.weight", "W_dec")):
        if old in names:
            names[new] = dense_tensor(names[old], old, source, transposed=True)
    names.setdefault("b_enc", names.get("encoder.bias"))
    wanted = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    missing = [name for name in wanted if not isinstance(names.get(name), Tensor)]
    if missing:
        listed = printable(", ".join(sorted(map(str, state))))[:400] or "nothing"
        raise SaeFormatError(f"{source} lacks {', '.join(missing)}: it has {listed}.")
    return {name: dense_tensor(names[name], name, source) for name in wanted}


def _check_shapes(tensors: dict[str, Tensor], trainer: dict[str, Any], source: str) -> int:
    """Return d_sae."""
    if tensors["W_enc"].ndim != 2:
        raise SaeFormatError(f"W_enc in {source} has shape {tuple(tensors['W_enc'].shape)}, not (d_in, d_sae).")
    d_in, d_sae = tensors["W_enc"].shape
    if d_in == 0 or d_sae == 0:
        raise SaeFormatError(f"W_enc in {source} has shape {(d_in, d_sae)}; it holds nothing.")
    expected = {"b_enc": [(d_sae,)], "W_dec": [(d_sae, d_in)], "b_dec": [(d_in,)], "threshold": [(), (d_sae,)]}
    for name, shapes in expected.items():
        shape = tuple(tensors[name].shape)
        if shape not in shapes:
            raise SaeFormatError(
                f"{name} in {source} has shape {shape}, but W_enc {(d_in, d_sae)} calls for {shapes[0] or 'a scalar'}."
            )
    for name, size in (("activation_dim", d_in), ("dict_size", d_sae)):
        if trainer.get(name) not in (None, size):
            raise SaeFormatError(
                f"The configuration of {source} says {name} {printable(trainer[name])}, but W_enc says {size}."
            )
    return d_sae


def _layer(hook_name: str | None) -> int | None:
    parts = (hook_name or "").split(".")
    return int(parts[1]) if len(parts) > 2 and parts[1].isdigit() else None


def _sae_lens_version() -> str:
    from sae_lens import __version__

    return __version__
