"""lm-eval: any task of the installed lm-evaluation-harness, or one of a task file of its own.

The task brings its data, templates, few-shot examples, filters and metrics; the models are run by
evomerge. Tokens are those of lm-eval's HFLM, so that log-likelihoods and answers agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from evomerge.decoding import Forced, TokenSequence, greedy
from evomerge.errors import DataError, Place
from evomerge.language_model import LanguageModel
from evomerge.proxy_tasks import Dataset, ItemScores, TaskSettings, Vector, sigmoid_of_margin
from evomerge.proxy_tasks import _harness as harness
from evomerge.proxy_tasks._data import Row, Rows
from evomerge.proxy_tasks._forced import ForcedTask
from evomerge.proxy_tasks._harness import Docs
from evomerge.proxy_tasks._hflm import Coding, Example, end_of, examples_of
from evomerge.proxy_tasks._tokens import Stops
from evomerge.tokenizer_files import Tokenizer

_PLACE = Place("the study", DataError)
_LENGTHS: dict[str, Callable[[str], int]] = {
    "acc_norm": len,
    "acc_bytes": lambda option: len(option.encode()),
}
_SUM, _PER_LENGTH, _LOGITS = 1.0, 0.1, 0.5  # default τ of a margin, by what it is a margin of


class Settings(TaskSettings):
    """The settings of a task of lm-eval in a study file."""

    task: str = Field(description="name of a task of lm-eval, or a task file (.yaml)")
    data: str | Dataset = Field("", description="nothing: the task brings its data")
    docs: Docs | None = Field(
        None, description="items to search on (default: train, or else validation)"
    )
    contaminates: bool = Field(
        False,
        description="search on the items that a public benchmark is scored on all the same: "
        "results on that benchmark mean nothing any more",
    )
    num_fewshot: int | None = Field(
        None, ge=0, le=1000, description="few-shot examples (default: the task's own number)"
    )
    metric: str | None = Field(
        None, description="what is reported as accuracy (default: the task's first metric)"
    )
    filter: str | None = Field(
        None, description="which of the task's filters reads answers (default: the first)"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, le=10**6, description="most tokens to generate (default: the task's own number)"
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="τ of sigmoid(margin/τ) (default: 1 for sums of log-probabilities, 0.1 where "
        "the metric divides them by lengths, 0.5 for logits)",
    )

    @field_validator("data")
    @classmethod
    def _no_data(cls, value: str | Dataset) -> str | Dataset:
        if value != "":
            raise ValueError("nothing: a task of lm-eval brings its data")
        return value


def absolute(settings: Settings, folder: Path) -> Settings:
    """Return the settings with a task file as an absolute path."""
    if not settings.task.endswith(harness.FILES):
        return settings
    return settings.model_copy(update={"task": str((folder / settings.task).resolve())})


def rows(settings: Settings, folder: Path, place: Place) -> Rows:
    """Return all items of a task as lm-eval asks them.

    Raises the place's error for what is no task, and for items that public scores are made on.
    """
    task = harness.load(settings.task, settings.num_fewshot, place)
    pipeline = harness.filter_of(task, settings.filter, place / "filter")
    split = harness.choose_docs(task, settings.task, settings.docs, settings.contaminates, place)
    examples = examples_of(task, settings.chat, place)
    harness.metric_of(task, pipeline, examples, settings.metric, place / "metric")
    found: list[Row] = [{"example": one} for one in examples]
    return Rows(found, lambda number: f"item {number} of the split {split} of {settings.task}")


def render(row: Row, settings: Settings, place: Place) -> Example:
    """Return what lm-eval made of an item; raises the place's error where nothing is right."""
    example: Example = row["example"]
    if example.choices and not 0 < len(set(example.gold)) < len(example.choices):
        raise place.fail("a right choice and a wrong one", list(example.choices))
    return example


class Task(ForcedTask):
    """Items of a task of lm-eval as token ids.

    Raises DataError for a text without tokens, and where `chat` finds no template.
    """

    def __init__(
        self, settings: Settings, examples: Sequence[Example], tokenizer: Tokenizer
    ) -> None:
        self._task = harness.load(settings.task, settings.num_fewshot, _PLACE)
        self._filter = harness.filter_of(self._task, settings.filter, _PLACE)
        self._metric = harness.metric_of(
            self._task, self._filter, examples, settings.metric, _PLACE
        )
        self._asks: str = self._task.OUTPUT_TYPE
        self._judges_itself = callable(self._task.config.process_results)
        self._temperature = settings.temperature
        self._examples = list(examples)
        self._coding = coding = Coding(tokenizer, settings.chat)
        requests = [one.requests for one in examples]
        self._pairs: list[list[TokenSequence]] = []
        self._prompts: list[tuple[int, ...]] = []
        if self._asks == "generate_until":
            end = tokenizer.decode(tokenizer.eos_token_id)
            stops, most = harness.generation(self._task, end)
            self._stops = tuple(filter(None, stops))
            self._most = settings.max_new_tokens or most
            self._prompts = [coding.prompt(one[0][0]) for one in requests]
            smooth = self._metric == "exact_match" and not self._judges_itself
            self._pairs = [
                [coding.pair(one.requests[0][0], one.target)] if smooth and one.target else []
                for one in examples
            ]
        elif self._asks == "loglikelihood_rolling":
            self._prompts = [coding.encode(one[0][0]) for one in requests]
        else:
            self._pairs = [[coding.pair(*texts) for texts in one] for one in requests]

    def sequences(self, items: Sequence[int], context: int | None) -> list[TokenSequence]:
        """See ForcedTask."""
        return [one for item in items for one in self._of(item, context)]

    def judged(
        self, model: LanguageModel, items: Sequence[int], exact: bool, forced: Forced
    ) -> ItemScores:
        """Score items by margins where the task has them, else by its metric.

        Raises CandidateError where the task's own code fails or gives no number from 0 to 1.
        """
        if self._asks == "generate_until":
            return self._generated(model, items, exact, forced)
        likelihood, least = forced.total(forced.log_probability), forced.least_margin()
        starts = np.cumsum([0, *(len(self._of(item, model.context)) for item in items)])
        spans = [slice(*pair) for pair in itertools.pairwise(starts.tolist())]
        if self._asks == "loglikelihood_rolling":
            answers: list[list[Any]] = [[float(likelihood[span].sum())] for span in spans]
        else:
            greedy_too = forced.agreed() == np.diff(forced.starts)
            pairs = list(zip(likelihood.tolist(), greedy_too.tolist(), strict=True))
            answers = [pairs[span] for span in spans]
        correct = self._judged(items, answers)
        margins = [
            self._margin(item, likelihood[span], least[span])
            for item, span in zip(items, spans, strict=True)
        ]
        return ItemScores(self._smooth(margins, correct), correct)

    def _of(self, item: int, context: int | None) -> list[TokenSequence]:
        """Return what the model reads of an item; of what is too long, the end, as in lm-eval."""
        if self._asks != "loglikelihood_rolling":
            return [end_of(one, context) for one in self._pairs[item]]
        ids = list(self._prompts[item])
        size = len(ids) if context is None else context - 1
        cut = harness.windows(ids, self._coding.prefix, size)
        return [TokenSequence((*before, *piece), len(piece)) for before, piece in cut]

    def _margin(self, item: int, likelihood: Vector, least: Any) -> tuple[float, float] | None:
        """Return an item's margin and its default τ, or None where its metric is all there is."""
        example = self._examples[item]
        if self._judges_itself or not self._pairs:
            return None
        if self._asks == "loglikelihood":
            return None if self._metric == "perplexity" else (float(least[0]), _LOGITS)
        if self._metric == "exact_match":
            return max(float(least[one]) for one in example.gold), _LOGITS
        count = len(example.choices)
        values = likelihood[:count]
        if self._metric == "acc_mutual_info":
            values = values - likelihood[count:]
        length = _LENGTHS.get(self._metric)
        if length is not None:
            values = values / np.array([max(1, length(one)) for one in example.choices])
        right = np.isin(np.arange(count), example.gold)
        lead = values[right].max() - values[~right].max()
        return float(lead), _SUM if length is None else _PER_LENGTH

    def _smooth(self, margins: Sequence[tuple[float, float] | None], correct: Vector) -> Vector:
        found = correct.copy()
        for row, one in enumerate(margins):
            if one is not None:
                margin, temperature = one
                given = np.array([margin])
                found[row] = sigmoid_of_margin(given, self._temperature or temperature)[0]
        return found

    def _judged(self, items: Sequence[int], answers: Sequence[Sequence[Any]]) -> Vector:
        """Return the metric of each item as lm-eval judges the answers."""
        asked = [self._examples[item] for item in items]
        return np.array(harness.judge(self._task, self._filter, self._metric, asked, answers))

    def _generated(
        self, model: LanguageModel, items: Sequence[int], exact: bool, forced: Forced
    ) -> ItemScores:
        """Score items by the right text's least margin, where it is known."""
        known = (row for row, item in enumerate(items) if self._pairs[item])
        correct = np.zeros(len(items))
        margins: list[tuple[float, float] | None] = [None] * len(items)
        for row, margin in zip(known, forced.least_margin(), strict=True):
            margins[row] = (float(margin), _LOGITS)
            correct[row] = float(margin > 0)
        asked = [row for row in range(len(items)) if exact or margins[row] is None]
        if asked:
            chosen = [items[row] for row in asked]
            correct[asked] = self._judged(chosen, [[one] for one in self._texts(model, chosen)])
        return ItemScores(self._smooth(margins, correct), correct)

    def _texts(self, model: LanguageModel, items: Sequence[int]) -> list[str]:
        """Return what greedy decoding gives, up to the first text that ends an answer."""
        room = None if model.context is None else model.context - self._most
        if room is not None and room < 1:
            raise DataError(
                f"expected room for a prompt beside {self._most} new tokens of "
                f"{self._task.task_name}, got a context of {model.context}; set `max_new_tokens`"
            )
        prompts = [
            ids if room is None else ids[-room:] for ids in map(self._prompts.__getitem__, items)
        ]
        coming = Stops(self._stops, self._coding.spelt)
        found = greedy(
            model,
            prompts,
            [self._most] * len(items),
            lambda _, new: self._coding.ended(new) or coming.came(new),
        )
        shown = Stops(self._stops, self._coding.text)
        return [shown.cut(new)[0] for new in found]
