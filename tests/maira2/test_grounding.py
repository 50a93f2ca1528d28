"""Grounded answers, well formed and not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sae_lens_maira.maira2 import Box, GroundedPhrase, format_grounded, parse_grounded
from sae_lens_maira.maira2.grounding import GROUNDING_TOKENS, salvage_grounded

bins = st.integers(0, 99)
boxes = st.tuples(bins, bins, bins, bins).map(
    lambda edges: Box(
        *((edge + 0.5) / 100 for edge in (*map(min, edges[:2], edges[2:]), *map(max, edges[:2], edges[2:])))
    )
)
phrases = st.builds(
    GroundedPhrase,
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<>"), min_size=1)
    .map(str.strip)
    .filter(lambda text: text != ""),
    st.lists(boxes, max_size=3).map(tuple),
)
fragments = st.sampled_from(
    ["<obj>", "</obj>", "<box>", "</box>", "<x3>", "<y7>", "<x99>", "<y100>", " effusion", "<", ">", "\n", "é"]
)


def test_the_grammar_by_hand():
    report = parse_grounded(
        " <obj>Left effusion.<box><x10><y20><x30><y40></box><box><x0><y0><x99><y99></box></obj><obj> No oedema. </obj>"
    )
    assert report.problems == ()
    assert report.text == "Left effusion. No oedema."
    assert report.phrases == (
        GroundedPhrase("Left effusion.", (Box(0.105, 0.205, 0.305, 0.405), Box(0.005, 0.005, 0.995, 0.995))),
        GroundedPhrase("No oedema."),
    )


@given(st.lists(phrases))
def test_what_is_formatted_is_read_back(written):
    report = parse_grounded(format_grounded(written))
    assert report.problems == ()
    assert [phrase.text for phrase in report.phrases] == [phrase.text for phrase in written]
    for read, phrase in zip(report.phrases, written, strict=True):
        for ours, theirs in zip(read.boxes, phrase.boxes, strict=True):
            assert ours.to_pixels(1, 1) == pytest.approx(theirs.to_pixels(1, 1), abs=1e-9)


@given(st.lists(fragments, max_size=30).map("".join) | st.text())
def test_no_text_raises_and_what_is_returned_is_sound(text):
    report = parse_grounded(text)
    for phrase in report.phrases:
        assert phrase.text.strip()
        for box in phrase.boxes:
            assert 0 < box.x_min <= box.x_max < 1
            assert 0 < box.y_min <= box.y_max < 1
    if text.strip() and not report.phrases:
        assert report.problems


@pytest.mark.parametrize(
    ("text", "kept", "n_boxes", "problem"),
    [
        ("Clear lungs.", [], 0, "Text outside of a phrase: 'Clear lungs.'"),
        ("<obj>Effusion", [], 0, "'Effusion' is not closed before the answer ends"),
        ("<obj>A<obj>B</obj>", ["B"], 0, "'A' is not closed before a new phrase starts"),
        ("B</obj>", [], 0, "closed that was not opened"),
        ("<obj> </obj>", [], 0, "no words"),
        ("<obj>A<box><x1><y1><x2></box></obj>", ["A"], 0, "does not have four coordinates"),
        ("<obj>A<box><x1><y1><x2><y100></box></obj>", ["A"], 0, "beyond 99"),
        ("<obj>A<box><x5><y1><x2><y3></box></obj>", ["A"], 0, "ends before it starts"),
        ("<obj>A<box><x1><y1><x2><y3></obj>", ["A"], 0, "not closed before the phrase ends"),
        ("<obj>A</box></obj>", ["A"], 0, "box is closed that was not opened"),
        ("<obj>A<box><x1><y1><x2><y3></box>B</obj>", ["A"], 1, "Text after the boxes of a phrase: 'B'"),
        ("<obj>A<x1><y1></obj>", ["A"], 0, "Coordinates outside of a box"),
        ("<box><x1><y1><x2><y3></box>", [], 0, "A box is outside of a phrase"),
        ("<obj>A<box><x1><y1><x2><y3></box><box>?</box></obj>", ["A"], 1, "does not have four coordinates: '?'"),
    ],
)
def test_what_is_sound_is_kept_and_what_is_not_is_named(text, kept, n_boxes, problem):
    report = parse_grounded(text)
    assert [phrase.text for phrase in report.phrases] == kept
    assert sum(len(phrase.boxes) for phrase in report.phrases) == n_boxes
    assert any(problem in found for found in report.problems)


def test_the_tokens_are_those_of_the_checkpoint_in_the_order_of_their_ids(processor):
    ids = processor.tokenizer.convert_tokens_to_ids(list(GROUNDING_TOKENS))
    assert processor.tokenizer.unk_token_id not in ids
    assert ids == sorted(ids)
    assert len(ids) == 204


@given(st.lists(phrases, min_size=1))
def test_a_sound_report_is_salvaged_whole(written):
    text = format_grounded(written)
    assert salvage_grounded(text) == (list(parse_grounded(text).phrases), 0)


@pytest.mark.parametrize(
    ("text", "words", "n_boxes", "n_stray"),
    [
        ("Clear lungs.", ["Clear lungs."], 0, 0),
        ("Clear <box>lungs.", ["Clear lungs."], 0, 1),
        ("<obj>Effusion", ["Effusion"], 0, 1),
        ("<obj>A<obj>B</obj>", ["A", "B"], 0, 1),
        ("before<obj>A</obj>between<obj>B</obj>", ["A", "B"], 0, 0),
        ("<obj>A<box><x1><y1><x2></box></obj>", ["A"], 0, 5),
        ("<obj>A<box><x5><y1><x2><y3></box></obj>", ["A"], 1, 0),
        ("<obj>A<box><x1><y1><x2><y100></box></obj>", ["A<y100>"], 0, 5),
        ("<obj>A<box><x1><y1><x2><y3></box><box>?</box></obj>", ["A?"], 1, 2),
    ],
)
def test_broken_reports_are_salvaged_and_what_does_not_fit_is_counted(text, words, n_boxes, n_stray):
    read, counted = salvage_grounded(text)
    assert [phrase.text for phrase in read] == words
    assert sum(len(phrase.boxes) for phrase in read) == n_boxes
    assert counted == n_stray


def test_a_box_is_mapped_back_by_the_crops_offset():
    # 300 x 100: the centre square spans x from 100 to 200.
    assert Box(0.0, 0.0, 1.0, 1.0).on_original(300, 100).to_pixels(300, 100) == pytest.approx((100, 0, 200, 100))
    # 100 x 200: the centre square spans y from 50 to 150.
    assert Box(0.5, 0.25, 1.0, 0.5).on_original(100, 200).to_pixels(100, 200) == pytest.approx((50, 75, 100, 100))
    assert Box(0.1, 0.2, 0.3, 0.4).on_original(77, 77).to_pixels(1, 1) == pytest.approx((0.1, 0.2, 0.3, 0.4))


@pytest.mark.parametrize("size", [(210, 140), (140, 210), (301, 173)])
def test_a_box_on_the_models_image_lands_on_the_same_thing_in_the_original(processor, size):
    """A bright square is found in the model's pixels and mapped back onto the original."""
    width, height = size
    original = np.zeros((height, width), np.uint8)
    left, top, side = width // 2 - 10, height // 2 + 5, 30
    original[top : top + side, left : left + side] = 255
    pixels = processor.image_processor(Image.fromarray(original), return_tensors="np")["pixel_values"][0][0]
    rows, columns = np.nonzero(pixels > pixels.mean())
    seen = Box(columns.min() / 70, rows.min() / 70, (columns.max() + 1) / 70, (rows.max() + 1) / 70)
    mapped = seen.on_original(width, height).to_pixels(width, height)
    model_pixel = min(size) / 70
    assert mapped == pytest.approx((left, top, left + side, top + side), abs=1.5 * model_pixel)
