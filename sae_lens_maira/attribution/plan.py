"""What a run would do, and what it refuses before anything long is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from sae_lens_maira.attribution.boxes import read_boxes
from sae_lens_maira.attribution.settings import AttributionConfig
from sae_lens_maira.attribution.swaps import sources_of
from sae_lens_maira.data.study import Box, Study
from sae_lens_maira.errors import AttributionError
from sae_lens_maira.hooked.model import HookedVisionLanguageModel
from sae_lens_maira.phantom.generate import PhantomStudy

MIN_PATIENTS = 4


def usable_studies(model: HookedVisionLanguageModel, config: AttributionConfig) -> list[Study]:
    """The first studies of the model's source that have findings.

    Raises:
        AttributionError: there are too few, or a kind of swap is not possible with them.
    """
    studies = [study for study in model.studies[: config.n_studies] if study.findings]
    if len({study.patient_id for study in studies}) < MIN_PATIENTS:
        raise AttributionError(
            f"There are {len(studies)} studies with findings among the first {config.n_studies}, and shares need those "
            f"of {MIN_PATIENTS} patients or more; raise n_studies."
        )
    if "counterfactual" in config.swaps and not all(isinstance(study, PhantomStudy) for study in studies):
        raise AttributionError("Only the phantom can be drawn again; leave 'counterfactual' out of swaps.")
    return studies


def describe_plan(studies: Sequence[Study], config: AttributionConfig) -> str:
    """What a run would do."""
    n_combinations = sum(2 ** len(sources_of(study)) for study in studies) * len(config.swaps)
    lines = [
        f"{len(studies)} studies, {n_combinations} combinations of sources ({', '.join(config.swaps)}): every feature "
        "is read in each of them."
    ]
    if config.n_map_studies:
        which = f"{len(config.features)} features" if config.features else "the best feature of each label"
        lines.append(f"Maps of {which} in up to {config.n_map_studies} studies each: {', '.join(config.methods)}.")
    if config.n_next_studies:
        lines.append(f"Effects on the next token in {min(config.n_next_studies, len(studies))} studies.")
    return "\n".join(lines)


def load_boxes(path: Path) -> dict[str, dict[str, list[Box]]]:
    """Read a table of boxes: by study and label.

    Raises:
        AttributionError: there is no such table, or it lacks a column.
    """
    import pyarrow.csv
    import pyarrow.parquet

    if not path.is_file():
        raise AttributionError(f"There is no table of boxes '{path}'.")
    try:
        table = pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
        return read_boxes(table.to_pylist())
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise AttributionError(
            f"'{path}' is no table of boxes ({error}); it needs study_id, label, x_min, y_min, x_max and y_max."
        ) from None


def refuse_unknown_features(config: AttributionConfig, n_features: int) -> None:
    """Refuse features that the SAE does not have.

    Raises:
        AttributionError: the message names the first one.
    """
    for feature in config.features or ():
        if not 0 <= feature < n_features:
            raise AttributionError(f"There is no feature {feature}; the SAE has {n_features}, counted from 0.")
