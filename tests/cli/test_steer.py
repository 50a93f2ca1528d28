"""``sae-lens-maira steer``: one report side by side, the plan of an experiment, and how it says no."""

import json

import pytest
import yaml

from sae_lens_maira.cli.main import main
from sae_lens_maira.cli.steer import side_by_side
from tests.steered_sae import D_SAE, HOOK, make_sae

TRAINING = {
    "hook_name": HOOK,
    "context_size": 64,
    "sae": {"architecture": "standard", "d_sae": D_SAE},
    "source": {"kind": "phantom", "n_studies": 3, "seed": 5, "n_held_out": 0},
}
QUICK = ["--n_strength", "1", "--max_new_tokens", "6"]


@pytest.fixture(scope="module")
def sae_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saes") / "small"
    make_sae(160).save_model(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(TRAINING))
    return folder


def test_both_reports_are_shown_and_recorded(sae_path, tmp_path, capsys):
    record = tmp_path / "record.json"
    given = ["steer", str(sae_path), "--feature", "3", "--dose", "2", "--study", "1", "--record", str(record), *QUICK]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "study phantom-5-000001; where: everywhere;" in shown
    assert "unsteered" in shown
    values = json.loads(record.read_text())
    assert [feature["index"] for feature in values["features"]] == [3]
    assert values["n_completion_tokens"] == 6


def test_an_experiment_is_told_beforehand_and_nothing_is_written(sae_path, tmp_path, capsys):
    sizes = {"n_choice": 1, "n_tried": 1, "n_dose": 1, "n_test": 2, "n_controls": 1, "n_removal": 1, "n_prompt": 1}
    config = {"concepts": ["pacemaker"], "doses": [1.0], "n_candidates": 1, "max_latents": 2, **sizes}
    path, out = tmp_path / "steer.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(config))
    assert main(["steer", str(sae_path), "--config", str(path), "--out", str(out), "--dry-run", *QUICK]) == 0
    # try: 1 latent, 2 groups and 1 random; dose: 2 + 2 + 1 + 1; test: 3 x 2; 6 controls; removal: 6; prompt: 1.
    assert capsys.readouterr().out.startswith(
        "At most 29 reports (try 4, dose 6, test 6, controls 6, removal 6, prompt 1): about "
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "Give --feature and --dose to steer one report, or --out for an experiment."),
        (["--feature", "3", "--out", "x"], "--out is for an experiment"),
        (["--feature", "1", "2", "--dose", "1", "2", "3"], "There are 2 features and 3 doses; give one each."),
        (
            ["--feature", "99", *QUICK],
            f"There is no latent 99 in the SAE at '{HOOK}'; it has latents 0 to {D_SAE - 1}.",
        ),
        (["--feature", "3", "--dose", "nan", *QUICK], "The dose of latent 3 is nan; give a finite number."),
        (["--feature", "3", "--study", "7", *QUICK], "There is no study 7; the source has 3."),
        (
            ["--feature", "3", "--where.include", "images", "--where.exclude", "images", *QUICK],
            "where: images without images selects nothing in study 'phantom-5-000000'",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(sae_path, given, message, capsys):
    assert main(["steer", str(sae_path), *given]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line and "Loading weights" not in line]
    assert len(said) == 1
    assert message in said[0]


def test_a_folder_without_an_sae_is_refused(tmp_path, capsys):
    assert main(["steer", str(tmp_path), "--feature", "3"]) == 2
    assert "which says what model the SAE reads; give --training." in capsys.readouterr().err


def test_what_changed_is_marked_and_control_characters_are_escaped():
    text = side_by_side("The heart is enlarged. No edema.", "The heart is enlarged. A \x1b[31mpacemaker is seen.", 60)
    lines = text.splitlines()
    assert lines[0].split() == ["unsteered", "|", "steered"]
    assert "- No edema." in lines
    assert "+ A \\x1b[31mpacemaker is seen." in lines
    assert "- The heart is enlarged." not in lines
    assert side_by_side("Same.", "Same.", 60).endswith("no sentence changed\n")
