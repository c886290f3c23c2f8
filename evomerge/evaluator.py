"""Runs proxy tasks on a live model: items drawn into three disjoint splits, tokenized once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import xxhash

from evomerge.errors import Found, Place
from evomerge.language_model import LanguageModel
from evomerge.proxy_tasks import ItemScores, Probabilities, Task, TaskSettings, Vector
from evomerge.proxy_tasks._data import Row
from evomerge.tokenizer_files import Tokenizer

Split = Literal["search", "select", "heldout"]
SPLITS: tuple[Split, ...] = ("search", "select", "heldout")


@dataclass(frozen=True)
class TaskItems:
    """One task's examples, those of the three splits only, and which belong to which split."""

    name: str
    kind: ModuleType
    settings: TaskSettings
    examples: tuple[Any, ...]
    splits: Mapping[Split, tuple[int, ...]]

    def fingerprint(self) -> str:
        """Return a hash of the settings and of every example in its split.

        Where the data lies does not count.
        """
        settings = self.settings.model_dump(exclude={"data"})
        parts = [repr(settings), *map(repr, self.examples), repr(self.splits)]
        return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())


def draw_items(
    name: str,
    kind: ModuleType,
    settings: TaskSettings,
    rows: Sequence[Row],
    sizes: Mapping[Split, int],
    seed: int,
    place: Place,
) -> TaskItems:
    """Render all rows and draw the splits by the seed.

    Rows that render alike count once, so no item stands in two splits. Raises the place's error for
    a row that does not fit the templates, or where there are too few rows.
    """
    rendered = []
    for number, row in enumerate(rows, start=1):
        document = f"{place.document} (row {number} of the data)"
        rendered.append(kind.render(row, settings, Place(document, place.error, place.path)))
    distinct = list(dict.fromkeys(rendered))
    needed = sum(sizes.values())
    if len(distinct) < needed:
        parts = " + ".join(f"{size} {split}" for split, size in sizes.items())
        raise (place / "data").fail(
            f"at least {needed} different items ({parts})",
            Found(str(len(distinct))),
            "give more data or ask for smaller splits",
        )
    stream = np.random.default_rng([seed, int(hashlib.sha256(name.encode()).hexdigest()[:15], 16)])
    order = stream.permutation(len(distinct))[:needed]
    splits: dict[Split, tuple[int, ...]] = {}
    start = 0
    for split, size in sizes.items():
        splits[split] = tuple(range(start, start + size))
        start += size
    return TaskItems(name, kind, settings, tuple(distinct[index] for index in order), splits)


class Evaluator:
    """The tasks of a study, ready to be put to any model that shares the tokenizer."""

    def __init__(self, tasks: Sequence[TaskItems], tokenizer: Tokenizer) -> None:
        self._splits = {task.name: task.splits for task in tasks}
        self._tasks: dict[str, Task] = {
            task.name: task.kind.Task(task.settings, task.examples, tokenizer) for task in tasks
        }

    def scores(
        self,
        model: LanguageModel,
        split: Split,
        exact: bool,
        only: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, ItemScores]:
        """Score all items of a split, or `only` some of a task's by their place in the split.

        See proxy_tasks.Task for `exact`. Scores have float32 precision, so that the database keeps
        them to the last bit.
        """
        found = {}
        for name, task in self._tasks.items():
            items = self._splits[name][split]
            chosen = items if only is None else [items[place] for place in only[name]]
            found[name] = _single(task.scores(model, chosen, exact))
        return found


def _single(scores: ItemScores) -> ItemScores:
    found = scores.probabilities
    if found is not None:
        found = Probabilities(_rounded(found.gold), _rounded(found.confidence))
    return ItemScores(_rounded(scores.score), _rounded(scores.correct), found)


def _rounded(vector: Vector) -> Vector:
    return vector.astype(np.float32).astype(np.float64)
