"""A whole experiment, small: controls, stopping and going on, and settings that do not fit."""

from pathlib import Path

import pytest
import torch

from sae_lens_maira.data.source import PhantomConfig
from sae_lens_maira.errors import Interrupted, ResultError, SteeringError
from sae_lens_maira.hooked.dictionary import Firing
from sae_lens_maira.phantom.source import PhantomSource
from sae_lens_maira.results import Units, read_result
from sae_lens_maira.steering import experiment as steering_experiment
from sae_lens_maira.steering.arms import matched_controls, vector_of
from sae_lens_maira.steering.run import Experiment
from sae_lens_maira.steering.settings import SteerConfig
from sae_lens_maira.steering.stages import divide
from sae_lens_maira.steering.world import PhantomWorld
from tests.steered_sae import D_SAE, HOOK

CONFIG = SteerConfig(
    concepts=("pacemaker", "nodule_left"),
    studies=PhantomConfig(n_studies=20, seed=103, n_held_out=0),
    n_choice=2,
    n_tried=1,
    n_dose=2,
    n_test=2,
    n_controls=1,
    n_removal=1,
    n_prompt=1,
    doses=(1.0, 3.0),
    n_candidates=1,
    max_latents=2,
    max_new_tokens=12,
)


@pytest.fixture
def make(model, dictionary, tmp_path):
    sae_path = tmp_path / "sae"
    dictionary.sae.save_model(sae_path)

    def plan(out: Path, config: SteerConfig = CONFIG) -> Experiment:
        units = Units(out, steering_experiment.key(sae_path, model, config))
        firing = Firing(dictionary.strengths, torch.linspace(0, 1, D_SAE))
        source = PhantomSource(20, 103)
        return Experiment(model, dictionary, firing, source, PhantomWorld(), config, units)

    return plan, sae_path


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_a_stopped_experiment_ends_in_the_same_bytes(make, tmp_path, monkeypatch):
    plan, sae_path = make
    whole = steering_experiment.run(plan(tmp_path / "whole"), sae_path, tmp_path / "whole")
    write, n_written = Units.write, 0

    def killed_later(self, name, value):
        nonlocal n_written
        n_written += 1
        if n_written % 5 == 0:
            raise ZeroDivisionError
        write(self, name, value)

    monkeypatch.setattr(Units, "write", killed_later)
    for _ in range(20):
        try:
            steering_experiment.run(plan(tmp_path / "parts"), sae_path, tmp_path / "parts")
            break
        except ZeroDivisionError:
            pass
    assert n_written > 8
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    result = read_result(tmp_path / "parts")
    arms = result.table("arms").to_pylist()
    names = {row["arm"] for row in arms if row["concept"] == "pacemaker"}
    assert names == {"latent", "latents", *CONFIG.controls} - {"prompt"}
    assert all(row["n_missed_positions"] == 0 for row in arms)
    assert result.table("removal").num_rows == 2 * 5
    assert result.table("prompt").num_rows == 2
    assert set(result.table("features").column_names) >= {"feature", "concept", "rise", "off_target", "removal"}
    assert whole.summary["figures"]["latent"]["n_concepts"] == 2
    assert (tmp_path / "whole" / "curves.svg").read_text().startswith("<?xml")


def test_ctrl_c_stops_between_studies(make, tmp_path, monkeypatch):
    plan, _ = make
    experiment = plan(tmp_path / "out")
    stages = experiment._stages
    done = []
    monkeypatch.setattr(stages, "stop", lambda: len(done) >= 1)
    values = stages.each("try", [0, 1, 2], lambda study: done.append(study) or study.study_id)
    assert next(values) == done[0].study_id
    with pytest.raises(Interrupted, match="finished studies are kept"):
        next(values)
    assert len(done) == 1


def test_other_settings_are_refused(make, tmp_path):
    plan, _ = make
    plan(tmp_path / "out")
    with pytest.raises(ResultError, match="was made with other settings"):
        plan(tmp_path / "out", SteerConfig.from_dict({**CONFIG.to_dict(), "n_test": 3}))


def test_controls_have_the_latents_norm(make, tmp_path, dictionary):
    plan, _ = make
    experiment = plan(tmp_path / "out")
    arm = experiment._arm("pacemaker", steering_proposal(5), 2.0)
    densities = torch.linspace(0, 1, D_SAE)
    controls = matched_controls(arm, dictionary, densities, "blocks.4.hook_resid_post", CONFIG.controls, 0)
    wanted = float(vector_of(arm.edits, dictionary).norm())
    assert wanted == pytest.approx(2.0 * 0.5 * 6 * float(dictionary.decoder[5].norm()))
    by_name = {own.name: own for own in controls}
    assert set(by_name) == {"wrong_sign", "random_direction", "random_latent", "permuted_decoder", "wrong_layer"}
    for own in controls:
        assert float(vector_of(own.edits, dictionary).norm()) == pytest.approx(wanted, rel=1e-4)
    torch.testing.assert_close(vector_of(by_name["wrong_sign"].edits, dictionary), -vector_of(arm.edits, dictionary))
    assert by_name["wrong_layer"].edits[0].hook == "blocks.4.hook_resid_post"
    assert by_name["random_latent"].edits[0].hook == HOOK


def steering_proposal(feature):
    from sae_lens_maira.steering.arms import Proposal

    return Proposal("latent", (feature,), (0.5,))


def test_the_three_sets_share_no_patient():
    config = SteerConfig(n_choice=5, n_tried=2, n_dose=5, n_test=10, n_controls=2, n_removal=1, n_prompt=1)
    parts = divide(PhantomSource(60, 3), config)
    assert {name: len(own) for name, own in parts.items()} == {"choice": 5, "try": 2, "dose": 5, "test": 10}
    assert len({*parts["choice"], *parts["dose"], *parts["test"]}) == 20
    assert parts["try"] == parts["choice"][:2]
    with pytest.raises(SteeringError, match=r"n_choice is 5, but only \d of the 12 studies are in that part; raise"):
        divide(PhantomSource(12, 3), config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"doses": (0.0, 1.0)}, r"doses \[0.0, 1.0\] must be positive numbers"),
        ({"n_tried": 30}, "n_tried 30 is more than n_choice 12"),
        ({"n_removal": 200}, "are taken from the n_test = 100 studies; ask for less."),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(SteeringError, match=message):
        SteerConfig(**settings)


def test_an_unknown_concept_is_named(make, tmp_path):
    plan, _ = make
    with pytest.raises(SteeringError, match="concepts has 'pacemakers', which is unknown; choose from pacemaker,"):
        plan(tmp_path / "out", SteerConfig.from_dict({**CONFIG.to_dict(), "concepts": ["pacemakers"]}))
