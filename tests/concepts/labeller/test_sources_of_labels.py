"""MeSH tags, tables of judges, and agreement: by hand, and by independent formulas."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_maira.concepts.labeller.agreement import compare_labels
from sae_lens_maira.concepts.labeller.judges import JudgeError, read_judges
from sae_lens_maira.concepts.labeller.lexicon import packaged_lexicon
from sae_lens_maira.concepts.labeller.mesh import mesh_findings
from sae_lens_maira.data.study import Label


def test_tags_name_findings_and_sides() -> None:
    named = mesh_findings(
        ["Pleural Effusion/left/small", "Costophrenic Angle/right/blunted", "Tube, Inserted"], "phantom"
    )
    assert {name for name, value in named.items() if value} == {"effusion", "effusion/left", "effusion/right"}
    both = mesh_findings(["Opacity/lung/base/bilateral", "Fractures, Bone/clavicle/right"], "phantom")
    assert {name for name, value in both.items() if value} == {
        "consolidation",
        "consolidation/left",
        "consolidation/right",
    }


@pytest.mark.parametrize("name", ["phantom", "chexpert"])
def test_tags_are_mapped_to_findings_of_the_phrase_list(name: str) -> None:
    findings = {finding.split("/")[0] for finding in mesh_findings([], name)}
    assert findings <= set(packaged_lexicon(name).findings)  # pyright: ignore[reportArgumentType]


def test_agreement_by_hand() -> None:
    first = [{"a": True}, {"a": True}, {"a": False}, {"a": False}, {"a": True, "b": True}]
    second = [{"a": True}, {"a": False}, {"a": True}, {"a": False}, {}]
    (found,) = compare_labels(["1", "2", "3", "4", "5"], first, second)
    assert (found.n_both, found.n_only_first, found.n_only_second, found.n_neither) == (1, 1, 1, 1)
    assert (found.only_first, found.only_second) == (("2",), ("3",))
    assert found.f1 == found.precision.value == found.recall.value == 0.5
    assert found.kappa == 0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_kappa_is_its_other_formula(pairs: list[tuple[bool, bool]]) -> None:
    """2 (ad - bc) / ((a + b)(b + d) + (a + c)(c + d)), with the four counts of the table."""
    ids = [str(i) for i in range(len(pairs))]
    (found,) = compare_labels(ids, [{"a": one} for one, _ in pairs], [{"a": two} for _, two in pairs])
    a, b, c, d = (pairs.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False)))
    below = (a + b) * (b + d) + (a + c) * (c + d)
    if below:
        assert found.kappa == pytest.approx(2 * (a * d - b * c) / below)


HEADER = "study_id,concept,value,source\n"


def test_tables_of_judges_are_read_by_source(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(HEADER + "s1,Edema,present,llm\ns1,Edema,0.0,bert\ns2,Edema,-1,llm\ns2,Nodule,,llm\n")
    found = read_judges(path)
    assert found == {
        "llm": {"s1": {"Edema": Label("present")}, "s2": {"Edema": Label("uncertain")}},
        "bert": {"s1": {"Edema": Label("absent")}},
    }
    columns = {"study_id": ["s1"], "concept": ["Edema"], "value": [1.0], "source": ["llm"]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "labels.parquet")
    assert read_judges(tmp_path / "labels.parquet", ["s1"]) == {"llm": {"s1": {"Edema": Label("present")}}}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("s1,Edema,maybe,llm\n", "line 2: the value 'maybe' is unknown; write present"),
        ("s1,Edema,1,llm\ns1,Edema,0,llm\n", "line 3: 'llm' labels 'Edema' of study 's1' twice"),
        ("s1,,1,llm\n", "line 2: concept is empty"),
        ("x9,Edema,1,llm\n", "knows none of the studies; its ids look like 'x9'"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(tmp_path: Path, rows: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(HEADER + rows)
    with pytest.raises(JudgeError, match=message):
        read_judges(path, ["s1", "s2"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="must end in"):
        read_judges(tmp_path / "labels.pkl")
    with pytest.raises(JudgeError, match="There is no table"):
        read_judges(tmp_path / "labels.csv")
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(JudgeError, match="not a readable Parquet file"):
        read_judges(tmp_path / "labels.parquet")
    (tmp_path / "labels.csv").write_text("study_id,concept\na,b\n")
    with pytest.raises(JudgeError, match="lacks the column source, value"):
        read_judges(tmp_path / "labels.csv")
