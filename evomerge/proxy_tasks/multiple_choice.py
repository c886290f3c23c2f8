"""Multiple choice: the right option must have the highest log-likelihood after the prompt."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from evomerge.decoding import Forced, TokenSequence
from evomerge.errors import Found, Place
from evomerge.language_model import LanguageModel
from evomerge.proxy_tasks import (
    ItemScores,
    Probabilities,
    Prompted,
    PromptedSettings,
    Shot,
    sigmoid_of_margin,
)
from evomerge.proxy_tasks._data import Label, Row, field, fill, only_field, text_of
from evomerge.proxy_tasks._forced import ForcedTask
from evomerge.proxy_tasks._tokens import encode_after, prompt_of
from evomerge.tokenizer_files import Tokenizer

_TEMPERATURE = 0.1  # until the experts' margins are known
_READINGS = {
    "text": "an option's text",
    "label": "an option's label",
    "letter": "a letter from A",
    "number": "a number from 0",
    "ordinal": "a number from 1",
}


class Settings(PromptedSettings):
    """The settings of a multiple-choice task in a study file."""

    prompt: str = Field(description="template of the prompt, with {field} of the data")
    options: str | list[str] = Field(
        description="one template per option, or {field} of a field that holds a list"
    )
    answer: str = Field(
        description="template of the right option: its text, its label where the data has labels, "
        "its number from 0, or its letter"
    )
    answer_is: Literal["text", "label", "letter", "number", "ordinal"] | None = Field(
        None,
        description="which of these the answer is; number counts from 0, ordinal from 1 (default: "
        "whichever names an option, but for ordinal)",
    )
    normalize: Literal["tokens", "characters", "bytes", "none"] = Field(
        "tokens", description="divide an option's log-likelihood by its length in these"
    )
    separator: str = Field(" ", description="text between the prompt and an option, not in a chat")
    temperature: float | None = Field(
        None, gt=0, description="τ of sigmoid(margin/τ) (default: by the experts' margins)"
    )


@dataclass(frozen=True)
class Example(Prompted):
    """One rendered item; `answer` is the number of the right option."""

    options: tuple[str, ...]
    answer: int


def render(row: Row, settings: Settings, place: Place) -> Example:
    """Fill the templates from a row; raises the place's error where they do not fit the data.

    Wrong options that repeat count once; one like the right option leaves no right answer.
    """
    options, labels = _options(row, settings, place / "options")
    if len(options) < 2 or not all(option.strip() for option in options):
        raise (place / "options").fail("at least two options, none of them empty", list(options))
    here = place / "answer"
    text = fill(settings.answer, row, here)
    name = only_field(settings.answer)
    value = field(name, row, here) if name else text
    answer = _which(value, text, options, labels, settings.answer_is, here)
    right, different = options[answer], tuple(dict.fromkeys(options))
    if [option.strip() for option in options].count(right.strip()) > 1:
        raise (place / "options").fail("a right option unlike the others", list(options))
    prompt = fill(settings.prompt, row, place / "prompt")
    return Example(prompt, different, different.index(right))


def shown(example: Example, settings: Settings) -> Shot:
    """Return the example with its right option, as the model is shown it."""
    return Shot(example.prompt, _separator(settings) + example.options[example.answer])


def _separator(settings: Settings) -> str:
    return "" if settings.chat else settings.separator


def _options(row: Row, settings: Settings, place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the options and, where the data has them, their labels."""
    if not isinstance(settings.options, str):
        templates = enumerate(settings.options)
        return tuple(fill(template, row, place[index]) for index, template in templates), ()
    name = only_field(settings.options)
    if name is None:
        raise place.fail("{field} alone, or a list of templates", settings.options)
    found, labels = field(name, row, place), None
    if isinstance(found, dict) and isinstance(found.get("text"), list):  # ARC and its kin
        found, labels = found["text"], found.get("label")
    elif isinstance(found, dict) and all(len(key) == 1 for key in found):  # MedQA and its kin
        known = {key: one for key, one in found.items() if one is not None}
        found, labels = list(known.values()), list(known)
    if not isinstance(found, list) or None in found:
        raise place.fail(f"a list without null in the field {name}", found)
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(found)):
        raise place.fail(f"a label for each option in the field {name}", labels)
    return (
        tuple(text_of(one, name, place) for one in found),
        tuple(text_of(one, name, place) for one in labels or ()),
    )


def _which(
    value: Any,
    text: str,
    options: tuple[str, ...],
    labels: tuple[str, ...],
    asked: str | None,
    place: Place,
) -> int:
    """Return the number of the right option; an answer that may be either of two is refused."""
    readings = _readings(value, text, options, labels)
    kept = {asked} if asked else _usual(value, text, readings, labels)
    named = {reading: number for reading, number in readings.items() if reading in kept}
    if not named:
        raise place.fail(_expected(len(options), labels, asked), value, _settled(readings))
    if len({options[number] for number in named.values()}) > 1:
        meant = (f"{_READINGS[one]} for {reprlib.repr(options[named[one]])}" for one in named)
        found = Found(f"{text!r}, which may be {' and '.join(meant)}")
        raise place.fail("an answer that names one option", found, _settled(named))
    return next(iter(named.values()))


def _readings(
    value: Any, text: str, options: tuple[str, ...], labels: tuple[str, ...]
) -> dict[str, int]:
    """Return all that an answer may be meant as, each with the number of the option it then names.

    A class of the data set counts by its number, and its name is an option's text in any case.
    """
    found = {}
    short = text.strip()
    folded = [option.strip().casefold() for option in options]
    if text in options or short in options:
        found["text"] = options.index(text if text in options else short)
    elif isinstance(value, Label) and short.casefold() in folded:
        found["text"] = folded.index(short.casefold())
    if short in labels:
        found["label"] = labels.index(short)
    if len(short) == 1 and short.isascii() and short.isalpha():
        found["letter"] = ord(short.upper()) - ord("A")
    if isinstance(value, int):
        found["number"] = int(value)
    elif short.isascii() and short.isdecimal() and len(short) < 10:
        found["number"] = int(short)
    if "number" in found:
        found["ordinal"] = found["number"] - 1
    return {reading: number for reading, number in found.items() if 0 <= number < len(options)}


def _usual(value: Any, text: str, readings: dict[str, int], labels: tuple[str, ...]) -> set[str]:
    """Return what an answer is taken for where the study does not say."""
    if "label" in readings:
        return {"label"}
    usual = {"text", "letter", "number"}
    if isinstance(value, bool) or any(map(str.isdecimal, labels)):
        usual.remove("number")
    if type(value) is int or (isinstance(value, Label) and len(text) == 1):
        usual.remove("text")  # a class that is called A or 0 is a place among the options
    return usual


def _expected(count: int, labels: tuple[str, ...], asked: str | None) -> str:
    if asked:
        return f"{_READINGS[asked]} for one of {count} options"
    if any(map(str.isdecimal, labels)):
        return f"an option's text or one of its labels {', '.join(labels)}"
    return f"an option's text, a number from 0 to {count - 1}, or a letter from A"


def _settled(readings: Iterable[str]) -> str:
    ways = [f"`answer_is: {one}` for {_READINGS[one]}" for one in readings]
    return f"set {' or '.join(ways)}" if ways else ""


class Task(ForcedTask):
    """Examples of a multiple-choice task as token ids, one sequence per option.

    Raises DataError for an option without tokens, and where `chat` finds no template.
    """

    def __init__(
        self, settings: Settings, examples: Sequence[Example], tokenizer: Tokenizer
    ) -> None:
        self.temperature = settings.temperature or _TEMPERATURE
        separator = _separator(settings)
        options = [option for example in examples for option in example.options]
        flat = encode_after(
            tokenizer,
            [prompt_of(settings, example) for example in examples for _ in example.options],
            [separator + option for option in options],
            settings.chat,
        )
        length = {
            "tokens": [one.scored for one in flat],
            "characters": [len(option) for option in options],
            "bytes": [len(option.encode()) for option in options],
            "none": [1] * len(flat),
        }[settings.normalize]
        ends = np.cumsum([len(example.options) for example in examples], dtype=np.int64)
        self._spans = [
            slice(end - len(example.options), end)
            for end, example in zip(ends.tolist(), examples, strict=True)
        ]
        self._answers = np.array([example.answer for example in examples], dtype=np.int64)
        self._sequences, self._lengths = flat, np.array(length, dtype=np.float64)
        self.lengths = [max(len(one.ids) for one in flat[span]) for span in self._spans]

    def sequences(self, items: Sequence[int], context: int | None) -> list[TokenSequence]:
        """See ForcedTask."""
        return [one for item in items for one in self._sequences[self._spans[item]]]

    def judged(
        self, model: LanguageModel, items: Sequence[int], exact: bool, forced: Forced
    ) -> ItemScores:
        """Score items by the right option's lead over the best other.

        Its probabilities are the softmax over the options of what decides.
        """
        spans = [self._spans[item] for item in items]
        lengths = np.concatenate([self._lengths[span] for span in spans])
        likelihood = forced.total(forced.log_probability) / lengths
        counts = [span.stop - span.start for span in spans]
        table = np.full((len(items), max(counts)), -np.inf)  # of items × options
        table[np.arange(max(counts)) < np.array(counts)[:, None]] = likelihood
        rows, answers = np.arange(len(items)), self._answers[list(items)]
        gold = table[rows, answers]
        others = table.copy()
        others[rows, answers] = -np.inf
        margins = gold - others.max(axis=1)
        score = sigmoid_of_margin(margins, self.temperature)
        correct = (margins > 0).astype(np.float64)
        if not exact:
            return ItemScores(score, correct, None, margins)
        odds = np.exp(table - table.max(axis=1, keepdims=True))
        total = odds.sum(axis=1)
        found = Probabilities(odds[rows, answers] / total, odds.max(axis=1) / total)
        return ItemScores(score, correct, found, margins)
