"""Proxy tasks: one file per kind, found by its name.

A file holds `Settings` (a pydantic model: the task's part of a study file), `render` (one row of
data to one example, all mistakes found here, before a model is loaded) and `Task` (examples with a
tokenizer, scored on a language model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from evomerge import plugins
from evomerge.errors import Place
from evomerge.language_model import LanguageModel

Vector = npt.NDArray[np.float64]


class Dataset(BaseModel):
    """A data set read through the `datasets` library."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    dataset: str = Field(description="Hub id or folder of the data set")
    name: str | None = Field(None, description="configuration of the data set")
    split: str = Field("train", description="split of the data set")
    revision: str | None = Field(None, description="revision, to pin what is read")


class TaskSettings(BaseModel):
    """What every kind of task has in a study file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    kind: str = Field(description="kind of proxy task")
    data: str | Dataset = Field(description="a JSONL file, or {dataset, name, split, revision}")
    chat: bool = Field(False, description="wrap the prompt in the tokenizer's chat template")


@dataclass(frozen=True)
class Probabilities:
    """What a model itself thinks of n answers, each float64 [n] in [0, 1].

    `gold` is the probability that it gives the right answer, `confidence` the one that it gives
    the answer that it chooses.
    """

    gold: Vector
    confidence: Vector


@dataclass(frozen=True)
class ItemScores:
    """Scores of n items, each float64 [n] in [0, 1].

    `score` is smooth and is what fitness is made of; `correct` is what reports show: right or
    wrong, or the part of an item that is right. `probabilities` are what calibration is measured
    by, where the kind of task knows them.
    """

    score: Vector
    correct: Vector
    probabilities: Probabilities | None = None


class Task(Protocol):
    """Examples of one proxy task, ready to be put to a model."""

    def scores(self, model: LanguageModel, items: Sequence[int], exact: bool) -> ItemScores:
        """Score some examples, by their numbers, in the given order.

        With `exact`, correctness is measured as a user would (by generating); without, it may be
        read from the teacher-forced margins, which cost nothing more.
        """
        ...


def get(kind: object, place: Place) -> ModuleType:
    """Return the module of a kind of task; raises the place's error with the nearest name."""
    return plugins.load(__name__, kind, "kind of task", place)


def sigmoid_of_margin(margins: npt.NDArray[Any], temperature: float) -> Vector:
    """Return the smoothed accuracy sigmoid(margin / τ), float64; accuracy itself as τ → 0."""
    with np.errstate(over="ignore"):  # of a τ next to 0
        scaled = np.clip(margins.astype(np.float64) / temperature, -700, 700)
    return 1.0 / (1.0 + np.exp(-scaled))
