"""Proxy tasks: one file per kind, found by its name.

A file holds `Settings` (a pydantic model: the task's part of a study file), `render` (one row of
data to one example, all mistakes found here, before a model is loaded) and `Task` (examples with a
tokenizer, scored on a language model). A kind whose settings are `PromptedSettings` and whose
examples are `Prompted` has system prompts and few-shot examples too; its file then also holds
`shown` (how an example with its answer reads when it is shown to the model). A file may also hold
`rows` (in the place of reading `data`), `absolute` (settings with their paths absolute), `check`
(whether the models suit the examples), `notes` (what is worth knowing of the examples) and
`NEEDS_MODULE` (an ensemble cannot be scored).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from evomerge import plugins
from evomerge.errors import Place

if TYPE_CHECKING:
    from evomerge.language_model import LanguageModel

Vector = npt.NDArray[np.float64]


class Dataset(BaseModel):
    """A data set read through the `datasets` library."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    dataset: str = Field(description="Hub id or folder of the data set")
    name: str | None = Field(None, description="configuration of the data set")
    split: str = Field("train", description="split of the data set")
    revision: str | None = Field(None, description="revision, to pin what is read")
    contaminates: bool = Field(
        False,
        description="search on a public benchmark's own test items all the same: results on that "
        "benchmark mean nothing any more",
    )


class TaskSettings(BaseModel):
    """What every kind of task has in a study file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    kind: str = Field(description="kind of proxy task")
    data: str | Dataset = Field(
        description="a JSONL, JSON, CSV, TSV or Parquet file, or {dataset, name, split, revision}"
    )
    chat: bool = Field(False, description="wrap the prompt in the tokenizer's chat template")


class Shots(BaseModel):
    """Few-shot examples: other items, with their answers, in front of every question."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    count: int = Field(ge=1, le=1000, description="examples in front of every question")
    data: str | Dataset | None = Field(
        None,
        description="where they come from, as the task's own data (default: the rows of the task's "
        "data that are in no split); an item of a split is never an example",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of the draw")
    per_item: bool = Field(
        False,
        description="draw examples for every item anew; the same for all are faster, since a model "
        "reads them once for all items",
    )


class PromptedSettings(TaskSettings):
    """What every kind of task has in a study file that puts prompts to a model."""

    system: str = Field(
        "",
        description="text in front of everything: the system message of a chat, else followed by "
        "the delimiter",
    )
    shots: Shots | None = Field(None, description="few-shot examples: {count, data, seed}")
    delimiter: str = Field(
        "\n\n", description="text between system prompt, examples and question, not in a chat"
    )


@dataclass(frozen=True)
class Shot:
    """A question with its answer, as the model is shown them; not in a chat, one goes on to two."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Prompted:
    """An example that asks the model something, after `shots`."""

    prompt: str
    shots: tuple[Shot, ...] = field(default=(), kw_only=True)


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
    by, `margins` (any float64) what the score is made of, where the kind of task knows them.
    """

    score: Vector
    correct: Vector
    probabilities: Probabilities | None = None
    margins: Vector | None = None


class Task(Protocol):
    """Examples of one proxy task, ready to be put to a model.

    One whose scores are smoothed margins has a `temperature`, and settings that may leave it None.
    One that is a ForcedTask (`_forced.py`) says which token sequences are to be run, and those of
    all such tasks are run together.

    One that has `lengths` (for every example, the tokens of its longest sequence) lets items that
    are longer than the model's context be found, and named, before the first is scored.
    """

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
