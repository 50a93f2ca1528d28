"""A small tokenizer of Llama's make, trained on the phantom's own text.

1. Byte-pair merges are learnt within words; a word carries its leading space as `▁`, as in Llama's SentencePiece.
2. Bytes are the fallback, so no text is unknown.
3. MAIRA-2's special tokens follow: `<obj> </obj> <box> </box> <x0>..<x99> <y0>..<y99> <image>`. As in the official
   checkpoint only `<image>` is "special" to transformers: the others must survive decoding.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

N_COORDINATE_BINS = 100
IMAGE_TOKEN = "<image>"
_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_GROUNDING = ["<obj>", "</obj>", "<box>", "</box>"]

CHAT_TEMPLATE = (
    "{{ 'A radiology assistant describes a phantom study.' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' USER: ' }}{% else %}{{ ' ASSISTANT: ' }}{% endif %}"
    "{% for c in message['content'] %}{% if c['type'] == 'image' %}{{ ' <image>' }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
"""Shaped as MAIRA-2's. The generation prompt has no closing space: an answer starts with one."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of `vocab_size` entries, bytes included and MAIRA-2's special tokens on top, from `texts`."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.normalizer = spaces
    # Only while learning: merges stay within words. Encoding splits nothing, as in Llama's tokenizer.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>", *_BYTES], show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts, trainer)

    # Bytes were "special" to the trainer only to get their ids; as added tokens they would be matched in text.
    model = models.BPE(
        vocab=tokenizer.get_vocab(),
        merges=_merges(tokenizer),
        byte_fallback=True,
        fuse_unk=True,
        unk_token="<unk>",
    )
    final = Tokenizer(model)
    final.normalizer = spaces
    final.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    final.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    coordinates = [f"<{axis}{k}>" for axis in "xy" for k in range(N_COORDINATE_BINS)]
    final.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    final.add_tokens([AddedToken(token, normalized=False) for token in (*_GROUNDING, *coordinates)])
    final.add_special_tokens([AddedToken(IMAGE_TOKEN, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=final,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        additional_special_tokens=[IMAGE_TOKEN],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
