"""The training's parts against plain computations, and that an interrupted run ends where an uninterrupted one does."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sae_lens_maira.data import Label
from sae_lens_maira.maira2 import FindingsPrompt, Maira2ForConditionalGeneration, Maira2Processor
from sae_lens_maira.phantom.generate import build, render, studies
from sae_lens_maira.phantom.model.architecture import initialize, make_config, make_processor
from sae_lens_maira.phantom.model.tokenizer import train_tokenizer
from sae_lens_maira.phantom.training import optimization
from sae_lens_maira.phantom.training.config import PhantomTrainingConfig
from sae_lens_maira.phantom.training.evaluate import Reporter, prior_swaps, score, summary
from sae_lens_maira.phantom.training.optimization import (
    Optimizer,
    Process,
    TrainingState,
    one_cycle,
    train_reports,
    train_vision,
)
from sae_lens_maira.phantom.training.pool import Pool, draw_pool
from sae_lens_maira.phantom.training.report_batches import ReportBatch, ReportBatches, still_to_say
from sae_lens_maira.phantom.training.report_training import ReportHeads, report_loss
from sae_lens_maira.phantom.training.train import corpus, main, write_checkpoint
from sae_lens_maira.phantom.training.vision_training import patch_cover, pool_features, to_pixel_values
from sae_lens_maira.phantom.words.report import compose
from sae_lens_maira.phantom.words.scoring import parse_report
from sae_lens_maira.phantom.world.concepts import VISIBLE, as_state

TINY = {"d_vision": 32, "n_vision_layers": 1, "d_model": 32, "n_layers": 2, "d_mlp": 32}


@pytest.fixture(scope="module")
def pool() -> Pool:
    return draw_pool(24, seed=3, n_workers=1)


@pytest.fixture(scope="module")
def processor() -> Maira2Processor:
    tokenizer: PreTrainedTokenizerFast = train_tokenizer(corpus(0, n_studies=50))
    return make_processor(tokenizer)


def tiny_model(processor: Maira2Processor) -> Any:
    torch.manual_seed(0)
    model = Maira2ForConditionalGeneration(make_config(processor.tokenizer, **TINY))
    initialize(model)
    return model


def test_the_pool_holds_the_images_and_boxes_of_its_studies(pool: Pool, processor: Maira2Processor) -> None:
    with_all = next(study for study in pool.studies if study.lateral is not None and study.prior_frontal is not None)
    study = build(with_all.recipe)
    prompt = FindingsPrompt(study.frontal.open(), study.lateral.open(), study.prior_frontal.open())  # pyright: ignore
    rows = [with_all.frontal, with_all.lateral, with_all.prior_frontal]
    ours = to_pixel_values(torch.from_numpy(pool.pixels[rows]))
    torch.testing.assert_close(ours, processor.pixel_values([prompt]), rtol=0, atol=0)
    assert pool.is_lateral[rows].tolist() == [False, True, False]
    prior = [VISIBLE[k] for k in np.flatnonzero(pool.appearance[with_all.prior_frontal, :, 0])]
    assert prior == list(with_all.recipe.prior or ())
    labeled = {name: s.boxes for s in study.sentences for name, label in s.labels.items() if label.positive}
    for name, boxes in labeled.items():
        np.testing.assert_allclose(pool.boxes[with_all.frontal, VISIBLE.index(name), : len(boxes)], boxes, atol=1e-6)


def test_the_pool_does_not_depend_on_the_number_of_workers(pool: Pool) -> None:
    again = draw_pool(24, seed=3, n_workers=2)
    assert again.studies == pool.studies
    np.testing.assert_array_equal(again.pixels, pool.pixels)


def answers_alone(batch: ReportBatch) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Each answer of a batch with its prompt and nothing else: its row, the prompt's ids and the answer's ids."""
    found = []
    for row, (ids, segments) in enumerate(zip(batch.input_ids, batch.segments, strict=True)):
        found += [(row, ids[segments == 0], ids[segments == k]) for k in range(1, int(segments.max()) + 1)]
    return found


def test_the_report_loss_is_that_of_each_answer_alone(pool: Pool, processor: Maira2Processor) -> None:
    model = tiny_model(processor).eval()
    features = pool_features(model.model.vision_tower, pool)
    batches = ReportBatches(pool, processor, seed=0, batch_size=4, answers_per_study=3)
    for step in range(4):
        batch = batches.batch(step)
        pixel_values = to_pixel_values(torch.from_numpy(pool.pixels[batch.images.numpy()]))
        n_images = [int((ids == model.config.image_token_index).sum()) for ids in batch.input_ids]
        images = pixel_values.split([n // model.config.image_seq_length for n in n_images])
        with torch.no_grad():
            language, _ = report_loss(model, ReportHeads(TINY["d_model"]), features, batch)
            total, n_targets = 0.0, 0
            for row, prompt, answer in answers_alone(batch):
                ids = torch.cat([prompt, answer])[None]
                labels = torch.cat([torch.full_like(prompt, -100), answer])[None]
                alone = model(input_ids=ids, pixel_values=images[row], labels=labels)
                total, n_targets = total + alone.loss.item() * len(answer), n_targets + len(answer)
        assert n_targets == len(batch.targets)
        assert language.item() == pytest.approx(total / n_targets, rel=1e-3)  # features were cached in half precision


def test_a_batch_asks_for_whole_answers_and_nothing_else(pool: Pool, processor: Maira2Processor) -> None:
    tokenizer, grounded, wordings = processor.tokenizer, 0, set()
    batches = ReportBatches(pool, processor, seed=1, batch_size=4, answers_per_study=2)
    for step in range(8):
        batch = batches.batch(step)
        alone = answers_alone(batch)
        for row, prompt, ids in alone:
            answer = tokenizer.decode(ids)
            assert answer.endswith("</s>")
            assert answer.lstrip().startswith("<obj>") or answer[0].isupper()
            grounded += "<obj>" in answer
            wordings.add((step, row, answer))
            assert tokenizer.decode(prompt).endswith("ASSISTANT:")
            assert batch.answer_start[row] == len(prompt) - 1
        assert torch.equal(batch.targets, torch.cat([ids for _, _, ids in alone]))
    assert 0 < grounded < 64
    assert len(wordings) > 40  # 32 would be one wording a study


def test_batches_are_a_function_of_seed_step_and_share(pool: Pool, processor: Maira2Processor) -> None:
    first, second = (ReportBatches(pool, processor, seed=1, batch_size=4) for _ in range(2))
    for a, b in zip(first.batch(5, 1, 2), second.batch(5, 1, 2), strict=True):
        assert torch.equal(a, b)
    assert first.batch(5, 0, 2).input_ids.shape[0] == 2
    other = first.batch(5, 0, 2).input_ids
    assert other.shape != first.batch(5, 1, 2).input_ids.shape or not torch.equal(other, first.batch(5, 1, 2).input_ids)


@pytest.mark.parametrize("step", range(3))
def test_the_token_before_each_sentence_is_found(pool: Pool, processor: Maira2Processor, step: int) -> None:
    batches, tokenizer = ReportBatches(pool, processor, seed=2, batch_size=4, answers_per_study=2), processor.tokenizer
    batch, space = batches.batch(step), tokenizer.convert_tokens_to_ids("▁")
    for row in range(4):
        positions = [position for r, position in batch.boundaries.tolist() if r == row]
        for k in range(1, int(batch.segments[row].max()) + 1):
            (own,) = (batch.segments[row] == k).nonzero(as_tuple=True)
            inside = [p for p in positions if own[0] <= p <= own[-1]]
            if not positions:
                continue  # phrase grounding
            assert batch.input_ids[row, inside[-1] + 1] == tokenizer.eos_token_id
            if batch.input_ids[row, own[0]] != space:  # a space of its own comes before a tag, and a sentence after it
                assert batch.answer_start[row] in positions
                inside = [own[0] - 1, *inside]
            pieces = [tokenizer.decode(batch.input_ids[row, a + 1 : b + 1]) for a, b in pairwise(inside)]
            answer = batch.input_ids[row][own]
            assert len(pieces) == len(parse_report(tokenizer.decode(answer, skip_special_tokens=True)).sentences)
            assert all(len(parse_report(piece).sentences) == 1 for piece in pieces)


def test_what_is_still_to_say_shrinks_to_nothing() -> None:
    _, sentences = compose(as_state(["pacemaker", "edema"]), as_state(["nodule_left"]), seed=0)
    remaining = still_to_say(sentences)
    n = len(VISIBLE)
    first = {VISIBLE[k % n] + ("" if k < n else " gone") for k in np.flatnonzero(remaining[0])}
    assert first == {"pacemaker", "edema", "nodule_left gone"}
    assert sum(remaining[-1]) == 0
    for sentence, (before, after) in zip(sentences, pairwise(remaining), strict=True):
        told = {VISIBLE[k % n] for k in np.flatnonzero(np.subtract(before, after))}
        assert told == {name for name, label in sentence.labels.items() if label != Label("absent")}


def test_patch_cover_by_hand() -> None:
    boxes = torch.zeros(1, 2, 2, 4)
    boxes[0, 0, 0] = torch.tensor([0.0, 0.0, 0.4, 0.3])  # of 2 x 2 patches: a part of the upper left one
    boxes[0, 0, 1] = torch.tensor([0.9, 0.9, 0.95, 0.95])  # within the lower right one
    cover = patch_cover(boxes, 2)
    assert cover[0, :, 0].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert cover[0, :, 1].tolist() == [0.0] * 4  # a concept without boxes covers nothing


def test_one_cycle_by_hand() -> None:
    rates = [one_cycle(step, 100, 1.0) for step in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[52] == pytest.approx(0.505)  # half way down from 1 to 0.01
    assert rates[99] < 0.011


def test_gradients_are_averaged_even_if_a_share_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    used, unused = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    used.grad = torch.tensor([2.0, 0.0])
    monkeypatch.setattr(optimization.dist, "all_reduce", lambda flat: flat.add_(torch.tensor([4.0, 1.0, 6.0])))
    Process(0, world_size=2).average_gradients([used, unused])
    assert used.grad.tolist() == [3.0, 0.5]
    assert unused.grad is not None
    assert unused.grad.tolist() == [3.0]


class Interrupted(Exception):
    """Stands for the power that goes off."""


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    pool: Pool, processor: Maira2Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PhantomTrainingConfig(
        n_studies=24, vision_steps=4, vision_batch=4, report_steps=4, report_batch=2, save_every=2, n_processes=1
    )

    def run(path: Path, *, stop_after: tuple[str, int] | None = None) -> TrainingState:
        state = TrainingState(config, tiny_model(processor))
        torch.manual_seed(1)
        for heads in (state.vision_heads, state.report_heads):
            for parameter in heads.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
        if path.exists():
            state.load(path)
        take_step = optimization.Optimizer.step

        def step_or_stop(self: Any, loss: torch.Tensor, step: int) -> None:
            stage = "report" if state.done["vision"] == config.vision_steps else "vision"
            if stop_after == (stage, step):
                raise Interrupted
            take_step(self, loss, step)

        with monkeypatch.context() as patch:
            patch.setattr(optimization.Optimizer, "step", step_or_stop)
            if state.done["vision"] < config.vision_steps:
                train_vision(state, pool, Process(), path)
            train_reports(state, pool, processor, Process(), path)
        return state

    whole = run(tmp_path / "whole.pt").model.state_dict()
    for stage, step in (("vision", 3), ("report", 1), ("report", 3)):
        path = tmp_path / f"{stage}{step}.pt"
        with pytest.raises(Interrupted):
            run(path, stop_after=(stage, step))
        resumed = run(path).model.state_dict()
        for name, tensor in whole.items():
            torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0, msg=name)


def test_a_state_of_another_configuration_is_refused(processor: Maira2Processor, tmp_path: Path) -> None:
    config = PhantomTrainingConfig(n_processes=1)
    state = TrainingState(config, tiny_model(processor))
    state.save(tmp_path / "state.pt", Optimizer([state.vision_heads], state, Process(), 1e-3, 1))
    with pytest.raises(ValueError, match="belongs to another configuration"):
        TrainingState(replace(config, seed=1), tiny_model(processor)).load(tmp_path / "state.pt")


def test_the_checkpoint_is_small_and_loads_in_single_precision(processor: Maira2Processor, tmp_path: Path) -> None:
    model = tiny_model(processor)
    before = model.lm_head.weight.detach().clone()
    write_checkpoint(model, processor, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["vocab_size"] == len(processor.tokenizer)
    loaded = Maira2ForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded.lm_head.weight, before, rtol=1e-3, atol=1e-4)
    n_parameters = sum(parameter.numel() for parameter in loaded.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < 2.1 * n_parameters + 60_000


def test_an_untrained_model_scores_next_to_nothing(processor: Maira2Processor) -> None:
    evaluation = score(Reporter(tiny_model(processor).eval(), processor, batch_size=4), list(studies(4, 5)))
    assert evaluation.micro_f1 == 0.0
    assert evaluation.box_iou == 0.0
    assert evaluation.n_prior_swaps == 0
    assert "| micro-F1 of findings | 0.000 | at least 0.90 |" in summary(evaluation)


def test_a_prior_swap_differs_in_the_prior_alone() -> None:
    study = render(["pacemaker", "edema"], 1, prior=["pacemaker", "edema", "nodule_left"], seed=4)
    (swap,) = prior_swaps([study, render(["edema"], 2), render(["edema"], 2, prior=[])])
    assert swap.concept == "pacemaker"
    assert swap.unchanged.prior_report is None is swap.new.prior_report
    assert swap.new.frontal == swap.unchanged.frontal == study.frontal
    assert swap.new.prior_frontal is not None
    assert list(swap.new.prior_frontal.state) == ["edema", "nodule_left"]
    assert swap.new.labels["pacemaker"].change == "new"


@pytest.mark.slow
def test_the_command_trains_writes_and_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "phantom"
    options = "--n_studies 40 --vision_steps 4 --report_steps 4 --save_every 2 --n_evaluated 2"
    main(["--out", str(out), *options.split()])
    assert not {path.name for path in out.iterdir()} & {"state.pt", "processes"}
    assert "Held-out studies: 2" in (out / "README.md").read_text()
