"""Reading rows from JSONL files and data sets; templates."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from evomerge.errors import DataError, EvomergeError, Place, StudyFileError
from evomerge.proxy_tasks import Dataset
from evomerge.proxy_tasks._data import fill, only_field, read_rows

PLACE = Place("study.yaml", DataError, "tasks.sort.data")
ROWS = [{"question": f"q{number}", "options": ["a", "b"], "right": number} for number in range(7)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def jsonl(folder: Path, text: str) -> list[Any]:
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    return list(read_rows("rows.jsonl", folder, PLACE))


def test_jsonl(tmp_path: Path) -> None:
    text = "\n".join(map(json.dumps, ROWS))
    assert jsonl(tmp_path, text) == ROWS
    assert jsonl(tmp_path, text + "\n") == ROWS
    assert jsonl(tmp_path, "\n\n  \n" + text.replace("\n", "\r\n")) == ROWS
    assert jsonl(tmp_path, "\ufeff" + text) == ROWS
    assert jsonl(tmp_path, "") == []


def test_line_breaks_of_unicode_inside_a_string(tmp_path: Path) -> None:
    rows = [{"a": "one\u2028two\x85three\x0bfour"}, {"a": "five"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert jsonl(tmp_path, text) == rows


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"a": 1', "got expecting ',' delimiter at column 8 of line 2 of"),
        ("nonsense", "got expecting value at column 1 of line 2 of"),
        ("[1, 2]", "expected a JSON object, got a list at line 2 of"),
        ("3", "expected a JSON object, got 3 at line 2 of"),
        ("[" * 100_000, "expected a JSON object, got .*recursion.* at line 2 of"),
        ('{"a": ' + "9" * 5000 + "}", "expected a JSON object, got Exceeds the limit .* at line 2"),
    ],
)
def test_a_broken_line_is_named(line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as caught:
        jsonl(tmp_path, '{"a": 0}\n' + line + '\n{"a": 2}\n')
    assert str(caught.value).endswith(f"of {tmp_path / 'rows.jsonl'}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for name in ("none.jsonl", "."):
        with pytest.raises(DataError, match=r"expected a JSONL file, got .*; there is no file"):
            read_rows(name, tmp_path, PLACE)
    (tmp_path / "latin").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(DataError, match="a UTF-8 text file, got other bytes"):
        read_rows("latin", tmp_path, PLACE)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet", "csv"])
def test_a_data_set_in_a_folder(suffix: str, tmp_path: Path, capfd: Any) -> None:
    plain = [{"question": f"q{number}", "right": number} for number in range(7)]
    rows = plain if suffix == "csv" else ROWS
    file = tmp_path / "mine" / f"data.{suffix}"
    file.parent.mkdir()
    if suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
    elif suffix == "csv":
        datasets.Dataset.from_list(rows).to_csv(file)
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    capfd.readouterr()
    assert read_rows(Dataset(dataset="mine"), tmp_path, PLACE) == rows
    assert capfd.readouterr() == ("", "")
    assert read_rows(Dataset(dataset=str(tmp_path / "mine")), Path("/"), PLACE) == rows


def test_splits_of_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"a": 1}))
    (tmp_path / "test.jsonl").write_text(json.dumps({"a": 2}) + "\n" + json.dumps({"a": 3}))
    here = str(tmp_path)
    assert read_rows(Dataset(dataset=here), tmp_path, PLACE) == [{"a": 1}]
    assert read_rows(Dataset(dataset=here, split="test"), tmp_path, PLACE) == [{"a": 2}, {"a": 3}]
    assert read_rows(Dataset(dataset=here, split="test[1:]"), tmp_path, PLACE) == [{"a": 3}]
    with pytest.raises(
        DataError, match=r'got .* at tasks\.sort\.data in study.yaml; .*split "tets"'
    ):
        read_rows(Dataset(dataset=here, split="tets"), tmp_path, PLACE)


def test_a_data_set_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="a data set that `datasets` reads, got 'no/such'"
    ) as caught:
        read_rows(Dataset(dataset="no/such"), tmp_path, PLACE)
    assert "\n" not in str(caught.value)


def test_templates() -> None:
    row = {"a": "x", "n": 3, "b c": [1], "": "empty"}
    assert fill("{a} and {n}: {b c}", row, PLACE) == "x and 3: [1]"
    assert fill("{{a}} {{{a}}}", row, PLACE) == "{a} {x}"
    assert fill("", row, PLACE) == ""
    assert fill("{a}", {"a": "{n}"}, PLACE) == "{n}"
    assert only_field("{a}") == "a"
    assert [only_field(text) for text in ("{a} ", "a", "{}", "{{a}}", "{a}{b}")] == [None] * 5


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{qestion}", r"in {qestion}, got a row without it at .*; did you mean {question}\?"),
        ("{zzzzzz}", "got a row without it at .*; its fields: question, empty"),
        ("{}", "got a row without it at"),
        ("{question", "expected {field}, with {{ and }} for braces of the text, got '{question'"),
        ("question}", "expected {field}, with {{ and }} for braces of the text, got 'question}'"),
        ("{empty}", "expected a value in the field empty, got null at"),
    ],
)
def test_templates_that_do_not_fit(template: str, words: str) -> None:
    place = Place("study.yaml", StudyFileError, "tasks.sort.prompt")
    with pytest.raises(EvomergeError, match=words) as caught:
        fill(template, {"question": "q", "empty": None}, place)
    assert isinstance(caught.value, StudyFileError)
    assert "tasks.sort.prompt in study.yaml" in str(caught.value)
