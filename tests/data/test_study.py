"""Study and its parts: lazy, picklable, strict about what cannot be, and light to import."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sae_lens_maira.data import Box, FileImage, Label, LazyImage, SentenceLabel, Study


def test_a_file_image_is_opened_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "frontal.png"
    image = FileImage(path)  # the file does not exist yet
    with pytest.raises(FileNotFoundError):
        image.open()
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(np.asarray(image.open()), pixels)


def test_an_opened_file_image_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "frontal.png"
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(path)
    opened = FileImage(path).open()
    path.unlink()
    assert np.asarray(opened).tolist() == [[7, 7], [7, 7]]


def test_a_study_survives_pickling_with_all_its_fields(tmp_path: Path) -> None:
    study = Study(
        study_id="s1",
        patient_id="p1",
        frontal=FileImage(tmp_path / "f.png"),
        prior_frontal=FileImage(tmp_path / "p.png"),
        prior_report="Clear.",
        findings="No effusion.",
        labels={"effusion": Label("absent", "removed")},
        sentences=(SentenceLabel(0, 12, {"effusion": Label("absent")}, (Box(0.1, 0.2, 0.3, 0.4),)),),
        view="AP",
        shareable=True,
    )
    again = pickle.loads(pickle.dumps(study))
    assert again == study
    assert again.labels["effusion"] == ("absent", "removed")


def test_a_study_is_not_shareable_unless_its_source_says_so(tmp_path: Path) -> None:
    assert not Study("s", "p", FileImage(tmp_path / "f.png")).shareable


def test_images_and_texts_are_those_that_there_are_in_order(tmp_path: Path) -> None:
    frontal, prior = FileImage(tmp_path / "f.png"), FileImage(tmp_path / "p.png")
    study = Study("s", "p", frontal, prior_frontal=prior, findings="Clear.", indication="Cough.", technique="")
    assert list(study.images.items()) == [("frontal", frontal), ("prior_frontal", prior)]
    assert list(study.texts.items()) == [("indication", "Cough."), ("findings", "Clear.")]


def test_a_study_may_have_a_prior_report_alone(tmp_path: Path) -> None:
    study = Study("s", "p", FileImage(tmp_path / "f.png"), prior_report="Clear.")
    assert study.texts == {"prior_report": "Clear."}


@pytest.mark.parametrize(("start", "end"), [(0, 13), (5, 5), (-1, 3)])
def test_a_sentence_span_outside_of_the_findings_is_refused(tmp_path: Path, start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"sentence span {start}:{end} lies outside of findings of 12 characters"):
        Study(
            "s", "p", FileImage(tmp_path / "f.png"), findings="No effusion.", sentences=(SentenceLabel(start, end, {}),)
        )


def test_uncertain_counts_as_positive_and_absent_does_not() -> None:
    assert [Label(presence).positive for presence in ("present", "uncertain", "absent")] == [True, True, False]


def test_anything_with_open_is_a_lazy_image(tmp_path: Path) -> None:
    assert isinstance(FileImage(tmp_path), LazyImage)
    assert not isinstance("frontal.png", LazyImage)


HEAVY = {
    "sae_lens_maira.data": ["numpy", "PIL", "torch", "transformers"],
    "sae_lens_maira.phantom": ["PIL", "torch", "transformers", "tokenizers"],
}


@pytest.mark.parametrize("module", HEAVY)
def test_importing_studies_is_light_and_silent(module: str) -> None:
    program = f"import sys, {module}\nprint([name for name in {HEAVY[module]} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")
