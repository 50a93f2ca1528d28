"""SAEs trained from a cache: as good as those trained on the live model, resumable, and by SAE-Lens's own reader."""

import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from safetensors.torch import load_file

from sae_lens_maira.activations import ActivationCache
from sae_lens_maira.activations.export import export_for_sae_lens
from sae_lens_maira.activations.provider import TokenSelection
from sae_lens_maira.activations.write import write_cache
from sae_lens_maira.errors import CacheMismatch, ConfigError
from sae_lens_maira.hooked.loading import load_model
from sae_lens_maira.sources import open_source
from sae_lens_maira.training.config import ActivationsConfig, TrainConfig
from sae_lens_maira.training.run import sae_config, train
from tests.activations.conftest import make_settings
from tests.conftest import CHECKPOINT_PATH

HOOK = "blocks.1.hook_resid_post"
N_STUDIES, N_HELD_OUT, CONTEXT = 36, 10, 32


@pytest.fixture(scope="module")
def live_config() -> TrainConfig:
    return TrainConfig.from_dict(
        {
            "model": {"name": str(CHECKPOINT_PATH), "device": "cpu"},
            "hook_name": HOOK,
            "context_size": 128,
            "source": {"kind": "phantom", "n_studies": N_STUDIES, "n_held_out": N_HELD_OUT},
            "n_eval_batches": 2,
            "sae": {"architecture": "topk", "d_sae": 96, "k": 24},
            "runner": {
                "training_tokens": 256 * 150,
                "train_batch_size_tokens": 256,
                "store_batch_size_prompts": 4,
                "n_batches_in_buffer": 12,
                "lr": 0.004,
                "lr_warm_up_steps": 10,
                "lr_decay_steps": 75,
                "n_checkpoints": 2,
            },
        }
    )


@pytest.fixture(scope="module")
def model(live_config):
    return load_model(live_config.model, open_source(live_config.source), live_config.policy)


@pytest.fixture(scope="module")
def cache(model, tmp_path_factory) -> ActivationCache:
    path = tmp_path_factory.mktemp("training") / "cache"
    write_cache(model, path, make_settings(hook_names=(HOOK,), dtype="float16", unit_size=16), show_progress=False)
    return ActivationCache.open(path)


@pytest.fixture(scope="module")
def config(live_config, cache) -> TrainConfig:
    return replace(live_config, activations=ActivationsConfig(cache=str(cache.path)))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    return train(config, tmp_path_factory.mktemp("runs") / "cached")


def explained_variance(sae, cache: ActivationCache) -> float:
    """On the held-out studies, from the definition."""
    held_out = torch.cat([b.activations[b.study_index >= N_STUDIES - N_HELD_OUT] for b in cache.blocks(HOOK)]).float()
    with torch.no_grad():
        residual = (held_out - sae(held_out)).square().sum()
    return (1 - residual / (held_out - held_out.mean(dim=0)).square().sum()).item()


def train_with_sae_lens_itself(live_config, model, cache, tmp_path):
    """SAE-Lens's runner and reader, as they are; no code of this package runs while it trains."""
    export_for_sae_lens(
        cache,
        HOOK,
        tmp_path / "export",
        context_size=CONTEXT,
        selection=TokenSelection(n_studies=N_STUDIES - N_HELD_OUT),
        show_progress=False,
    )
    settings = {**live_config.runner, "n_batches_in_buffer": 40, "n_checkpoints": 0}
    runner_config = LanguageModelSAERunnerConfig(
        **settings,
        sae=sae_config(live_config.sae, model.cfg.d_model),
        model_name=live_config.model.name,
        hook_name=HOOK,
        context_size=CONTEXT,
        use_cached_activations=True,
        cached_activations_path=str(tmp_path / "export"),
        prepend_bos=False,
        device="cpu",
        output_path=str(tmp_path / "sae"),
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
    )
    rows = Dataset.from_dict({"tokens": model.reader.rows(range(4), CONTEXT).numpy()})
    torch.manual_seed(42)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LanguageModelSAETrainingRunner(runner_config, override_dataset=rows, override_model=model).run()
    return SAE.load_from_disk(tmp_path / "sae")


def test_cache_sae_lens_reader_and_live_model_reach_the_same_explained_variance(
    live_config, model, cache, finished, tmp_path
):
    live = explained_variance(train(live_config, tmp_path / "live").sae, cache)
    fast = explained_variance(finished.sae, cache)
    theirs = explained_variance(train_with_sae_lens_itself(live_config, model, cache, tmp_path), cache)
    assert live > 0.5
    assert fast == pytest.approx(live, abs=0.01)
    assert theirs == pytest.approx(live, abs=0.01)


def test_scores_are_those_of_the_held_out_studies(finished, cache):
    assert finished.scores.explained_variance == pytest.approx(explained_variance(finished.sae, cache), abs=0.02)


def test_resuming_gives_the_weights_of_an_uninterrupted_run(finished, config, tmp_path):
    first = min((finished.path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert (first / "activations_store_state.safetensors").stat().st_size < 1000
    shutil.copytree(first, tmp_path / "checkpoints" / first.name)
    shutil.copy(finished.path / "config.yaml", tmp_path)
    train(config, tmp_path, resume=True)
    ours, theirs = (load_file(path / "sae_weights.safetensors") for path in (tmp_path, finished.path))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_cache_that_does_not_fit_the_run_is_refused_by_name(config, model, tmp_path):
    source = replace(config.source, seed=5)
    with pytest.raises(CacheMismatch, match=r"another source\.options\.seed \(0, here 5\)"):
        train(replace(config, source=source), tmp_path / "a")
    policy = replace(config.policy, image_tokens="none")
    with pytest.raises(CacheMismatch, match=r"another token_policy\.image_tokens \(last, here none\)"):
        train(replace(config, policy=policy), tmp_path / "b")
    write_cache(model, tmp_path / "cut", make_settings(hook_names=(HOOK,), context_size=8), show_progress=False)
    with pytest.raises(CacheMismatch, match="holds 8 tokens a study at the most, but context_size is 128"):
        train(replace(config, activations=ActivationsConfig(cache=str(tmp_path / "cut"))), tmp_path / "c")
    ahead = replace(config, runner={**config.runner, "prefetch_llm_batches": True})
    with pytest.raises(ConfigError, match=r"^runner\.prefetch_llm_batches takes batches .* leave it out\.$"):
        train(ahead, tmp_path / "d")
    with pytest.raises(ConfigError, match=r"Unknown setting 'activations\.kinds finding'; did you mean"):
        ActivationsConfig(kinds=("finding",))


def test_normalised_training_takes_the_exact_scale_and_uses_up_no_batch(config, tmp_path):
    runner = {**config.runner, "training_tokens": 256 * 4, "n_checkpoints": 1, "lr_decay_steps": 0}
    sae = {**config.sae, "normalize_activations": "expected_average_only_in"}
    config = replace(config, sae=sae, runner=runner)
    train(config, tmp_path)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    state = load_file(checkpoint / "activations_store_state.safetensors")
    assert state["cached_activations.place"].item() == int(checkpoint.name)
