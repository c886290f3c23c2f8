"""Runs proxy tasks on a live model: items drawn into three disjoint splits, tokenized once."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import xxhash

from evomerge.decoding import TokenSequence, teacher_force
from evomerge.errors import DataError, Found, Place
from evomerge.language_model import LanguageModel
from evomerge.proxy_tasks import ItemScores, Probabilities, Task, TaskSettings, Vector
from evomerge.proxy_tasks._data import Row, Rows, row_key
from evomerge.proxy_tasks._forced import ForcedTask
from evomerge.proxy_tasks._shots import with_shots
from evomerge.splits import assign, content, keys
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
    where: tuple[str, ...] = ()  # where each example's row came from, for errors
    notes: tuple[str, ...] = ()  # what is worth knowing of the data

    def fingerprint(self) -> str:
        """Return a hash of the settings and of every example in its split.

        Where the data lies does not count.
        """
        settings = self.settings.model_dump(exclude={"data": True, "shots": {"data"}})
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
    shots: Sequence[Row] | None = None,
    taken: MutableMapping[str, Split] | None = None,
) -> TaskItems:
    """Render all rows and draw the splits by the seed.

    Rows that ask the same count once, so no item stands in two splits, and with `taken`, what other
    tasks have drawn so far, none that another task has in another split (see splits.py). Few-shot
    examples come from `shots`, or else from the rows in no split. Raises the place's error for a
    row that does not fit the templates, or where there are too few rows.
    """
    rendered = _rendered(kind, settings, rows, place)
    asked: dict[str, Any] = {}
    again: list[str] = []
    for example, (where, _) in rendered.items():
        first = asked.setdefault(content(example), example)
        again += [] if first is example else [f"{where} as {rendered[first][0]}"]
    distinct = list(asked.values())
    stream = np.random.default_rng([seed, int(hashlib.sha256(name.encode()).hexdigest()[:15], 16)])
    order: list[int] = stream.permutation(len(distinct)).tolist()
    told = keys(asked, [row_key(rendered[example][1]) for example in distinct])
    drawn = _drawn(told, order, sizes, {} if taken is None else taken, place / "data")
    items = [distinct[index] for index in drawn]
    if shots is None:
        chosen = set(drawn)
        pool = [distinct[index] for index in order if index not in chosen]
    else:
        pool = list(_rendered(kind, settings, shots, place))
    ends = np.cumsum(list(sizes.values())).tolist()
    return TaskItems(
        name,
        kind,
        settings,
        tuple(with_shots(kind, settings, items, pool, place)),
        {
            split: tuple(range(end - sizes[split], end))
            for split, end in zip(sizes, ends, strict=True)
        },
        tuple(rendered[item][0] for item in items),
        (
            *_notes(rows),
            *_notes(shots),
            *([_repeated(name, again)] if again else []),
            *(kind.notes(items, settings, name) if hasattr(kind, "notes") else ()),
        ),
    )


def _drawn(
    told: Sequence[tuple[str, ...]],
    order: Sequence[int],
    sizes: Mapping[Split, int],
    taken: MutableMapping[str, Split],
    place: Place,
) -> list[int]:
    """Return which examples stand in the splits, those of each after those of the one before.

    `told` are their keys, see splits.py.
    """
    needed = sum(sizes.values())
    parts = " + ".join(f"{size} {split}" for split, size in sizes.items())
    wanted = f"at least {needed} different items ({parts})"
    hint = "give more data or ask for smaller splits"
    if len(told) < needed:
        raise place.fail(wanted, Found(str(len(told))), hint)
    found = assign(told, order, sizes, taken)
    if found is None:
        what = f"{len(told)}, too many of which another task asks in another split"
        raise place.fail(wanted, Found(what), hint)
    return [item for items in found.values() for item in items]


def _notes(rows: Sequence[Row] | None) -> tuple[str, ...]:
    return rows.notes if isinstance(rows, Rows) else ()


def _repeated(name: str, again: Sequence[str]) -> str:
    many = f"{len(again)} rows of {name} ask" if len(again) > 1 else f"a row of {name} asks"
    return (
        f"{many} what another asks, with another answer or spelt otherwise ({again[0]}); "
        "of each question the first row counts"
    )


def _rendered(
    kind: ModuleType, settings: TaskSettings, rows: Sequence[Row], place: Place
) -> dict[Any, tuple[str, Row]]:
    """Return the examples of all rows, those that are alike once, and where each came from."""
    found: dict[Any, tuple[str, Row]] = {}
    for number, row in enumerate(rows, start=1):
        where = rows.where(number) if isinstance(rows, Rows) else f"row {number} of the data"
        here = Place(f"{place.document} ({where})", place.error, place.path)
        found.setdefault(kind.render(row, settings, here), (where, row))
    return found


class Evaluator:
    """The tasks of a study, ready to be put to any model that shares the tokenizer."""

    def __init__(self, tasks: Sequence[TaskItems], tokenizer: Tokenizer) -> None:
        self._splits = {task.name: task.splits for task in tasks}
        self._tasks: dict[str, Task] = {
            task.name: task.kind.Task(task.settings, task.examples, tokenizer) for task in tasks
        }
        self._settings: dict[str, Any] = {task.name: task.settings for task in tasks}
        self._where = {task.name: task.where for task in tasks}
        self._fits: set[int] = set()  # contexts that hold every item

    def scores(
        self,
        model: LanguageModel,
        split: Split,
        exact: bool,
        only: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, ItemScores]:
        """Score all items of a split, or `only` some of a task's by their place in the split.

        Tasks without such items are left out.

        See proxy_tasks.Task for `exact`. What tasks have teacher-forced is run together. Scores
        have float32 precision, so that the database keeps them to the last bit.
        """
        self.check_lengths(model.context)
        chosen: dict[str, Sequence[int]] = {}
        asked: dict[str, list[TokenSequence]] = {}
        tasks = {
            name: task for name, task in self._tasks.items() if only is None or len(only[name])
        }
        for name, task in tasks.items():
            items = self._splits[name][split]
            chosen[name] = items if only is None else [items[place] for place in only[name]]
            if isinstance(task, ForcedTask):
                asked[name] = task.sequences(chosen[name], model.context)
        together = teacher_force(model, list(itertools.chain(*asked.values())))
        forced = dict(zip(asked, together.parts([*map(len, asked.values())]), strict=True))
        return {
            name: _single(
                task.judged(model, chosen[name], exact, forced[name])
                if isinstance(task, ForcedTask)
                else task.scores(model, chosen[name], exact)
            )
            for name, task in tasks.items()
        }

    @property
    def open_temperatures(self) -> list[str]:
        """The tasks of smoothed margins whose settings leave the temperature to the experts."""
        return [
            name
            for name, task in self._tasks.items()
            if hasattr(task, "temperature") and self._settings[name].temperature is None
        ]

    def set_temperatures(self, found: Mapping[str, float]) -> None:
        """Set the temperatures of some tasks."""
        for name, value in found.items():
            self._tasks[name].temperature = value  # type: ignore[attr-defined]

    def check_lengths(self, context: int | None) -> None:
        """Raise DataError, before anything is scored, where items of any split are too long."""
        if context is None or context in self._fits:
            return
        for name, task in self._tasks.items():
            lengths: Sequence[int] = getattr(task, "lengths", ())
            long = [item for item, length in enumerate(lengths) if length > context]
            if long:
                where = self._where[name][long[0]] if self._where[name] else f"item {long[0] + 1}"
                raise DataError(
                    f"expected items of at most {context} tokens, the context of the models, got "
                    f"{len(long)} longer in the task {name}, the first of {lengths[long[0]]} "
                    f"tokens at {where}; leave out the long ones"
                )
        self._fits.add(context)


def _single(scores: ItemScores) -> ItemScores:
    found = scores.probabilities
    if found is not None:
        found = Probabilities(_rounded(found.gold), _rounded(found.confidence))
    return ItemScores(_rounded(scores.score), _rounded(scores.correct), found, scores.margins)


def _rounded(vector: Vector) -> Vector:
    return vector.astype(np.float32).astype(np.float64)
