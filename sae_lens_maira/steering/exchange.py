"""Steering in other tools' files: lm-evaluation-harness's CSV, and Neuronpedia's records.

The harness's ``--model steered`` reads a table with ``loader``, ``action``, ``sparse_model``, ``hookpoint``,
``feature_index``, ``steering_coefficient``, ``sae_id``, ``description``. Its ``add`` adds the coefficient times the
decoder row; its ``clamp`` sets the component of x - b_dec along the decoder row to the coefficient. Neither is in units
of strengths.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import SteeringError, quoted
from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.hooked.edits import Add, AddDirection, Edit, ScaleDirection

_NEEDED = ("action", "hookpoint", "feature_index", "steering_coefficient")
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)")
RECORD_VERSION = 1


def read_lm_eval(path: Path, dictionary: Dictionary) -> list[Edit]:
    """The edits of a table of lm-evaluation-harness.

    Args:
        path: the CSV file.
        dictionary: the SAE that the table means.

    Raises:
        SteeringError: the table is not readable, or a line does not fit the SAE; the message names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SteeringError(f"'{path}' cannot be read ({quoted(error)}); give a CSV file.") from None
    if not rows:
        raise SteeringError(f"'{path}' has no line of steering; it needs the columns {', '.join(_NEEDED)}.")
    edits: list[Edit] = []
    for number, row in enumerate(rows, start=2):
        edits += _edits_of(row, f"'{path}', line {number}", dictionary)
    return edits


def _edits_of(row: dict[str, Any], where: str, dictionary: Dictionary) -> list[Edit]:
    missing = [name for name in _NEEDED if not row.get(name)]
    if missing:
        raise SteeringError(f"{where}: {', '.join(missing)} is missing; the columns are {', '.join(_NEEDED)}.")
    hook = _hook_name(str(row["hookpoint"]))
    if hook != dictionary.hook_name:
        raise SteeringError(f"{where}: hookpoint {quoted(hook)} is not the SAE's, {dictionary.hook_name}.")
    feature, coefficient = str(row["feature_index"]), _number(str(row["steering_coefficient"]))
    if not feature.isdigit() or not int(feature) < dictionary.d_sae:
        raise SteeringError(f"{where}: there is no latent {quoted(feature)}; the SAE has {dictionary.d_sae}.")
    if coefficient is None:
        raise SteeringError(f"{where}: steering_coefficient is no finite number; give one.")
    row_of = dictionary.decoder[int(feature)].float()
    if row["action"] == "add":
        return [AddDirection(row_of, coefficient, hook)]
    if row["action"] == "clamp":
        unit = row_of / row_of.norm()
        offset = float(dictionary.sae.b_dec.detach().float() @ unit)
        return [ScaleDirection(row_of, 0.0, hook), AddDirection(unit, coefficient + offset, hook)]
    raise SteeringError(f"{where}: action {quoted(row['action'])} is unknown; choose add or clamp.")


def _hook_name(text: str) -> str:
    layer = _LAYER.fullmatch(text)
    return text if layer is None else f"blocks.{layer[1]}.hook_resid_post"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def neuronpedia_record(
    study: Study,
    edits: Sequence[Edit],
    dictionary: Dictionary,
    *,
    model_id: str,
    layer_id: str,
    default: str,
    steered: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """A steered report as Neuronpedia's steer API records one, with both answers and what made them.

    Strengths there are multiples of a decoder row of norm 1. Of a study that may not leave this machine, the record has
    neither the answers nor the study's name.

    Args:
        study: the study.
        edits: additions to latents; the API knows no others.
        dictionary: the SAE.
        model_id: the model's name there.
        layer_id: the SAE's name there, such as ``15-maira``.
        default: the unsteered report.
        steered: the steered report.
        settings: ``n_completion_tokens``, ``temperature``, ``seed``.

    Raises:
        SteeringError: an edit is none that the API knows.
    """
    features = []
    for edit in edits:
        if not isinstance(edit, Add):
            raise SteeringError(f"Neuronpedia's records know only additions to latents, not {type(edit).__name__}.")
        norm = float(dictionary.decoder[edit.feature].norm())
        strength = edit.dose * float(dictionary.strengths[edit.feature]) * norm
        features.append({"modelId": model_id, "layer": layer_id, "index": edit.feature, "strength": strength})
    record: dict[str, Any] = {
        "version": RECORD_VERSION,
        "modelId": model_id,
        "features": features,
        "steer_method": "SIMPLE_ADDITIVE",
        "strength_multiplier": 1,
        "types": ["STEERED", "DEFAULT"],
        **settings,
    }
    if study.shareable:
        record |= {"study": study.study_id, "DEFAULT": default, "STEERED": steered}
    return record
