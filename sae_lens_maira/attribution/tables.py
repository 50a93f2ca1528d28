"""The tables of an attribution, as they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sae_lens_maira.attribution.carriers import Carrier, expected_driver
from sae_lens_maira.attribution.combinations import PLACES
from sae_lens_maira.attribution.shares import DRIVERS, Shares
from sae_lens_maira.data.study import Study
from sae_lens_maira.results import Column

_EXPLAINED = {
    "image": "the current images",
    "prior": "the prior image and report",
    "text": "the request: indication, technique and comparison",
    "report": "the report's own words so far",
}
COLUMNS: dict[str, Column] = {
    "driver": Column("Driven by", "The source with the largest share of the feature's value where it is on."),
    **{
        driver: Column(
            f"{driver.capitalize()} share",
            f"Shapley share of the feature's value that {text} explain, where the feature is on.",
            f"{driver}_low",
            f"{driver}_high",
            digits=2,
        )
        for driver, text in _EXPLAINED.items()
    },
    "place": Column("Place", "Where in the prompt the shares are measured: the place at which the feature fires most."),
    "total": Column(
        "Total effect",
        "How much the feature falls when every source is swapped, in units of its activation.",
        "total_low",
        "total_high",
        digits=2,
    ),
    "interaction": Column(
        "Interaction", "How much more images and texts do together than alone, as a share of the total.", digits=2
    ),
    "pointing": Column("Points at box", "Share of its maps whose largest patch is inside of a box.", digits=2),
    "deletion": Column(
        "Deletion",
        "What is left of the feature when the best map's first patches are erased; low is good.",
        control="deletion_random",
        digits=2,
    ),
}


def home_place(shares: Shares, feature: int) -> int:
    """The place at which a feature fires in most studies."""
    return int(shares.n_firing[:, feature].argmax())


def features_table(shares: Shares, n_features: int, of_maps: Mapping[int, Mapping[str, Any]]) -> pa.Table:
    """One row per feature, at the place at which it fires most.

    Args:
        shares: of the first kind of swap, over all studies.
        n_features: without the controls.
        of_maps: figures of the winning map method of mapped features.
    """
    rows = []
    for feature in range(n_features):
        place = home_place(shares, feature)
        rows.append(
            {
                "feature": feature,
                "place": PLACES[place],
                **share_values(shares, place, feature),
                "n_firing": int(shares.n_firing[place, feature]),
                **{
                    name: (of_maps.get(feature) or {}).get(name) for name in ("pointing", "deletion", "deletion_random")
                },
            }
        )
    types = {name: pa.float64() for name in ("pointing", "deletion", "deletion_random")}
    return _table(rows, types)


def shares_table(by_swap: Mapping[str, Shares], n_features: int) -> pa.Table:
    """One row per kind of swap, place and feature; controls have ``is_control`` and their own numbers."""
    rows = [
        {
            "swap": swap,
            "place": place,
            "is_control": feature >= n_features,
            "feature": feature - n_features if feature >= n_features else feature,
            **share_values(shares, number, feature),
            "own": float(shares.own[number, feature]),
            "n_studies": int(shares.n_studies[number, feature]),
            "n_firing": int(shares.n_firing[number, feature]),
        }
        for swap, shares in by_swap.items()
        for number, place in enumerate(PLACES)
        for feature in range(shares.own.shape[1])
    ]
    return _table(rows)


def carriers_table(
    carriers: Sequence[Carrier], by_swap: Mapping[str, Shares], example: Study, n_features: int
) -> pa.Table:
    """One row per kind of swap and carrier: what drives it on the reported patients, and what should."""
    rows = []
    for swap, shares in by_swap.items():
        for carrier in carriers:
            place = PLACES.index(carrier.place)
            values = share_values(shares, place, carrier.feature)
            expected = expected_driver(example, carrier.label)
            is_control = carrier.feature >= n_features
            rows.append(
                {
                    "swap": swap,
                    "label": carrier.label,
                    "is_control": is_control,
                    "feature": carrier.feature - n_features if is_control else carrier.feature,
                    "place": carrier.place,
                    "is_best": carrier.is_best,
                    "chosen_auroc": carrier.chosen_auroc,
                    "auroc": carrier.auroc,
                    "expected": expected,
                    "is_right": None if expected is None or values["driver"] is None else values["driver"] == expected,
                    **values,
                }
            )
    return _table(rows, {"expected": pa.string(), "is_right": pa.bool_()})


def maps_table(maps: Sequence[Mapping[str, Any]]) -> pa.Table:
    """One row per feature, study, image and method; patients are left out."""
    names = list(dict.fromkeys(name for row in maps for name in row if name != "patient"))
    return pa.table({name: [row.get(name) for row in maps] for name in names})


def next_table(rows: Sequence[tuple[int, int, int, float, float]], text_of: Callable[[int], str]) -> pa.Table:
    """One row per feature and token, from :func:`~sae_lens_maira.attribution.next_tokens.summarize_next`."""
    return pa.Table.from_pylist(
        [
            {
                "feature": node,
                "n_studies": n_studies,
                "token": token,
                "text": text_of(token),
                "effect": round(exact, 6),
                "estimate": round(estimate, 6),
            }
            for node, n_studies, token, exact, estimate in rows
        ]
    )


def share_values(shares: Shares, place: int, feature: int) -> dict[str, Any]:
    """A feature's shares with intervals, as plain values; None where they are not defined."""
    found: dict[str, Any] = {"driver": shares.driver(place, feature)}
    for number, driver in enumerate(DRIVERS):
        for end, value in zip(("", "_low", "_high"), shares.shares[number, place, feature], strict=True):
            found[f"{driver}{end}"] = _plain(value)
    for end, value in zip(("", "_low", "_high"), shares.total[place, feature], strict=True):
        found[f"total{end}"] = _plain(value)
    found["interaction"] = _plain(shares.interaction[place, feature])
    return found


def _plain(value: np.floating[Any]) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _table(rows: Sequence[Mapping[str, Any]], types: Mapping[str, pa.DataType] | None = None) -> pa.Table:
    """A table whose columns of nothing but None still have their type."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    known = {"driver": pa.string(), **dict.fromkeys((*DRIVERS, "interaction"), pa.float64()), **(types or {})}
    known |= {f"{driver}_{end}": pa.float64() for driver in DRIVERS for end in ("low", "high")}
    return pa.table({name: pa.array([row.get(name) for row in rows], known.get(name)) for name in names})
