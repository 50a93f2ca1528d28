"""The model card: what the weights are, how they were made, and how they score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sae_lens_maira.phantom.training.evaluate import Evaluation, summary

_CARD = """\
---
license: mit
library_name: sae-lens-maira
tags: [radiology, phantom, interpretability]
---
# A phantom MAIRA-2

A model of MAIRA-2's architecture (Dinov2 backbone, 4-layer projector, Llama, its special tokens and prompts) with
{n_parameters:.1f} million parameters. It reports on *drawn* chest X-rays whose contents are known exactly, so that
methods of interpretation can be checked against the truth on a laptop. It has never seen a real X-ray and says
nothing about one.

**Never use it on patients' images.**

## Use
```python
from sae_lens_maira import phantom
from sae_lens_maira.phantom.model.pretrained import load_phantom
from sae_lens_maira.maira2.adapter import study_prompt

model, processor = load_phantom()
study = phantom.render(["pacemaker", "effusion_left_small"], anatomy_seed=7)
inputs = processor(study_prompt(study, "prompt"))
print(processor.decode_reports(model.generate(**inputs, max_new_tokens=160), inputs["input_ids"]))
```

## How it was made
`python -m sae_lens_maira.phantom.training.train --out DIR` with
{options}.

1. The vision tower learned labels (what is present, how large, how faint, where) through linear heads, which are not
   part of the model. Then it was frozen.
2. The projector and the language model learned findings, grounded findings and phrase grounding. Two auxiliary linear
   heads, which are not part of the model either, helped: one in the middle of the language model, on the last prompt
   token, learned what is present and how it changed since the prior; the other, before each sentence, learned what is
   still to be said. They shape these positions: expect concepts to be unusually easy to decode there.
3. One study in five of the training pool had concepts that ignore the clinical context. The scores below are taken on
   studies that all follow their context.

Optimization took {minutes:.0f} minutes on 2 CPU cores, without drawing the pool. Weights are stored in half precision.

## Scores
By `python -m sae_lens_maira.phantom.training.evaluate`: greedy decoding, reports read back by the grammar, from the
weights as stored. An uncertain finding counts as present.

{scores}
"""


def write_card(folder: Path, scores: Evaluation, options: Mapping[str, object], seconds: float) -> None:
    """Write ``README.md`` into a checkpoint folder; ``seconds`` is how long the optimization took."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="np") as tensors:
        n_parameters = sum(tensors.get_tensor(name).size for name in tensors.keys())  # noqa: SIM118 (no mapping)
    card = _CARD.format(
        n_parameters=n_parameters / 1e6,
        options=", ".join(f"`{name}={value}`" for name, value in options.items()),
        minutes=seconds / 60,
        scores=summary(scores),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
