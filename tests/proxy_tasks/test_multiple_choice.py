"""Multiple choice: what counts as the right option, and scores by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import DataError, Place
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
        (["b", "a", "c"], "a", 1),  # a text before a letter
        (["3", "0", "7"], "0", 1),  # a text before a number
        (["3", "0", "7"], 0, 0),  # a number is none
        ([3, 0, 7], "7", 2),
        (["False", "True"], True, 1),
        ({"text": ["red", "blue"], "label": ["A", "B"]}, "B", 1),  # ARC
        ({"text": ["red", "blue", "green"], "label": ["1", "2", "3"]}, "2", 1),  # ARC too
        ({"text": ["red", "blue"]}, "B", 1),
    ],
)
def test_the_right_option(options: Any, answer: Any, number: int) -> None:
    found = render({"q": "which?", "o": options, "a": answer}, settings(), PLACE)
    texts = options["text"] if isinstance(options, dict) else options
    assert found == Example("which?", tuple(map(str, texts)), number)


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
        ({"a": None}, {}, "got nothing"),
        ({"a": [0]}, {}, r"got \[0\]"),
        ({"a": 1.0}, {}, r"got 1\.0"),
        ({"o": {"text": ["x", "y"], "label": ["A"]}}, {}, "a label for each option in the field o"),
        ({}, {"options": "{o} or"}, "{field} alone, or a list of templates, got '{o} or'"),
        ({}, {"options": ["{o}", "{p}"]}, r"got a row without it at tasks.quiz.options\[1\] in"),
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
