"""Results of the other verbs in the gallery: figures beside their intervals and controls, and concept pages."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from playwright import sync_api as playwright

from sae_lens_maira.dashboard import DashboardSettings, make_dashboards
from sae_lens_maira.dashboard.data_files import read
from sae_lens_maira.dashboard.shown_results import explanations, read_results
from sae_lens_maira.errors import DashboardError
from sae_lens_maira.features.interpretations import Interpretation
from sae_lens_maira.hooked.identity import fingerprint_weights
from sae_lens_maira.results import Column, Result, write_result
from tests.dashboard.small_gallery import ATTACK, Made
from tests.dashboard.test_gallery_browser import browser, opened, rows

__all__ = ["browser"]
_FEATURES = pa.table(
    {
        "feature": [4, 9, 30],
        "concept": ["edema", ATTACK, None],
        "auroc": [0.912345678, 0.5, None],
        "auroc_low": [0.85, 0.4, None],
        "auroc_high": [0.96, 0.6, None],
        "control": [0.71, 0.7, None],
        "unshown": [1, 2, 3],
    }
)
_COLUMNS = {
    "concept": Column("Best concept", "The concept that fits best."),
    "auroc": Column("AUROC", "On other patients.", "auroc_low", "auroc_high", "control", 2),
}


@pytest.fixture(scope="module")
def results(made: Made, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    own = {"sae": fingerprint_weights(made.sae)}
    concepts, interpret = tmp_path_factory.mktemp("results") / "concepts", tmp_path_factory.mktemp("results") / "texts"
    tables = {
        "features": _FEATURES,
        "concepts": pa.table(
            {
                "concept": ["edema", "edema", ATTACK],
                "features": ["latents", "coordinates", "latents"],
                "feature": [4, 70, 9],
                "auroc": [0.9, 0.6, float("nan")],
                "auroc_low": [0.8, None, None],
                "auroc_high": [0.95, None, None],
            }
        ),
        "seeds": pa.table({"feature": [1], "text": ["words of a patient"]}),
        "per_study": pa.table({"concept": ["edema"], "study_id": ["private-7"]}),
        "unrelated": pa.table({"seed": [3]}),
    }
    write_result(concepts, "concepts", tables, own, columns=_COLUMNS)
    texts = pa.table({"feature": [4, 5], "explanation": ["Fluid in the lungs", ""], "score": [0.8, None]})
    columns = {"explanation": Column("Says", "In words."), "score": Column("Score", "Balanced accuracy.", digits=2)}
    write_result(interpret, "interpretation", {"features": texts}, own, columns=columns)
    return read_results([concepts, interpret], made.sae)


@pytest.fixture(scope="module")
def gallery(made: Made, results: list[Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("with_results") / "gallery"
    settings = DashboardSettings(pages="none", n_examples=2, n_studies=6)
    make_dashboards(made.sae, made.model, path, settings, results=results, show_progress=False)
    return path


def test_only_public_tables_and_described_columns_are_written(gallery: Path) -> None:
    concepts, interpret = read(gallery / "data" / "results.js")
    assert list(concepts["tables"]) == ["concepts"]
    assert concepts["tables"]["concepts"]["rows"][0] == ["edema", "latents", 4, 0.9, 0.8, 0.95]
    assert concepts["tables"]["concepts"]["rows"][2] == [ATTACK, "latents", 9, None, None, None]
    assert concepts["values"].keys() == {"concept", "auroc", "auroc_low", "auroc_high", "control"}
    assert concepts["values"]["auroc"][4] == 0.91235
    assert concepts["values"]["auroc"][:4] == [None] * 4
    assert interpret["values"]["explanation"][4] == "Fluid in the lungs"
    everything = "".join(path.read_text() for path in gallery.rglob("*.js"))
    assert "words of a patient" not in everything
    assert "private-7" not in everything


def test_explanations_are_the_gallerys_interpretations(gallery: Path, results: list[Result]) -> None:
    assert explanations(results) == [Interpretation(4, "Fluid in the lungs", 0.8)]
    index = read(gallery / "data" / "index.js")
    assert (index["meaning"][4], index["score"][4]) == ("Fluid in the lungs", 0.8)


def test_results_of_another_sae_are_refused(made: Made, results: list[Result], tmp_path: Path) -> None:
    write_result(tmp_path, "concepts", {"features": _FEATURES}, {"sae": "0" * 64})
    with pytest.raises(DashboardError, match="about another SAE"):
        read_results([tmp_path], made.sae)
    with pytest.raises(DashboardError, match="are both of kind concepts"):
        read_results([results[0].folder, results[0].folder], made.sae)


def test_a_reader_walks_from_the_table_to_a_feature_to_its_concept_and_back(browser, gallery: Path) -> None:
    with opened(browser, (gallery / "index.html").as_uri()) as page:
        page.select_option("#filter-figure", label="Concepts: AUROC")
        assert rows(page)[:2] == [4, 9]
        first = page.locator(".rows .row").first.locator(".cell.figure")
        playwright.expect(first).to_have_text("0.91 [0.85, 0.96] control 0.71")
        page.locator(".rows .cell.feature a").first.click()
        card = page.locator(".card", has_text="Concepts")
        playwright.expect(card).to_contain_text("0.91 [0.85, 0.96] control 0.71")
        card.get_by_role("link", name="edema").click()
        playwright.expect(page.get_by_role("heading", name="edema")).to_be_visible()
        # The coordinate 70 of a control is no feature, so it is no link.
        assert page.locator("table.plain a").all_inner_texts() == ["4"]
        playwright.expect(page.locator("table.plain tbody tr").first).to_contain_text("0.9 [0.8, 0.95]")
        page.locator("table.plain").get_by_role("link", name="4").click()
        playwright.expect(page.get_by_role("heading", name="Feature 4")).to_be_visible()
        page.get_by_role("link", name="Concepts", exact=True).click()
        page.locator(".concepts a", has_text="<img").click()
        playwright.expect(page.locator("h2")).to_have_text(ATTACK)


def test_a_gallery_without_results_says_nothing_about_them(browser, made: Made) -> None:
    with opened(browser, (made.path / "index.html").as_uri()) as page:
        page.wait_for_selector(".rows .row")
        assert page.locator("#filter-figure").count() == 0
        playwright.expect(page.locator("#concepts")).to_be_hidden()
