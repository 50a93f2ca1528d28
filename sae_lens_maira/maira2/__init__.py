"""MAIRA-2, native: configuration, model and processor for transformers 4.56 and 5.x, without remote code.

::

    configuration   Maira2Config: sizes, and the one spelling of config.json that both stacks read
    modeling        Maira2ForConditionalGeneration: LLaVA with a Dinov2 backbone and a deep projector
    generation      repeats images for beams, refuses inputs that are too long
    checkpoint      checks a checkpoint; each error is one sentence
    images          any radiograph to 8-bit gray, stretched and cropped to the model's square
    prompts         FindingsPrompt, PhraseGroundingPrompt, TokenKind: the words MAIRA-2 was trained on
    tokenization    prompts to text, and text to the kind of every token
    plain_text      texts with placeholders, as transformers' chats and pipelines pass them
    padding         rows of different lengths as one batch
    processing      Maira2Processor: prompts to model inputs, model output to text
    grounding       parse_grounded: sentences with boxes, from output that may be malformed

Importing this package registers the classes with transformers' Auto classes; ``sae_lens_maira`` imports it as soon as
transformers is imported.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from sae_lens_maira.data.study import Box, TokenKind
from sae_lens_maira.errors import CheckpointError, ImageError
from sae_lens_maira.maira2.configuration import Maira2Config
from sae_lens_maira.maira2.grounding import (
    GroundedPhrase,
    GroundedReport,
    format_grounded,
    parse_grounded,
)
from sae_lens_maira.maira2.images import ImageLike, to_stretched_gray
from sae_lens_maira.maira2.modeling import (
    Maira2ForConditionalGeneration,
    Maira2Model,
    register_checkpoint_layout,
)
from sae_lens_maira.maira2.processing import Maira2Processor
from sae_lens_maira.maira2.prompts import FindingsPrompt, PhraseGroundingPrompt, Prompt

AutoConfig.register(Maira2Config.model_type, Maira2Config, exist_ok=True)
AutoModel.register(Maira2Config, Maira2Model, exist_ok=True)
AutoModelForImageTextToText.register(Maira2Config, Maira2ForConditionalGeneration, exist_ok=True)
AutoProcessor.register(Maira2Config, Maira2Processor, exist_ok=True)
register_checkpoint_layout()

__all__ = [
    "Box",
    "CheckpointError",
    "FindingsPrompt",
    "GroundedPhrase",
    "GroundedReport",
    "ImageError",
    "ImageLike",
    "Maira2Config",
    "Maira2ForConditionalGeneration",
    "Maira2Model",
    "Maira2Processor",
    "PhraseGroundingPrompt",
    "Prompt",
    "TokenKind",
    "format_grounded",
    "parse_grounded",
    "to_stretched_gray",
]
