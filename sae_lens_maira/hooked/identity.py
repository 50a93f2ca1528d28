"""The model, layer and token policy that an SAE belongs to: written into its metadata and checked on use."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sae_lens_maira.errors import SaeMismatch

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_lens_maira.hooked.model import HookedVisionLanguageModel


METADATA_KEY = "sae_lens_maira"
"""Key of this package's entry in an SAE's metadata."""
_SAMPLES_PER_TENSOR = 64


def fingerprint_weights(model: torch.nn.Module) -> str:
    """A hash of the weights: shapes and 64 evenly spaced values of each, rounded to bf16.

    The rounding gives a model loaded in bf16 and the same model in fp32 the same hash. Weights are hashed in the order
    in which modules hold them, because that order is the same in transformers 4 and 5, unlike their names.

    Args:
        model: with its weights in memory, on any devices.
    """
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(f"{tuple(parameter.shape)}".encode())
        flat = parameter.detach().reshape(-1)
        stride = max(len(flat) // _SAMPLES_PER_TENSOR, 1)
        sample = flat[::stride].to("cpu", torch.bfloat16).contiguous()
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def describe_model(model: HookedVisionLanguageModel) -> dict[str, Any]:
    """The entry in an SAE's metadata about the model that it was trained on."""
    return {
        "family": model.vlm.family,
        "model": model.cfg.model_name,
        "revision": getattr(model.vlm.module.config, "_commit_hash", None),
        "weights_fingerprint": fingerprint_weights(model.vlm.module),
        "token_policy": model.policy.to_dict(),
    }


def check_sae_fits(sae: SAE[Any], model: HookedVisionLanguageModel) -> None:
    """Check that an SAE was trained on this model, with this token policy.

    Raises:
        SaeMismatch: the message names what differs.
    """
    metadata = sae.cfg.metadata
    differences: list[str] = []
    if sae.cfg.d_in != model.cfg.d_model:
        differences.append(f"d_in is {sae.cfg.d_in}, but the model's width is {model.cfg.d_model}")
    if metadata.hook_name is not None and metadata.hook_name not in model.hook_dict:
        differences.append(f"the model has no hook point '{metadata.hook_name}'")
    said = metadata.get(METADATA_KEY) or {}
    here = describe_model(model) if said else {}
    if said and said.get("weights_fingerprint") != here["weights_fingerprint"]:
        differences.append(
            f"it was trained on '{said.get('model')}' (weights {said.get('weights_fingerprint')}), but this is "
            f"'{here['model']}' (weights {here['weights_fingerprint']})"
        )
    theirs, ours = said.get("token_policy", {}), here.get("token_policy", {})
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            differences.append(f"its token policy has {name} = {theirs.get(name)}, the model's {ours.get(name)}")
    if differences:
        raise SaeMismatch(f"The SAE does not fit the model: {'; '.join(differences)}.")


def public_model_name(name: str) -> str:
    """A model's name without its place on this machine: a Hub id as it is, of a path the last part."""
    path = Path(name)
    is_path = path.is_absolute() or name.startswith((".", "~")) or "\\" in name or len(path.parts) > 2 or path.exists()
    return (path.name or "model") if is_path else name
