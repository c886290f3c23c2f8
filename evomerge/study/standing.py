"""How far a study is, again and again, from its database alone."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from evomerge.fitness import Fitness, best_of, mean_scores
from evomerge.study import rows
from evomerge.study.database import command
from evomerge.study.item_scores import unpack
from evomerge.study.sight import WorkerState, workers_now
from evomerge.study.store import Store, database
from evomerge.study.tables import ATTRIBUTES, TRIAL_ATTRIBUTES, TRIALS, VALUES

_RECENT = 20  # trials that the speed is taken from
_NO_BASELINES = ("ensemble", "winner")  # rows of a report on the search items
_ROW = "evomerge:row:"  # how the attributes of the rows of a report begin


@dataclass(frozen=True)
class Scored:
    """A trial or a baseline on the search items: its fitness, each task's score."""

    name: str
    fitness: float
    tasks: Mapping[str, float]


@dataclass(frozen=True)
class Standing:
    """How far a study is.

    `answered` is the share of the search items that its candidates were put, below 1 where some
    were stopped early; `seconds` is what a trial takes, the mean of the last ones.
    """

    done: int
    total: int
    failed: int = 0
    best: Scored | None = None
    baseline: Scored | None = None  # the best of them
    seconds: float | None = None
    answered: float | None = None
    phase: str = "trials"  # baselines, trials, final scores or finished
    scored: int = 0  # rows of the report that the baselines or the final scores have
    workers: tuple[WorkerState, ...] = ()  # those that are processes of their own


@dataclass(frozen=True)
class _News:
    """What a database has of a study, of the trials those that were not all read before."""

    record: Mapping[str, Any]
    finished: bool
    trials: list[Row[Any]]  # those that run among them, whose metrics are None
    rows: list[str]  # attributes that hold scores of a report's rows


class Reader:
    """Reads how far a study is; of the trials, each time those that have ended since.

    Raises StudyError where there is no such study, or the database fails.
    """

    def __init__(self, name: str, url: str | None) -> None:
        self.name = name
        self._url = url
        self._store: Store | None = None
        self._last = -1  # the identity of the last trial before which all have been read, ...
        self._read: set[int] = set()  # ... and of those behind it, which ended before it
        self._done = self._failed = self._answered = self._items = 0
        self._best: Scored | None = None
        self._baseline: Scored | None = None
        self._seconds: deque[float] = deque(maxlen=_RECENT)

    def read(self) -> Standing:
        """Return how far the study is now."""
        if self._store is None:
            self._store = Store.open(self.name, self._url)
        news = self._store.look(self._news)
        record, keys = news.record, news.rows
        ended = [
            row
            for row in news.trials
            if row.value_json is not None and row.trial_id not in self._read
        ]
        if ended and self._baseline is None:
            self._read_baselines(self._store, record["study"])
        for row in sorted(ended, key=lambda row: row.datetime_complete):
            self._note(row)
        for row in news.trials:
            if row.value_json is None:
                break
            self._last = row.trial_id
            self._read.discard(row.trial_id)
        if news.finished:
            phase = "finished"
        elif self._done >= record["trials"]:
            phase = "final scores"
        else:
            phase = "trials" if self._done else "baselines"
        split = "search" if phase == "baselines" else "select"
        complete = self._done - self._failed
        return Standing(
            self._done,
            record["trials"],
            self._failed,
            self._best,
            self._baseline,
            sum(self._seconds) / len(self._seconds) if self._seconds else None,
            self._answered / (complete * self._items) if complete and self._items else None,
            phase,
            sum(key.endswith(f":{split}") for key in keys),
            workers_now(self.name),
        )

    def unattended(self) -> str | None:
        """Return what to do about a study that nobody runs; None where somebody does."""
        if database(self.name, self._url).has_writer(self.name):
            return None
        return f"nobody is running it; go on with {command('resume', self.name, self._url)}"

    def _news(self, connection: Connection, study: int) -> _News:
        slot, metrics = TRIAL_ATTRIBUTES.alias(), TRIAL_ATTRIBUTES.alias()
        query = (
            select(
                TRIALS.c.trial_id,
                TRIALS.c.number,
                VALUES.c.value,
                TRIALS.c.datetime_start,
                TRIALS.c.datetime_complete,
                metrics.c.value_json,
            )
            .join(slot, (slot.c.trial_id == TRIALS.c.trial_id) & (slot.c.key == rows.SLOT))
            .outerjoin(
                metrics, (metrics.c.trial_id == TRIALS.c.trial_id) & (metrics.c.key == rows.METRICS)
            )
            .outerjoin(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
            .where(TRIALS.c.study_id == study, TRIALS.c.trial_id > self._last)
            .order_by(TRIALS.c.trial_id)
        )
        keys = select(ATTRIBUTES.c.key).where(
            ATTRIBUTES.c.study_id == study, ATTRIBUTES.c.key.startswith(_ROW, autoescape=True)
        )
        return _News(
            rows.get(connection, study, "evomerge:study"),
            rows.get(connection, study, "evomerge:report") is not None,
            list(connection.execute(query)),
            list(connection.execute(keys).scalars()),
        )

    def _note(self, row: Row[Any]) -> None:
        self._read.add(row.trial_id)
        self._done += 1
        self._seconds.append((row.datetime_complete - row.datetime_start).total_seconds())
        if row.value is None:
            self._failed += 1
            return
        metrics = json.loads(row.value_json)
        self._answered += metrics.get("answered", self._items)
        if self._best is None or row.value > self._best.fitness:
            tasks = {task: one["score"] for task, one in metrics["tasks"].items()}
            self._best = Scored(f"trial {row.number}", row.value, tasks)

    def _read_baselines(self, store: Store, study: Mapping[str, Any]) -> None:
        """Find the best baseline, and how many items a candidate has at most."""

        def read(connection: Connection, identity: int) -> dict[str, Any]:
            query = select(ATTRIBUTES.c.key, ATTRIBUTES.c.value_json).where(
                ATTRIBUTES.c.study_id == identity,
                ATTRIBUTES.c.key.startswith(_ROW, autoescape=True),
                ATTRIBUTES.c.key.endswith(":search"),
            )
            return {
                key.removeprefix(_ROW).removesuffix(":search"): json.loads(text)
                for key, text in connection.execute(query)
            }

        found, experts = store.look(read), study["models"]["experts"]
        scores = {
            name: unpack(one["items"])
            for name, one in found.items()
            if name not in _NO_BASELINES or name in experts
        }
        means = {name: mean_scores(one) for name, one in scores.items()}
        fitness = Fitness(best_of([means[name] for name in experts]), study["fitness"]["worst"])
        self._items = sum(len(items.score) for items in scores["base"].values())
        name, tasks = max(means.items(), key=lambda pair: fitness.of(pair[1]))
        self._baseline = Scored(name, fitness.of(tasks), tasks)
