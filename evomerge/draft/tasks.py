"""Files of items as tasks of a study, and how many of their items each split takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge import proxy_tasks
from evomerge.draft.guess import guess
from evomerge.errors import DataError, Found, InputError, Place
from evomerge.proxy_tasks._data import read_rows
from evomerge.splits import content
from evomerge.study.schema import read_settings

_CAPS = {"search": 128, "select": 256, "heldout": 512}
_PARTS = {"search": 4, "select": 4, "heldout": 2}  # of all items, one in so many
_FEWEST = 8  # items, of which splits of any use can be made
_FEW = 200  # below, intervals are so wide that little can be told apart


@dataclass(frozen=True)
class DraftedTask:
    """A task's part of the study file, its fields in words, and its number of different items."""

    settings: dict[str, Any]
    why: str
    items: int


@dataclass(frozen=True)
class Splits:
    """Items of each split, the least task's number of items, and what to know of them."""

    sizes: dict[str, int]
    items: int
    notes: tuple[str, ...]


def draft_tasks(
    files: Sequence[Path], folder: Path, chat: bool, classifier: bool
) -> dict[str, DraftedTask]:
    """Return a task for each file, by names of their own; every row is rendered once.

    Paths in `folder` are written relative to it. Raises DataError for files that cannot be read, or
    whose fields fit no kind of task.
    """
    found: dict[str, DraftedTask] = {}
    for file in files:
        name = _name(file, found)
        place = Place(str(file), DataError)
        path = file.resolve()
        data = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        rows = read_rows(data, folder, Place("the command line", DataError, "--task"))
        guessed = guess(rows, chat, classifier, place)
        settings = {"kind": guessed.kind, "data": data, **guessed.settings}
        kind = proxy_tasks.get(guessed.kind, place)
        checked = read_settings(kind.Settings, settings, place)
        different = {
            content(kind.render(row, checked, Place(rows.where(number), DataError)))
            for number, row in enumerate(rows, start=1)
        }
        if len(different) < _FEWEST:
            raise place.fail(
                f"at least {_FEWEST} different items", Found(str(len(different))), "give more"
            )
        found[name] = DraftedTask(settings, guessed.why, len(different))
    return found


def splits_for(tasks: Mapping[str, DraftedTask]) -> Splits:
    """Return splits that every task has items for: a quarter, a quarter and a half, with caps."""
    name, least = min(tasks.items(), key=lambda item: item[1].items)
    sizes = {split: min(cap, least.items // _PARTS[split]) for split, cap in _CAPS.items()}
    notes = []
    if least.items < _FEW:
        notes.append(
            f"{name} has only {least.items} different items: intervals will be wide, so small "
            "differences will not show"
        )
    return Splits(sizes, least.items, tuple(notes))


def _name(file: Path, taken: Mapping[str, object]) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", file.stem).strip("-")
    name = name if name[:1].isalpha() else f"task-{name}".rstrip("-")
    if name in taken:
        raise InputError(
            f"expected files of different names, got two of the name {name}; rename one"
        )
    return name
