"""What has come of a study's trials, one record each, out of its database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from evomerge.expressions import Values
from evomerge.study import rows
from evomerge.study.store import Store
from evomerge.study.tables import TRIAL_ATTRIBUTES, TRIALS


@dataclass(frozen=True)
class TrialResult:
    """A trial: what was tried, and what came of it.

    `tasks` has the score and the accuracy of each task, estimates where it was stopped early, and
    nothing where it has failed or is running still. `queued` is its number in the queue, if it came
    from there.
    """

    number: int
    state: str  # complete, failed or running
    values: Values
    fitness: float | None
    tasks: Mapping[str, Mapping[str, float]]
    seconds: float | None
    error: str | None = None  # why it failed
    queued: int | None = None
    answered: int | None = None  # items that it was put, fewer where it was stopped early


def results(store: Store) -> list[TrialResult]:
    """Return all trials in the order of their slots."""
    return _results(store, None)


def slot_result(store: Store, slot: int) -> TrialResult:
    """Return the trial of a slot."""
    number = store.look(lambda one, study: _number(one, study, slot))
    return _results(store, number)[-1]


def _number(connection: Connection, study: int, slot: int) -> int:
    query = (
        select(TRIALS.c.number)
        .join(TRIAL_ATTRIBUTES, TRIAL_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
        .where(
            TRIALS.c.study_id == study,
            TRIAL_ATTRIBUTES.c.key == rows.SLOT,
            TRIAL_ATTRIBUTES.c.value_json == str(slot),
        )
    )
    found: int = connection.execute(query).scalar_one()
    return found


def _results(store: Store, number: int | None) -> list[TrialResult]:
    records, metrics, seconds = store.look(lambda one, study: _read(one, study, number))
    found = []
    for record in records:
        known = metrics.get(record.identity, {})
        found.append(
            TrialResult(
                record.number,
                record.state,
                dict(record.values),
                record.fitness,
                known.get("tasks", {}),
                seconds.get(record.identity),
                known.get("error"),
                record.queued,
                known.get("answered"),
            )
        )
    return found


def _read(connection: Connection, study: int, number: int | None) -> tuple[Any, ...]:
    records = rows.read_trials(connection, study, number)
    mine: ColumnElement[bool] = TRIALS.c.study_id == study
    if number is not None:
        mine &= TRIALS.c.number == number
    query = (
        select(TRIALS.c.trial_id, TRIAL_ATTRIBUTES.c.value_json)
        .join(TRIAL_ATTRIBUTES, TRIAL_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
        .where(mine, TRIAL_ATTRIBUTES.c.key == rows.METRICS)
    )
    metrics = {identity: json.loads(text) for identity, text in connection.execute(query)}
    times = select(TRIALS.c.trial_id, TRIALS.c.datetime_start, TRIALS.c.datetime_complete)
    seconds = {
        identity: (ended - started).total_seconds()
        for identity, started, ended in connection.execute(times.where(mine))
        if started is not None and ended is not None
    }
    return records, metrics, seconds
