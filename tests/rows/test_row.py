"""Compact rows: what a token policy keeps of a study, by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_lens_maira.data.study import IMAGE_KINDS, SECTION_KINDS, FileImage, Label, Study, TokenKind
from sae_lens_maira.errors import RowError
from sae_lens_maira.maira2.adapter import Maira2StudyProcessor, study_prompt
from sae_lens_maira.rows.policy import TokenPolicy
from sae_lens_maira.rows.row import CompactRow, RowVocabulary, compact_row, encode_study, smallest_context
from sae_lens_maira.rows.tokenizer import ReadableTokenizer

D_VOCAB = 1205  # the reference checkpoint's
N_IMAGE_TOKENS = 25
VOCABULARY = RowVocabulary(D_VOCAB)
IMAGE = FileImage(Path("never opened.png"))
STUDY = Study("s", "p", IMAGE, IMAGE, IMAGE, "Fever.", "PA.", "None.", "Old nodule.", "Clear lungs.")
TASK = (
    " Provide a structured description of the findings in the radiology study in comparison to the prior frontal image."
)
words = st.text(alphabet="abcdefghij KLM.,:;_-0123456789éµ√", min_size=1, max_size=40).filter(
    lambda text: text.strip() == text
)


@pytest.fixture(scope="module")
def reader(processor):
    return ReadableTokenizer(processor.tokenizer, VOCABULARY)


def row_of(study, processor, policy):
    return compact_row(*encode_study(study, Maira2StudyProcessor(processor), policy), policy, VOCABULARY, 7)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (TokenPolicy(), "<frontal><lateral><prior> Old nodule. Fever. PA. None. Clear lungs."),
        (TokenPolicy(image_tokens="none"), "<frontal> Old nodule. Fever. PA. None. Clear lungs."),
        (
            TokenPolicy(image_tokens="all"),
            "<frontal>" * 25 + "<lateral>" * 25 + "<prior>" * 25 + " Old nodule. Fever. PA. None. Clear lungs.",
        ),
        (TokenPolicy(text="prompt"), "<frontal><lateral><prior> Old nodule. Fever. PA. None."),
        (TokenPolicy(sections=("findings",)), "<frontal><lateral><prior> Clear lungs."),
        (TokenPolicy(sections=("technique", "indication")), "<frontal><lateral><prior> Fever. PA."),
        (TokenPolicy(sections=("comparison",), image_tokens="none"), "<frontal> None."),
        (TokenPolicy(sections=("prior_report",), image_tokens="none"), "<frontal> Old nodule."),
        (TokenPolicy(sections=()), "<frontal><lateral><prior>"),
        (
            TokenPolicy(template="keep"),
            "<frontal><s> A reading room assistant describes a chest study.  USER: Given the current frontal image "
            "  the current lateral image <lateral>  and the prior frontal image <prior>  PRIOR_REPORT: Old nodule."
            f"{TASK} INDICATION: Fever. TECHNIQUE: PA. COMPARISON: None. ASSISTANT: Clear lungs.</s>",
        ),
        (
            TokenPolicy(sections=(), image_tokens="none", template="keep", text="prompt"),
            "<frontal><s> A reading room assistant describes a chest study.  USER: Given the current frontal image "
            "  the current lateral image   and the prior frontal image   PRIOR_REPORT:"
            f"{TASK} INDICATION: TECHNIQUE: COMPARISON: ASSISTANT: ",
        ),
    ],
    ids=repr,
)
def test_a_policy_keeps_what_it_says(processor, reader, policy, expected):
    row = row_of(STUDY, processor, policy)
    assert "".join(reader.row_to_texts(row.tokens)) == expected
    assert row.tokens[0] == D_VOCAB + 3 + 7


def test_an_empty_section_keeps_its_placeholder(processor, reader):
    row = row_of(Study("s", "p", IMAGE, findings="Clear."), processor, TokenPolicy())
    assert "".join(reader.row_to_texts(row.tokens)) == "<frontal> N/A N/A N/A Clear."


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.fixed_dictionaries(dict.fromkeys(SECTION_KINDS, words)), policy_index=st.integers(0, 2))
def test_tokens_at_a_rows_positions_spell_the_sections(processor, texts, policy_index):
    policy = TokenPolicy(image_tokens=("last", "none", "all")[policy_index])
    study = Study("s", "p", IMAGE, IMAGE, IMAGE, **texts)
    ids, kinds = encode_study(study, Maira2StudyProcessor(processor), policy)
    row = compact_row(ids, kinds, policy, VOCABULARY, 0)
    assert np.array_equal(kinds[row.positions], row.kinds)
    for name, kind in SECTION_KINDS.items():
        tokens = row.tokens[row.kinds == kind]
        assert np.array_equal(tokens, ids[row.positions[row.kinds == kind]])
        assert processor.tokenizer.decode(tokens, clean_up_tokenization_spaces=False).strip() == texts[name]
    n_kept = {"last": 1, "none": 0, "all": N_IMAGE_TOKENS}[policy.image_tokens]
    images = [int((row.tokens[1:] == VOCABULARY.image_token(kind)).sum()) for kind in IMAGE_KINDS]
    assert images == [max(n_kept - 1, 0), n_kept, n_kept]
    # The study token stands for the frontal image's last token; all others follow in the order of the prompt.
    assert row.positions[0] == max(np.flatnonzero(kinds == TokenKind.FRONTAL_IMAGE))
    assert (np.diff(row.positions[1:]) > 0).all()
    assert len(set(row.positions.tolist())) == len(row.positions)


def test_the_last_token_of_each_image_is_kept(processor):
    ids, kinds = encode_study(STUDY, Maira2StudyProcessor(processor), TokenPolicy())
    row = compact_row(ids, kinds, TokenPolicy(), VOCABULARY, 0)
    assert (ids[row.positions[:3]] == processor.image_token_id).all()
    assert [TokenKind(kind) for kind in row.kinds[:3]] == list(IMAGE_KINDS)
    assert (ids[row.positions[:3] + 1] != processor.image_token_id).all()


@given(d_vocab=st.integers(1, 200_000), index=st.integers(0, 10**9))
def test_study_tokens_are_read_back_and_clash_with_nothing(d_vocab, index):
    vocabulary = RowVocabulary(d_vocab)
    token = vocabulary.study_token(index)
    assert vocabulary.study_index(token) == index
    images = [vocabulary.image_token(kind) for kind in IMAGE_KINDS]
    assert images == [d_vocab, d_vocab + 1, d_vocab + 2]
    assert token == d_vocab + 3 + index
    assert all(vocabulary.study_index(other) < 0 for other in (0, d_vocab - 1, *images))


def test_rows_are_cut_or_filled_up():
    row = CompactRow(np.array([9, 4, 5]), np.array([2, 6, 7]), np.array([9, 1, 1]))
    longer = row.padded(5, pad_token_id=0)
    assert longer.tokens.tolist() == [9, 4, 5, 0, 0]
    assert longer.positions.tolist() == [2, 6, 7, -1, -1]
    assert longer.kinds.tolist() == [9, 1, 1, TokenKind.PAD, TokenKind.PAD]
    shorter = row.padded(2, pad_token_id=0)
    assert [values.tolist() for values in (shorter.tokens, shorter.positions, shorter.kinds)] == [
        [9, 4],
        [2, 6],
        [9, 1],
    ]


@pytest.mark.parametrize(("image_tokens", "expected"), [("none", 2), ("last", 4), ("all", 76)])
def test_the_smallest_context_holds_the_images_and_one_token_of_text(image_tokens, expected):
    assert smallest_context(TokenPolicy(image_tokens=image_tokens), N_IMAGE_TOKENS) == expected


@given(
    policy=st.builds(
        TokenPolicy,
        sections=st.lists(st.sampled_from(sorted(SECTION_KINDS)), unique=True).map(tuple),
        image_tokens=st.sampled_from(["last", "none", "all"]),
        template=st.sampled_from(["drop", "keep"]),
        text=st.sampled_from(["findings", "prompt"]),
    )
)
def test_a_policy_is_read_back_from_its_plain_values(policy):
    assert TokenPolicy.from_dict(policy.to_dict()) == policy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"sections": ["impression"]},
            "policy.sections 'impression' is unknown; choose indication, technique, comparison, prior_report or "
            "findings.",
        ),
        ({"image_tokens": "some"}, "policy.image_tokens 'some' is unknown; choose last, none or all."),
        ({"template": "yes"}, "policy.template 'yes' is unknown; choose drop or keep."),
        ({"text": "report"}, "policy.text 'report' is unknown; choose findings or prompt."),
        ({"section": []}, "Unknown setting 'policy.section'; did you mean policy.sections?"),
    ],
)
def test_an_unknown_choice_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TokenPolicy.from_dict(values)


def test_a_prior_report_without_a_prior_image_is_refused_in_one_sentence():
    study = Study("s1", "p", IMAGE, prior_report="Clear.", findings="Clear.")
    message = (
        "Study 's1' has a prior report and no prior image, and MAIRA-2 reads them together; give the image, or leave "
        "the report out."
    )
    with pytest.raises(RowError, match=f"^{re.escape(message)}$"):
        study_prompt(study)


def test_a_study_that_cannot_be_encoded_is_named(processor):
    with pytest.raises(RowError, match="^Study 's1' has no findings; leave it out, or use TokenPolicy"):
        encode_study(Study("s1", "p", IMAGE), Maira2StudyProcessor(processor), TokenPolicy())
    study = Study("s2", "p", IMAGE, indication="<image>", findings="Clear.")
    with pytest.raises(RowError, match="^Study 's2': The indication text contains the special token '<image>'"):
        encode_study(study, Maira2StudyProcessor(processor), TokenPolicy())


@pytest.mark.parametrize("field", ["study_id", "patient_id", "findings", "prior_report", "labels"])
def test_half_of_a_surrogate_pair_anywhere_in_a_study_is_one_sentence(processor, field):
    wrong = {"x\ud800": Label("absent")} if field == "labels" else "x\ud800"
    image = FileImage(Path("never opened"))
    texts = {"study_id": "s1", "patient_id": "p1", "findings": "Clear.", "prior_report": "Clear.", field: wrong}
    study = Study(frontal=image, prior_frontal=image, **texts)
    shown = r"x\\ud800" if field == "study_id" else "s1"
    name = "name of a label" if field == "labels" else field
    with pytest.raises(RowError, match=f"The {name} of study '{shown}' holds half of a surrogate pair") as caught:
        encode_study(study, Maira2StudyProcessor(processor), TokenPolicy())
    assert str(caught.value).isprintable()
