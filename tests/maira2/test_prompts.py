"""Wire format, written out by hand for each kind of prompt."""

import re
from dataclasses import replace

import numpy as np
import pytest

from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.errors import PromptError
from sae_lens_maira.maira2 import FindingsPrompt, PhraseGroundingPrompt
from sae_lens_maira.maira2.grounding import GROUNDING_TOKENS
from sae_lens_maira.maira2.prompts import Prompt

START = "A reading room assistant describes a chest study.  USER: "
TASK = (
    " Provide a structured description of the findings in the radiology study in comparison to the prior frontal image."
)
EMPTY = " INDICATION: N/A TECHNIQUE: N/A COMPARISON: N/A"
GROUNDING = (
    " Each finding should be described as a self-contained plain-text sentence. If the finding is groundable, locate "
    "the finding in the current frontal chest X-ray image, with bounding boxes indicating all locations where it can "
    "be seen in the current frontal image. Otherwise, generate just the ungrounded finding without bounding boxes."
)


def test_frontal_alone_with_empty_sections(processor, frontal):
    for empty in (None, ""):
        prompt = FindingsPrompt(frontal, indication=empty, technique=empty, comparison=empty)
        assert processor.render(prompt).text == (
            f"{START}Given the current frontal image only <image>{TASK}{EMPTY} ASSISTANT: "
        )


def test_frontal_and_lateral(processor, frontal, lateral):
    assert processor.render(FindingsPrompt(frontal, lateral)).text == (
        f"{START}Given the current frontal image <image> and the current lateral image <image>{TASK}{EMPTY} ASSISTANT: "
    )


def test_frontal_and_prior_with_its_report(processor, frontal, prior):
    prompt = FindingsPrompt(frontal, prior=prior, prior_report="Small effusion.", comparison="Prior day.")
    assert processor.render(prompt).text == (
        f"{START}Given the current frontal image <image> and the prior frontal image <image> PRIOR_REPORT: "
        f"Small effusion.{TASK} INDICATION: N/A TECHNIQUE: N/A COMPARISON: Prior day. ASSISTANT: "
    )


def test_three_images_without_a_prior_report(processor, frontal, lateral, prior):
    assert processor.render(FindingsPrompt(frontal, lateral, prior)).text == (
        f"{START}Given the current frontal image <image> the current lateral image <image> and the prior frontal "
        f"image <image> PRIOR_REPORT: N/A{TASK}{EMPTY} ASSISTANT: "
    )


def test_a_prior_report_without_a_prior_image_is_not_written(processor, frontal):
    prompt = FindingsPrompt(frontal, prior_report="Small effusion.")
    assert "effusion" not in processor.render(prompt).text


def test_grounded_with_an_assistant_text_has_no_generation_prompt(processor, frontal):
    answer = "<obj>No pneumothorax.</obj>"
    prompt = FindingsPrompt(frontal, grounded=True, assistant_text=answer)
    assert processor.render(prompt).text == (
        f"{START}Given the current frontal image only <image>{TASK}{GROUNDING}{EMPTY} ASSISTANT: {answer}</s>"
    )


def test_phrase_grounding(processor, frontal):
    prompt = PhraseGroundingPrompt(frontal, "Left effusion.")
    assert processor.render(prompt).text == (
        f"{START}Given the current frontal image <image> Repeat the following finding as a grounded phrase with "
        "bounding boxes indicating all locations where it can be seen in the given chest X-ray image. Finding: "
        "Left effusion. ASSISTANT: "
    )


def test_the_checkpoints_own_chat_template_is_used(processor, frontal, monkeypatch):
    template = (
        "{% for message in messages %}[{{ message['role'] }}]{% for piece in message['content'] %}"
        "{% if piece['type'] == 'image' %}{image {{ piece['index'] }}}<image>{% else %}{{ piece['text'] | trim }}"
        "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    monkeypatch.setattr(processor, "chat_template", template)
    text = processor.render(FindingsPrompt(frontal)).text
    assert text == f"[user]Given the current frontal image only{{image 0}}<image>{TASK.strip()}{EMPTY}[assistant]"


def test_a_template_that_drops_text_is_refused(processor, frontal, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", "{% for message in messages %}<image>{% endfor %}")
    with pytest.raises(ValueError, match="chat template drops or changes 'Given the current frontal image only'"):
        processor.render(FindingsPrompt(frontal))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({}, "The prompt has no frontal image; MAIRA-2 always needs"),
        ({"lateral": "l.png"}, "no frontal image beside the lateral image;"),
        ({"prior": "p.png"}, "no frontal image beside the prior image;"),
        ({"lateral": "l.png", "prior": "p.png"}, "no frontal image beside the lateral and the prior image;"),
    ],
)
def test_a_prompt_without_a_frontal_image_is_refused(missing, message):
    with pytest.raises(ValueError, match=message):
        FindingsPrompt(None, **missing)  # pyright: ignore[reportArgumentType]


def test_phrase_grounding_needs_an_image_and_a_phrase(frontal):
    with pytest.raises(ValueError, match="no frontal image"):
        PhraseGroundingPrompt(None, "x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no phrase"):
        PhraseGroundingPrompt(frontal, "")


@pytest.mark.parametrize("special", ["<image>", "</s>", "<s>", "<unk>"])
def test_a_special_token_inside_a_section_is_refused(processor, frontal, special):
    with pytest.raises(ValueError, match=f"The prior report text contains the special token '{special}'"):
        processor(FindingsPrompt(frontal, prior=frontal, prior_report=f"Seen {special} before."))


@pytest.mark.parametrize("token", ["<obj>", "</box>", "<x0>", "<y99>"])
@pytest.mark.parametrize("section", ["indication", "technique", "comparison", "prior_report", "phrase"])
def test_a_grounding_token_inside_a_section_is_refused(processor, frontal, section, token):
    prompt: Prompt = PhraseGroundingPrompt(frontal, f"Seen {token}.")
    if section != "phrase":
        plain = FindingsPrompt(frontal, prior=frontal, grounded=True)
        prompt = replace(plain, **{section: f"Seen {token}."})
    name = section.replace("_", " ")
    message = f"The {name} text contains the grounding token '{token}', which only a grounded answer has"
    with pytest.raises(PromptError, match=message):
        processor.encode(prompt)


def test_grounding_tokens_belong_to_grounded_answers_only(processor, frontal):
    answer = "<obj>Effusion<box><x1><y2><x3><y4></box></obj>"
    ids, kinds = processor.encode(FindingsPrompt(frontal, grounded=True, assistant_text=answer))
    found = processor.tokenizer.convert_ids_to_tokens(ids[kinds == TokenKind.FINDINGS])
    assert [token for token in found if token.startswith("<")] == re.findall("<.*?>", answer)
    with pytest.raises(PromptError, match="The findings text contains the grounding token '<obj>'"):
        processor.encode(FindingsPrompt(frontal, assistant_text=answer))
    # What is no token stays text.
    ids, kinds = processor.encode(FindingsPrompt(frontal, indication="<x100> <object> x < y", assistant_text="Clear."))
    assert not set(ids) & set(processor.tokenizer.convert_tokens_to_ids(list(GROUNDING_TOKENS)))


@pytest.mark.parametrize("findings", ["A", "ASSISTANT:", "N/A", "T", ":", "N", "only", "A A", "INDICATION: N/A"])
def test_findings_that_are_part_of_the_template_are_found_in_their_own_place(processor, frontal, findings):
    rendered = processor.render(FindingsPrompt(frontal, assistant_text=findings))
    end = len(rendered.text) - len(processor.tokenizer.eos_token)
    expected = end - len(findings)
    assert rendered.text[expected:end] == findings
    assert np.flatnonzero(rendered.character_kinds == TokenKind.FINDINGS).tolist() == list(range(expected, end))


@pytest.mark.parametrize("text", ["TECHNIQUE:", "N/A TECHNIQUE: N/A", "COMPARISON: A", ":", "N"])
def test_sections_that_are_part_of_the_template_are_found_in_their_own_place(processor, frontal, text):
    rendered = processor.render(FindingsPrompt(frontal, indication=text, technique="A", comparison=text))
    characters = np.array(list(rendered.text))
    for kind, expected in {TokenKind.INDICATION: text, TokenKind.TECHNIQUE: "A", TokenKind.COMPARISON: text}.items():
        assert "".join(characters[rendered.character_kinds == kind]) == expected
    before, _, after = rendered.text.partition(f" INDICATION: {text} TECHNIQUE: A COMPARISON: {text}")
    start = len(before) + len(" INDICATION: ")
    assert after
    assert np.flatnonzero(rendered.character_kinds == TokenKind.INDICATION)[0] == start


@pytest.mark.parametrize("section", ["indication", "assistant_text"])
def test_half_of_a_surrogate_pair_is_refused(processor, frontal, section):
    name = "findings" if section == "assistant_text" else section
    with pytest.raises(PromptError, match=f"The {name} text holds half of a surrogate pair"):
        processor.encode(replace(FindingsPrompt(frontal), **{section: "x\ud800"}))
    with pytest.raises(PromptError, match="A text holds half of a surrogate pair"):
        processor(text="x\udfff")
