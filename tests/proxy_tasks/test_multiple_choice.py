"""Multiple choice: what counts as the right option, and scores by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import DataError, Place
from evomerge.proxy_tasks._data import Label
from evomerge.proxy_tasks.multiple_choice import Example, Settings, Task, render
from tests.architectures import byte_level_tokenizer, live, save_random
from tests.proxy_tasks.scripted import Scripted

PLACE = Place("study.yaml", DataError, "tasks.quiz")
TOKENIZER = byte_level_tokenizer("which is it? red or blue or dark green.\n" * 9)


def settings(**given: Any) -> Settings:
    whole = {"prompt": "{q}", "options": "{o}", "answer": "{a}", **given}
    return Settings(kind="multiple_choice", data="x", **whole)


@pytest.mark.parametrize(
    ("options", "answer", "number"),
    [
        (["red", "blue", "green"], "blue", 1),
        (["red", "blue", "green"], " blue ", 1),
        (["red", "blue", "green"], 2, 2),
        (["red", "blue", "green"], "2", 2),
        (["red", "blue", "green"], "C", 2),
        (["red", "blue", "green"], "a", 0),
        (["a", "c", "b"], "a", 0),  # as a text and as a letter
        (["0", "3", "7"], "0", 0),  # as a text and as a number
        (["b", "a", "e"], "e", 2),  # no letter of three options
        (["3", "0", "7"], 0, 0),  # a number is no text
        ([3, 0, 7], "7", 2),
        (["False", "True"], True, 1),
        ({"text": ["red", "blue"], "label": ["A", "B"]}, "B", 1),  # ARC
        ({"text": ["red", "blue", "green"], "label": ["1", "2", "3"]}, "2", 1),  # ARC too
        ({"text": ["red", "blue"]}, "B", 1),
        ({"text": ["4", "3", "2"], "label": ["1", "2", "3"]}, "2", 1),  # a label before a text
        ({"text": ["red", "blue"], "label": ["A", "B"]}, 1, 1),
        ({"A": "red", "B": "blue"}, "B", 1),  # MedQA
        ({"A": "red", "B": "blue"}, "blue", 1),
        (["red", "blue"], Label(1, ("choice1", "choice2")), 1),  # COPA of SuperGLUE
        (["D", "C", "B", "A"], Label(2, ("A", "B", "C", "D")), 2),  # MMLU
        (["1", "0"], Label(0, ("0", "1")), 0),  # PIQA
        (["blue", "red"], Label(1, ("blue", "red")), 1),
        (["no", "yes"], Label(1, ("False", "True")), 1),  # BoolQ of SuperGLUE
        ([b"red", b"bl\xc3\xbc"], b"bl\xc3\xbc", 1),
    ],
)
def test_the_right_option(options: Any, answer: Any, number: int) -> None:
    found = render({"q": "which?", "o": options, "a": answer}, settings(), PLACE)
    texts = options
    if isinstance(options, dict):
        texts = options.get("text") or options.values()
    plain = (one.decode() if isinstance(one, bytes) else str(one) for one in texts)
    assert found == Example("which?", tuple(plain), number)


@pytest.mark.parametrize(
    ("options", "answer", "meant"),
    [
        (["AB", "B", "A", "0"], "A", {"text": 2, "letter": 0}),  # blood groups
        (["3", "2", "1", "0"], "1", {"text": 2, "number": 1}),
        (["1", "2", "3"], " 1", {"text": 0, "number": 1}),
        (["good", "bad"], Label(0, ("bad", "good")), {"text": 1, "number": 0}),
        (["Good", "Bad"], Label(0, ("bad", "good")), {"text": 1, "number": 0}),
        (["x", "y"], Label(0, ("B", "A")), {"letter": 1, "number": 0}),
        ({"text": ["1", "2", "0"], "label": ["A", "B", "C"]}, "0", {"text": 2, "number": 0}),
    ],
)
def test_what_names_two_options_is_refused(
    options: Any, answer: Any, meant: dict[str, int]
) -> None:
    row = {"q": "which?", "o": options, "a": answer}
    with pytest.raises(DataError, match="expected an answer that names one option, got '") as found:
        render(row, settings(), PLACE)
    texts = options["text"] if isinstance(options, dict) else options
    for way, number in meant.items():
        assert f"`answer_is: {way}` for" in str(found.value)
        assert repr(texts[number]) in str(found.value)
        assert render(row, settings(answer_is=way), PLACE).answer == number


def test_the_sentence_on_an_answer_that_names_two_options() -> None:
    row = {"q": "which?", "o": ["AB", "B", "A", "0"], "a": "A"}
    with pytest.raises(DataError) as found:
        render(row, settings(), PLACE)
    assert str(found.value) == (
        "expected an answer that names one option, got 'A', which may be an option's text for 'A' "
        "and a letter from A for 'AB' at tasks.quiz.answer in study.yaml; set `answer_is: text` "
        "for an option's text or `answer_is: letter` for a letter from A"
    )


@pytest.mark.parametrize(
    ("options", "answer", "way", "number"),
    [
        (["x", "y"], "1", "ordinal", 0),  # WinoGrande
        (["x", "y"], 2, "ordinal", 1),
        (["no", "yes"], True, "number", 1),  # BoolQ
        ([1, 2, 3], 1, "text", 0),
        ({"text": ["x", "y"], "label": ["1", "2"]}, 0, "number", 0),
        ({"text": ["B", "A"], "label": ["A", "B"]}, "B", "text", 0),
    ],
)
def test_what_an_answer_is_may_be_said(options: Any, answer: Any, way: str, number: int) -> None:
    row = {"q": "which?", "o": options, "a": answer}
    assert render(row, settings(answer_is=way), PLACE).answer == number


def test_options_as_templates() -> None:
    row = {"q": "which?", "right": "red", "wrong": "blue", "a": 0}
    found = render(row, settings(options=["{right}", "not {right}", "{wrong}"]), PLACE)
    assert found == Example("which?", ("red", "not red", "blue"), 0)
    found = render(row, settings(options=["{right}", "{wrong}"], answer="{right}"), PLACE)
    assert found.answer == 0


def test_wrong_options_that_repeat_count_once() -> None:
    row = {"q": "which?", "o": ["red", "blue", "red", "green"], "a": "D"}
    assert render(row, settings(), PLACE) == Example("which?", ("red", "blue", "green"), 2)
    row = {"q": "which?", "o": ["red", "blue", "red", "green"], "a": 1}
    assert render(row, settings(), PLACE) == Example("which?", ("red", "blue", "green"), 1)


@pytest.mark.parametrize(
    ("row", "asked", "words"),
    [
        ({"o": ["x", "x "]}, {}, "a right option unlike the others"),
        ({"o": ["x"]}, {}, r"at least two options, none of them empty, got \['x'\] at .*\.options"),
        ({"o": ["x", " "]}, {}, "at least two options, none of them empty"),
        ({"o": ["x", None]}, {}, "a list without null in the field o"),
        ({"o": "xy"}, {}, "a list without null in the field o, got 'xy'"),
        ({"o": ["x", "x"]}, {}, "a right option unlike the others"),
        (
            {"a": 2},
            {},
            "an option's text, a number from 0 to 1, or a letter from A, got 2 at .*er in",
        ),
        ({"a": "c"}, {}, "got 'c'"),
        ({"a": "ß"}, {}, "got 'ß'"),
        ({"a": -1}, {}, "got -1"),
        ({"a": None}, {}, "expected a value in the field a, got null"),
        ({"a": float("nan")}, {}, "expected a value in the field a, got null"),
        ({"a": Label(-1, ("x", "y"))}, {}, "expected a value in the field a, got null"),
        ({"a": [0]}, {}, r"got \[0\]"),
        ({"a": 1.0}, {}, r"got 1\.0"),
        ({"a": "9" * 5000}, {}, "an option's text, a number from 0 to 1"),
        ({"a": True}, {}, "got True at .*; set `answer_is: number` for a number from 0 or `an"),
        ({"a": "2"}, {}, "got '2' at .*; set `answer_is: ordinal` for a number from 1$"),
        ({"a": "3"}, {"answer_is": "ordinal"}, "a number from 1 for one of 2 options, got '3' at"),
        (
            {"o": {"text": ["x", "y"], "label": ["1", "2"]}},
            {},
            "an option's text or one of its labels 1, 2, got 0 at .*; set `answer_is: number` for",
        ),
        ({"o": ["x", ["y"]]}, {}, r"expected a text or a number in the field o, got \['y'\] at"),
        (
            {"o": [{"text": "x", "label": "A"}] * 2},
            {},
            "expected a text or a number in the field o",
        ),
        ({"o": {"choices": ["x", "y"]}}, {}, "a list without null in the field o, got {'choices'"),
        (
            {"o": {"A": "x", "B": None}},
            {},
            r"at least two options, .* got \['x'\]",
        ),  # as in Parquet
        ({"o": {"text": ["x", "y"], "label": ["A"]}}, {}, "a label for each option in the field o"),
        ({}, {"options": "{o} or"}, "{field} alone, or a list of templates, got '{o} or'"),
        ({}, {"options": ["{q}", "{p}"]}, r"got a row without it at tasks.quiz.options\[1\] in"),
        ({}, {"answer": "{b}"}, "did you mean|its fields"),
    ],
)
def test_rows_that_do_not_fit(row: dict[str, Any], asked: dict[str, Any], words: str) -> None:
    whole = {"q": "which?", "o": ["x", "y"], "a": 0} | row
    with pytest.raises(DataError, match=words) as caught:
        render(whole, settings(**asked), PLACE)
    assert "in study.yaml" in str(caught.value)


def by_hand(example: Example, asked: Settings, model: Any) -> tuple[float, ...]:
    """Log-likelihoods token by token, from whole sequences one at a time."""
    likelihood = []
    for option in example.options:
        head = TOKENIZER(example.prompt)["input_ids"]
        ids = TOKENIZER(example.prompt + asked.separator + option)["input_ids"]
        assert ids[: len(head)] == head
        rows = torch.log_softmax(model.logits(torch.tensor([ids]), len(ids))[0].double(), -1)
        total = sum(float(rows[place - 1, ids[place]]) for place in range(len(head), len(ids)))
        size = {
            "tokens": len(ids) - len(head),
            "characters": len(option),
            "bytes": len(option.encode()),
            "none": 1,
        }
        likelihood.append(total / size[asked.normalize])
    others = [one for number, one in enumerate(likelihood) if number != example.answer]
    margin = likelihood[example.answer] - max(others)
    likely = np.exp(likelihood) / np.sum(np.exp(likelihood))
    return (
        1 / (1 + np.exp(-margin / asked.temperature)),
        float(margin > 0),
        likely[example.answer],
        likely.max(),
    )


EXAMPLES = [
    Example("which is it?", ("red", "blue", "dark green"), 2),
    Example("which is it?", ("blue", "red"), 0),
    Example("blue or red or green?", ("red", "which is it", "blue", "green"), 1),
    Example("is", ("red or blue", "r"), 1),
    Example("is", ("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n", "red"), 0),
]


@pytest.mark.parametrize("normalize", ["tokens", "characters", "bytes", "none"])
@pytest.mark.parametrize("separator", [" ", ": "])
def test_scores_by_hand(normalize: str, separator: str, tmp_path: Any) -> None:
    model = live(save_random(tmp_path, "llama", vocabulary=len(TOKENIZER)))
    asked = settings(normalize=normalize, separator=separator, temperature=0.7)
    items = [3, 0, 1, 2, 0, 4]
    found = Task(asked, EXAMPLES, TOKENIZER).scores(model, items, exact=True)
    score, right, gold, confidence = zip(
        *(by_hand(EXAMPLES[item], asked, model) for item in items), strict=True
    )
    assert found.score == pytest.approx(score, rel=1e-4)
    assert found.correct.tolist() == list(right)
    assert found.probabilities is not None
    assert found.probabilities.gold == pytest.approx(gold, rel=1e-4)
    assert found.probabilities.confidence == pytest.approx(confidence, rel=1e-4)
    assert found.score[1] == pytest.approx(found.score[4], rel=1e-5)


def test_normalization_decides() -> None:
    """Two tokens of log-probability -1 each against one of -1.5: lengths turn the order."""
    head = tuple(TOKENIZER("which is it?")["input_ids"])
    long = tuple(TOKENIZER(" dark green")["input_ids"])
    short = tuple(TOKENIZER(" red")["input_ids"])
    assert (len(long), len(short)) == (2, 1)
    every = len(TOKENIZER)

    def rule(tokens: tuple[int, ...]) -> dict[int, float]:
        wanted = {}
        if tokens == head:
            wanted = {long[0]: -1.0, short[0]: -1.5}
        elif tokens == (*head, long[0]):
            wanted = {long[1]: -1.0}
        rest = 1 - sum(np.exp(one) for one in wanted.values())
        found = dict.fromkeys(range(every), np.log(rest / (every - len(wanted))))
        return found | wanted

    example = Example("which is it?", ("dark green", "red"), 0)
    margins = {
        "tokens": -2 / 2 + 1.5,
        "characters": -2 / 10 + 1.5 / 3,
        "bytes": -2 / 10 + 1.5 / 3,
        "none": -2 + 1.5,
    }
    for normalize, margin in margins.items():
        asked = settings(normalize=normalize, temperature=1.0)
        found = Task(asked, [example], TOKENIZER).scores(Scripted(rule, every), [0], exact=False)
        assert found.score == pytest.approx([1 / (1 + np.exp(-margin))], rel=1e-5)
        assert found.correct.tolist() == [float(margin > 0)]


def test_a_chat_puts_nothing_between() -> None:
    tokenizer = byte_level_tokenizer("which is it? red or blue.\n" * 9)
    tokenizer.chat_template = "<{{ messages[0].content }}>"
    found = Task(settings(chat=True), [Example("which?", ("red", "blue"), 0)], tokenizer)
    texts = [tokenizer.decode(one.ids) for one in found._sequences]
    assert texts == ["<which?>red", "<which?>blue"]
    assert [tokenizer.decode(one.target) for one in found._sequences] == ["red", "blue"]
