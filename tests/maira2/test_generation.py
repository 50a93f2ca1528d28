"""Generation with several images per prompt: beams, several answers, caches, compiled steps."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import CompileConfig

from sae_lens_maira.errors import PromptError
from sae_lens_maira.maira2 import FindingsPrompt

N_NEW = 5


@pytest.fixture(scope="module")
def prompts():
    """Prompts with one, two and three images, all different."""
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 255, (70, 70), dtype=np.uint8) for _ in range(6)]
    return [
        FindingsPrompt(images[0], images[1], indication="Fever."),
        FindingsPrompt(images[2]),
        FindingsPrompt(images[3], images[4], images[5], prior_report="Small effusion."),
    ]


@torch.no_grad()
def log_probability(model, inputs, answer):
    """Of an answer to one prompt, teacher-forced in a single forward pass."""
    ids = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0]
    n_prompt = inputs["input_ids"].shape[1]
    steps = logits[n_prompt - 1 : -1].log_softmax(dim=-1)
    return steps.gather(1, answer[:, None]).sum().item()


def beam_search(model, inputs, n_returned):
    return model.generate(
        **inputs,
        num_beams=3,
        num_return_sequences=n_returned,
        length_penalty=0.0,
        min_new_tokens=N_NEW,
        max_new_tokens=N_NEW,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )


@pytest.mark.parametrize("n_returned", [1, 3])
def test_a_beams_score_is_the_answers_own(tiny_model, processor, prompts, n_returned):
    """Without a length penalty, a beam's score is the sum of its tokens' log probabilities."""
    for batch in (prompts, prompts[:1], prompts[:2], prompts[2:]):
        inputs = processor(batch)
        output = beam_search(tiny_model, inputs, n_returned)
        answers = output.sequences[:, inputs["input_ids"].shape[1] :]
        assert len(answers) == n_returned * len(batch)
        for row, (answer, score) in enumerate(zip(answers, output.sequences_scores.tolist(), strict=True)):
            own = log_probability(tiny_model, processor(batch[row // n_returned]), answer)
            assert score == pytest.approx(own, abs=1e-3)


def test_the_score_would_tell_if_images_were_exchanged(tiny_model, processor, prompts):
    """The check above can fail: with the images in another order the answer has another probability."""
    inputs = processor(prompts[0])
    answer = beam_search(tiny_model, inputs, 1).sequences[0, inputs["input_ids"].shape[1] :]
    own = log_probability(tiny_model, inputs, answer)
    inputs["pixel_values"] = inputs["pixel_values"].flip(0)
    assert abs(log_probability(tiny_model, inputs, answer) - own) > 0.01


def test_beams_of_a_batch_are_those_of_each_prompt_alone(tiny_model, processor, prompts):
    inputs = processor(prompts)
    together = beam_search(tiny_model, inputs, 2).sequences[:, inputs["input_ids"].shape[1] :]
    for row, prompt in enumerate(prompts):
        alone = processor(prompt)
        expected = beam_search(tiny_model, alone, 2).sequences[:, alone["input_ids"].shape[1] :]
        assert torch.equal(together[2 * row : 2 * row + 2], expected)


@torch.no_grad()
def test_sampled_answers_to_a_prompt_all_read_its_own_images(tiny_model, processor, prompts):
    inputs = processor(prompts)
    output = tiny_model.generate(
        **inputs,
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = tiny_model(**inputs).logits[:, -1].repeat_interleave(3, dim=0)
    assert (output.logits[0] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_beams_from_embeddings_read_the_same_images(tiny_model, processor, prompts):
    inputs = processor(prompts[:2])
    expected = beam_search(tiny_model, inputs, 1).sequences[:, inputs["input_ids"].shape[1] :]
    embedded = {
        "inputs_embeds": tiny_model.get_input_embeddings()(inputs["input_ids"]).detach(),
        "attention_mask": inputs["attention_mask"],
        "pixel_values": inputs["pixel_values"],
    }
    assert torch.equal(beam_search(tiny_model, embedded, 1).sequences, expected)


def test_more_images_than_placeholders_are_refused(tiny_model, processor, prompts):
    inputs = processor(prompts[0])
    inputs["pixel_values"] = inputs["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(PromptError, match=r"placeholders for 2 images, but there are 4"):
        beam_search(tiny_model, inputs, 1)


def greedy(model, inputs, **kwargs):
    return model.generate(**inputs, do_sample=False, max_new_tokens=N_NEW, min_new_tokens=N_NEW, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
    ids=["no cache", "static"],
)
def test_every_cache_gives_the_same_tokens(tiny_model, processor, prompts, kwargs):
    inputs = processor(prompts)
    assert torch.equal(greedy(tiny_model, inputs, **kwargs), greedy(tiny_model, inputs))


def test_guessed_tokens_are_checked_and_change_nothing(tiny_model, processor, prompts):
    inputs = processor(prompts[0])
    assert torch.equal(greedy(tiny_model, inputs, prompt_lookup_num_tokens=3), greedy(tiny_model, inputs))


def test_a_model_can_assist_itself(tiny_model, processor, prompts):
    inputs = processor(prompts[2])
    assert torch.equal(greedy(tiny_model, inputs, assistant_model=tiny_model), greedy(tiny_model, inputs))


def test_a_decoding_step_with_a_static_cache_is_one_graph(tiny_model, processor, prompts):
    """``fullgraph`` makes any break of the graph an error."""
    torch.compiler.reset()
    inputs = processor(prompts[:2])
    options: Any = {"fullgraph": True, "backend": "eager", "mode": None}
    config: Any = CompileConfig(**options)
    config._compile_all_devices = True
    try:
        compiled = greedy(tiny_model, inputs, cache_implementation="static", compile_config=config)
        assert hasattr(tiny_model, "_compiled_call")
    finally:
        tiny_model.__dict__.pop("_compiled_call", None)
        torch.compiler.reset()
    assert torch.equal(compiled, greedy(tiny_model, inputs))


def test_a_static_cache_longer_than_the_model_is_refused(tiny_model, processor, prompts):
    inputs = processor(prompts[1])
    with pytest.raises(PromptError, match=r"room for \d+ tokens but the model has 6144 positions; ask for fewer"):
        tiny_model.generate(**inputs, cache_implementation="static", max_new_tokens=7000)
