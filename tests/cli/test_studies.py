"""`sae-lens-maira studies`: counts that are computed by hand, and a contact sheet that warns."""

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sae_lens_maira import phantom
from sae_lens_maira.cli.main import main
from sae_lens_maira.data import FileImage, Study
from sae_lens_maira.data.contact_sheet import contact_sheet
from sae_lens_maira.data.source import ManifestConfig, OpeniConfig
from sae_lens_maira.data.summary import Lengths, summarize
from sae_lens_maira.hooked import HookedMaira2
from sae_lens_maira.phantom.model.pretrained import PHANTOM_PATH
from sae_lens_maira.sources import open_source
from tests.data.miniature_mimic import IMPRESSION_ONLY, MiniatureImage, MiniatureStudy, dicom, write_miniature


@pytest.fixture
def mimic(tmp_path):
    def images(number, *views):
        return [MiniatureImage(dicom(10 * number + k), view) for k, view in enumerate(views)]

    studies = [
        MiniatureStudy("10000032", "50000001", "21800101", images(1, "PA", "LL"), labels={"Edema": "1.0"}),
        MiniatureStudy("10000032", "50000002", "21800102", images(2, "AP"), labels={"Edema": "0.0"}),
        MiniatureStudy("10000032", "50000003", "21800103", images(3, "AP"), report=IMPRESSION_ONLY),
        MiniatureStudy("10000099", "50000004", "21800103", images(4, "LL")),
    ]
    return write_miniature(tmp_path / "mimic", studies, compress=True)


def of(path):
    return "--source.kind", "mimic_cxr", "--source.path", str(path)


def test_counts_shares_and_lengths(mimic, capsys):
    assert main(["studies", *of(mimic)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 studies of 1 patients"
    assert sorted(lines[1:3]) == ["  1 left out: no findings", "  1 left out: no frontal view"]
    shares = {line.split("%")[1].strip(): line.split("%")[0].strip() for line in lines[3:8]}
    assert shares == {
        "with a lateral image": "50.0",
        "with a prior image": "50.0",
        "with a time": "100.0",
        "with labels": "100.0",
        "may be shared": "0.0",
    }
    assert lines[8] == "  frontal views: PA 1, AP 1"
    # "Clear lungs in study 50000001." has five words, the prior report "Normal study 50000001." besides.
    table = {line.split()[0]: [float(value) for value in line.split()[1:]] for line in lines[10:15]}
    assert table == {
        "indication": [2, 4, 4, 4, 4],
        "technique": [2, 4, 4, 4, 4],
        "comparison": [2, 1, 1, 1, 1],
        "prior_report": [1, 8, 8, 8, 8],
        "findings": [2, 5, 5, 5, 5],
    }
    assert lines[15] == "present: Edema 1"


def test_lengths_in_tokens_of_a_model(mimic, capsys):
    assert main(["studies", *of(mimic), "--model", "phantom"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("findings"))
    tokenizer = HookedMaira2.from_pretrained("phantom").processor.tokenizer
    lengths = [len(tokenizer.tokenize(f"Clear lungs in study 5000000{k}.")) for k in (1, 2)]
    assert float(line.split()[2]) == pytest.approx(sum(lengths) / 2, abs=0.05)
    assert int(line.split()[-1]) == max(lengths)


def test_a_contact_sheet_of_private_studies_warns(mimic, tmp_path, caplog):
    path = tmp_path / "sheet.png"
    with caplog.at_level(logging.WARNING):
        assert main(["studies", *of(mimic), "--contact-sheet", str(path)]) == 0
    assert "shows images and text of 2 studies that may not be shared" in caplog.text
    with Image.open(path) as sheet:
        assert np.asarray(sheet).max() > 200
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_contact_sheet_of_the_phantom_shows_twelve_studies_and_does_not_warn(tmp_path, caplog):
    path = tmp_path / "sheet.png"
    with caplog.at_level(logging.WARNING):
        assert (
            main(["studies", "--source.kind", "phantom", "--source.n-studies", "24", "--contact-sheet", str(path)]) == 0
        )
    assert not caplog.records
    with Image.open(path) as sheet:
        expected = contact_sheet([study for k, study in enumerate(phantom.studies(24, seed=0)) if k % 2 == 0])
        np.testing.assert_array_equal(np.asarray(sheet), np.asarray(expected))


def test_nothing_is_written_unless_asked(mimic, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert main(["studies", *of(mimic)]) == 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source.kind", "mimic_cxr", "--source.path", "none"], "'none' does not hold MIMIC-CXR-JPG's images"),
        (["--source.kind", "manifest", "--source.path", "none.csv"], "There is no manifest 'none.csv'"),
        (["--source.kind", "phantom"], "source.n_studies is missing"),
        (
            ["--source.kind=manifest", "--source.path=x", "--source.split=train"],
            "source.split means nothing to kind manifest; its settings are path, n_studies, n_held_out.",
        ),
        (["--source.kind=phantom", "--source.n_studies=2", "--contact-sheet", "no/s.png"], "is not a file in"),
    ],
)
def test_errors_are_one_sentence(arguments, message, capsys):
    assert main(["studies", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=60))
def test_lengths_agree_with_numpy(values):
    lengths = Lengths.of(values)
    assert (lengths.n, lengths.longest) == (len(values), max(values))
    assert lengths.mean == pytest.approx(np.mean(values))
    # At least the share is as long or shorter, and the value is one of the lengths.
    for share, value in ((0.5, lengths.median), (0.95, lengths.p95)):
        assert value in values
        assert np.mean(np.asarray(values) <= value) >= share


def test_an_unlabelled_study_without_texts_counts_as_such(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "s.csv").write_text("study_id,frontal\ns1,a.png\n")
    source = open_source(ManifestConfig(path=str(tmp_path / "s.csv")))
    summary = summarize(source, source)
    assert summary.views == {"unknown": 1}
    assert set(summary.n_with.values()) == {0}
    assert summary.lengths["findings"] == Lengths(0, 0.0, 0, 0, 0)
    assert "present" not in summary.describe()


def test_a_contact_sheet_keeps_the_shape_of_images_that_are_not_square(tmp_path):
    Image.new("L", (200, 100), 255).save(tmp_path / "wide.png")
    sheet = contact_sheet([Study("s", "p", FileImage(tmp_path / "wide.png"))], columns=1, image_side=100)
    shown = np.asarray(sheet)[8:108, 8:108]
    assert (shown[30:70] == 255).all()
    assert (shown[:20] == 0).all()


def test_the_model_runs_on_drawn_open_i_studies(tmp_path):
    report = (
        '<eCitation><uId id="CXR{0}"/><Abstract><AbstractText Label="FINDINGS">Enlarged heart, T{0} é.</AbstractText>'
        '</Abstract><MeSH><major>{1}</major></MeSH><parentImage id="a"/><parentImage id="b"/></eCitation>'
    )
    for number, tag in enumerate(["Cardiomegaly", "normal", "Nodule/left"]):
        (tmp_path / f"{number}.xml").write_text(report.format(number, tag), encoding="utf-8")
    source = open_source(OpeniConfig(path=str(tmp_path), missing_images="phantom"))
    model = HookedMaira2.from_pretrained(str(PHANTOM_PATH), studies=source)
    rows = model.rows(context_size=48, cache_path=tmp_path / "cache", show_progress=False)
    assert json.loads(json.dumps(rows.summary.tokens_by_kind))["lateral_image"] == 3
    _, cache = model.run_with_cache(
        rows.dataset.with_format("torch")[:]["tokens"], names_filter="blocks.2.hook_resid_post", stop_at_layer=3
    )
    assert cache["blocks.2.hook_resid_post"].isfinite().all()
    tokenizer = model.processor.tokenizer
    text = "Enlarged heart, T0 é."
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
