"""Token kinds, batches, saving and decoding."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor

from sae_lens_maira.data.study import TokenKind
from sae_lens_maira.maira2 import FindingsPrompt, Maira2Processor, PhraseGroundingPrompt

SECTION_KINDS = {
    "indication": TokenKind.INDICATION,
    "technique": TokenKind.TECHNIQUE,
    "comparison": TokenKind.COMPARISON,
    "prior_report": TokenKind.PRIOR_REPORT,
    "assistant_text": TokenKind.FINDINGS,
}
words = st.text(alphabet="abcdefghij KLM.,:;_-0123456789éµ√", min_size=1, max_size=40).filter(
    lambda text: text.strip() == text
)


def text_of_kind(processor, inputs, kind, row=0):
    ids = inputs["input_ids"][row][inputs["token_kinds"][row] == kind]
    return processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.fixed_dictionaries(dict.fromkeys(SECTION_KINDS, words)))
def test_tokens_of_a_kind_spell_the_section(processor, frontal, lateral, prior, texts):
    inputs = processor(FindingsPrompt(frontal, lateral, prior, **texts))
    for name, kind in SECTION_KINDS.items():
        assert text_of_kind(processor, inputs, kind) == texts[name]
    kinds = inputs["token_kinds"][0]
    for image_kind in (TokenKind.FRONTAL_IMAGE, TokenKind.LATERAL_IMAGE, TokenKind.PRIOR_IMAGE):
        positions = (kinds == image_kind).nonzero().flatten()
        assert len(positions) == processor.n_image_tokens
        assert (positions.diff() == 1).all()
        assert (inputs["input_ids"][0][positions] == processor.image_token_id).all()
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 3 * processor.n_image_tokens
    assert kinds[0] == TokenKind.TEMPLATE
    assert kinds[-1] == TokenKind.END
    assert (kinds == TokenKind.END).sum() == 1


def test_the_same_words_in_two_sections_are_told_apart(processor, frontal):
    inputs = processor(FindingsPrompt(frontal, indication="Chest pain.", technique="Chest pain."))
    kinds = inputs["token_kinds"][0]
    assert text_of_kind(processor, inputs, TokenKind.INDICATION) == "Chest pain."
    assert text_of_kind(processor, inputs, TokenKind.TECHNIQUE) == "Chest pain."
    assert (kinds == TokenKind.INDICATION).nonzero().max() < (kinds == TokenKind.TECHNIQUE).nonzero().min()


def test_an_empty_section_is_its_placeholder(processor, frontal):
    inputs = processor(FindingsPrompt(frontal))
    assert text_of_kind(processor, inputs, TokenKind.COMPARISON) == "N/A"


def test_the_phrase_to_locate_has_its_own_kind(processor, frontal):
    inputs = processor(PhraseGroundingPrompt(frontal, "Left effusion.", assistant_text="<obj>Left effusion.</obj>"))
    assert text_of_kind(processor, inputs, TokenKind.PHRASE) == "Left effusion."
    # The tokenizer puts a space before any text that follows an added token.
    assert text_of_kind(processor, inputs, TokenKind.FINDINGS) == "<obj> Left effusion.</obj>"


def test_a_prompt_for_generation_has_no_findings_and_no_end(processor, frontal):
    kinds = processor(FindingsPrompt(frontal))["token_kinds"]
    assert not torch.isin(kinds, torch.tensor([TokenKind.FINDINGS, TokenKind.END, TokenKind.PAD])).any()


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_batch_gives_each_prompt_what_it_gets_alone(tiny_model, processor, frontal, lateral, prior, side):
    prompts = [
        FindingsPrompt(frontal, indication="Fever.", assistant_text="Clear."),
        FindingsPrompt(frontal, lateral, prior, prior_report="Effusion.", assistant_text="Clear lungs. No change."),
        PhraseGroundingPrompt(lateral, "Effusion", assistant_text="<obj>Effusion</obj>"),
    ]
    batch = processor(prompts, padding_side=side)
    logits = tiny_model(**batch).logits
    for row, prompt in enumerate(prompts):
        alone = processor(prompt)
        kept = batch["attention_mask"][row].bool()
        assert torch.equal(batch["input_ids"][row][kept], alone["input_ids"][0])
        assert torch.equal(batch["token_kinds"][row][kept], alone["token_kinds"][0])
        assert (batch["token_kinds"][row][~kept] == TokenKind.PAD).all()
        expected = tiny_model(**alone).logits[0]
        assert (logits[row][kept] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_batched_generation_equals_generation_alone(tiny_model, processor, frontal, lateral):
    prompts = [FindingsPrompt(frontal), FindingsPrompt(frontal, lateral, indication="Fever and cough.")]
    batch = processor(prompts)
    together = tiny_model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for row, prompt in enumerate(prompts):
        alone = processor(prompt)
        output = tiny_model.generate(**alone, max_new_tokens=6, do_sample=False)
        assert torch.equal(together[row], output[0, alone["input_ids"].shape[1] :])


def test_padding_follows_the_use(processor, frontal):
    answers = [FindingsPrompt(frontal, assistant_text=text) for text in ("Clear.", "No effusion is seen.")]
    assert processor(answers)["attention_mask"][0].tolist()[-1] == 0
    questions = [FindingsPrompt(frontal), FindingsPrompt(frontal, indication="Cough and fever.")]
    assert processor(questions)["attention_mask"][0].tolist()[0] == 0


def test_no_prompt_is_refused(processor):
    with pytest.raises(ValueError, match="no prompt"):
        processor([])


def test_a_saved_processor_gives_the_same_inputs(processor, frontal, lateral, tmp_path, tiny_model):
    tiny_model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    prompt = FindingsPrompt(frontal, lateral, indication="Fever.", assistant_text="Clear.")
    for loaded in (Maira2Processor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is Maira2Processor
        again = loaded(prompt)
        for name, expected in processor(prompt).items():
            assert torch.equal(again[name], expected)


def test_saved_settings_are_the_official_ones(processor, checkpoint_path, tmp_path):
    """The files are the official layout on both stacks, so that either reads what the other wrote."""
    processor.save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json", "chat_template.json"):
        ours = json.loads((tmp_path / name).read_text())
        official = json.loads((checkpoint_path / name).read_text())
        assert {key: ours.get(key) for key in official} == official


def test_decoding_cuts_the_prompt_and_the_leading_space(processor):
    ids = processor.tokenizer(" Clear lungs.", add_special_tokens=False, return_tensors="pt")["input_ids"]
    prompt = torch.ones(1, 3, dtype=torch.long)
    end = torch.tensor([[processor.tokenizer.eos_token_id]])
    output = torch.cat([prompt, ids, end], dim=1)
    assert processor.decode_reports(output, prompt) == ["Clear lungs."]
    assert processor.decode_reports(torch.cat([ids, end], dim=1)) == ["Clear lungs."]


def test_decoding_keeps_boxes(processor):
    text = "<obj>Effusion<box><x1><y2><x3><y4></box></obj>"
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    (report,) = processor.decode_grounded(ids)
    assert report.problems == ()
    assert [phrase.text for phrase in report.phrases] == ["Effusion"]
    assert report.phrases[0].boxes[0].to_pixels(100, 100) == pytest.approx((1.5, 2.5, 3.5, 4.5))
