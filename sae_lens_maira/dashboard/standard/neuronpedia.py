"""Neuronpedia's upload format, by sae-dashboard's own converter, from shareable studies only.

One ``batch-N.json`` per 128 features. Each is read back through sae-dashboard's own classes and checked against their
declared types before it is written.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from tqdm.auto import tqdm

from sae_lens_maira.dashboard.standard.replay import ReplayedModel, run_sae_vis
from sae_lens_maira.features.subject import Subject

logger = logging.getLogger(__name__)

_PAD = "<pad>"
FEATURES_PER_BATCH = 128


class NeuronpediaError(RuntimeError):
    """What sae-dashboard's converter wrote is not what its own classes declare; the message names the field."""


def write_neuronpedia(
    subject: Subject,
    features: Sequence[int],
    folder: Path,
    *,
    sae_set: str,
    model_id: str = "maira-2",
    dataset: str = "",
    show_progress: bool = True,
) -> list[Path]:
    """Write the batches of some features.

    Args:
        subject: the SAE, its model and the recording, all of whose studies must be shareable.
        features: which ones.
        folder: for ``batch-0.json``, ...
        sae_set: Neuronpedia's name for the set that the SAE belongs to.
        model_id: Neuronpedia's name for the model.
        dataset: where the studies come from.
        show_progress: whether to show a progress bar.
    """
    from sae_dashboard.neuronpedia.neuronpedia_converter import NeuronpediaConverter
    from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig

    texts = subject.texts()
    texts[subject.pad_token_id] = _PAD
    # sae-dashboard skips the first cell of each row, which holds the row's number here.
    model: Any = ReplayedModel(
        subject.recording,
        subject.model.row_vocabulary,
        texts,
        subject.unembedding,
        subject.hook_name,
        (1, 0),
        subject.pad_token_id,
    )
    config = NeuronpediaRunnerConfig(
        sae_set=sae_set,
        sae_path="",
        outputs_dir=str(folder),
        huggingface_dataset_path=dataset,
        n_prompts_total=subject.recording.n_studies,
        n_tokens_in_prompt=model.tokens.shape[1] - 1,
        model_id=model_id,
        layer=int(subject.hook_name.split(".")[1]),
    )
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    progress = tqdm(total=len(features), desc="neuronpedia", disable=not show_progress)
    with progress:
        for data in run_sae_vis(subject.sae, model, features, subject.hook_name, _layout(), FEATURES_PER_BATCH):
            text = NeuronpediaConverter.convert_to_np_json(model, data, config, dict(enumerate(texts)))
            batch = json.loads(text)
            _without_padding(batch)
            check_batch(batch)
            path = folder / f"batch-{len(written)}.json"
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(batch, ensure_ascii=False, allow_nan=False), encoding="utf-8")
            written.append(unfinished.replace(path))
            progress.update(len(data.feature_data_dict))
    return written


def _layout() -> Any:
    """sae-dashboard's layout of what Neuronpedia shows of a feature."""
    from sae_dashboard.components_config import (
        ActsHistogramConfig,
        Column,
        FeatureTablesConfig,
        LogitsHistogramConfig,
        LogitsTableConfig,
        SequencesConfig,
    )
    from sae_dashboard.layout import SaeVisLayoutConfig

    return SaeVisLayoutConfig(
        columns=[
            Column(
                FeatureTablesConfig(),
                ActsHistogramConfig(),
                LogitsTableConfig(n_rows=10),
                LogitsHistogramConfig(),
                SequencesConfig(buffer=None, n_quantiles=5, top_acts_group_size=20, quantile_group_size=5),
            )
        ]
    )


def check_batch(batch: dict[str, Any]) -> None:
    """Check a batch against the classes of sae-dashboard that write it.

    Raises:
        NeuronpediaError: a field is missing, unknown or of another type.
    """
    from sae_dashboard.neuronpedia.neuronpedia_dashboard import (
        NeuronpediaDashboardActivation,
        NeuronpediaDashboardBatch,
        NeuronpediaDashboardFeature,
    )

    _check_fields(batch, NeuronpediaDashboardBatch, "batch")
    for feature in batch["features"]:
        where = f"feature {feature.get('feature_index')}"
        _check_fields(feature, NeuronpediaDashboardFeature, where)
        for activation in feature["activations"]:
            _check_fields(activation, NeuronpediaDashboardActivation, f"{where}, activation")
            tokens, values = activation["tokens"], activation["values"]
            if len(tokens) != len(values):
                raise NeuronpediaError(f"{where}: {len(tokens)} tokens have {len(values)} values.")
            if not 0 <= activation["qualifying_token_index"] < len(tokens):
                raise NeuronpediaError(f"{where}: the qualifying token is not one of {len(tokens)}.")
    again = NeuronpediaDashboardBatch(**batch).to_dict()
    if again != batch:
        raise NeuronpediaError("A batch changes when sae-dashboard reads it back.")


def _check_fields(values: dict[str, Any], declared: Any, where: str) -> None:
    parameters = inspect.signature(declared.__init__).parameters
    hints = get_type_hints(declared.__init__)
    unknown = sorted(values.keys() - parameters.keys())
    optional = {name for name, hint in hints.items() if type(None) in get_args(hint)}
    missing = sorted(parameters.keys() - values.keys() - {"self"} - optional)
    if unknown or missing:
        raise NeuronpediaError(f"{where}: unknown fields {unknown}, missing fields {missing}.")
    for name, value in values.items():
        try:
            _adapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise NeuronpediaError(f"{where}: {name} is {type(value).__name__}, not {hints[name]}.") from error


@lru_cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _without_padding(batch: dict[str, Any]) -> None:
    for feature in batch["features"]:
        for activation in feature["activations"]:
            tokens: list[str] = activation["tokens"]
            n_tokens = len(tokens)
            while n_tokens and tokens[n_tokens - 1] == _PAD:
                n_tokens -= 1
            activation["tokens"] = tokens[:n_tokens]
            activation["values"] = [max(value, 0.0) for value in activation["values"][:n_tokens]]
