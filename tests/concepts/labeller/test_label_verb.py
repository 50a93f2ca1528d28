"""``sae-lens-maira label`` on a miniature of Open-i and on the phantom."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_lens_maira.cli.main import main
from sae_lens_maira.concepts.labeller.judges import read_judges
from sae_lens_maira.results import read_result

REPORT = """<eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation><MeSH>{tags}</MeSH></eCitation>"""
REPORTS = [
    ("Small left effusion. Heart size is normal.", "No pneumothorax.", ["Pleural Effusion/left/small"]),
    ("The lungs are clear.", "Possible pneumonia.", ["normal"]),
    ("No effusion.", "Cardiomegaly.", ["Pleural Effusion/left", "Cardiomegaly"]),
]


@pytest.fixture
def openi(tmp_path: Path) -> Path:
    folder = tmp_path / "reports"
    folder.mkdir()
    for number, (findings, impression, tags) in enumerate(REPORTS):
        marked = "".join(f"<major>{tag}</major>" for tag in tags)
        text = REPORT.format(number=number, findings=findings, impression=impression, tags=marked)
        (folder / f"{number}.xml").write_text(text)
    return folder


def test_open_i_is_labelled_and_compared_with_its_tags(
    openi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["label", "--source.kind", "openi", "--source.path", str(openi), "--out", str(out), "--examples", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "effusion, only they, CXR2: No effusion." in printed
    assert "consolidation, only rules, CXR1: The lungs are clear. | Possible pneumonia." in printed
    result = read_result(out)
    rows = {row["concept"]: row for row in result.table("agreement").to_pylist()}
    assert (rows["effusion"]["n_both"], rows["effusion"]["n_only_other"]) == (1, 1)
    assert rows["cardiomegaly"]["f1"] == 1
    assert (rows["effusion"]["recall"], rows["effusion"]["precision"]) == (0.5, 1.0)
    labels = read_judges(out / "labels.parquet", ["CXR0", "CXR1", "CXR2"])["rules"]
    assert labels["CXR0"]["effusion_left_small"].presence == "present"
    assert labels["CXR2"]["effusion_left_small"].presence == "absent"
    assert "effusion" not in (out / "summary.json").read_text()


def test_the_phantom_agrees_with_its_own_labels(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = ["--source.kind", "phantom", "--source.n_studies", "40", "--source.seed", "131"]
    assert main(["label", *source, "--out", str(out)]) == 0
    rows = read_result(out).table("agreement").to_pylist()
    assert len(rows) == 24
    assert sum(row["n_both"] for row in rows) > 60
    assert sum(row["n_only_rules"] + row["n_only_other"] for row in rows) == 0
