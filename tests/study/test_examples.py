"""Items won and lost: the first of the largest differences, as texts that are not too long."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evomerge import plugins, proxy_tasks
from evomerge.evaluator import TaskItems
from evomerge.proxy_tasks import ItemScores
from evomerge.study.examples import LONGEST, examples, text_of


def scored(correct: list[float]) -> dict[str, ItemScores]:
    values = np.array(correct, dtype=np.float64)
    return {"t": ItemScores(values, values)}


def items(count: int) -> Any:
    found = tuple(SimpleNamespace(prompt=f"p{n}", answers=(f"a{n}",)) for n in range(count + 2))
    splits: Any = {"search": (0, 1), "heldout": tuple(range(2, count + 2))}
    kind: Any = None
    return [TaskItems("t", kind, kind, found, splits)]


def test_the_first_that_were_won_and_lost_against_the_best_expert() -> None:
    winner = scored([1, 1, 1, 0, 1, 1, 0.5, 0])
    experts = {"weak": scored([0] * 8), "best": scored([1, 0, 0, 1, 0, 0, 1, 0])}
    (found,) = examples(items(8), "heldout", winner, experts)
    assert found["expert"] == "best"
    assert found["counts"] == {"won": 4, "lost": 2, "items": 8}
    assert [one["prompt"] for one in found["won"]] == ["p3", "p4", "p6"]
    assert [(one["prompt"], one["winner"], one["expert"]) for one in found["lost"]] == [
        ("p5", 0.0, 1.0), ("p8", 0.5, 1.0),
    ]  # fmt: skip


def test_without_a_difference_there_are_none() -> None:
    (found,) = examples(items(2), "heldout", scored([1, 0]), {"e": scored([1, 0])})
    assert (found["won"], found["lost"]) == ([], [])


ROWS = {
    "generation": ({"prompt": "{q}?", "answer": "{a}"}, ("6 + 1?", [], "7")),
    "multiple_choice": ({"prompt": "{q}", "options": "{o}", "answer": "{a}"},
                        ("6 + 1", ["5", "7"], "7")),
    "perplexity": ({"text": "{q}"}, ("", [], "6 + 1")),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_of_task_has_texts(kind: str) -> None:
    from evomerge.errors import Place, StudyFileError

    place = Place("s", StudyFileError)
    module = proxy_tasks.get(kind, place)
    given, expected = ROWS[kind]
    settings = module.Settings(kind=kind, data="d.jsonl", **given)
    example = module.render({"q": "6 + 1", "a": "7", "o": ["5", "7"]}, settings, place)
    found = text_of(example)
    assert (found["prompt"], found["options"], found["answer"]) == expected


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ({"text": "fine", "pair": None, "label": 0}, ("fine", [], "0")),
        ({"key": "{}", "row": {"q": 1}}, ("{}", [], "")),
        ({"requests": (("ask ", "a"),), "choices": ("x", "y"), "gold": (0, 1), "target": ""},
         ("ask ", ["x", "y"], "x or y")),
        ({"prompt": "p", "answers": ("one", "1")}, ("p", [], "one or 1")),
    ],
)  # fmt: skip
def test_what_other_kinds_call_their_texts(example: dict[str, Any], expected: Any) -> None:
    found = text_of(SimpleNamespace(**example))
    assert (found["prompt"], found["options"], found["answer"]) == expected


def test_of_a_long_text_the_end_is_shown() -> None:
    found = text_of(SimpleNamespace(prompt="x" * 5000 + "?", answer="y" * LONGEST))
    assert found["prompt"] == "…" + "x" * (LONGEST - 2) + "?"
    assert found["answer"] == "y" * LONGEST


def test_the_table_of_kinds_is_whole() -> None:
    assert set(ROWS) <= set(plugins.names(proxy_tasks))
