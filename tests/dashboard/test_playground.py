"""The playground of ``view``: what it answers, to whom, and what it keeps to itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sae_lens_maira.dashboard.on_demand import PageMaker
from sae_lens_maira.dashboard.origin import Origin
from sae_lens_maira.dashboard.own_folder import mark_gallery
from sae_lens_maira.dashboard.playground import Playground
from sae_lens_maira.errors import SteeringError
from sae_lens_maira.hooked import Add
from sae_lens_maira.hooked.dictionary import Dictionary
from sae_lens_maira.steering.engine import SteeringEngine
from tests.dashboard.small_gallery import D_SAE, HOOK
from tests.dashboard.test_view import gallery, get, serving

__all__ = ["gallery"]
SMALLEST = {"architecture": "topk", "d_sae": 8}


@pytest.fixture
def playing(gallery, made, monkeypatch, tmp_path):
    """A gallery that can be played with; the model and SAE are those that made it, not loaded again."""
    import torch

    engine = SteeringEngine(made.model, {HOOK: Dictionary(made.sae, torch.full((D_SAE,), 3.0))})
    monkeypatch.setattr(Playground, "_load", lambda self: engine)
    (tmp_path / "sae").mkdir()
    origin = Origin(str(tmp_path / "sae"), {"model": {"name": "phantom"}})
    origin.write(gallery)
    mark_gallery(gallery, origin.gallery_id)
    return gallery, engine


def test_both_reports_are_written(playing, made):
    folder, engine = playing
    with serving(folder) as server:
        status, text, headers = get(server, "/playground/steer?study=3&feature=5&dose=2&edit=add")
        assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
        page = get(server, "/playground.html")
        assert page[0] == 200
        assert "script-src 'self'" in page[1]
        assert get(server, "/playground.js")[0] == 200
    answer = json.loads(text)
    study, dictionary = made.studies[3], engine.dictionaries[HOOK]
    options = {"max_new_tokens": 160}
    assert answer["before"] == made.model.generate(study, **options)[0][: len(answer["before"])]
    with made.model.steered([Add(5, 2.0)], saes=dictionary):
        assert made.model.generate(study, **options)[0].startswith(answer["after"])
    assert answer["n_edited"] > 0


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("study=3&feature=5&dose=nan", "Give dose as a number from -100 to 100."),
        ("study=3&feature=-5", "Give feature as a whole number."),
        ("feature=5", "Give study as a whole number."),
        ("study=99&feature=5", "There is no study 99; the gallery has 14."),
        ("study=3&feature=5&edit=explode", "The edit is unknown; choose add, clamp or ablate."),
        (f"study=3&feature={D_SAE}", f"There is no latent {D_SAE} in the SAE at '{HOOK}'; it has latents 0 to 95."),
    ],
)
def test_a_wrong_request_is_answered_in_one_sentence(playing, query, message):
    with serving(playing[0]) as server:
        status, text, _ = get(server, f"/playground/steer?{query}")
    assert (status, json.loads(text)) == (400, {"error": message})


def test_other_sites_and_hosts_get_nothing(playing):
    path = "/playground/steer?study=3&feature=5"
    with serving(playing[0]) as server:
        assert get(server, path, host="evil.example")[0] == 403
        assert get(server, path, headers={"Origin": "http://evil.example"})[0] == 403
        assert get(server, path, headers={"Sec-Fetch-Site": "cross-site"})[0] == 403


def test_a_gallery_without_its_origin_has_no_playground(gallery):
    with serving(gallery) as server:
        assert get(server, "/playground.html")[0] == 404
        assert get(server, "/playground/steer?study=3&feature=5")[0] == 404


def test_a_study_that_may_not_be_shown_is_not(playing, made):
    folder, engine = playing
    private = [replace(study, shareable=False) for study in made.studies]
    playground = Playground(Path(folder), Origin("sae"))
    playground._engine = SteeringEngine(made.model.with_studies(private), engine.dictionaries)
    with pytest.raises(SteeringError, match="This study may not be shown"):
        playground.steer({"study": ["3"], "feature": ["5"]})


def test_pages_and_the_playground_share_one_model(gallery, monkeypatch):
    n_loaded = []
    monkeypatch.setattr("sae_lens_maira.hooked.loading.load_model", lambda *_: n_loaded.append(1) or object())
    origin = Origin(str(gallery), {"hook_name": "blocks.1.hook_resid_post", "context_size": 8, "sae": SMALLEST})
    maker, playground = PageMaker(gallery, origin), Playground(gallery, origin)
    assert maker._origin.model is playground._origin.model
    assert n_loaded == [1]
    assert maker._origin.lock is playground._origin.lock
    maker.close()
