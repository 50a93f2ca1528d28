"""The registered variant inside SAE-Lens: one step equals the peers', sparse equals dense, export loads without it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.sae import ARCHITECTURE, MairaMatryoshkaTrainingSAE, MairaMatryoshkaTrainingSAEConfig

D_IN, D_SAE, K, N_TOKENS = 16, 64, 4, 96
WIDTHS = [4, 16, 64]
FRACTIONS = [1 / 16, 3 / 16, 3 / 4]


def make_config(**settings: Any) -> MairaMatryoshkaTrainingSAEConfig:
    base: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "kernels": "sparse"}
    if not {"matryoshka_widths", "group_fractions"} & settings.keys():
        base["matryoshka_widths"] = list(WIDTHS)
    return MairaMatryoshkaTrainingSAEConfig(**base | settings)


def make_sae(**settings: Any) -> MairaMatryoshkaTrainingSAE:
    torch.manual_seed(3)
    sae = MairaMatryoshkaTrainingSAE(make_config(**settings))
    with torch.no_grad():
        sae.b_enc.normal_(std=0.1)
        sae.b_dec.normal_(std=0.1)
    return sae


def make_trainer(sae: TrainingSAE[Any], autocast: bool = False, dead_after: int = 10**6) -> SAETrainer[Any, Any]:
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10**6,
        device="cpu",
        autocast=autocast,
        lr=1e-3,
        lr_end=1e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=N_TOKENS,
        dead_feature_window=dead_after,
        feature_sampling_window=10**6,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg=config, sae=sae, data_provider=iter(()))


def make_batches(n: int = 1, seed: int = 0, shift: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N_TOKENS, D_IN, generator=generator) + shift for _ in range(n)]


def step_once(
    sae: TrainingSAE[Any], x: torch.Tensor, dead: torch.Tensor | None = None, step: int = 0
) -> TrainStepOutput:
    return sae.training_forward_pass(
        TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=step, is_logging_step=True)
    )


def assert_same_parameters(found: torch.nn.Module, expected: torch.nn.Module, tolerance: float = 1e-5) -> None:
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(dict(found.named_parameters())[name], parameter, rtol=tolerance, atol=tolerance)


def test_importing_the_package_registers_the_architecture() -> None:
    assert get_sae_training_class(ARCHITECTURE) == (MairaMatryoshkaTrainingSAE, MairaMatryoshkaTrainingSAEConfig)


@pytest.mark.parametrize("kernels", ["sparse", "dense"])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("aux_per_group", [True, False])
def test_a_step_equals_sae_lens(kernels: str, rescale: bool, aux_per_group: bool) -> None:
    shared: dict[str, Any] = {"rescale_acts_by_decoder_norm": rescale, "use_matryoshka_aux_loss": aux_per_group}
    ours = make_sae(kernels=kernels, threshold_init="zero", **shared)
    theirs = MatryoshkaBatchTopKTrainingSAE(
        MatryoshkaBatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, matryoshka_widths=list(WIDTHS), **shared)
    )
    theirs.load_state_dict(ours.state_dict())
    trainers = [make_trainer(sae) for sae in (ours, theirs)]
    for x in make_batches(3):
        for trainer in trainers:  # some latents dead, more than d_in / 2 and fewer than d_in / 2 by group
            trainer.n_forward_passes_since_fired[::3] = 10**7
        outputs = [trainer.step(x) for trainer in trainers]
        torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-5, atol=1e-6)
        assert outputs[0].losses.keys() == outputs[1].losses.keys()
        for name, loss in outputs[1].losses.items():
            torch.testing.assert_close(outputs[0].losses[name], loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outputs[0].sae_out, outputs[1].sae_out, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outputs[0].feature_acts.to_dense(), outputs[1].feature_acts, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.topk_threshold, theirs.topk_threshold, rtol=1e-5, atol=1e-7)
        assert torch.equal(trainers[0].act_freq_scores, trainers[1].act_freq_scores)
    assert_same_parameters(ours, theirs)


@pytest.mark.parametrize("with_dead", [False, True])
def test_a_step_equals_dictionary_learning(with_dead: bool) -> None:
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    trainer = MatryoshkaBatchTopKTrainer(
        steps=1000,
        activation_dim=D_IN,
        dict_size=D_SAE,
        k=K,
        layer=0,
        lm_name="none",
        group_fractions=FRACTIONS,
        lr=1e-3,
        warmup_steps=0,
        threshold_start_step=-1,
        device="cpu",
    )
    torch.manual_seed(3)
    config = MairaMatryoshkaTrainingSAEConfig.like_dictionary_learning(
        D_IN, D_SAE, K, FRACTIONS, kernels="sparse", threshold_start_step=0
    )
    ours = MairaMatryoshkaTrainingSAE(config)
    assert ours.cfg.matryoshka_widths == WIDTHS
    trainer.ae.load_state_dict(
        ours.state_dict() | {k: trainer.ae.state_dict()[k] for k in ("k", "threshold", "group_sizes")}, strict=False
    )
    mine = make_trainer(ours)
    for step, x in enumerate(make_batches(3)):
        if with_dead:
            trainer.num_tokens_since_fired[::3] = 10**8
            mine.n_forward_passes_since_fired[::3] = 10**7
        loss = trainer.update(step, x)
        output = mine.step(x)
        mine.n_training_steps += 1
        torch.testing.assert_close(output.loss.item(), loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.topk_threshold.float(), trainer.ae.threshold, rtol=1e-5, atol=1e-6)
    assert_same_parameters(ours, trainer.ae)
    torch.testing.assert_close(ours.W_dec.norm(dim=-1), torch.ones(D_SAE))


@pytest.mark.parametrize(
    "settings",
    [
        {"group_weights": [1.0, 0.0, 3.0]},
        {"group_fractions": FRACTIONS},
        {"prefixes": "sampled", "n_sampled_prefixes": 3},
        {"selection": "token"},
        {"k_start": 12.0, "k_anneal_steps": 4},
        {"aux_loss": "dictionary_learning", "use_matryoshka_aux_loss": True},
        {"unit_norm_decoder": True},
        {"center_steps": 2, "b_dec_init": "geometric_median"},
        {"apply_b_dec_to_input": False},
        {"center_steps": 2, "apply_b_dec_to_input": False, "rescale_acts_by_decoder_norm": False},
    ],
)
def test_sparse_and_dense_steps_are_the_same(settings: dict[str, Any]) -> None:
    saes = [make_sae(kernels=kernels, **settings) for kernels in ("sparse", "dense")]
    trainers = [make_trainer(sae) for sae in saes]
    for index, x in enumerate(make_batches(4, shift=0.3)):
        losses = []
        for trainer in trainers:
            torch.manual_seed(index)
            trainer.n_forward_passes_since_fired[::5] = 10**7
            losses.append(trainer.step(x).loss)
            trainer.n_training_steps += 1
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    assert_same_parameters(saes[0], saes[1], tolerance=2e-5)
    torch.testing.assert_close(saes[0].topk_threshold, saes[1].topk_threshold, rtol=1e-5, atol=1e-7)


def test_k_moves_linearly_to_its_value() -> None:
    config = make_config(k_start=20.0, k_anneal_steps=4)
    assert [config.k_at(step) for step in range(6)] == [20.0, 16.0, 12.0, 8.0, 4.0, 4.0]
    sae = make_sae(k_start=20.0, k_anneal_steps=4)
    assert [step_once(sae, make_batches()[0], step=s).feature_acts._nnz() / N_TOKENS for s in (0, 2, 5)] == [20, 12, 4]


def test_bf16_autocast_selects_what_sae_lens_selects() -> None:
    ours = make_sae(threshold_init="zero")
    theirs = MatryoshkaBatchTopKTrainingSAE(
        MatryoshkaBatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, matryoshka_widths=list(WIDTHS))
    )
    theirs.load_state_dict(ours.state_dict())
    outputs = [make_trainer(sae, autocast=True).step(make_batches()[0]) for sae in (ours, theirs)]
    torch.testing.assert_close(outputs[0].feature_acts.to_dense(), outputs[1].feature_acts, rtol=1e-2, atol=1e-2)
    active = [output.feature_acts.to_dense() > 0 for output in outputs]
    assert (active[0] != active[1]).float().mean() < 0.005
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-2, atol=1e-2)
    assert_same_parameters(ours, theirs, tolerance=2.1e-3)  # Adam's first step moves by lr, whatever the gradient


def test_gradients_of_the_input_reach_through_the_step() -> None:
    x = make_batches()[0].requires_grad_()
    grads = []
    for kernels in ("sparse", "dense"):
        loss = step_once(make_sae(kernels=kernels), x).loss
        grads.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)


def test_hooks_see_dense_tensors_and_can_change_them() -> None:
    sae, seen = make_sae(), []
    sae.hook_sae_acts_post.add_hook(lambda tensor, *, hook: seen.append(tensor.shape))
    output = step_once(sae, make_batches()[0])
    assert seen == [(N_TOKENS, D_SAE)]
    assert not output.feature_acts.is_sparse


def test_metrics_of_each_prefix_and_group_are_logged() -> None:
    sae, x = make_sae(center_steps=1, decoder_init_norm=0.1), make_batches(shift=2.0)[0]
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[:2] = True
    output = step_once(sae, x, dead)
    metrics = {name: float(value) for name, value in output.metrics.items() if not callable(value)}
    variance = (x - x.mean(0)).pow(2).sum(-1).mean()
    expected = 1 - float((output.sae_out.detach() - x).pow(2).sum(-1).mean() / variance)
    assert metrics["explained_variance_prefix_64"] == pytest.approx(expected, abs=1e-5)
    assert metrics["explained_variance_prefix_4"] < metrics["explained_variance_prefix_64"]
    assert sum(metrics[f"l0_group_{width}"] for width in WIDTHS) == pytest.approx(K)
    assert metrics["dead_share_group_4"] == 0.5
    assert metrics["dead_share_group_64"] == 0.0
    assert metrics["activation_mean_to_std"] == pytest.approx(
        float(x.mean(0).norm() / x.var(0, correction=0).sum().sqrt())
    )
    assert metrics["k"] == K


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rescale_acts_by_decoder_norm": False},
        {"unit_norm_decoder": True},
        {"center_steps": 3},
        {"center_steps": 3, "apply_b_dec_to_input": False},
    ],
)
def test_the_export_is_a_jumprelu_that_equals_the_trained_sae(settings: dict[str, Any], tmp_path: Path) -> None:
    sae = make_sae(**settings)
    trainer = make_trainer(sae)
    for x in make_batches(5, shift=1.0):
        trainer.step(x)
        trainer.n_training_steps += 1
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    sae.save_inference_model(tmp_path)
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name]), name
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture() == "jumprelu"
    assert loaded.cfg.metadata.matryoshka_widths == WIDTHS
    assert loaded.cfg.metadata.training_architecture == ARCHITECTURE

    x = make_batches(1, seed=9, shift=1.0)[0]
    hidden = sae.process_sae_in(x) @ sae.W_enc + sae.b_enc
    if sae.cfg.rescale_acts_by_decoder_norm:
        hidden = hidden * sae.W_dec.norm(dim=-1)
    expected = torch.where(hidden > sae.topk_threshold, hidden, 0.0)
    torch.testing.assert_close(loaded.encode(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded.decode(loaded.encode(x)), sae.decode(expected), rtol=1e-4, atol=1e-5)


def test_the_export_loads_without_this_package(tmp_path: Path) -> None:
    make_sae().save_inference_model(tmp_path)
    code = (
        "import sys; sys.modules['sae_lens_maira'] = None\n"
        f"from sae_lens import SAE; print(type(SAE.load_from_disk({str(tmp_path)!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "JumpReLUSAE", done.stderr


def test_a_checkpoint_resumes_with_the_same_weights_and_layout(tmp_path: Path) -> None:
    sae = make_sae(center_steps=2)
    make_trainer(sae).step(make_batches(shift=1.0)[0])
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert isinstance(loaded, MairaMatryoshkaTrainingSAE)
    for name, value in sae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.W_enc.T.is_contiguous()
    other = make_sae(center_steps=2)
    other.load_weights_from_checkpoint(tmp_path)
    assert torch.equal(other.W_enc, sae.W_enc)


def test_scaling_of_activations_folds_with_the_mean() -> None:
    sae = make_sae(center_steps=1)
    x, scale = make_batches(shift=1.0)[0], 2.5
    step_once(sae, x * scale)
    expected = sae.decode(sae.encode(x * scale)) / scale
    sae.fold_activation_norm_scaling_factor(scale)
    torch.testing.assert_close(sae.decode(sae.encode(x)), expected, rtol=1e-4, atol=1e-5)


def test_fused_adam_is_used_and_gives_the_same_step() -> None:
    saes = [make_sae(fused_optimizer=fused) for fused in (True, False)]
    trainers = [make_trainer(sae) for sae in saes]
    for x in make_batches(3):
        for trainer in trainers:
            trainer.step(x)
    assert trainers[0].optimizer.param_groups[0]["fused"] is True
    assert not trainers[1].optimizer.param_groups[0]["fused"]
    assert_same_parameters(saes[0], saes[1], tolerance=1e-6)


def test_an_optimizer_state_of_another_layout_is_continued_from() -> None:
    saes = [make_sae(fused_optimizer=fused) for fused in (True, False)]
    trainers = [make_trainer(sae) for sae in saes]
    first, second = make_batches(2)
    for trainer, sae in zip(trainers, saes, strict=True):
        trainer.step(first)
        state = trainer.optimizer.state[sae.W_enc]
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].contiguous()
        trainer.step(second)
    assert_same_parameters(saes[0], saes[1], tolerance=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"matryoshka_widths": [], "group_fractions": []}, "Give the groups"),
        ({"matryoshka_widths": [8, 4, 64]}, "must rise strictly"),
        ({"group_fractions": [0.5, 0.4]}, "sum to 1"),
        ({"group_fractions": [0.001, 0.999]}, "leave a group without a latent"),
        ({"matryoshka_widths": [4, 64], "group_fractions": [0.5, 0.5]}, "disagree"),
        ({"group_weights": [1.0]}, "1 group_weights were given for 3 groups"),
        ({"selection": "row"}, "selection must be one of batch, token, not 'row'"),
        ({"normalize_activations": "layer_norm"}, "nested losses do not support"),
        ({"k": 65}, "k must be above 0 and at most d_sae"),
        ({"k_start": 9.0}, "go together"),
        ({"unit_norm_decoder": True, "decoder_init_norm": 0.1}, "needs decoder_init_norm=1.0"),
        ({"selection": "token", "k": 3.5}, "whole number"),
        ({"prefixes": "sampled", "group_weights": [1.0, 1.0, 1.0]}, "belong to fixed prefixes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**settings)


def test_a_dictionary_smaller_than_the_sampled_prefixes_is_fine_with_fixed_ones() -> None:
    config = make_config(d_sae=3, k=1, matryoshka_widths=[1, 3])
    assert config.widths() == [1, 3]
    assert make_config(d_sae=4, k=1, group_fractions=[0.25, 0.75]).widths() == [1, 4]
    with pytest.raises(ConfigError, match="n_sampled_prefixes must be between 1 and d_sae, not 5"):
        make_config(d_sae=3, k=1, matryoshka_widths=[1, 3], prefixes="sampled")


@pytest.mark.parametrize(
    ("expansion_factor", "widths"),
    [
        (2, [4096, 6144, 7168, 7680, 8192]),
        (4, [8192, 12288, 14336, 15360, 16384]),
        (8, [16384, 24576, 28672, 30720, 32768]),
    ],
)
def test_fractions_give_the_widths_of_the_paper_at_any_size(expansion_factor: int, widths: list[int]) -> None:
    """Groups of 1/2, 1/4, 1/8, 1/16 and 1/16 of the dictionary (Bouzid et al. 2025)."""
    fractions = [0.5, 0.25, 0.125, 0.0625, 0.0625]
    config = MairaMatryoshkaTrainingSAEConfig(
        d_in=4096, d_sae=4096 * expansion_factor, k=256, group_fractions=fractions
    )
    assert config.widths() == widths


def test_the_threshold_moves_from_its_first_step_on_and_not_before() -> None:
    sae = make_sae(threshold_start_step=2, topk_threshold_lr=0.25)
    thresholds, smallest = [], []
    for step, x in enumerate(make_batches(5)):
        values = step_once(sae, x, step=step).feature_acts.detach().coalesce().values()
        smallest.append(float(values.min()))
        thresholds.append(float(sae.topk_threshold))
    third = 0.75 * smallest[2] + 0.25 * smallest[3]
    assert thresholds[:2] == [0, 0]
    assert thresholds[2:] == pytest.approx([smallest[2], third, 0.75 * third + 0.25 * smallest[4]])


def test_gradients_can_be_read_after_the_step() -> None:
    saes = [make_sae(fused_optimizer=fused) for fused in (True, False)]
    for sae in saes:
        optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
        for x in make_batches(2):
            optimizer.zero_grad()
            step_once(sae, x).loss.backward()
            optimizer.step()
    assert_same_parameters(saes[0], saes[1], tolerance=1e-6)
    for name, parameter in saes[1].named_parameters():
        found = dict(saes[0].named_parameters())[name].grad
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernels", ["sparse", "dense"])
def test_dense_activations_are_given_where_they_are_asked_for(kernels: str) -> None:
    x = make_batches()[0]
    outputs = [step_once(make_sae(kernels=kernels, use_sparse_activations=sparse), x) for sparse in (True, False)]
    assert [output.feature_acts.is_sparse for output in outputs] == [kernels == "sparse", False]
    assert [output.hidden_pre.is_sparse for output in outputs] == [kernels == "sparse", False]
    assert torch.equal(outputs[0].feature_acts.to_dense(), outputs[1].feature_acts)
    assert torch.equal(outputs[0].loss, outputs[1].loss)


@pytest.mark.parametrize("kernels", ["sparse", "dense"])
def test_a_compiled_step_is_the_same_step(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SAE-Lens's runner compiles with `compile_sae`; the backend that traces and generates no code is enough."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # PyTorch cannot trace the checks of shapes
    saes = [make_sae(kernels=kernels, use_matryoshka_aux_loss=True) for _ in range(2)]
    saes[1].training_forward_pass = torch.compile(saes[1].training_forward_pass, backend="aot_eager")  # pyright: ignore[reportAttributeAccessIssue]
    trainers = [make_trainer(sae) for sae in saes]
    for x in make_batches(3):
        losses = []
        for trainer in trainers:
            trainer.n_forward_passes_since_fired[::3] = 10**7
            losses.append(trainer.step(x).loss)
            trainer.n_training_steps += 1
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    assert_same_parameters(saes[0], saes[1], tolerance=2e-5)
    torch.testing.assert_close(saes[0].topk_threshold, saes[1].topk_threshold, rtol=1e-5, atol=1e-7)
