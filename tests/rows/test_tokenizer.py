"""Readable tokens, in sae-dashboard's own lookup and in ours."""

import pytest
import torch

from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.rows.tokenizer import readable
from tests.plain_maira2 import CHECKPOINTS, phantom_studies


@pytest.fixture(scope="module")
def studies():
    return phantom_studies()


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=lambda path: path.name)
def model(request, studies):
    policy = TokenPolicy(template="keep", image_tokens="all")
    return HookedMaira2.from_pretrained(request.param, studies, policy, dtype=torch.float32)


@pytest.fixture
def decode(model):
    from sae_dashboard.utils_fns import get_decode_html_safe_fn

    return get_decode_html_safe_fn(model.tokenizer)


def test_sae_dashboard_reads_every_token_of_every_row(model, decode, studies):
    rows = model.reader.rows(range(len(studies)), None)
    for row, study in zip(rows.tolist(), studies, strict=True):
        texts = decode(row)
        assert texts == model.tokenizer.row_to_texts(row)
        shown = "".join(texts)
        assert "UNK" not in shown
        assert "unk" not in shown
        assert "▁" not in shown
        assert study.findings in shown
        n_patches = model.processor.n_image_tokens
        for name, image in zip(
            ("<frontal>", "<lateral>", "<prior>"), (study.frontal, study.lateral, study.prior_frontal), strict=True
        ):
            assert texts.count(name) == (n_patches if image else 0)


def test_every_id_of_rows_has_a_text(model):
    from sae_dashboard.utils_fns import get_decode_html_safe_fn

    model = model.with_studies(model.studies)  # no other test has asked it for rows of further studies
    decode = get_decode_html_safe_fn(model.tokenizer)
    n_ids = model.row_vocabulary.study_token(len(model.studies))
    texts = [decode(token) for token in range(n_ids)]
    assert texts == model.tokenizer.row_to_texts(range(n_ids))
    assert "UNK" not in texts
    assert not any("▁" in text for text in texts)
    assert texts[-7:] == ["<frontal>", "<lateral>", "<prior>", *["<frontal>"] * 4]
    assert texts[model.processor.tokenizer.pad_token_id] == "<pad>"


def test_rows_of_studies_of_no_source_are_read_too(model, studies):
    from sae_dashboard.utils_fns import get_decode_html_safe_fn

    rows = model.to_tokens(studies[:1])
    assert get_decode_html_safe_fn(model.tokenizer)(rows[0].tolist())[0] == "<frontal>"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("▁effusion", " effusion"),
        ("▁", " "),
        ("ing", "ing"),
        ("<0x41>", "A"),
        ("<0x20>", " "),
        ("<0x0A>", "\\n"),
        ("<0x09>", "\\t"),
        ("<0x0D>", "\\r"),
        ("<0x00>", "\\x00"),
        ("<0x7F>", "\\x7f"),
        ("<0xE2>", "\\xe2"),
        ("</s>", "</s>"),
        ("<x12>", "<x12>"),
    ],
)
def test_a_vocabulary_entry_is_written_as_people_do(token, expected):
    assert readable(token) == expected


def test_everything_else_is_the_wrapped_tokenizers(model):
    wrapped = model.processor.tokenizer
    assert model.tokenizer.eos_token_id == wrapped.eos_token_id
    assert len(model.tokenizer) == len(wrapped)
    assert model.tokenizer("Clear lungs.")["input_ids"] == wrapped("Clear lungs.")["input_ids"]
    assert model.tokenizer.vocab["▁the"] == wrapped.get_vocab()["▁the"]
    assert model.to_tokens("Clear lungs.").tolist() == [wrapped("Clear lungs.")["input_ids"]]
