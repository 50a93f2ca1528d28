"""Where edits act, on prompts written out by hand."""

import numpy as np
import pytest

from sae_lens_maira.data.study import TokenKind as K
from sae_lens_maira.errors import SteeringError
from sae_lens_maira.hooked.where import Where

PROMPT = [K.PAD, K.TEMPLATE, K.FRONTAL_IMAGE, K.FRONTAL_IMAGE, K.LATERAL_IMAGE, K.INDICATION, K.TECHNIQUE, K.TEMPLATE]
REPORT = [K.FINDINGS, K.FINDINGS, K.FINDINGS, K.END]
KINDS = np.array(PROMPT + REPORT)


def positions(**kwargs):
    return np.flatnonzero(Where(**kwargs).mask(KINDS)).tolist()


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (("everywhere",), list(range(1, 12))),
        (("images",), [2, 3, 4]),
        (("frontal_image",), [2, 3]),
        (("prior_image",), []),
        (("sections",), [5, 6]),
        (("indication",), [5]),
        (("template",), [1, 7]),
        (("last_prompt_token",), [7]),
        (("report",), [8, 9, 10, 11]),
        (("indication", "last_prompt_token"), [5, 7]),
    ],
)
def test_places_are_chosen_by_kind_and_padding_never_is(include, expected):
    assert positions(include=include) == expected


def test_an_exclusion_always_wins():
    assert positions(include=("everywhere",), exclude=("images", "template")) == [5, 6, 8, 9, 10, 11]
    assert positions(include=("last_prompt_token",), exclude=("template",)) == []
    assert positions(include=("report",), exclude=("everywhere",)) == []


def test_a_window_counts_the_reports_tokens_from_zero_and_leaves_the_prompt_alone():
    assert positions(include=("report",), window=(1, 3)) == [9, 10]
    assert positions(include=("report", "indication"), window=(0, 1)) == [5, 8]
    where = Where(include=("report",), window=(1, 3))
    assert [where.edits_report_token(number) for number in range(4)] == [False, True, True, False]
    assert not Where(include=("images",)).edits_report_token(0)
    assert not Where(exclude=("report",)).edits_report_token(0)


def test_a_choice_of_nothing_is_refused():
    prompt = np.array(PROMPT)
    with pytest.raises(SteeringError, match="where: prior_image selects nothing in study 's1'; include a place"):
        Where(include=("prior_image",)).prompt_mask(prompt, "s1")
    with pytest.raises(SteeringError, match="selects nothing in study 's1'"):
        Where(exclude=("everywhere",)).prompt_mask(prompt, "s1")
    assert not Where(include=("report",)).prompt_mask(prompt, "s1").any()  # the report is yet to come
    with pytest.raises(SteeringError, match="where.include is empty"):
        Where(include=())
    with pytest.raises(SteeringError, match=r"where.window \[3, 3\] holds no token"):
        Where(window=(3, 3))


def test_an_unknown_place_is_named():
    with pytest.raises(SteeringError, match="where.include"):
        Where.from_dict({"include": ["pictures"]})
