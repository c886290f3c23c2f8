"""The kind of task that rows are taken for, by fields and values as public data sets have them."""

from typing import Any

import pytest

from evomerge import proxy_tasks
from evomerge.draft.guess import guess
from evomerge.errors import DataError, Place
from evomerge.study.schema import read_settings

PLACE = Place("items.jsonl", DataError)
ASKED = "Question: {question}\nAnswer:"


def rows(count: int = 12, **fields: Any) -> list[dict[str, Any]]:
    """Rows with a number put into every text, so that no two are alike."""

    def numbered(value: Any, number: int) -> Any:
        return f"{value} {number}" if isinstance(value, str) else value

    return [{name: numbered(one, n) for name, one in fields.items()} for n in range(count)]


@pytest.mark.parametrize(
    ("data", "kind", "settings"),
    [
        (
            rows(question="How many?", answer="So many that\n#### 7"),
            "generation",
            {"prompt": ASKED, "answer": " {answer}", "extract": r"####\s*(-?[\d.,]+)",
             "stop": ["\nQuestion:"]},
        ),
        (
            rows(question="Who?", answer="Ada"),
            "generation",
            {"prompt": ASKED, "answer": " {answer}", "stop": ["\n"]},
        ),
        (
            [{"question": f"{n}+1=", "answer": str(n + 1)} for n in range(12)],
            "generation",
            {"prompt": "{question}", "answer": "{answer}"},
        ),
        (
            rows(instruction="Add", input="two numbers", output="a sum"),
            "generation",
            {"prompt": "Instruction: {instruction}\n\n{input}\nAnswer:", "answer": " {output}",
             "stop": ["\n"]},
        ),
        (
            rows(context="A text", question="Of what?", answer="a text"),
            "generation",
            {"prompt": "{context}\n\n" + ASKED, "answer": " {answer}", "stop": ["\n"]},
        ),
        (
            [one | {"answerKey": "B"} for one in
             rows(question="Which?", choices={"text": ["a", "b"], "label": ["A", "B"]}, id="x")],
            "multiple_choice",
            {"prompt": ASKED, "options": "{choices}", "answer": "{answerKey}"},
        ),
        (
            rows(goal="Boil an egg", sol1="in water", sol2="in air", label=0),
            "multiple_choice",
            {"prompt": "Question: {goal}\nAnswer:", "options": ["{sol1}", "{sol2}"],
             "answer": "{label}"},
        ),
        (
            rows(question="Which?", A="one", B="two", C="three", answer=2),
            "multiple_choice",
            {"prompt": ASKED, "options": ["{A}", "{B}", "{C}"], "answer": "{answer}"},
        ),
        (
            [{"text": f"text {n}", "label": ["good", "bad {}"][n % 2]} for n in range(20)],
            "multiple_choice",
            {"prompt": "Question: {text}\nAnswer:", "options": ["bad {{}}", "good"],
             "answer": "{label}"},
        ),
        (rows(text="Once upon a time", id="x"), "perplexity", {"text": "{text}"}),
    ],
)  # fmt: skip
def test_fields_say_the_kind(data: list[Any], kind: str, settings: dict[str, Any]) -> None:
    found = guess(data, chat=False, classifier=False, place=PLACE)
    assert (found.kind, found.settings) == (kind, settings)
    module = proxy_tasks.get(kind, PLACE)
    checked = read_settings(
        module.Settings, {"kind": kind, "data": "items.jsonl", **settings}, PLACE
    )
    assert len({module.render(row, checked, PLACE) for row in data}) == len(data)


def test_models_with_chat_templates_are_asked_in_messages() -> None:
    found = guess(rows(question="Who?", answer="Ada"), chat=True, classifier=False, place=PLACE)
    assert found.settings == {"prompt": "{question}", "answer": "{answer}", "chat": True}


def test_classifiers_are_asked_about_texts() -> None:
    data = rows(text="Fine", label=1)
    found = guess(data, chat=False, classifier=True, place=PLACE)
    assert (found.kind, found.settings) == (
        "classification", {"text": "{text}", "label": "{label}"},
    )  # fmt: skip
    two = guess(
        rows(premise="It rains", hypothesis="It is wet", label=0),
        chat=False, classifier=True, place=PLACE,
    )  # fmt: skip
    assert two.settings == {"text": "{premise}", "pair": "{hypothesis}", "label": "{label}"}
    with pytest.raises(DataError, match=r"expected fields text and label, .* got the fields text"):
        guess(rows(text="Fine"), chat=False, classifier=True, place=PLACE)


def test_a_field_that_some_rows_lack_counts_for_nothing() -> None:
    data = [*rows(question="Who?", answer="Ada", options=["Ada", "Bob"]),
            {"question": "?", "answer": "Ada", "options": None}]  # fmt: skip
    assert guess(data, chat=False, classifier=False, place=PLACE).kind == "generation"


def test_fields_that_say_nothing_are_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"got the fields foo, bar at .*; rename them, or write"):
        guess(rows(foo="a", bar="b"), chat=False, classifier=False, place=PLACE)
