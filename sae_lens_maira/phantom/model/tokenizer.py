"""A small tokenizer of Llama's make, trained on the phantom's own text.

1. Byte-pair merges are learned within words; a word carries its leading space as ``▁``, as in Llama's SentencePiece.
2. Bytes are the fallback, so no text is unknown.
3. MAIRA-2's special tokens follow: ``<obj> </obj> <box> </box> <x0>..<x99> <y0>..<y99> <image>``. As in the official
   checkpoint, transformers treats only ``<image>`` as special: the others must survive decoding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sae_lens_maira.maira2.grounding import GROUNDING_TOKENS

IMAGE_TOKEN = "<image>"
_BYTES = [f"<0x{value:02X}>" for value in range(256)]

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
"""Built like MAIRA-2's. The generation prompt ends without a space, because an answer starts with one."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Learn a vocabulary from texts.

    Args:
        texts: to learn from.
        vocab_size: entries, bytes included; MAIRA-2's special tokens come on top.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.normalizer = spaces
    # Merges stay within words while learning; when encoding nothing is split beforehand, as in Llama's tokenizer.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>", *_BYTES], show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts, trainer)

    # The trainer took the bytes as special tokens to give them ids; kept as such, they would be matched in text.
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
    final.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    final.add_tokens([AddedToken(token, normalized=False) for token in GROUNDING_TOKENS])
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
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
