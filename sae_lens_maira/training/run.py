"""From a configuration to a trained SAE: SAE-Lens's runner on HookedMaira2."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from sae_lens import SAE, LanguageModelSAERunnerConfig, LoggingConfig

from sae_lens_maira.activations.norms import measure_norms
from sae_lens_maira.data.study import Study
from sae_lens_maira.errors import ConfigError
from sae_lens_maira.hooked.identity import METADATA_KEY, describe_model
from sae_lens_maira.hooked.loading import load_model
from sae_lens_maira.hooked.model import HookedMaira2
from sae_lens_maira.setting_values import check_names, read_yaml
from sae_lens_maira.sources import open_source
from sae_lens_maira.training.config import TrainConfig
from sae_lens_maira.training.data import open_cached
from sae_lens_maira.training.evaluate import SaeScores, evaluate_sae
from sae_lens_maira.training.mirrored import architecture_config, with_sae_lens_types
from sae_lens_maira.training.store import ResumableRunner, latest_checkpoint

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves behind.

    Args:
        sae: the inference SAE, as SAE-Lens loads it from ``path``.
        path: SAE-Lens's folder, with ``config.yaml`` and ``scores.json`` beside its own files.
        scores: on held-out studies.
    """

    sae: SAE[Any]
    path: Path
    scores: SaeScores


def train(
    config: TrainConfig,
    path: Path,
    studies: Sequence[Study] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingResult:
    """Train one SAE.

    Args:
        config: what to train.
        path: the result's folder, where checkpoints are kept too.
        studies: in place of ``config.source``'s.
        resume: go on from the newest whole checkpoint in ``path``; from the start if there is none, not at all if the
            run is finished.
        overwrite: allow ``path`` to hold an earlier result.

    Raises:
        ConfigError: a setting does not fit the model or SAE-Lens, or ``path`` holds something else.
        Interrupted: Ctrl-C; a checkpoint was saved.
    """
    config = with_sae_lens_types(config)
    _check_folder(config, path, resume=resume, overwrite=overwrite)
    if resume and not overwrite and (path / "scores.json").is_file():
        logger.info("'%s' is finished already.", path)
        scores = SaeScores(**json.loads((path / "scores.json").read_text(encoding="utf-8")))
        return TrainingResult(SAE.load_from_disk(path, device=config.model.find_device()), path, scores)
    model = load_model(config.model, open_source(config.source) if studies is None else studies, config.policy)
    runner_config = to_runner_config(config, model, path)
    provider, norm_limit = None, None
    if config.activations.cache is None:
        dataset, held_out, norm_limit = _live_data(config, model)
    else:
        provider, held_out = open_cached(config, model, runner_config)
        dataset = held_out
    _start_folder(config, path, overwrite=overwrite)
    checkpoint = latest_checkpoint(path / "checkpoints") if resume else None
    if checkpoint is not None:
        logger.info("Resuming from '%s'.", checkpoint)
        runner_config.resume_from_checkpoint = str(checkpoint)
    with _without_misleading_warnings():
        runner = ResumableRunner(runner_config, dataset, model, norm_limit, provider)
        setattr(runner.sae.cfg.metadata, METADATA_KEY, describe_model(model))
        runner.run()
    sae = SAE.load_from_disk(path, device=runner_config.device)
    scores = _score(sae, model, held_out, runner_config, config.n_eval_batches)
    _write_text(path / "scores.json", json.dumps(scores.to_dict(), indent=1))
    logger.info("Held-out studies: %s", scores.describe())
    return TrainingResult(sae, path, scores)


def _live_data(config: TrainConfig, model: HookedMaira2) -> tuple[Dataset, Dataset, float | None]:
    """Rows to train on, rows held out, and the norm above which activations are left out."""
    rows = model.rows(config.context_size)
    logger.info("Rows: %s", rows.describe())
    dataset = rows.dataset.select_columns(["tokens"])
    n_held_out = min(config.source.n_held_out, len(dataset) // 2)
    held_out = dataset.select(range(len(dataset) - n_held_out, len(dataset)))
    dataset = dataset.select(range(len(dataset) - n_held_out)).shuffle(seed=config.shuffle_seed)
    norms = measure_norms(model, rows, [config.hook_name])[config.hook_name]
    logger.info("Norms at %s", norms.describe())
    return dataset, held_out, None if config.max_norm_multiple is None else config.max_norm_multiple * norms.median


def to_runner_config(config: TrainConfig, model: HookedMaira2, path: Path) -> LanguageModelSAERunnerConfig[Any]:
    """The configuration of SAE-Lens's own runner.

    Raises:
        ConfigError: naming a setting that SAE-Lens does not know, or that does not fit the model.
    """
    config = with_sae_lens_types(config)
    if config.hook_name not in model.hook_dict:
        check_names([config.hook_name], model.hook_dict, "hook_name ")
    sae = sae_config(config.sae, model.cfg.d_model)
    leaves_out_study_token = config.policy.image_tokens == "none"
    try:
        runner: LanguageModelSAERunnerConfig[Any] = LanguageModelSAERunnerConfig(
            **{"verbose": False, **config.runner},
            sae=sae,
            model_name=config.model.name,
            model_class_name="HookedMaira2",
            hook_name=config.hook_name,
            context_size=config.context_size,
            dataset_path=config.source.kind,
            prepend_bos=False,
            seqpos_slice=(1, None) if leaves_out_study_token else (None,),
            exclude_special_tokens=[model.processor.tokenizer.pad_token_id],
            device=config.model.find_device(),
            output_path=str(path),
            logger=LoggingConfig(**{"log_to_wandb": False, **config.logger}),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"runner: {error}") from error
    runner.checkpoint_path = str(path / "checkpoints")  # SAE-Lens appends a random name, which resuming cannot guess
    return runner


def sae_config(settings: dict[str, Any], d_model: int) -> Any:
    """SAE-Lens's training configuration of an architecture.

    Args:
        settings: ``architecture`` and its settings.
        d_model: the model's width.

    Raises:
        ConfigError: the architecture or a setting is unknown, or ``d_in`` is not the model's width.
    """
    settings = dict(settings)
    config_class = architecture_config(settings)
    del settings["architecture"]
    expansion_factor = settings.pop("expansion_factor", None)
    if expansion_factor is not None:
        settings["d_sae"] = int(expansion_factor * d_model)
    check_names(settings, (entry.name for entry in dataclasses.fields(config_class)), "sae.")
    if settings.get("d_in", d_model) != d_model:
        raise ConfigError(f"sae.d_in is {settings['d_in']}, but the model's width is {d_model}; leave it out.")
    try:
        return config_class(**{**settings, "d_in": d_model})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sae: {error}") from error


@contextmanager
def _without_misleading_warnings() -> Iterator[None]:
    """SAE-Lens compares rows with tokens, and takes a given model or dataset for something that no config names."""
    sae_lens_logger = logging.getLogger("sae_lens")
    level = sae_lens_logger.level
    with warnings.catch_warnings():
        for message in (
            "The training dataset contains fewer samples",
            "All samples in the training",
            "To copy construct",
        ):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        sae_lens_logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            sae_lens_logger.setLevel(level)


def _score(
    sae: SAE[Any], model: HookedMaira2, held_out: Dataset, runner: LanguageModelSAERunnerConfig[Any], n_batches: int
) -> SaeScores:
    excluded = runner.exclude_special_tokens
    return evaluate_sae(
        sae,
        model,
        held_out,
        n_batches=n_batches,
        batch_size=min(runner.store_batch_size_prompts, len(held_out)),
        exclude_special_tokens=excluded if isinstance(excluded, list) else [],
        seqpos_slice=runner.seqpos_slice,
    )


def _check_folder(config: TrainConfig, path: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to mix runs."""
    written = path / "config.yaml"
    if written.is_file() and not overwrite:
        earlier = TrainConfig.from_dict(read_yaml(written))
        ours, theirs = config.to_dict(), earlier.to_dict()
        differs = sorted(name for name in ours if ours[name] != theirs[name])
        if differs:
            raise ConfigError(f"'{path}' holds a run with another {', '.join(differs)}; choose another folder.")
        if not resume and (path / "scores.json").is_file():
            raise ConfigError(f"'{path}' holds a finished run already; choose another folder, or pass --overwrite.")
        if not resume and latest_checkpoint(path / "checkpoints") is not None:
            raise ConfigError(f"'{path}' holds an unfinished run; pass --resume to go on, or --overwrite.")


def _start_folder(config: TrainConfig, path: Path, *, overwrite: bool) -> None:
    """Write the configuration down, once everything fits together."""
    path.mkdir(parents=True, exist_ok=True)
    if overwrite:
        (path / "scores.json").unlink(missing_ok=True)
    _write_text(path / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_suffix(path.suffix + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)
