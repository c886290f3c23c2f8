"""What is wrong with a row of data is one sentence that names the file and the line."""

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import DataError, EvomergeError, Place, StudyFileError
from evomerge.evaluator import Evaluator, TaskItems
from evomerge.study.file import check_study, parse_study
from evomerge.zoo.tokenizer import build_tokenizer
from tests.architectures import byte_level_tokenizer, live, save_random

GOOD = [{"q": f"{n} + 1 =", "a": f"{n + 1}", "o": [f"{n}", f"{n + 1}"]} for n in range(9)]
TASKS: dict[str, dict[str, Any]] = {
    "generation": {"prompt": "{q}", "answer": "{a}"},
    "multiple_choice": {"prompt": "{q}", "options": "{o}", "answer": "{a}"},
    "perplexity": {"text": "{q}{a}"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one")):
        save_random(found / name, "llama", seed)
    build_tokenizer().save_pretrained(found / "base")
    return found


def checked(models: Path, folder: Path, data: Any, kind: str, **own: Any) -> TaskItems:
    """Return the items of a study in a folder with one task."""
    study = {
        "models": {"base": str(models / "base"), "experts": {"one": str(models / "one")}},
        "space": "task_arithmetic",
        "tasks": {"sums": {"kind": kind, "data": data, **TASKS[kind], **own}},
        "splits": {"search": 2, "select": 3, "heldout": 4},
    }
    (task,) = check_study(parse_study(study, folder, Place("study.yaml", StudyFileError))).tasks
    return task


def refusal(models: Path, folder: Path, rows: list[Any], kind: str, **own: Any) -> str:
    (folder / "items").mkdir()
    (folder / "items" / "x.jsonl").write_text("\n\n" + "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError) as caught:
        checked(models, folder, "items/x.jsonl", kind, **own)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change", "own", "words"),
    [
        (
            "generation",
            {"a": ""},
            {},
            "expected an answer that is not empty, got '' at tasks.sums.answer in {}",
        ),
        (
            "generation",
            {"a": None},
            {},
            "expected a value in the field a, got null at tasks.sums.answer in {}",
        ),
        (
            "generation",
            {"a": "two"},
            {"normalize": "number"},
            "expected an answer with a number to compare, got 'two' at tasks.sums.answer in {}",
        ),
        (
            "multiple_choice",
            {"o": ["2"]},
            {},
            "expected at least two options, none of them empty, got ['2'] at tasks.sums.options "
            "in {}",
        ),
        (
            "multiple_choice",
            {"o": ["8", "8"], "a": "8"},
            {},
            "expected a right option unlike the others, got ['8', '8'] at tasks.sums.options in {}",
        ),
        (
            "multiple_choice",
            {"o": ["x", "y"], "a": 2},
            {},
            "expected an option's text, a number from 0 to 1, or a letter from A, got 2 at "
            "tasks.sums.answer in {}; set `answer_is: ordinal` for a number from 1",
        ),
        (
            "perplexity",
            {"q": "half \ud83d"},
            {},
            "expected UTF-8 text in the field q, got '\\ud83d' in place 6 at tasks.sums.text in "
            "{}; correct that row, or take it out",
        ),
        (
            "perplexity",
            {"q": " ", "a": ""},
            {},
            "expected a text that is not empty, got ' ' at tasks.sums.text in {}",
        ),
    ],
)
def test_the_line_is_named(
    kind: str, change: dict[str, Any], own: Any, words: str, models: Path, tmp_path: Path
) -> None:
    rows = [*GOOD[:4], GOOD[4] | change, *GOOD[5:]]
    expected = words.format("study.yaml (line 7 of items/x.jsonl)")
    assert refusal(models, tmp_path, rows, kind, **own) == expected


def test_an_item_without_its_answer(models: Path, tmp_path: Path) -> None:
    rows = [*GOOD[:8], {"q": "8 + 1 =", "o": ["8", "9"]}]
    assert refusal(models, tmp_path, rows, "generation") == (
        "expected a field of the data in {a}, got a row without it at tasks.sums.answer in "
        "study.yaml (line 11 of items/x.jsonl); its fields: q, o"
    )


def test_examples_to_show_are_named_too(models: Path, tmp_path: Path) -> None:
    (tmp_path / "shown.csv").write_text("q,a\n1 + 2 =,3\n2 + 2 =,\n")
    shots = {"count": 1, "data": "shown.csv"}
    assert refusal(models, tmp_path, GOOD, "generation", shots=shots) == (
        "expected an answer that is not empty, got '' at tasks.sums.answer in study.yaml (line 3 "
        "of shown.csv)"
    )
    (tmp_path / "shown.csv").unlink()
    with pytest.raises(
        DataError, match=r"shown\.csv, which is no file at tasks\.sums\.shots\.data in"
    ):
        checked(models, tmp_path, "items/x.jsonl", "generation", shots=shots)


def test_an_empty_file(models: Path, tmp_path: Path) -> None:
    assert refusal(models, tmp_path, [], "generation") == (
        f"expected at least one row of data, got none in {tmp_path / 'items/x.jsonl'} at "
        "tasks.sums.data in study.yaml; give items, such as one JSON object in each line"
    )


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"shots": 3}, "expected a mapping with count, data, seed, per_item (few-shot examples: "),
        ({"shots": {}}, "expected the key count (examples in front of every question), got none "),
        ({"shots": {"cuont": 3}}, "unknown key 'cuont' at tasks.sums.shots in study.yaml; did you"),
        ({"shots": {"count": 0}}, "expected a whole number from 1 to 1000 (examples in front of"),
        ({"shots": {"count": 1, "data": 3}}, "expected a text or a mapping with dataset, name, "),
        (
            {"shots": {"count": 1, "data": {"datset": "x"}}},
            "unknown key 'datset' at tasks.sums.shots.data in study.yaml; did you mean 'dataset'?",
        ),
        ({"system": 3}, "expected a text (text in front of everything: the system message of a"),
    ],
)
def test_settings_of_examples_to_show(
    own: dict[str, Any], words: str, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(EvomergeError) as caught:
        checked(models, tmp_path, "x.jsonl", "generation", **own)
    assert str(caught.value).startswith(words)
    assert "at tasks.sums" in str(caught.value)


@pytest.mark.parametrize("kind", TASKS)
def test_an_item_longer_than_the_context(kind: str, models: Path, tmp_path: Path) -> None:
    """Of any split, before a single item is scored."""
    long = {"q": "a" * 61, "a": "bbbb", "o": ["b", "bbbb"]}
    rows = [*GOOD[:3], long, *GOOD[4:7], long | {"q": "b" * 62}, GOOD[8]]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = checked(models, tmp_path, "x.jsonl", kind)
    evaluator = Evaluator([task], build_tokenizer())
    lengths = evaluator._tasks["sums"].lengths
    first = next(item for item, length in enumerate(lengths) if length > 64)
    for split in task.splits:
        with pytest.raises(DataError) as caught:
            evaluator.scores(live(models / "one"), split, exact=False)
        assert str(caught.value) == (
            "expected items of at most 64 tokens, the context of the models, got 2 longer in the "
            f"task sums, the first of {lengths[first]} tokens at {task.where[first]}; leave "
            "out the long ones"
        )
    assert task.where[first] in ("line 4 of x.jsonl", "line 8 of x.jsonl")
    evaluator.check_lengths(max(lengths))
    with pytest.raises(DataError, match="got 1 longer in the task sums"):
        evaluator.check_lengths(max(lengths) - 1)


@pytest.mark.parametrize("kind", TASKS)
def test_a_tokenizer_needs_neither_a_pad_nor_a_bos_token(
    kind: str, models: Path, tmp_path: Path
) -> None:
    tokenizer = byte_level_tokenizer("1 + 1 = 2\n" * 9)
    assert tokenizer.pad_token_id is None
    assert tokenizer.bos_token_id is None
    save_random(tmp_path / "model", "llama", vocabulary=len(tokenizer))
    (tmp_path / "x.json").write_text(json.dumps([*GOOD, {"q": "", "a": "b", "o": ["a", "b"]}]))
    task = checked(models, tmp_path, "x.json", kind)
    found = Evaluator([task], tokenizer).scores(live(tmp_path / "model"), "heldout", exact=True)
    assert found["sums"].score.shape == (4,)
