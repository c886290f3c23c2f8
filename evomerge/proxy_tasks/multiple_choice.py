"""Multiple choice: the right option must have the highest log-likelihood after the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from evomerge.decoding import TokenSequence, teacher_force
from evomerge.errors import Place
from evomerge.models import LanguageModel
from evomerge.proxy_tasks import ItemScores, TaskSettings, sigmoid_of_margin
from evomerge.proxy_tasks._data import (
    Row,
    encode_answer,
    encode_prompt,
    field,
    fill,
    only_field,
)


class Settings(TaskSettings):
    """The settings of a multiple-choice task in a study file."""

    prompt: str = Field(description="template of the prompt, with {field} of the data")
    options: str | tuple[str, ...] = Field(
        strict=False, description="one template per option, or {field} of a field that holds a list"
    )
    answer: str = Field(
        description="template of the right option: its number from 0, its letter, or its text"
    )
    normalize: Literal["tokens", "characters", "none"] = Field(
        "tokens", description="divide an option's log-likelihood by its length in these"
    )
    separator: str = Field(" ", description="text between the prompt and an option")
    temperature: float = Field(0.1, gt=0, strict=False, description="τ of sigmoid(margin/τ)")


@dataclass(frozen=True)
class Example:
    """One rendered item; `answer` is the number of the right option."""

    prompt: str
    options: tuple[str, ...]
    answer: int


def render(row: Row, settings: Settings, place: Place) -> Example:
    """Fill the templates from a row; raises the place's error where they do not fit the data."""
    options = _options(row, settings, place / "options")
    if len(options) < 2 or not all(option.strip() for option in options):
        raise (place / "options").fail("at least two options, none of them empty", options)
    if len(set(options)) < len(options):
        raise (place / "options").fail("options that differ", options)
    here = place / "answer"
    name = only_field(settings.answer)
    value = field(name, row, here) if name else fill(settings.answer, row, here)
    prompt = fill(settings.prompt, row, place / "prompt")
    return Example(prompt, options, _which(value, options, here))


def _options(row: Row, settings: Settings, place: Place) -> tuple[str, ...]:
    if not isinstance(settings.options, str):
        return tuple(
            fill(template, row, place[index]) for index, template in enumerate(settings.options)
        )
    name = only_field(settings.options)
    if name is None:
        raise place.fail("{field} alone, or a list of templates", settings.options)
    found = field(name, row, place)
    if isinstance(found, dict) and isinstance(found.get("text"), list):
        found = found["text"]  # the layout of ARC and its kin
    if not isinstance(found, list):
        raise place.fail(f"a list in the field {name}", found)
    return tuple(str(option) for option in found)


def _which(value: Any, options: tuple[str, ...], place: Place) -> int:
    text = str(value).strip()
    if isinstance(value, str) and value in options:
        return options.index(value)
    if text.isdecimal():
        number = int(text)
    elif len(text) == 1 and text.isalpha():
        number = ord(text.upper()) - ord("A")
    else:
        number = -1
    if not 0 <= number < len(options):
        known = f"a number from 0 to {len(options) - 1}, a letter from A, or an option's text"
        raise place.fail(known, value)
    return number


class Task:
    """Examples of a multiple-choice task as token ids, one sequence per option."""

    def __init__(
        self, settings: Settings, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._temperature = settings.temperature
        self._answers = [example.answer for example in examples]
        self._sequences: list[list[TokenSequence]] = []
        self._lengths: list[list[int]] = []
        for example in examples:
            prompt = encode_prompt(tokenizer, example.prompt, settings.chat)
            tails = [
                encode_answer(tokenizer, ("" if settings.chat else settings.separator) + option)
                for option in example.options
            ]
            self._sequences.append([TokenSequence(prompt + tail, len(tail)) for tail in tails])
            length = {
                "tokens": [len(tail) for tail in tails],
                "characters": [len(option) for option in example.options],
                "none": [1 for _ in tails],
            }
            self._lengths.append(length[settings.normalize])

    def scores(self, model: LanguageModel, items: Sequence[int], exact: bool) -> ItemScores:
        """Score items by the right option's lead over the best other; see proxy_tasks.Task."""
        flat = [sequence for item in items for sequence in self._sequences[item]]
        forced = teacher_force(model, flat)
        totals = iter(forced.total(forced.log_probability))
        margins = np.empty(len(items))
        for row, item in enumerate(items):
            likelihood = np.array([next(totals) / size for size in self._lengths[item]])
            gold = likelihood[self._answers[item]]
            margins[row] = gold - np.delete(likelihood, self._answers[item]).max()
        correct = (margins > 0).astype(np.float64)
        return ItemScores(sigmoid_of_margin(margins, self._temperature), correct)
