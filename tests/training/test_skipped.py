"""Studies that cannot be trained on, and Ctrl-C while the buffer fills."""

import logging
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_lens_maira import phantom
from sae_lens_maira.errors import Interrupted, StudyImageError
from sae_lens_maira.hooked.loading import load_model
from sae_lens_maira.sources import open_source
from sae_lens_maira.training.data import training_data
from sae_lens_maira.training.multi import train_several
from sae_lens_maira.training.run import train
from sae_lens_maira.training.runner_config import to_runner_config
from sae_lens_maira.training.runners import ResumableRunner
from sae_lens_maira.training.skipped import SkippedStudies, TooManySkipped
from sae_lens_maira.training.store import ResumableActivationsStore
from tests.activations.conftest import break_images

BROKEN = [2, 9, 11]  # of the 16 studies to train on
N_STUDIES, N_TRAINING = 24, 16


@pytest.fixture(scope="module")
def broken():
    return break_images(list(phantom.studies(N_STUDIES, seed=0)), [*BROKEN, 17])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "sae_weights.safetensors")


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_epoch_has_every_usable_study_once_and_the_log_names_the_others(config, broken, tmp_path, caplog):
    config = replace(config, max_skipped_share=0.2)
    model = load_model(config.model, broken, config.policy)
    runner_config = to_runner_config(config, model, tmp_path)
    store = ResumableRunner(runner_config, model, training_data(config, model, config.hook_name, runner_config)).store
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        served = [block.study_index.unique().tolist() for block in (store.selected_block() for _ in range(4))]
    studies = [study for batch in served for study in batch]
    assert sorted(studies) == sorted(set(range(N_TRAINING)) - set(BROKEN))
    said = sorted(record.getMessage() for record in caplog.records if "left out" in record.getMessage())
    assert said == sorted(
        f"Study {broken[index].study_id} is left out: The frontal image cannot be read (image file is truncated); "
        "it may be cut short or not be an image."
        for index in BROKEN
    )
    rows = store.get_batch_tokens()  # as SAE-Lens's evaluations read them
    assert not set((rows[:, 0] - model.row_vocabulary.study_token(0)).tolist()) & set(BROKEN)


def test_a_run_with_broken_images_ends_and_is_scored_on_the_usable_held_out_studies(config, broken, tmp_path):
    result = train(replace(config, max_skipped_share=0.2), tmp_path, broken)
    model = load_model(config.model, broken, config.policy)
    tokens = torch.tensor(model.rows(config.context_size).dataset[:]["tokens"])
    # Two batches of four rows are wanted, of which seven are left: one batch is scored.
    usable = [index for index in range(N_TRAINING, N_STUDIES) if index != 17][:4]
    assert result.scores.n_tokens == int((tokens[usable] != model.tokenizer.pad_token_id).sum())


def test_several_saes_are_trained_without_the_broken_studies(config, broken, tmp_path):
    config = replace(config, saes={"a": {}, "b": {"k": 4}}, max_skipped_share=0.2)
    assert train_several(config, tmp_path, broken).keys() == {"a", "b"}


def test_too_many_broken_images_stop_the_run_and_a_higher_share_goes_on_to_the_same_weights(config, broken, tmp_path):
    """The share of held-out studies, one of eight, is allowed; of the others two are, and three are broken."""
    strict, generous = (replace(config, max_skipped_share=share) for share in (0.13, 0.2))
    with pytest.raises(
        TooManySkipped,
        match=r"^3 of 16 studies have images that cannot be used, and max_skipped_share is 0.13; mend .* higher "
        r"--max_skipped_share\.$",
    ):
        train(strict, tmp_path / "stopped", broken)
    train(generous, tmp_path / "stopped", broken, resume=True)
    train(generous, tmp_path / "whole", broken)
    assert_same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_broken_held_out_studies_are_found_before_anything_is_trained(config, tmp_path):
    studies = break_images(list(phantom.studies(N_STUDIES, seed=0)), range(N_TRAINING, N_STUDIES))
    with pytest.raises(TooManySkipped, match="^1 of 8 studies"):
        train(replace(config, max_skipped_share=0.1), tmp_path / "run", studies)
    with pytest.raises(TooManySkipped, match="^8 of 8 studies"):
        train(replace(config, max_skipped_share=1.0), tmp_path / "run", studies)
    assert not (tmp_path / "run").exists()


def test_the_share_is_of_all_studies_and_no_study_counts_twice():
    skipped = SkippedStudies(10, 0.2)
    for index in (4, 7, 4):
        skipped.add(StudyImageError(index, f"s{index}", "It is broken."))
    skipped.check()
    assert skipped.keep(torch.tensor([3, 4, 7, 8])).tolist() == [True, False, False, True]
    resumed = SkippedStudies(10, 0.2)
    resumed.restore(skipped.state())
    resumed.check()
    resumed.add(StudyImageError(9, "s9", "It is broken."))
    with pytest.raises(TooManySkipped, match="^3 of 10"):
        resumed.check()


def test_a_source_too_small_for_its_held_out_studies_says_how_many_there_are(config, tmp_path, caplog):
    config = replace(config, source=replace(config.source, n_studies=5, n_held_out=4))
    model = load_model(config.model, open_source(config.source), config.policy)
    data = training_data(config, model, config.hook_name, to_runner_config(config, model, tmp_path))
    assert data.selection.n_studies == 3
    assert "source.n_held_out is 4, but only 2 of 5 studies are held out" in caplog.text


@pytest.fixture
def interrupting(monkeypatch):
    """Sends a real signal while the store reads a certain batch of rows."""

    def arm(at_batch: int) -> list[int]:
        read, n_read = ResumableActivationsStore.get_filtered_llm_batch, [0]

        def interrupt(self, *args, **kwargs):
            n_read[0] += 1
            if n_read[0] == at_batch:
                signal.raise_signal(signal.SIGINT)
            return read(self, *args, **kwargs)

        monkeypatch.setattr(ResumableActivationsStore, "get_filtered_llm_batch", interrupt)
        return n_read

    return arm


def test_ctrl_c_while_the_first_buffer_fills_stops_after_one_batch_of_rows(config, tmp_path, interrupting):
    n_read = interrupting(1)
    with pytest.raises(Interrupted, match="^interrupted before the first step; the same command starts again$"):
        train(config, tmp_path)
    assert n_read == [1]
    assert not (tmp_path / "checkpoints").exists()
    train(config, tmp_path)


def test_ctrl_c_while_a_later_buffer_fills_resumes_to_the_same_weights(config, tmp_path, interrupting):
    n_read = interrupting(4)
    with pytest.raises(Interrupted, match="--resume"):
        train(config, tmp_path / "stopped")
    assert n_read == [4]
    (checkpoint,) = (tmp_path / "stopped" / "checkpoints").iterdir()
    assert int(checkpoint.name) > 0
    train(config, tmp_path / "stopped", resume=True)
    train(config, tmp_path / "whole")
    assert_same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_a_row_with_a_broken_image_is_refused_by_the_studys_name(config):
    model = load_model(config.model, break_images(list(open_source(config.source)[:3]), [1]), config.policy)
    tokens = model.rows(64).dataset[:]["tokens"]
    with pytest.raises(StudyImageError, match=r"^Study 'phantom-.*', number 1 of its source, has an unusable image:"):
        model.run_with_cache(torch.tensor(tokens), return_type=None)
