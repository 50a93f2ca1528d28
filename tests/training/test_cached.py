"""SAEs trained from a cache: as good as those trained on the live model, resumable, and readable by SAE-Lens itself."""

import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from safetensors.torch import load_file

from sae_lens_maira.activations import ActivationCache
from sae_lens_maira.activations import selection as selection_module
from sae_lens_maira.activations.export import export_for_sae_lens
from sae_lens_maira.activations.provider import CachedActivations
from sae_lens_maira.activations.selection import TokenSelection
from sae_lens_maira.activations.write import write_cache
from sae_lens_maira.errors import CacheMismatch, ConfigError
from sae_lens_maira.hooked.loading import load_model
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.sources import open_source
from sae_lens_maira.training.config import ActivationsConfig, TrainConfig
from sae_lens_maira.training.data import training_data
from sae_lens_maira.training.run import train
from sae_lens_maira.training.runner_config import sae_config, to_runner_config
from sae_lens_maira.training.runners import ResumableRunner
from tests.activations.conftest import make_settings
from tests.conftest import CHECKPOINT_PATH
from tests.training.conftest import copy_mark

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
    """Scores on the held-out studies, computed from the definitions."""
    held_out = torch.cat(
        [b.activations[HOOK][b.study_index >= N_STUDIES - N_HELD_OUT] for b in cache.blocks(HOOK)]
    ).float()
    with torch.no_grad():
        residual = (held_out - sae(held_out)).square().sum()
    return (1 - residual / (held_out - held_out.mean(dim=0)).square().sum()).item()


def train_with_sae_lens_itself(live_config, model, cache, tmp_path):
    """SAE-Lens's unmodified runner and reader; no code of this package runs during training."""
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
    copy_mark(finished.path, tmp_path)
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
    with pytest.raises(CacheMismatch, match="holds 8 tokens per study at most, but context_size is 128"):
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


def served_live(config, model, path) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """Study, position and activations of every token that SAE-Lens's store serves in an epoch."""
    store = ResumableRunner(*run_of(config, model, path)).store
    n_batches = -(-(N_STUDIES - N_HELD_OUT) // store.store_batch_size_prompts)
    blocks = [store.selected_block() for _ in range(n_batches)]
    found = {
        (study, position): values
        for block in blocks
        for study, position, values in zip(
            block.study_index.tolist(), block.position.tolist(), block.activations[HOOK], strict=True
        )
    }
    tokens = sorted(found)
    return tokens, torch.stack([found[token] for token in tokens])


def served_from_cache(config, model, path) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """The same for the provider that a run with a cache reads."""
    provider = run_of(config, model, path)[2].provider
    assert isinstance(provider, CachedActivations)
    assert config.activations.cache is not None
    blocks = list(ActivationCache.open(config.activations.cache))
    index, position = (torch.cat([getattr(b, name) for b in blocks]) for name in ("study_index", "position"))
    values = torch.cat([block.activations[HOOK] for block in blocks])
    chosen = torch.empty(0, dtype=torch.long)
    while provider.epoch == 0:
        chosen = torch.cat([chosen, torch.from_numpy(provider.next_tokens())])
    # The last batch continues with the next epoch, so a few tokens come twice.
    chosen = chosen.unique()
    assert len(chosen) == provider.n_tokens
    return list(zip(index[chosen].tolist(), position[chosen].tolist(), strict=True)), values[chosen]


def run_of(config, model, path):
    runner_config = to_runner_config(config, model, path)
    return runner_config, model, training_data(config, model, config.hook_name, runner_config)


@pytest.mark.parametrize(
    ("kinds", "image_tokens", "max_norm_multiple"),
    [(None, "last", 1.02), (("findings", "lateral_image"), "last", 1.02), (("findings",), "none", None)],
)
def test_the_same_yaml_trains_on_the_same_tokens_live_and_cached(
    live_config, model, tmp_path, monkeypatch, kinds, image_tokens, max_norm_multiple
):
    """Also if only some studies are measured, and the held-out ones differ from the rest."""
    monkeypatch.setattr(selection_module, "N_MEASURED_STUDIES", 9)
    policy = TokenPolicy(image_tokens=image_tokens)
    model = model.with_studies(model.studies, policy)
    path = tmp_path / "cache"
    write_cache(model, path, make_settings(hook_names=(HOOK,), unit_size=16), show_progress=False)
    live = replace(
        live_config,
        context_size=40,
        policy=policy,
        activations=ActivationsConfig(kinds=kinds),
        max_norm_multiple=max_norm_multiple,
    )
    cached = replace(live, activations=ActivationsConfig(cache=str(path), kinds=kinds))
    tokens, values = served_live(live, model, tmp_path / "live")
    cached_tokens, cached_values = served_from_cache(cached, model, tmp_path / "cached")
    assert tokens == cached_tokens
    studies = {study for study, _ in tokens}
    assert studies <= set(range(N_STUDIES - N_HELD_OUT))
    assert kinds is not None or len(studies) == N_STUDIES - N_HELD_OUT
    torch.testing.assert_close(values, cached_values, rtol=1e-4, atol=1e-5)
    everything = served_live(replace(live, max_norm_multiple=None), model, tmp_path / "all")[0]
    assert (len(tokens) < len(everything)) == (max_norm_multiple is not None)
