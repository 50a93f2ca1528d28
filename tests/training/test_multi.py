"""SAE-Lens's MultiSAETrainingRunner on HookedMaira2: several SAEs in one pass over the model."""

import pytest
import torch
from sae_lens import SAE, BatchTopKTrainingSAEConfig, LoggingConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig

from sae_lens_maira import phantom
from sae_lens_maira.hooked import HookedMaira2
from tests.conftest import CHECKPOINT_PATH

HOOKS = {"early": "blocks.0.hook_resid_post", "early_wide": "blocks.0.hook_resid_post", "late": "blocks.2.hook_mlp_out"}
WIDTHS = {"early": 64, "early_wide": 128, "late": 64}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = HookedMaira2.from_pretrained(CHECKPOINT_PATH, list(phantom.studies(16, seed=1)))
    dataset = model.rows(64).dataset.select_columns(["tokens"])
    n_forwards = []
    model.maira2.model.language_model.layers[1].register_forward_hook(lambda *_: n_forwards.append(1))
    batches = []
    full_inputs = model.full_inputs
    model.full_inputs = lambda *args, **kwargs: batches.append(1) or full_inputs(*args, **kwargs)
    path = tmp_path_factory.mktemp("multi")
    config = MultiSAETrainingRunnerConfig(
        saes={name: BatchTopKTrainingSAEConfig(d_in=64, d_sae=WIDTHS[name], k=4) for name in HOOKS},
        hook_names=HOOKS,
        model_name=str(CHECKPOINT_PATH),
        context_size=64,
        training_tokens=1024,
        train_batch_size_tokens=128,
        store_batch_size_prompts=4,
        n_batches_in_buffer=6,
        prepend_bos=False,
        exclude_special_tokens=[0],
        output_path=str(path),
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
        device="cpu",
    )
    runner = MultiSAETrainingRunner(config, override_dataset=dataset, override_model=model)
    return runner.run(), path, len(n_forwards), len(batches)


def test_every_sae_is_trained_and_saved_in_sae_lens_format(trained):
    saes, path, _, _ = trained
    assert saes.keys() == HOOKS.keys()
    saved = {file.parent.name: SAE.load_from_disk(file.parent) for file in path.rglob("cfg.json")}
    for name, sae in saved.items():
        assert sae.cfg.d_sae == WIDTHS[name]
        assert sae.cfg.metadata.hook_name == HOOKS[name]
        assert torch.isfinite(sae.W_dec).all()
    assert saved.keys() == HOOKS.keys()


def test_each_batch_of_rows_runs_the_model_once_for_all_hook_points(trained):
    _, _, n_forwards, n_batches = trained
    assert n_forwards == n_batches
