"""Tables of interpretations become (feature, text, score), or the error says what was found."""

import json
from pathlib import Path

import pytest

from sae_lens_maira.errors import SaeFormatError
from sae_lens_maira.features.interpretations import find_tables
from sae_lens_maira.share import Interpretation, read_interpretations, write_interpretations

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
