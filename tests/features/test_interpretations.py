"""Tables of interpretations become (feature, text, score), or the error says what was found."""

import json
from pathlib import Path

import pytest

from sae_lens_maira.errors import SaeFormatError
from sae_lens_maira.features.interpretations import find_tables
from sae_lens_maira.share import Interpretation, read_interpretations, write_interpretations
from tests.damage import check_sentence, outcomes

EXPECTED = [Interpretation(2, "pleural effusion", 0.9), Interpretation(7, "a, comma", None)]


TABLES = {
    "a.csv": 'feature_id,Interpretation,F1 score\n7,"a, comma",\n2,pleural effusion,0.9\n',
    "a.tsv": "Latent Index\texplanation\tdetection_score\n2\tpleural effusion\t0.9\n7\ta, comma\tnan\n",
    "a.jsonl": '{"idx": 7, "description": "a, comma"}\n\n{"idx": 2, "description": "pleural effusion", "auc": 0.9}\n',
    "a.json": json.dumps({"7": {"label": "a, comma"}, "2": {"label": "pleural effusion", "accuracy": 0.9}}),
    "b.json": json.dumps(
        [
            {"feature": "latent_2", "llm_explanation": "pleural effusion", "score": "0.9"},
            {"feature": 7, "llm_explanation": "a, comma"},
        ]
    ),
}


@pytest.mark.parametrize(("name", "content"), TABLES.items())
def test_whatever_the_columns_are_called(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_interpretations(tmp_path / name, n_features=8) == EXPECTED


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"feature": [7, 2], "text": ["a, comma", "pleural effusion"], "score": [None, 0.9]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_interpretations(tmp_path / "a.parquet") == EXPECTED


def test_an_object_of_texts_has_no_scores(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"3": "heart"}')
    assert read_interpretations(tmp_path / "a.json") == [Interpretation(3, "heart", None)]


def test_written_tables_read_back(tmp_path: Path) -> None:
    assert read_interpretations(write_interpretations(EXPECTED, tmp_path / "out.csv")) == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b\n1,2\n", "No feature column was recognized in .*; its columns are a, b"),
        ("a.csv", "feature,b\n1,2\n", "No text column was recognized in .*; its columns are b, feature"),
        ("a.csv", "feature,text\n", "holds no rows"),
        ("a.csv", "feature,text\n9,x\n", "describes feature 9, but the SAE has 8"),
        ("a.csv", "feature,text\nnone,x\n", "'none' in .* is not the number of a feature"),
        ("a.json", "{", "could not be read as json"),
        ("a.json", "[1]", "neither a list of objects nor"),
        ("a.txt", "x", "is not a table"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SaeFormatError, match=message):
        read_interpretations(tmp_path / name, n_features=8)


def test_tables_are_told_from_configurations() -> None:
    assert find_tables(["x/config.json", "x/ae.pt", "x/table.csv"]) == ["x/table.csv"]
    assert find_tables(["stats.csv", "explanations.json"]) == ["explanations.json"]


def write_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"feature": [7, 2], "text": ["a, comma", "pleural effusion"], "score": [None, 0.9]}), path)


@pytest.mark.parametrize("name", [*TABLES, "a.parquet"])
def test_damaged_tables_end_as_interpretations_or_as_a_sentence(tmp_path: Path, name: str) -> None:
    if name == "a.parquet":
        write_parquet(tmp_path / name)
    else:
        (tmp_path / name).write_text(TABLES[name])
    assert outcomes(lambda path: read_interpretations(path, n_features=8), tmp_path / name, 3, 40)["sentence"] > 0


@pytest.mark.parametrize(
    ("feature", "score", "message"),
    [
        *(
            (3, score, rf"line 2: 'score' is '{score}'; a score is a finite number")
            for score in ("inf", "-Infinity", "high")
        ),
        *(
            (feature, "", rf"'{feature}' in .*line 2 is not the number of a feature")
            for feature in ("-1", "1.5", "latent_1.5", "1e3", "blocks.15", "٣", "9" * 13)
        ),
        ("8", "", "line 2 describes feature 8, but the SAE has 8"),
        ("7", "", "line 3 describes feature 7, which was described before"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path: Path, feature: object, score: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(f"feature,text,score\n{feature},heart,{score}\n7,lung,0.5\n")
    with pytest.raises(SaeFormatError, match=message) as caught:
        read_interpretations(tmp_path / "a.csv", n_features=8)
    check_sentence(str(caught.value), "a.csv")


def test_features_may_be_named_and_written_as_decimals(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("feature,text\nlatent-1,a\n2.0,b\nf3,c\nlayer15/4,d\n")
    assert [row.feature for row in read_interpretations(tmp_path / "a.csv")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"feature,text\n1,caf\xe9\n"),
        ("a.csv", b'feature,text\n1,"open\n2,x\n'),
        ("a.csv", b"feature,text\n1,a,b\n"),
        ("a.json", b"[" * 9000),
        ("a.json", b'{"1": "a", "1": "b"}'),
        ("a.jsonl", b'{"feature": 1, "text": "a"}\n{"feature": 2, "text": "\\ud800"}\n'),
        ("a.jsonl", b'{"feature": 1, "text": "a"}\n{\n'),
        ("a.json", b'[{"feature": true, "text": "a"}]'),
        ("a.json", b'[{"feature": 1, "text": ["a"]}]'),
    ],
)
def test_what_is_no_table_of_texts_is_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SaeFormatError) as caught:
        read_interpretations(tmp_path / name)
    check_sentence(str(caught.value), name)
