"""The tokenizer is of Llama's make, with MAIRA-2's special tokens."""

import pytest
from transformers import PreTrainedTokenizerFast

from sae_lens_maira.phantom.model.tokenizer import train_tokenizer
from sae_lens_maira.phantom.training.train import corpus


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(corpus(0, n_studies=200))


def test_special_tokens_are_one_token_each_and_pad_is_zero(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = ["<obj>", "</obj>", "<box>", "</box>", "<image>", *(f"<{axis}{k}>" for axis in "xy" for k in range(100))]
    ids = [tokenizer(token, add_special_tokens=False).input_ids for token in tokens]
    assert all(len(own) <= 2 for own in ids)  # a lone token may be led by the space that starts a text
    last = [own[-1] for own in ids]
    assert [tokenizer.convert_ids_to_tokens(i) for i in last] == tokens
    assert len(set(last)) == 205
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 1024 + 205


def test_any_text_survives_and_only_image_is_dropped_with_the_special_tokens(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    for text in (
        "There is a small right pleural effusion.",
        "Größe: 5 µm, naïve 肺 <0x41>",
    ):
        ids = tokenizer(text).input_ids
        assert str(tokenizer.decode(ids, skip_special_tokens=True)).strip() == text
    tagged = tokenizer("<obj>A.<box><x1><y2></box></s>").input_ids
    assert tokenizer.decode(tagged, skip_special_tokens=True) == "<obj> A.<box><x1><y2></box>"  # Llama's space
    ids = tokenizer("<image> A.</s>").input_ids
    assert "image" not in tokenizer.decode(ids, skip_special_tokens=True)


def test_words_carry_their_space_and_no_merge_spans_two_words(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = tokenizer.get_vocab()
    assert "▁effusion" in vocabulary
    assert not [token for token in vocabulary if "▁" in token[1:]]


def test_the_answer_is_tokenized_as_it_will_be_generated(tokenizer: PreTrainedTokenizerFast) -> None:
    def render(messages: list[dict], *, generate: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))

    user = {"role": "user", "content": [{"type": "text", "text": "Given"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "There is edema."}]}
    prompt, whole = render([user], generate=True), render([user, answer], generate=False)
    assert whole == prompt + " There is edema.</s>"
    prompt_ids, whole_ids = tokenizer(prompt).input_ids, tokenizer(whole).input_ids
    assert whole_ids[: len(prompt_ids)] == prompt_ids
