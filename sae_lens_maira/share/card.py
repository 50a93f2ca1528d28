"""The model card of shared SAEs: what they were trained on and how to load them; never any training text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sae_lens_maira.hooked.identity import METADATA_KEY
from sae_lens_maira.sae.prefixes import sizes_from_widths

TAGS = ("saelens", "sparse-autoencoder", "mechanistic-interpretability", "radiology", "maira-2")
_WORD = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
LICENCE_NOTES = """\
- The weights of these SAEs are shared under the license named above.
- They describe activations of the base model, which has its own license (MAIRA-2: MSRLA, research use, gated): using
  them needs the base model, and its terms apply.
- If they were trained on protected reports or images (for example MIMIC-CXR), check that your data agreement lets you
  share models derived from them before making the repository public.
- Not for clinical use."""


def make_card(
    repo_id: str,
    configs: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    license: str = "mit",
    note: str = "",
) -> str:
    """The card as Markdown with the Hub's YAML header.

    Args:
        repo_id: the repository, for the loading example.
        configs: each SAE's configuration (``cfg.json``), by its id.
        metrics: additional figures of each SAE, by its id.
        license: the SAE's license, as the Hub spells it.
        note: a paragraph by the author.
    """
    models = sorted({name for config in configs.values() if (name := _base_model(config)) is not None})
    license_line = f"license: {license if _WORD.fullmatch(license) else json.dumps(license)}"
    header = ["---", "library_name: saelens", license_line, "tags:", *(f"- {tag}" for tag in TAGS)]
    on_hub = [name for name in models if _HUB_ID.fullmatch(name)]
    if on_hub:
        header += ["base_model:", *(f"- {name}" for name in on_hub)]
    lines = [*header, "---", "", f"# Sparse autoencoders for {', '.join(models) or 'an unnamed model'}", ""]
    if note:
        lines += [note, ""]
    lines += ["Load them with [SAE-Lens](https://github.com/decoderesearch/SAELens):", "", "```python"]
    lines += [
        "from sae_lens import SAE",
        "",
        f'sae = SAE.from_pretrained("{repo_id}", "{next(iter(configs), "")}")',
        "```",
    ]
    for sae_id, config in configs.items():
        lines += ["", f"## {sae_id}", "", "| | |", "| --- | --- |"]
        lines += [f"| {name} | {value} |" for name, value in _facts(config, (metrics or {}).get(sae_id, {}))]
        recipe = (config.get("metadata") or {}).get("training_architecture_details")
        if recipe:
            lines += ["", "Recipe:", "", "```json", json.dumps(recipe, indent=2, sort_keys=True), "```"]
    return "\n".join([*lines, "", "## License notes", "", LICENCE_NOTES, ""])


def _facts(config: Mapping[str, Any], metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    metadata: Mapping[str, Any] = config.get("metadata") or {}
    identity: Mapping[str, Any] = metadata.get(METADATA_KEY) or {}
    widths = metadata.get("matryoshka_widths")
    policy = identity.get("token_policy")
    facts: list[tuple[str, Any]] = [
        ("base model", _base_model(config)),
        ("revision", identity.get("revision")),
        ("weights fingerprint", identity.get("weights_fingerprint")),
        ("hook point", metadata.get("hook_name")),
        ("token policy", None if policy is None else json.dumps(policy, sort_keys=True)),
        ("size", f"{config.get('d_in')} to {config.get('d_sae')}"),
        ("groups", None if not widths else ", ".join(map(str, sizes_from_widths(widths)))),
        ("architecture", config.get("architecture")),
        ("trained as", metadata.get("training_architecture")),
        ("mean active latents", metadata.get("l0")),
        ("dead latents", metadata.get("num_dead_features")),
        ("SAE-Lens version", metadata.get("sae_lens_version")),
        *metrics.items(),
    ]
    return [(name, _shown(value)) for name, value in facts]


def _base_model(config: Mapping[str, Any]) -> str | None:
    metadata: Mapping[str, Any] = config.get("metadata") or {}
    name = (metadata.get(METADATA_KEY) or {}).get("model") or metadata.get("model_name")
    return None if name is None else " ".join(str(name).split())


def _shown(value: Any) -> str:
    if value is None:
        return "not recorded"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
