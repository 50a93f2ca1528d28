"""A stock LLaVA works with rows, hooks, generation, SAE-Lens's runner and the gallery; it needs only an adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lens_maira.dashboard import DashboardSettings, make_dashboards
from sae_lens_maira.data.study import IMAGE_KINDS, TokenKind
from sae_lens_maira.hooked import HookedVisionLanguageModel
from sae_lens_maira.hooked.check import HookPointMismatch, check_hook_points
from sae_lens_maira.hooked.identity import METADATA_KEY, describe_model
from sae_lens_maira.vlm import BLOCK_SITES, StudyProcessor, VisionLanguageModel
from tests import llava_adapter
from tests.llava_adapter import LlavaAdapter, tiny_llava
from tests.plain_maira2 import phantom_studies

HOOK = "blocks.1.hook_resid_post"
CONTEXT_SIZE = 96


@pytest.fixture(scope="module")
def studies():
    return phantom_studies()


@pytest.fixture(scope="module")
def llava():
    return tiny_llava()


@pytest.fixture(scope="module")
def model(llava, studies):
    return HookedVisionLanguageModel(llava, studies, name="tiny-llava")


@pytest.fixture(scope="module")
def rows(model, tmp_path_factory):
    return model.rows(CONTEXT_SIZE, cache_path=tmp_path_factory.mktemp("rows"), show_progress=False)


@pytest.fixture(scope="module")
def tokens(rows):
    return torch.as_tensor(rows.dataset["tokens"][:])


def raw_activations(llava: LlavaAdapter, study: Any) -> dict[str, torch.Tensor]:
    """One study alone in the transformers model, with PyTorch hooks written by hand."""
    ids, _ = llava.processor.encode(study, "findings")
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _args, output: found.update({name: output[0] if isinstance(output, tuple) else output})

    decoder: Any = llava.module.model.language_model
    handles = [llava.module.model.multi_modal_projector.register_forward_hook(keep("hook_image_embeds"))]
    for index, layer in enumerate(decoder.layers):
        handles.append(layer.self_attn.register_forward_hook(keep(f"blocks.{index}.hook_attn_out")))
        handles.append(layer.mlp.register_forward_hook(keep(f"blocks.{index}.hook_mlp_out")))
        handles.append(layer.register_forward_hook(keep(f"blocks.{index}.hook_resid_post")))
    try:
        output = llava.module(input_ids=torch.from_numpy(ids)[None], **llava.processor.images(study))
    finally:
        for handle in handles:
            handle.remove()
    return {**found, "logits": output.logits}


def test_the_adapter_is_small_and_fits_the_protocols(llava):
    source = Path(llava_adapter.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 120
    assert "maira2" not in source
    assert isinstance(llava, VisionLanguageModel)
    assert isinstance(llava.processor, StudyProcessor)


@torch.no_grad()
def test_hook_points_see_what_raw_hooks_see_bit_for_bit(llava, model, studies):
    for study in studies:
        expected = raw_activations(llava, study)
        _, kinds = llava.processor.encode(study, "findings")
        row = model.to_tokens(study)
        names = [name for name in expected if name != "logits"]
        logits, cache = model.run_with_cache(row, names_filter=names)
        positions = model.full_inputs(row).positions[0]
        assert torch.equal(cache["hook_image_embeds"], expected["hook_image_embeds"])
        for name in names[1:]:
            assert torch.equal(cache[name][0], expected[name][0, positions])
        # Position i of a row predicts the row's next token, from the full position before that token.
        assert torch.allclose(logits[0, :-1], expected["logits"][0, positions[1:] - 1], atol=1e-5)
        is_text = torch.tensor([kind not in IMAGE_KINDS for kind in kinds[positions[1:]]])
        losses = model.forward(row, "loss", loss_per_token=True)[0]
        log_probabilities = expected["logits"][0, positions[1:] - 1].log_softmax(-1)
        by_hand = -log_probabilities.gather(1, row[0, 1:, None].where(is_text[:, None], 0))[:, 0]
        assert torch.allclose(losses, by_hand.where(is_text, 0.0), atol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing(model, tokens, studies):
    together = model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK]
    for row, study in enumerate(studies):
        alone = model.run_with_cache(model.to_tokens(study), names_filter=HOOK)[1][HOOK][0]
        assert torch.allclose(together[row, : len(alone)], alone[:CONTEXT_SIZE], atol=1e-5)


def test_rows_say_what_they_keep(rows):
    kinds = rows.summary.tokens_by_kind
    assert kinds["frontal_image"] == 4
    assert kinds["findings"] > 0
    assert TokenKind.TEMPLATE.name.lower() not in kinds


def test_generation_goes_through_the_hooks(model, studies):
    limits = {"max_new_tokens": 5, "min_new_tokens": 5}
    plain = model.generate(studies, **limits)
    assert [model.generate(study, **limits) for study in studies] == [[report] for report in plain]
    steps = []
    with model.hooks(fwd_hooks=[(HOOK, lambda value, hook: steps.append(value.shape[1]))]):
        assert model.generate(studies, **limits) == plain
    assert steps[1:] == [1] * 4
    torch.manual_seed(1)
    direction = 50 * torch.randn(model.cfg.d_model)
    with model.hooks(fwd_hooks=[(HOOK, lambda value, hook: value + direction)]):
        assert model.generate(studies, **limits) != plain


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sae_lens_trains_on_it_and_the_gallery_shows_it(model, rows, tmp_path):
    from sae_lens import (
        SAE,
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
        TopKTrainingSAEConfig,
    )

    config = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=model.cfg.d_model, d_sae=24, k=4),
        model_name="tiny-llava",
        hook_name=HOOK,
        context_size=CONTEXT_SIZE,
        training_tokens=512,
        train_batch_size_tokens=64,
        store_batch_size_prompts=2,
        n_batches_in_buffer=4,
        prepend_bos=False,
        exclude_special_tokens=[model.tokenizer.pad_token_id],
        device="cpu",
        checkpoint_path=None,
        output_path=str(tmp_path / "sae"),
        logger=LoggingConfig(log_to_wandb=False),
    )
    dataset = rows.dataset.select_columns(["tokens"])
    runner = LanguageModelSAETrainingRunner(config, override_dataset=dataset, override_model=model)
    setattr(runner.sae.cfg.metadata, METADATA_KEY, describe_model(model))
    runner.run()
    sae = SAE.load_from_disk(str(tmp_path / "sae"))
    assert sae.cfg.metadata.get(METADATA_KEY)["family"] == "llava"
    settings = DashboardSettings(pages="2")
    result = make_dashboards(sae, model, tmp_path / "gallery", settings, show_progress=False)
    assert (result.n_features, result.n_studies, len(result.pages)) == (24, 4, 2)
    assert (tmp_path / "gallery" / "images" / "0-frontal.webp").is_file()


# The check at load.


def test_a_right_adapter_passes_the_check(model):
    check_hook_points(model)


def test_an_adapter_that_names_other_layers_is_noticed(model):
    class Short(LlavaAdapter):
        """Leaves out the last layer."""

        def layers(self, root: Any) -> Any:
            return root.model.language_model.layers[:2]

    short = Short(model.vlm.module, model.vlm.processor)
    short.sizes = type(short.sizes)(**{**vars(short.sizes), "n_layers": 2})
    with pytest.raises(HookPointMismatch, match=r"^blocks\.1\.hook_resid_post of 'x' is not what the final norm reads"):
        check_hook_points(HookedVisionLanguageModel(short, name="x"))


def test_a_hook_point_that_sees_something_else_is_noticed(model, monkeypatch):
    from sae_lens_maira.hooked import points

    elsewhere = {**BLOCK_SITES, "hook_attn_out": BLOCK_SITES["hook_mlp_out"]}
    monkeypatch.setattr(points, "BLOCK_SITES", elsewhere)
    with pytest.raises(HookPointMismatch, match=r"^blocks\.0\.hook_attn_out of 'tiny-llava' does not see"):
        check_hook_points(model)
