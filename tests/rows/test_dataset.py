"""Rows as a dataset: of fixed length, counted, streamed and reused."""

import errno
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from datasets.arrow_writer import ArrowWriter

from sae_lens_maira.data.source import StudySource
from sae_lens_maira.data.study import SECTIONS, FileImage, Study, TokenKind
from sae_lens_maira.errors import RowError
from sae_lens_maira.files import exclusive
from sae_lens_maira.maira2 import Maira2Processor
from sae_lens_maira.maira2.adapter import Maira2StudyProcessor
from sae_lens_maira.rows.dataset import build_rows
from sae_lens_maira.rows.policy import TokenPolicy

IMAGE = FileImage(Path("never opened.png"))
ALL = Study("all", "p", IMAGE, IMAGE, IMAGE, "Fever.", "PA.", "None.", "Old nodule.", "Clear lungs.")
PLAIN = Study("plain", "p", IMAGE, None, None, None, "PA.", None, None, "Clear.")
STUDIES = [ALL, PLAIN]


class Counted:
    """A lazy sequence that counts what is read."""

    def __init__(self, studies):
        self._studies = studies
        self.n_read = 0

    def __len__(self):
        return len(self._studies)

    def __getitem__(self, index):
        self.n_read += 1
        return self._studies[index]


class Source(StudySource):
    """A source with a description of its content, which counts what is read."""

    def __init__(self, studies, content):
        super().__init__({"kind": "counted", "content": content})
        self._studies = studies
        self.n_read = 0

    def __len__(self):
        return len(self._studies)

    def study(self, index):
        self.n_read += 1
        return self._studies[index]


@pytest.fixture
def build(processor, tmp_path):
    def call(studies=STUDIES, policy=None, context_size=20, processor=processor):
        return build_rows(
            studies,
            Maira2StudyProcessor(processor),
            policy or TokenPolicy(),
            context_size=context_size,
            d_vocab=1205,
            cache_path=tmp_path,
            show_progress=False,
        )

    return call


@pytest.fixture
def n_encoded(monkeypatch):
    """Counts how often a study is encoded."""
    counts = [0]
    encode = Maira2Processor.encode

    def counted(self, prompt):
        counts[0] += 1
        return encode(self, prompt)

    monkeypatch.setattr(Maira2Processor, "encode", counted)
    return counts


def test_rows_have_a_fixed_length_and_know_their_positions(build, processor):
    rows = build().dataset
    assert rows["study_id"][:] == ["all", "plain"]
    assert rows["n_cut"][:] == [0, 0]
    for row, study, n_kept in zip(rows, STUDIES, (16, 11), strict=True):
        assert len(row["tokens"]) == len(row["positions"]) == len(row["kinds"]) == 20
        assert row["positions"][n_kept - 1] > 0
        assert row["tokens"][n_kept:] == [processor.tokenizer.pad_token_id] * (20 - n_kept)
        assert row["positions"][n_kept:] == [-1] * (20 - n_kept)
        assert row["kinds"][n_kept:] == [TokenKind.PAD] * (20 - n_kept)
        findings = [token for token, kind in zip(row["tokens"], row["kinds"], strict=True) if kind == 6]
        assert processor.tokenizer.decode(findings).strip() == study.findings
    # [frontal] [lateral] [prior], then `Old nodule.` in 4 tokens, ...
    assert rows[0]["tokens"][:3] == [1208, 1206, 1207]
    assert rows[1]["tokens"][0] == 1209
    assert rows[0]["kinds"][:16] == [9, 10, 11, *[4] * 4, *[1] * 4, *[2] * 2, 3, *[6] * 2]


def test_the_description_counts_by_hand(build):
    # `all` has 16 tokens and `plain` 11: frontal, N / A, PA ., N / A, Clear . (see the two rows above).
    summary = build().summary
    assert summary.tokens_by_kind == {
        "frontal_image": 2,
        "lateral_image": 1,
        "prior_image": 1,
        "prior_report": 4,
        "indication": 7,
        "technique": 4,
        "comparison": 4,
        "findings": 4,
    }
    assert build().describe() == (
        "2 studies, 27 tokens (13.5 per study): indication 25.9%, technique 14.8%, comparison 14.8%, "
        "prior_report 14.8%, findings 14.8%, frontal_image 7.4%, lateral_image 3.7%, prior_image 3.7%.\n"
        "Nothing was cut off by context_size 20; the longest row has 16 tokens."
    )


def test_what_is_cut_is_counted_by_hand(build):
    rows = build(context_size=10)
    assert rows.dataset["n_cut"][:] == [6, 1]
    assert [len(tokens) for tokens in rows.dataset["tokens"]] == [10, 10]
    assert rows.describe() == (
        "2 studies, 20 tokens (10.0 per study): indication 30.0%, prior_report 20.0%, comparison 15.0%, "
        "technique 10.0%, frontal_image 10.0%, findings 5.0%, lateral_image 5.0%, prior_image 5.0%.\n"
        "7 tokens of 2 studies were cut off by context_size 10; 16 would fit all."
    )


def test_rows_are_found_again_and_not_encoded_again(build, n_encoded):
    first = build()
    assert n_encoded == [2]
    again = build()
    assert n_encoded == [2]
    assert again.summary == first.summary
    assert again.dataset[:] == first.dataset[:]


@pytest.mark.parametrize("field", ["study_id", "indication", "technique", "comparison", "prior_report", "findings"])
def test_a_changed_study_makes_other_rows(build, n_encoded, field):
    build()
    build([replace(ALL, **{field: "Cough."}), PLAIN])
    assert n_encoded == [4]


def test_changed_images_policy_length_or_tokenizer_make_other_rows(build, n_encoded, checkpoint_path):
    build()
    build([replace(ALL, lateral=None), PLAIN])
    build(policy=TokenPolicy(image_tokens="none"))
    build(context_size=21)
    build(STUDIES[::-1])
    assert n_encoded == [10]
    other = Maira2Processor.from_pretrained(checkpoint_path)
    build(processor=other)
    assert n_encoded == [10]
    other.tokenizer.add_tokens(["nodule"])
    build(processor=other)
    assert n_encoded == [12]
    other.chat_template = f"{other.chat_template} "
    build(processor=other)
    assert n_encoded == [14]


def test_a_source_with_a_fingerprint_is_never_read_twice(build):
    source = Source(STUDIES, content="v1")
    first = build(source)
    assert source.n_read == 2
    assert build(source).dataset[:] == first.dataset[:]
    assert source.n_read == 2
    changed = Source([PLAIN, ALL], content="v2")
    assert build(changed).dataset["study_id"][:] == ["plain", "all"]


def test_a_source_without_a_fingerprint_is_read_to_compute_one(build):
    source = Counted(STUDIES)
    build(source)
    assert source.n_read == 4
    build(source)
    assert source.n_read == 6


def test_a_run_that_dies_half_way_leaves_nothing(build, tmp_path):
    class Broken(Source):
        def study(self, index):
            if index == 1:
                raise KeyboardInterrupt
            return super().study(index)

    with pytest.raises(KeyboardInterrupt):
        build(Broken(STUDIES, content="v1"))
    assert list((tmp_path / "rows").iterdir()) == []
    assert len(build(Source(STUDIES, content="v1")).dataset) == 2


def test_what_a_killed_run_left_is_not_used(build, tmp_path, n_encoded):
    """A killed process cannot clean up, but its unfinished folder has another name."""
    build()
    (finished,) = (tmp_path / "rows").iterdir()
    (finished / "rows.arrow").rename(tmp_path / "rows.arrow")
    (finished / "summary.json").unlink()
    finished.rename(finished.with_name(f".{finished.name}-abc"))
    other = finished.with_name(".0123456789abcdef01234567-abc")
    other.mkdir()
    assert len(build().dataset) == 2
    assert n_encoded == [4]
    assert [path.name for path in (tmp_path / "rows").iterdir()] == [finished.name]  # the leftovers contained reports


def test_what_another_process_is_writing_is_left_alone(build, tmp_path):
    key = "0123456789abcdef01234567"
    busy = tmp_path / "rows" / f".{key}-abc"
    busy.mkdir(parents=True)
    with exclusive(tmp_path / "locks" / f"rows-{key}.lock"):
        build()
    assert busy.is_dir()


def test_eight_processes_that_build_the_same_rows_make_one_good_folder(build, tmp_path):
    for turn in range(4):
        policy = TokenPolicy(sections=SECTIONS[: turn + 1])
        start_at = time.monotonic() + 0.2
        children = []
        for _ in range(8):
            child = os.fork()
            if child == 0:
                try:
                    time.sleep(max(start_at - time.monotonic(), 0))
                    os._exit(0 if len(build(policy=policy).dataset) == 2 else 1)
                except BaseException:
                    traceback.print_exc()
                    os._exit(2)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
        assert len(list((tmp_path / "rows").iterdir())) == turn + 1


@pytest.mark.parametrize("damage", [None, "", "{", "[" * 100_000, "[]", '{"n_studies": 2}'])
def test_an_unfinished_or_damaged_folder_in_the_final_place_is_replaced(build, tmp_path, damage):
    expected = build().summary
    (finished,) = (tmp_path / "rows").iterdir()
    (finished / "summary.json").unlink()
    if damage is not None:
        (finished / "summary.json").write_text(damage)
    again = build()
    assert len(again.dataset) == 2
    assert again.summary == expected


def test_a_full_disk_is_a_sentence_and_leaves_nothing(build, tmp_path, monkeypatch):
    def no_room(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ArrowWriter, "finalize", no_room)
        with pytest.raises(RowError, match=r"^Rows cannot be written to '.*rows', as the disk is full; make room\.$"):
            build()
    assert not list((tmp_path / "rows").iterdir())
    assert len(build().dataset) == 2


def test_studies_are_held_one_at_a_time(build):
    alive, most = [0], [0]

    class Tracked(str):
        __slots__ = ()

        def __del__(self):
            alive[0] -= 1

    class Lazy(Source):
        def __len__(self):
            return 200

        def study(self, index):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            return replace(PLAIN, study_id=f"{index}", view=Tracked("PA"))

        def __iter__(self) -> Iterator[Study]:
            raise AssertionError("read by index")

    rows = build(Lazy([], content="v1"))
    assert len(rows.dataset) == rows.summary.n_studies == 200
    assert most[0] <= 3


@pytest.mark.parametrize(("image_tokens", "needed", "images"), [("last", 4, 3), ("none", 2, 1), ("all", 76, 75)])
def test_a_context_too_short_for_the_fixed_part_is_refused(build, image_tokens, needed, images):
    policy = TokenPolicy(image_tokens=image_tokens)
    message = (
        rf"^context_size {needed - 1} is too short: study token and image tokens \({image_tokens}\) need up to "
        f"{images}, and one token of text; use at least {needed}.$"
    )
    with pytest.raises(RowError, match=message):
        build(policy=policy, context_size=needed - 1)
    assert len(build(policy=policy, context_size=needed).dataset) == 2


def test_a_study_that_cannot_be_encoded_is_named(build, tmp_path):
    with pytest.raises(RowError, match="^Study 'plain' has no findings; "):
        build([ALL, replace(PLAIN, findings=None)])
    assert list((tmp_path / "rows").iterdir()) == []


def test_no_studies_are_refused(build):
    with pytest.raises(RowError, match="^There are no studies to make rows of.$"):
        build([])
