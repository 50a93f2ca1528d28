"""The gallery's numbers against the SAE and the model themselves; what is shown, and what is not."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sae_lens_maira.dashboard import DashboardSettings, make_dashboards
from sae_lens_maira.dashboard.data_files import read
from sae_lens_maira.dashboard.serve import GalleryServer
from sae_lens_maira.data.study import VIEWS, Label
from sae_lens_maira.errors import DashboardError, SaeMismatch
from sae_lens_maira.features.table import group_widths
from sae_lens_maira.files import mark
from tests.dashboard.small_gallery import (
    ALWAYS,
    ATTACK,
    CONTEXT_SIZE,
    D_SAE,
    DEAD,
    HOOK,
    N_STUDIES,
    WIDTHS,
    make_model,
    make_sae,
    make_studies,
    plain_firings,
)
from tests.plain_maira2 import count_calls


def feature_details(path, feature):
    return read(path / "data" / "features" / f"{feature // 64}.js")[feature % 64]


@pytest.fixture(scope="module")
def index(made):
    return read(made.path / "data" / "index.js")


@pytest.fixture(scope="module")
def firings(made):
    return plain_firings(made)


def close(value):
    return pytest.approx(value, rel=1e-4, abs=1e-5)


def test_density_and_strongest_activation_are_those_of_the_sae(index, firings):
    every = np.concatenate(firings)
    assert index["nTokens"] == len(every)
    assert index["nFiring"] == (every > 0).sum(axis=0).tolist()
    assert index["largest"] == close(every.max(axis=0).tolist())
    assert index["group"] == [sum(width <= feature for width in WIDTHS) for feature in range(D_SAE)]


def test_details_are_those_of_the_sae(made, firings):
    every = np.concatenate(firings)
    unit = made.sae.W_dec / made.sae.W_dec.norm(dim=-1, keepdim=True)
    logits = (unit @ made.model.maira2.lm_head.weight.T).detach()
    text_of = made.model.tokenizer.vocab.text_of
    for feature in (2, 5, 40, 95):
        details = feature_details(made.path, feature)
        active = every[:, feature][every[:, feature] > 0]
        assert details["mean"] == close(active.mean())
        assert sum(details["histogram"]) == len(active)
        assert details["histogram"][-1] == (active >= active.max() * (1 - 1 / 40)).sum()
        top = logits[feature].topk(10)
        assert [token for token, _ in details["promoted"]] == [text_of(int(token)) for token in top.indices]
        assert [value for _, value in details["promoted"]] == close(top.values.tolist())
        bottom = logits[feature].topk(10, largest=False)
        assert [value for _, value in details["suppressed"]] == close(bottom.values.tolist())
        similar = (unit @ unit[feature]).detach()
        similar[feature] = -1
        assert [other for other, _ in details["cosine"]] == similar.topk(12).indices.tolist()


def test_examples_are_the_studies_where_a_feature_is_strongest(made, firings):
    for feature in (2, 5, 40):
        details = feature_details(made.path, feature)
        maxima = [own[:, feature].max() for own in firings]
        best = sorted(range(N_STUDIES), key=lambda study: -maxima[study])[:4]
        assert [study for study, _ in details["examples"]] == [study for study in best if maxima[study] > 0]
        for study, flat in details["examples"]:
            found = dict(zip(flat[::2], flat[1::2], strict=True))
            column = firings[study][:, feature]
            assert found == {int(place): close(float(column[place])) for place in np.flatnonzero(column)}


def test_a_study_lists_the_strongest_features_at_each_token(made, firings):
    for number in (0, 1, 2):
        study = read(made.path / "data" / "studies" / f"{number}.js")
        tokens = made.model.reader.rows([number], None)[0, :CONTEXT_SIZE]
        assert study["tokens"] == made.model.tokenizer.row_to_texts(tokens.tolist())
        for flat, row in zip(study["active"], firings[number], strict=True):
            assert flat[1::2] == close(sorted(row[row > 0].tolist(), reverse=True)[:10])
            assert [float(row[feature]) for feature in flat[::2]] == close(flat[1::2])


def test_dead_features_and_those_that_always_fire(made, index):
    dead, always = feature_details(made.path, DEAD), feature_details(made.path, ALWAYS)
    assert (index["nFiring"][DEAD], index["kind"][DEAD], index["tokens"][DEAD]) == (0, -1, [])
    assert (dead["histogram"], dead["examples"], dead["together"], dead["mean"]) == ([], [], [], 0)
    assert index["nFiring"][ALWAYS] == index["nTokens"]
    assert len(always["examples"]) == 4
    assert always["inside"] == []  # it would hold everything, which says nothing
    assert DEAD not in made.result.pages or (made.path / "pages" / f"feature_{DEAD}.html").is_file()


def test_images_are_small_and_only_those_that_exist(made):
    with_all = read(made.path / "data" / "studies" / "0.js")["images"]
    for number, study in enumerate(made.studies):
        images = read(made.path / "data" / "studies" / f"{number}.js")["images"]
        present = {"frontal": study.frontal, "lateral": study.lateral, "prior": study.prior_frontal}
        assert set(images) == {view for view, image in present.items() if image is not None}
    assert set(read(made.path / "data" / "studies" / "1.js")["images"]) == {"frontal"}
    with Image.open(made.path / "images" / "0-frontal.webp") as image:
        assert list(image.size) == with_all["frontal"]
        shown = np.asarray(image.convert("L"), dtype=float)
    drawn = np.asarray(made.studies[0].frontal.open().convert("L"), dtype=float)
    stretched = (drawn - drawn.min()) / (drawn.max() - drawn.min()) * 255
    assert np.abs(shown - stretched).mean() < 8


def test_labels_and_interpretations_are_in_the_index(index):
    assert index["meaning"][7] == "Tubes and lines"
    assert (index["score"][5], index["score"][7], index["score"][8]) == (0.75, None, None)
    for own in index["labels"]:
        assert all(0.75 <= area <= 1 and n >= 5 for _, area, n in own)


def test_finer_features_inside_are_in_later_groups(made, index):
    for feature, inside in read(made.path / "data" / "hierarchy.js"):
        for finer, share in inside:
            assert index["group"][finer] > index["group"][feature]
            assert share >= 0.8
            assert [feature, share] in feature_details(made.path, finer)["around"]


def test_nothing_in_a_data_file_ends_a_script(made):
    for path in made.path.rglob("data/**/*.js"):
        assert "<" not in path.read_text(encoding="utf-8")
    hostile = read(made.path / "data" / "studies" / "2.js")
    assert hostile["id"] == ATTACK
    assert ATTACK in hostile["tokens"]


# How often the model runs, and what is left as it was.


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_LENS_MAIRA_CACHE", str(tmp_path / "rows"))
    studies = make_studies()[3:10]
    return make_model(studies)


MAX_BATCH_TOKENS = 1000  # cuts the seven studies into three batches


@pytest.mark.parametrize(("d_sae", "pages", "n_pages"), [(24, "all", 24), (600, "30", 30)])
def test_the_model_runs_once_a_batch_of_studies_whatever_the_number_of_features(small, tmp_path, d_sae, pages, n_pages):
    sae = make_sae(small, d_sae, [8, d_sae])
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    settings = DashboardSettings(pages=pages, max_batch_tokens=MAX_BATCH_TOKENS)
    with count_calls(small.maira2.model, small.maira2.model.language_model.layers[0]) as calls:
        result = make_dashboards(sae, small, tmp_path / "gallery", settings, show_progress=False)
    assert calls == [3, 3]
    assert len(result.pages) == n_pages
    assert {path.name for path in (tmp_path / "gallery" / "pages").iterdir()} == {
        f"feature_{feature}.html" for feature in result.pages
    }
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_with_a_cache_the_model_does_not_run(small, tmp_path):
    from sae_lens_maira.activations import ActivationCache
    from sae_lens_maira.activations.config import WriteConfig
    from sae_lens_maira.activations.write import write_cache

    sae = make_sae(small)
    settings = DashboardSettings(pages="3", n_studies=5)
    write_cache(small, tmp_path / "cache", WriteConfig((HOOK,), dtype="float32", context_size=CONTEXT_SIZE))
    make_dashboards(sae, small, tmp_path / "ran", settings, show_progress=False)
    cache = ActivationCache.open(tmp_path / "cache")
    with count_calls(small.maira2.model, small.maira2.model.vision_tower) as calls:
        make_dashboards(sae, small, tmp_path / "read", settings, cache=cache, show_progress=False)
    assert calls == [0, 0]
    ran, found = (read(tmp_path / name / "data" / "index.js") for name in ("ran", "read"))
    assert sorted(found["studies"]) == ran["studies"] == [0, 1, 2, 3, 4]
    assert found["nTokens"] == ran["nTokens"]
    assert found["nFiring"] == pytest.approx(ran["nFiring"], abs=2)
    assert found["largest"] == pytest.approx(ran["largest"], rel=1e-3, abs=1e-4)


# Privacy.


def everything_in(folder: Path) -> str:
    return "".join(
        path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.suffix in (".js", ".html", ".json")
    )


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """Studies 0 and 2 are private; their findings hold a word that nothing else does."""
    monkeypatch.setenv("SAE_LENS_MAIRA_CACHE", str(tmp_path / "rows"))
    studies = make_studies()[3:8]
    for number in (0, 2):
        own = studies[number]
        studies[number] = replace(own, shareable=False, study_id=f"secret-{number}", findings="Zebra zebra. " * 6)
    return make_model(studies)


def test_private_studies_are_left_out_and_the_pages_say_so(mixed, tmp_path):
    sae = make_sae(mixed)
    settings = DashboardSettings(pages="6", neuronpedia=True)
    result = make_dashboards(sae, mixed, tmp_path / "gallery", settings, show_progress=False)
    assert (result.n_studies, result.n_private) == (3, 2)
    index = read(tmp_path / "gallery" / "data" / "index.js")
    assert index["studies"] == [1, 3, 4]
    assert "2 of 5 studies are private" in index["note"]
    assert index["banner"] == ""
    all_tokens = sum(len(mixed.reader.rows([k], None)[0, :CONTEXT_SIZE]) for k in range(5))
    assert index["nTokens"] == all_tokens
    text = everything_in(tmp_path / "gallery")
    assert "secret-" not in text
    shown = {study for k in range(D_SAE) for study, _ in feature_details(tmp_path / "gallery", k)["examples"]}
    assert shown <= {1, 3, 4}
    names = {path.name.split("-")[0] for path in (tmp_path / "gallery" / "images").iterdir()}
    assert names == {"1", "3", "4"}
    assert {path.stem for path in (tmp_path / "gallery" / "data" / "studies").iterdir()} == {"1", "3", "4"}
    for path in (tmp_path / "gallery" / "pages").iterdir():
        assert "2 of 5 studies are private" in path.read_text(encoding="utf-8")


def test_private_tokens_do_not_name_a_feature(mixed, tmp_path):
    """A token that only private studies have appears nowhere but where the vocabulary itself is shown."""
    private = set(mixed.reader.rows([0, 2], None).flatten().tolist())
    public = set(mixed.reader.rows([1, 3, 4], None).flatten().tolist())
    only_private = {token for token in private - public if token < mixed.cfg.d_vocab}
    assert only_private
    marks = {token: f"\u2042{token}\u2042" for token in only_private}
    mixed.tokenizer.vocab._texts.update(marks)
    settings = DashboardSettings(pages="6", neuronpedia=True)
    make_dashboards(make_sae(mixed), mixed, tmp_path / "gallery", settings, show_progress=False)
    index = read(tmp_path / "gallery" / "data" / "index.js")
    assert not set(marks.values()) & {token for own in index["tokens"] for token in own}
    for path in (tmp_path / "gallery" / "pages").iterdir():
        data = path.read_text(encoding="utf-8")
        sequences = json.JSONDecoder().raw_decode(data, data.index('"tokenData": ') + len('"tokenData": '))[0]
        assert "\u2042" not in json.dumps(sequences, ensure_ascii=False)


def test_private_studies_are_shown_with_a_banner_when_asked_for(mixed, tmp_path):
    settings = DashboardSettings(pages="3", neuronpedia=True, include_private=True)
    result = make_dashboards(make_sae(mixed), mixed, tmp_path / "gallery", settings, show_progress=False)
    assert (result.n_studies, result.n_private) == (5, 0)
    index = read(tmp_path / "gallery" / "data" / "index.js")
    assert index["banner"].startswith("Private: 2 studies")
    assert read(tmp_path / "gallery" / "data" / "studies" / "0.js")["private"] is True
    for path in (tmp_path / "gallery" / "pages").iterdir():
        assert "Private: 2 studies" in path.read_text(encoding="utf-8")
    for path in (tmp_path / "gallery" / "neuronpedia").iterdir():
        assert '"n_prompts_total": 3' in path.read_text(encoding="utf-8")


def test_a_source_of_private_studies_only_gives_a_gallery_without_text(mixed, tmp_path, caplog):
    studies = [replace(mixed.studies[k], shareable=False) for k in range(3)]
    model = make_model(studies)
    settings = DashboardSettings(pages="3", neuronpedia=True)
    result = make_dashboards(make_sae_of(model), model, tmp_path / "gallery", settings, show_progress=False)
    assert (result.n_studies, result.pages, result.neuronpedia) == (0, [], [])
    assert "nothing was written for Neuronpedia" in caplog.text
    assert list((tmp_path / "gallery" / "images").iterdir()) == []


def make_sae_of(model):
    return make_sae(model.with_studies(make_studies()[:4]))


# Arguments.


@pytest.mark.parametrize(
    ("pages", "expected"),
    [("2", [9, 4]), ("all", list(range(12))), ("none", []), ("3,1", [3, 1]), ("7,", [7]), ("0", [])],
)
def test_pages_are_chosen_by_number_or_by_name(pages, expected):
    assert DashboardSettings(pages=pages).page_list(12, [9, 4, 7]) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pages": "many"}, "pages is 'many'; give a number"),
        ({"pages": "-3"}, "pages is '-3'; give a number"),
        ({"pages": ""}, "pages is ''; give a number"),
        ({"pages": ","}, "pages is ','; give a number"),
        ({"n_studies": 0}, "n_studies is 0; it must be at least 1"),
        ({"image_size": -3}, "image_size is -3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(DashboardError, match=message):
        DashboardSettings(**settings)
    with pytest.raises(DashboardError, match="There is no feature 12; the SAE has 12"):
        DashboardSettings(pages="3,12").page_list(12, [])


def test_a_folder_with_something_else_is_not_replaced_and_a_gallery_is(small, tmp_path):
    path = tmp_path / "gallery"
    path.mkdir()
    (path / "thesis.tex").write_text("mine")
    sae, settings = make_sae(small), DashboardSettings(pages="none", n_studies=2)
    with pytest.raises(DashboardError, match="holds something other than a gallery; choose another folder"):
        make_dashboards(sae, small, path, settings, show_progress=False)
    (path / "thesis.tex").unlink()
    make_dashboards(sae, small, path, settings, show_progress=False)
    stale, added = path / "images" / "1-frontal.webp", path / "pages" / "feature_3.html"
    assert stale.is_file()
    added.parent.mkdir(exist_ok=True)
    added.write_text("")
    make_dashboards(sae, small, path, replace(settings, n_studies=1), show_progress=False)
    assert not stale.exists()
    assert not added.exists()
    (path / "data" / "notes.txt").write_text("mine")
    with pytest.raises(DashboardError, match=r"data/notes.txt' is none of the gallery's own files; move it away"):
        make_dashboards(sae, small, path, settings, show_progress=False)
    assert (path / "data" / "notes.txt").read_text() == "mine"


def test_a_web_project_with_such_a_file_and_a_link_are_refused_before_the_work(small, tmp_path):
    (tmp_path / "web" / "data").mkdir(parents=True)
    (tmp_path / "web" / "data" / "index.js").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name, message in [("web", "holds something other than a gallery"), ("link", "is a link or a mount point")]:
        with pytest.raises(DashboardError, match=message):
            make_dashboards(None, small, tmp_path / name, DashboardSettings(pages="none"), show_progress=False)
    assert (tmp_path / "web" / "data" / "index.js").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"web", "link", "rows"}


def test_what_a_killed_run_left_is_removed_and_the_old_gallery_put_back(small, tmp_path):
    path, unfinished = tmp_path / "gallery", tmp_path / ".gallery.unfinished"
    sae, settings = make_sae(small), DashboardSettings(pages="none", n_studies=1)
    make_dashboards(sae, small, path, settings, show_progress=False)
    assert not unfinished.exists()
    mark(unfinished_folder_of_a_killed_run(unfinished), "unfinished")
    path.rename(unfinished / "replaced")
    GalleryServer(path, 0).server_close()
    assert (path / "index.html").is_file()
    path.rename(unfinished / "replaced")
    make_dashboards(sae, small, path, settings, show_progress=False)
    assert not unfinished.exists()
    assert (path / "index.html").is_file()


def unfinished_folder_of_a_killed_run(folder: Path) -> Path:
    (folder / "scratch" / "recording").mkdir(parents=True)
    (folder / "scratch" / "recording" / "activations").write_bytes(b"private")
    return folder


def test_a_gallery_names_neither_paths_nor_labels_of_private_studies_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_LENS_MAIRA_CACHE", str(tmp_path / "rows"))
    studies = [
        replace(
            study,
            shareable=number < 2,
            labels={
                "public": Label("present"),
                **({"ZQ": Label("present" if number % 2 else "absent")} if number > 1 else {}),
            },
        )
        for number, study in enumerate(make_studies())
    ]
    model = make_model(studies)
    sae = make_sae(model)
    sae.cfg.metadata.model_name = "/home/jdoe/models/maira-2"
    settings = DashboardSettings(pages="2", neuronpedia=True)
    make_dashboards(sae, model, tmp_path / "gallery", settings, show_progress=False)
    text = everything_in(tmp_path / "gallery")
    assert "ZQ" not in text
    assert "jdoe" not in text
    assert str(model.cfg.model_name) not in text
    assert '["Model","maira-2"]' in text


def test_a_gallery_survives_a_failure_to_put_the_new_one_in_its_place(small, tmp_path, monkeypatch):
    path = tmp_path / "gallery"
    sae, settings = make_sae(small), DashboardSettings(pages="none", n_studies=2)
    make_dashboards(sae, small, path, settings, show_progress=False)
    before = (path / "data" / "index.js").read_bytes()
    rename = Path.rename

    def fail(self, target):
        if self.name == "gallery" and Path(target) == path and self.parent != path.parent:
            raise OSError("No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(DashboardError, match="cannot be written, as the disk is full"):
        make_dashboards(sae, small, path, settings, show_progress=False)
    assert (path / "data" / "index.js").read_bytes() == before


def test_each_image_is_opened_once_for_the_model_and_the_gallery(tmp_path):
    n_opened = Counter()

    @dataclass(frozen=True)
    class CountedImage:
        image: Any
        name: str

        def open(self):
            n_opened[self.name] += 1
            return self.image.open()

    studies = [
        replace(study, **{view: CountedImage(getattr(study, view), f"{index} {view}") for view in views_of(study)})
        for index, study in enumerate(make_studies()[3:6])
    ]
    model = make_model(studies)
    sae = make_sae_of(model)
    n_opened.clear()
    make_dashboards(sae, model, tmp_path / "gallery", DashboardSettings(pages="none"), show_progress=False)
    assert n_opened == {f"{index} {view}": 1 for index, study in enumerate(studies) for view in views_of(study)}


def views_of(study):
    return [view for view in VIEWS if getattr(study, view) is not None]


def test_an_sae_of_another_model_is_refused(small, tmp_path):
    sae = make_sae(small)
    sae.cfg.metadata.sae_lens_maira = {**sae.cfg.metadata.sae_lens_maira, "weights_fingerprint": "other"}
    with pytest.raises(SaeMismatch, match="trained on"):
        make_dashboards(sae, small, tmp_path / "gallery", show_progress=False)


def test_groups_come_from_the_metadata_of_any_trainer(small):
    sae = make_sae(small)
    assert group_widths(sae) == WIDTHS
    sae.cfg.metadata.matryoshka_widths = None
    assert group_widths(sae) == [D_SAE]
    sae.cfg.metadata.training_architecture_details = {"matryoshka_widths": [10, 20]}
    assert group_widths(sae) == [10, 20, D_SAE]
