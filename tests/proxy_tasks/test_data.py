"""Reading rows from files and data sets, and where each came from; templates."""

import copy
import csv
import json
import shutil
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.errors import DataError, EvomergeError, Place, StudyFileError
from evomerge.proxy_tasks import Dataset
from evomerge.proxy_tasks._data import Label, fill, only_field, read_rows

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


def test_line_breaks_of_unicode_inside_a_string(tmp_path: Path) -> None:
    rows = [{"a": "one\u2028two\x85three\x0bfour"}, {"a": "five"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert jsonl(tmp_path, text) == rows


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            '{"a": 1',
            r"got a text that is none \(expecting ',' delimiter\) at column 8 of line 2 of",
        ),
        ("nonsense", r"got a text that is none \(expecting value\) at column 1 of line 2 of"),
        ("[1, 2]", "expected a JSON object, got a list at line 2 of"),
        ("3", "expected a JSON object, got 3 at line 2 of"),
        ("[" * 100_000, "expected a JSON object, got .*recursion.* at line 2 of"),
        ('{"a": ' + "9" * 5000 + "}", "expected a JSON object, got Exceeds the limit .* at line 2"),
    ],
)
def test_a_broken_line_is_named(line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as caught:
        jsonl(tmp_path, '{"a": 0}\n' + line + '\n{"a": 2}\n')
    assert f" of {tmp_path / 'rows.jsonl'}; " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("rows.json", '[{"a": "1"},\n\n {"a":\n "2"}, {"a": "3"}\n]\n', [1, 3, 4]),
        ("rows.json", '\n\n{"a": "1"}\n{"a": "2"}\n\n{"a": "3"}', [3, 4, 6]),  # JSONL, as some say
        ("rows.csv", 'a\n1\n"2"\n\n3\n', [2, 3, 5]),
        ("rows.tsv", "\ufeffa\r\n1\r\n2\r\n3", [2, 3, 4]),
    ],
)
def test_rows_of_text_files_know_their_lines(
    name: str, text: str, lines: list[int], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    found = read_rows(name, tmp_path, PLACE)
    assert found == [{"a": "1"}, {"a": "2"}, {"a": "3"}]
    assert [found.where(number) for number in (1, 2, 3)] == [f"line {n} of {name}" for n in lines]


def test_csv_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        'question,answer\n"two, or\n""three""?",2\nlast,007\n', newline=""
    )
    found = read_rows("rows.csv", tmp_path, PLACE)
    assert found == [
        {"question": 'two, or\n"three"?', "answer": "2"},
        {"question": "last", "answer": "007"},
    ]
    assert [found.where(1), found.where(2)] == ["line 2 of rows.csv", "line 4 of rows.csv"]


def test_a_long_field(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n" + "x" * 200_000 + ",1\n")
    assert read_rows("rows.csv", tmp_path, PLACE) == [{"a": "x" * 200_000, "b": "1"}]


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from('\n\t",'))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries({"a": TEXTS, "b c": TEXTS}), min_size=1, max_size=4))
def test_what_is_written_is_read(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    for name, separator in (("x.csv", ","), ("x.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["a", "b c"], delimiter=separator)
            writer.writeheader()
            writer.writerows(rows)
        assert read_rows(name, tmp_path, PLACE) == rows
    for indent in (None, 2):
        text = json.dumps(rows, indent=indent, ensure_ascii=False)
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        found = read_rows("x.json", tmp_path, PLACE)
        assert found == rows
        step = 0 if indent is None else 4
        starts = [1 + bool(step) + step * number for number in range(len(rows))]
        assert [found.where(n + 1) for n in range(len(rows))] == [
            f"line {line} of x.json" for line in starts
        ]


def test_parquet(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    found = read_rows("rows.parquet", tmp_path, PLACE)
    assert found == ROWS
    assert type(found[0]["options"]) is list
    assert found.where(7) == "row 7 of rows.parquet"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "x.json",
            '[{"a": 1},\n {"a" 2}]',
            r"\(expecting ':' delimiter\) at column 7 of line 2 of",
        ),
        ("x.json", '[{"a": 1},\n 5]', "expected a JSON object, got 5 at line 2 of"),
        (
            "x.json",
            '[{"a": 1}\n {"a": 2}]',
            "expected , or ] after the JSON object, got { at line 1",
        ),
        ("x.json", '[{"a": 1},\n', r"\(expecting value\) at column 1 of line 2 of"),
        ("x.json", '[{"a": 1}', "expected , or ] after .*, got the end of the file at line 1 of"),
        ("x.json", '[{"a": 1}] 7', "expected one JSON list, got more after it in"),
        ("x.json", "[" + "[" * 100_000, "expected a JSON object, got .*recursion.* at line 1 of"),
        ("x.csv", "a,b\n1,2\n1,2,3\n", "expected 2 fields as the first line has, got 3 at line 3"),
        ("x.csv", "a,b\n1\n", "expected 2 fields as the first line has, got 1 at line 2 of"),
        (
            "x.csv",
            'a,b\n1,"2\n',
            "expected rows of fields, got unexpected end of data at line 2 of",
        ),
        ("x.csv", "a,b,a\n1,2,3\n", "expected each field once, got a, b, a at line 1 of"),
        ("x.parquet", "PAR", "expected a Parquet file, got .* in"),
    ],
)
def test_a_damaged_file_is_named(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words.replace("[", r"\[")) as caught:
        read_rows(name, tmp_path, PLACE)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"), [("x.jsonl", ""), ("x.jsonl", "\n \n"), ("x.json", "[ ]"), ("x.csv", "a,b\n")]
)
def test_an_empty_file(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_rows(name, tmp_path, PLACE)
    assert str(caught.value) == (
        f"expected at least one row of data, got none in {tmp_path / name} at tasks.sort.data in "
        "study.yaml; give items, such as one JSON object in each line"
    )


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for name in ("none.jsonl", "."):
        with pytest.raises(
            DataError, match=r"expected a JSONL, JSON, CSV, .* got .*, which is no file"
        ):
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


def test_a_data_set_that_was_saved(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(ROWS)
    saved.select([2, 0]).save_to_disk(tmp_path / "one")
    assert read_rows(Dataset(dataset="one"), tmp_path, PLACE) == [ROWS[2], ROWS[0]]
    datasets.Dataset.from_list(ROWS, split="dev").save_to_disk(tmp_path / "dev")
    assert read_rows(Dataset(dataset="dev", split="dev[:1]"), tmp_path, PLACE) == ROWS[:1]
    parts = {"mine": saved.select([1]), "yours": saved.select([3, 4])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "several")
    for split, numbers in (("mine", [1]), ("yours[1:]", [4]), ("yours+mine", [3, 4, 1])):
        found = read_rows(Dataset(dataset="several", split=split), tmp_path, PLACE)
        assert found == [ROWS[number] for number in numbers]
    for folder, known in (("one", "['train']"), ("several", "['mine', 'yours']")):
        with pytest.raises(DataError) as caught:
            read_rows(Dataset(dataset=folder, split="test"), tmp_path, PLACE)
        assert str(caught.value) == (
            f"expected a data set that `datasets` reads, got '{folder}' at tasks.sort.data in "
            f'study.yaml; ValueError: Unknown split "test". Should be one of {known}.'
        )


def test_a_configuration_that_is_missing(tmp_path: Path) -> None:
    card = "---\nconfigs:\n"
    for name in ("easy", "hard"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"a": name}))
        card += f"- config_name: {name}\n  data_files: {name}.jsonl\n"
    (tmp_path / "README.md").write_text(card + "---\n")
    here = str(tmp_path)
    assert read_rows(Dataset(dataset=here, name="hard"), tmp_path, PLACE) == [{"a": "hard"}]
    with pytest.raises(DataError, match=r"in study.yaml; set `name` to one of 'easy', 'hard'$"):
        read_rows(Dataset(dataset=here), tmp_path, PLACE)


def test_classes_of_a_data_set_have_names(tmp_path: Path) -> None:
    classes = datasets.ClassLabel(names=["sad", "glad"])
    features = datasets.Features(
        {"text": datasets.Value("string"), "mood": classes, "moods": datasets.Sequence(classes)}
    )
    rows = [
        {"text": "a", "mood": 1, "moods": [1, 0]},
        {"text": "b", "mood": -1, "moods": None},
        {"text": "c", "mood": None, "moods": []},
    ]
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "set/train.parquet")
    found = read_rows(Dataset(dataset="set"), tmp_path, PLACE)
    assert found == rows
    assert json.dumps(found) == json.dumps(rows)
    for row in (found[0], copy.deepcopy(found[0])):
        assert fill("{text} is {mood}", row, PLACE) == "a is glad"
        assert [one.name for one in row["moods"]] == ["glad", "sad"]
        assert row["mood"].names == ("sad", "glad")
    for row in found[1:]:
        with pytest.raises(DataError, match="expected a value in the field mood, got null"):
            fill("{mood}", row, PLACE)


def test_rows_of_a_data_set_know_their_number(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n{"a": 2}')
    found = read_rows(Dataset(dataset=str(tmp_path)), tmp_path, PLACE)
    assert found.where(2) == f"row 2 of the split train of {tmp_path}"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit of the data set org/set, which lies in the cache; there is no network."""
    cache, commit = tmp_path / "cache", "a" * 40
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"a": 1}\n{"a": 2}')
    read_rows(Dataset(dataset="set"), tmp_path, PLACE)
    (made,) = (file.parent for file in cache.rglob("dataset_info.json"))
    shutil.move(made, cache / "org___set" / "default" / "0.0.0" / commit)
    shutil.rmtree(tmp_path / "set")
    return commit


def test_a_data_set_in_the_cache(cached: str, tmp_path: Path) -> None:
    for revision, notes in (
        (None, (f"org/set is read as of today; `revision: {cached}` at {PLACE} pins it",)),
        (cached, ()),
    ):
        found = read_rows(Dataset(dataset="org/set", revision=revision), tmp_path, PLACE)
        assert found == [{"a": 1}, {"a": 2}]
        assert found.notes == notes


@pytest.mark.parametrize("revision", ["b" * 40, "main"])
def test_another_revision_in_the_cache_is_not_taken(
    revision: str, cached: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(Dataset(dataset="org/set", revision=revision), tmp_path, PLACE)
    assert str(caught.value) == (
        f"expected the revision {revision} of org/set, got {cached} from the cache at "
        "tasks.sort.data.revision in study.yaml; without a network a revision must be the commit "
        "that the cache holds"
    )


def test_what_the_cache_lacks(cached: str, tmp_path: Path) -> None:
    for asked in (Dataset(dataset="org/other"), Dataset(dataset="org/set", name="other")):
        with pytest.raises(DataError, match="HF_HUB_OFFLINE=1 forbids downloading it; run `evom"):
            read_rows(asked, tmp_path, PLACE)
    with pytest.raises(DataError, match=r'study\.yaml; ValueError: Unknown split "tets"'):
        read_rows(Dataset(dataset="org/set", split="tets"), tmp_path, PLACE)


def test_a_public_benchmark_is_refused_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Dataset(dataset="openai/gsm8k", split="test")
    fetched = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **_: fetched.append(given))
    with pytest.raises(DataError, match="results on this benchmark would no longer mean anything"):
        read_rows(asked, tmp_path, PLACE)
    assert not fetched
    with pytest.raises(AttributeError):  # of None, which the fake gives
        read_rows(asked.model_copy(update={"contaminates": True}), tmp_path, PLACE)
    assert fetched == [("openai/gsm8k", None)]


def test_a_folder_of_a_benchmark_s_name_is_the_user_s_own(tmp_path: Path) -> None:
    (tmp_path / "math").mkdir()
    (tmp_path / "math" / "test.jsonl").write_text('{"a": 1}')
    assert read_rows(Dataset(dataset="math", split="test"), tmp_path, PLACE) == [{"a": 1}]


def test_a_data_set_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="a data set that `datasets` reads, got 'no/such'"
    ) as caught:
        read_rows(Dataset(dataset="no/such"), tmp_path, PLACE)
    assert "\n" not in str(caught.value)


def test_templates() -> None:
    row = {"a": "x", "n": 3, "b c": 1.5, "": "empty"}
    assert fill("{a} and {n}: {b c}", row, PLACE) == "x and 3: 1.5"
    assert fill("{{a}} {{{a}}}", row, PLACE) == "{a} {x}"
    assert fill("", row, PLACE) == ""
    assert fill("{a}", {"a": "{n}"}, PLACE) == "{n}"
    assert only_field("{a}") == "a"
    assert [only_field(text) for text in ("{a} ", "a", "{}", "{{a}}", "{a}{b}")] == [None] * 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "True"),
        (0, "0"),
        (Decimal("1.50"), "1.50"),
        (date(2024, 2, 29), "2024-02-29"),
        ("f\xfcr \U0001f642".encode(), "f\xfcr \U0001f642"),
        (Label(1, ("no", "yes")), "yes"),
    ],
)
def test_what_a_template_takes(value: object, text: str) -> None:
    assert fill("{a}", {"a": value}, PLACE) == text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["Sucre", "La Paz"], "a text or a number in the field a, got ['Sucre', 'La Paz']"),
        ({"value": "x"}, "a text or a number in the field a, got {'value': 'x'}"),
        (float("inf"), "a text or a number in the field a, got inf"),
        (float("nan"), "a value in the field a, got null"),
        (Label(-1, ("no", "yes")), "a value in the field a, got null"),
        ("x" * 99 + "\ud83d", r"UTF-8 text in the field a, got '\ud83d' in place 100"),
        (b"f\xfcr", r"UTF-8 text in the field a, got b'\xfc' in place 2"),
    ],
)
def test_what_a_template_does_not_take(value: object, words: str) -> None:
    with pytest.raises(DataError) as caught:
        fill("it is {a}", {"a": value}, PLACE)
    assert str(caught.value).startswith(f"expected {words} at tasks.sort.data in study.yaml")


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
