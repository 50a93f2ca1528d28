"""Plots of an experiment: dose curves of every concept, and what each arm raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sae_lens_maira.files import replacing
from sae_lens_maira.steering.run import Chosen

CURVES, RISES = "curves.svg", "rises.svg"
_N_COLUMNS = 6
_LIMIT = 5.0
"""Points of mean change elsewhere that are still accepted."""


def plot_curves(curves: pa.Table, chosen: Chosen, out: Path) -> str:
    """Rise and change elsewhere over the dose, for the latent chosen for each concept; the file's name."""
    figure_class = _figure_class()
    rows = curves.to_pylist()
    latents = [arm for arm in chosen.arms if arm.name == "latent"]
    n_rows = -(-max(len(latents), 1) // _N_COLUMNS)
    figure = figure_class(figsize=(2.6 * _N_COLUMNS, 2.2 * n_rows), layout="constrained")
    for place, arm in enumerate(latents):
        own = [row for row in rows if row["concept"] == arm.concept and row["features"] == list(arm.proposal.features)]
        own.sort(key=lambda row: row["multiple"])
        axes = figure.add_subplot(n_rows, _N_COLUMNS, place + 1)
        doses = [row["doses"][0] for row in own]
        axes.plot(doses, [row["rise"] for row in own], color="#1f6feb")
        low, high = ([row[f"rise_{end}"] for row in own] for end in ("low", "high"))
        axes.fill_between(doses, low, high, color="#1f6feb", alpha=0.2)
        axes.plot(doses, [row["off_target"] for row in own], color="#c0392b")
        axes.axvline(arm.dose * arm.proposal.weights[0], color="#888888", linewidth=0.8)
        axes.set_ylim(-5, 105)
        axes.set_title(f"{arm.concept}, latent {arm.proposal.features[0]}", fontsize=7)
        axes.tick_params(labelsize=6)
    figure.supxlabel("dose, in strengths of the latent", fontsize=8)
    figure.supylabel("points: rise of the concept (blue), change elsewhere (red)", fontsize=8)
    return _save(figure, out, CURVES)


def plot_rises(arms: pa.Table, out: Path) -> str:
    """The rise of every concept under every arm as a heat map; the file's name."""
    figure_class = _figure_class()
    rows = arms.to_pylist()
    names, concepts = list(dict.fromkeys(row["arm"] for row in rows)), list(dict.fromkeys(r["concept"] for r in rows))
    values = np.full((len(concepts), len(names)), np.nan)
    for row in rows:
        values[concepts.index(row["concept"]), names.index(row["arm"])] = row["rise"]
    figure = figure_class(figsize=(1.0 + 0.8 * len(names), 1.2 + 0.26 * len(concepts)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values, vmin=-100, vmax=100, cmap="RdBu", aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=7)
    axes.set_yticks(range(len(concepts)), concepts, fontsize=7)
    for row in rows:
        place = names.index(row["arm"]), concepts.index(row["concept"])
        star = "" if row["off_target"] <= _LIMIT else "*"
        color = "white" if abs(row["rise"]) > 60 else "black"
        axes.text(*place, f"{row['rise']:.0f}{star}", ha="center", va="center", fontsize=6, color=color)
    axes.set_title("Rise of the concept's mention, in points; * more than 5 points elsewhere", fontsize=8)
    return _save(figure, out, RISES)


def _figure_class() -> Any:
    from matplotlib.figure import Figure

    return Figure


def _save(figure: Any, out: Path, name: str) -> str:
    import matplotlib

    out.mkdir(parents=True, exist_ok=True)
    # The same figure gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": name}), replacing(out / name) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return name
