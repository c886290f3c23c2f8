"""The queue of a study: recipes that any process hands to the one that runs it.

An entry is an attribute of the study, written once. The writer gives a slot to the first entry that
no trial is, and writes its number with the proposal, in one transaction: what has been taken is
known from the trials alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from evomerge.checkpoints import ModelRef
from evomerge.encoding import encode
from evomerge.errors import InputError, Place, SpaceError
from evomerge.expressions import Values
from evomerge.recipe import Recipe, load_recipe, parse_recipe
from evomerge.search_space import SearchSpace
from evomerge.study.database import command
from evomerge.study.export import recorded_course
from evomerge.study.starts import own_recipe
from evomerge.study.store import Store
from evomerge.study.tables import ATTRIBUTES, STUDIES

_PREFIX = "evomerge:queue:"


@dataclass(frozen=True)
class Proposal:
    """What is to be tried; `queued` is its number in the queue, if it came from there."""

    values: Values
    queued: int | None = None


class Queue:
    """What a running study takes from its queue."""

    def __init__(self, store: Store, taken: Iterable[int | None]) -> None:
        self._store = store
        self._taken = {one for one in taken if one is not None}
        self._refused: dict[int, SearchSpace] = {}  # entries that a space does not hold

    def next(self, space: SearchSpace, tensors: Sequence[str]) -> tuple[Proposal | None, list[str]]:
        """Return the first entry not taken that the space holds, and why others were passed over.

        What one space does not hold stays in the queue, for another that the study may get to.
        """
        notes: list[str] = []
        for number in sorted(set(self._store.look(_numbers)) - self._taken):
            if self._refused.get(number) == space:
                continue
            entry = self._store.look(functools.partial(_entry, number=number))
            place = Place(entry["source"], SpaceError)
            try:
                values = encode(space, parse_recipe(entry["recipe"], place), tensors, place)
            except InputError as problem:
                self._refused[number] = space
                notes.append(f"{problem}; it stays in the queue")
                continue
            self._taken.add(number)
            return Proposal(values, number), notes
        return None, notes


def enqueue(name: str, url: str | None, recipe: Recipe, source: str, folder: Path) -> int:
    """Append a recipe to a study's queue; returns its number there. Any process may do so.

    Its local paths are tried in this folder and in `folder`. Raises SpaceError, which names
    `source`, where what the study searches now does not hold it.
    """
    store = Store.open(name, url)
    record = store.get("study")
    place = Place(source, SpaceError)
    models = record["study"]["models"]
    refs = [ModelRef.parse(one, place) for one in (models["base"], *models["experts"].values())]
    known = own_recipe(recipe, refs, [Path.cwd(), folder])
    space = recorded_course(store, f"the recorded study {name}").space
    encode(space, known, record["tensors"], place)
    entry = {"recipe": known.to_mapping(), "source": source}
    return store.beside(lambda one, study: _append(one, study, entry))


def enqueue_file(name: str, url: str | None, path: Path) -> str:
    """Append the recipe of a file to a study's queue; returns in words what comes of it."""
    enqueue(name, url, load_recipe(path), str(path), path.parent)
    store = Store.open(name, url)
    record, trials = store.get("study"), store.trials()
    before = len(set(store.look(_numbers)) - {one.queued for one in trials}) - 1
    words = f"{path} waits in the queue of {name}"
    words += f" behind {before} other{'s' if before > 1 else ''}" if before else ""
    total: int = record["trials"]
    if store.get("report") is None and len(trials) + before < total:
        return words
    more = command("resume", name, url, f"--trials {max(total, len(trials)) + before + 1}")
    return f"{words}; {more} makes room for it"


def _append(connection: Connection, study: int, entry: Mapping[str, Any]) -> int:
    # Two processes must not take one number.
    connection.execute(
        select(STUDIES.c.study_id).where(STUDIES.c.study_id == study).with_for_update()
    )
    number = max(_numbers(connection, study), default=-1) + 1
    row = {"study_id": study, "key": f"{_PREFIX}{number}", "value_json": json.dumps(entry)}
    connection.execute(insert(ATTRIBUTES).values(row))
    return number


def _numbers(connection: Connection, study: int) -> list[int]:
    query = select(ATTRIBUTES.c.key).where(
        ATTRIBUTES.c.study_id == study, ATTRIBUTES.c.key.startswith(_PREFIX)
    )
    return [int(key.removeprefix(_PREFIX)) for key in connection.execute(query).scalars()]


def _entry(connection: Connection, study: int, number: int) -> Any:
    query = select(ATTRIBUTES.c.value_json).where(
        ATTRIBUTES.c.study_id == study, ATTRIBUTES.c.key == f"{_PREFIX}{number}"
    )
    return json.loads(connection.execute(query).scalar_one())
