"""The processor as transformers' chats, pipelines and other libraries use it."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, pipeline

from sae_lens_maira.errors import ImageError, PromptError
from sae_lens_maira.maira2 import FindingsPrompt, Maira2Processor


@pytest.fixture
def prompt(frontal, lateral):
    return FindingsPrompt(frontal, lateral, indication="Fever.")


def chat(prompt):
    """The prompt's pieces as a chat of transformers, the images as paths."""
    content = [
        {"type": "image", "image": str(piece.image)}
        if hasattr(piece, "image")
        else {"type": "text", "text": "".join(part.text for part in piece)}
        for piece in prompt.pieces()
    ]
    return [{"role": "user", "content": content}]


def assert_same_inputs(found, expected):
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(found[name], expected[name]), name


def test_a_text_with_its_images_is_the_prompt(processor, prompt, frontal, lateral):
    text = processor.render(prompt).text
    for images in ([frontal, lateral], [[str(frontal), Image.open(lateral)]], (frontal, np.array(Image.open(lateral)))):
        assert_same_inputs(processor(text=text, images=images), processor(prompt))
    assert "token_kinds" not in processor(text=text, images=[frontal, lateral])


def test_texts_are_padded_like_prompts(processor, prompt, frontal, lateral):
    other = FindingsPrompt(frontal)
    texts = [processor.render(one).text for one in (prompt, other)]
    for images in ([frontal, lateral, frontal], [[frontal, lateral], [frontal]]):
        assert_same_inputs(processor(text=texts, images=images), processor([prompt, other]))
    right = processor(text=texts, images=[frontal, lateral, frontal], padding_side="right")
    assert_same_inputs(right, processor([prompt, other], padding_side="right"))


def test_a_text_without_images_has_no_pixels(processor):
    inputs = processor(text="Clear lungs.")
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"][0].tolist() == processor.tokenizer("Clear lungs.")["input_ids"]
    bare = processor(text="Clear lungs.", add_special_tokens=False)
    assert bare["input_ids"][0].tolist() == inputs["input_ids"][0].tolist()[1:]


def test_an_image_may_be_a_data_url(processor, frontal):
    url = "data:image/png;base64," + base64.b64encode(frontal.read_bytes()).decode()
    expected = processor(text="<image>", images=frontal)
    assert_same_inputs(processor(text="<image>", images=url), expected)
    with pytest.raises(ImageError, match="data URL is not valid base64"):
        processor(text="<image>", images="data:image/png;base64,???")
    with pytest.raises(ImageError, match=r"'https://x/a\.png' is a web address; download it"):
        processor(text="<image>", images="https://x/a.png")


def test_a_chat_is_the_prompt(processor, prompt):
    inputs = processor.apply_chat_template(
        chat(prompt), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert_same_inputs(inputs, processor(prompt))
    ids = processor.apply_chat_template(chat(prompt), add_generation_prompt=True, tokenize=True)
    assert torch.equal(torch.as_tensor(ids), processor(prompt)["input_ids"])
    text = processor.apply_chat_template(chat(prompt), add_generation_prompt=True)
    assert text == processor.render(prompt).text


def test_several_chats_are_a_batch(processor, prompt, frontal):
    prompts = [prompt, FindingsPrompt(frontal)]
    inputs = processor.apply_chat_template(
        [chat(one) for one in prompts], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert_same_inputs(inputs, processor(prompts))


@pytest.fixture(params=["objects", "folder"])
def generate(request, tiny_model, processor, checkpoint_path):
    if request.param == "folder":
        return pipeline("image-text-to-text", model=str(checkpoint_path))
    return pipeline("image-text-to-text", model=tiny_model, processor=processor)


def test_the_pipeline_answers_chats_and_texts(generate, tiny_model, processor, prompt, frontal, lateral):
    inputs = processor(prompt)
    output = tiny_model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = processor.decode_reports(output, inputs["input_ids"])[0]
    assert expected
    options = {"return_full_text": False, "generate_kwargs": {"max_new_tokens": 6, "do_sample": False}}
    (answer,) = generate(text=chat(prompt), **options)
    assert answer["generated_text"].strip() == expected
    (answer,) = generate(images=[str(frontal), str(lateral)], text=processor.render(prompt).text, **options)
    assert answer["generated_text"].strip() == expected


# What is refused.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "Describe the image.",
            "A prompt is a str; expected a FindingsPrompt or a PhraseGroundingPrompt, or else a ",
        ),
        (["Describe"], "A prompt is a str;"),
        ({"frontal": "x.png"}, "A prompt is a dict;"),
        (None, "Give either prompts, or text= with its images="),
    ],
)
def test_what_is_no_prompt_is_refused(processor, wrong, message):
    with pytest.raises(PromptError, match=message):
        processor(wrong)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"truncation": True}, "A prompt cannot be truncated; shorten a section"),
        ({"truncation": "longest_first"}, "A prompt cannot be truncated"),
        ({"max_length": 10}, r"A prompt has \d+ tokens, more than max_length 10; shorten"),
        ({"padding": "max_length"}, "padding='max_length' needs max_length"),
        ({"padding": "longset"}, "padding='longset' is unknown"),
        ({"padding": False}, r"The prompts have \d+ to \d+ tokens; padding=True"),
        ({"return_tensors": "tf"}, "leave return_tensors='tf' out"),
        ({"videos": ["x.mp4"]}, "MAIRA-2 takes no videos"),
        ({"images": ["x.png"]}, "images= and add_special_tokens= belong to text="),
        ({"text": "x"}, "Give either prompts, or text="),
    ],
)
def test_an_argument_that_cannot_be_honored_is_refused(processor, prompt, frontal, kwargs, message):
    with pytest.raises(PromptError, match=message):
        processor([prompt, FindingsPrompt(frontal)], **kwargs)


def test_a_misspelt_argument_is_refused(processor, prompt):
    with pytest.raises(TypeError, match="trunction"):
        processor(prompt, trunction=True)


def test_padding_to_a_length_is_honored(processor, prompt):
    plain = processor(prompt)
    n_tokens = plain["input_ids"].shape[1]
    padded = processor(prompt, padding="max_length", max_length=n_tokens + 7)
    assert padded["input_ids"].shape[1] == n_tokens + 7
    assert (padded["attention_mask"].sum(), padded["attention_mask"][0, 6]) == (n_tokens, 0)
    assert torch.equal(padded["input_ids"][:, 7:], plain["input_ids"])
    assert processor(prompt, padding=False)["input_ids"].shape[1] == n_tokens


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("<image> <image>", 1, "The text has 2 placeholders <image>, but there are 1 images"),
        ("none", 1, "The text has 0 placeholders"),
        (["<image>", "<image>"], 3, "All texts together have 2 placeholders <image>, but there are 3 images"),
        ([3], 0, "A text is a int; expected a string"),
        ([], 0, "There is no text"),
    ],
)
def test_images_that_do_not_fit_the_text_are_refused(processor, frontal, text, images, message):
    with pytest.raises(PromptError, match=message):
        processor(text=text, images=[frontal] * images)


def test_images_in_the_list_of_another_text_are_refused(processor, frontal):
    with pytest.raises(PromptError, match="Text 0 has 1 placeholders <image>, but there are 2 images"):
        processor(text=["<image>", "<image>"], images=[[frontal, frontal], []])


# Other libraries.


def test_input_names_are_those_of_the_inputs(processor, prompt):
    assert set(processor.model_input_names) == set(processor(prompt))


def test_the_number_of_image_tokens_is_told_before_any_image_is_opened(processor, frontal):
    told = processor._get_num_multimodal_tokens(image_sizes=[(70, 70), (3000, 2500)])
    assert told.num_image_tokens == [25, 25]
    assert told.num_image_patches == [1, 1]
    assert (processor(text="<image>", images=frontal)["input_ids"] == processor.image_token_id).sum() == 25


def test_what_is_loaded_is_typed_and_whole(checkpoint_path):
    for loaded in (Maira2Processor.from_pretrained(checkpoint_path), AutoProcessor.from_pretrained(checkpoint_path)):
        assert type(loaded) is Maira2Processor
    with pytest.raises(TypeError, match="patch_sise"):
        Maira2Processor(loaded.image_processor, loaded.tokenizer, patch_sise=14)  # pyright: ignore[reportCallIssue]


class RecordingApi:
    """Stands in for ``huggingface_hub.HfApi``; nothing leaves the machine."""

    calls: list = []  # noqa: RUF012

    def __init__(self, token=None):
        self.calls.append(("api", token))

    def create_repo(self, repo_id, **kwargs):
        self.calls.append(("create", repo_id, kwargs))
        return type("Url", (), {"repo_id": f"me/{repo_id}"})

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **kwargs):
        content = {name: (folder_path / name).read_text(encoding="utf-8") for name in allow_patterns}
        self.calls.append(("upload", repo_id, content, kwargs))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("sae_lens_maira.maira2.processor_files.HfApi", RecordingApi)
    monkeypatch.setattr(RecordingApi, "calls", [])
    return RecordingApi.calls


def test_saving_pushes_only_when_asked(processor, tmp_path, hub):
    processor.save_pretrained(tmp_path / "mine")
    assert hub == []
    (tmp_path / "mine" / "notes.txt").write_text("private")
    paths = processor.save_pretrained(tmp_path / "mine", push_to_hub=True, token="t", private=True)
    api, create, upload = hub
    assert api == ("api", "t")
    assert create == ("create", "mine", {"private": True, "exist_ok": True})
    assert upload[1] == "me/mine"
    assert sorted(upload[2]) == sorted(path.rsplit("/", 1)[1] for path in paths)
    assert json.loads(upload[2]["processor_config.json"])["processor_class"] == "Maira2Processor"
    with pytest.raises(TypeError, match="commit_mesage"):
        processor.save_pretrained(tmp_path, push_to_hub=True, commit_mesage="x")
    with pytest.raises(PromptError, match="safe_serialization can only be given with push_to_hub=True"):
        processor.save_pretrained(tmp_path, safe_serialization=True)


def test_push_to_hub_pushes(processor, hub):
    assert processor.push_to_hub("maira", commit_message="First") == "me/maira"
    assert hub[-1][3]["commit_message"] == "First"
    assert "tokenizer.json" in hub[-1][2]


def test_bytes_are_an_image(processor, frontal):
    buffer = io.BytesIO()
    Image.open(frontal).save(buffer, "png")
    expected = processor(FindingsPrompt(frontal))["pixel_values"]
    assert torch.equal(processor(FindingsPrompt(buffer.getvalue()))["pixel_values"], expected)
