"""The rows of a study in its database as plain data, and how they are written.

A proposal is one transaction and a result another, where Optuna's own storage takes several, and
queries that grow with the trials and the parameters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Select,
    Table,
    func,
    insert,
    select,
    update,
)

from evomerge.expressions import Values
from evomerge.study.tables import (
    ATTRIBUTES,
    DIRECTIONS,
    PARAMS,
    STUDIES,
    TRIAL_ATTRIBUTES,
    TRIALS,
    VALUES,
    VERSION,
)

SLOT = "slot"
QUEUED = "queued"  # which entry of the queue a trial is
METRICS = "metrics"
_NAMES = {"COMPLETE": "complete", "FAIL": "failed", "RUNNING": "running"}
_RECENT = 20  # trials that the speed is taken from


@dataclass(frozen=True)
class Parameter:
    """A value of a trial as Optuna writes it: a number, and of what."""

    name: str
    number: float
    distribution: str


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the database holds it; `fitness` is None unless `state` is complete."""

    identity: int  # in the tables
    number: int  # in the study, as Optuna counts
    slot: int  # in the search
    state: str  # complete, failed or running
    values: Values
    fitness: float | None
    queued: int | None = None  # its number in the queue, if it came from there


@dataclass(frozen=True)
class Summary:
    """What a study's trials come to, without reading them."""

    count: Mapping[str, int]  # by state
    best: tuple[int, float] | None  # trial and fitness
    seconds: float | None  # a trial, by the median of the last ones


def schema(connection: Connection) -> str | None:
    """Return the version of the tables; None where Optuna has not finished making them."""
    return connection.execute(select(VERSION.c.version_num)).scalar_one_or_none()


def names(connection: Connection, key: str) -> list[str]:
    """Return the names of the studies that have an attribute."""
    query = (
        select(STUDIES.c.study_name)
        .join(ATTRIBUTES, ATTRIBUTES.c.study_id == STUDIES.c.study_id)
        .where(ATTRIBUTES.c.key == key)
    )
    return sorted(connection.execute(query).scalars())


def find_study(connection: Connection, name: str) -> int | None:
    """Return the identity of a study by its name."""
    query = select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)
    return connection.execute(query).scalar_one_or_none()


def new_study(connection: Connection, name: str) -> int:
    """Add a study whose values are to be maximized; returns its identity."""
    done = connection.execute(insert(STUDIES).values(study_name=name))
    identity = _identity(done)
    connection.execute(
        insert(DIRECTIONS).values(study_id=identity, objective=0, direction="MAXIMIZE")
    )
    return identity


def _identity(done: CursorResult[Any]) -> int:
    assert done.inserted_primary_key is not None
    identity: int = done.inserted_primary_key[0]
    return identity


def get(connection: Connection, study: int, key: str) -> Any:
    """Return an attribute of a study, or None."""
    query = select(ATTRIBUTES.c.value_json).where(
        ATTRIBUTES.c.study_id == study, ATTRIBUTES.c.key == key
    )
    found = connection.execute(query).scalar_one_or_none()
    return None if found is None else json.loads(found)


def put(connection: Connection, study: int, key: str, value: object) -> None:
    """Write an attribute of a study; one that is there is written over."""
    text = json.dumps(value)
    there = (ATTRIBUTES.c.study_id == study, ATTRIBUTES.c.key == key)
    changed = connection.execute(update(ATTRIBUTES).where(*there).values(value_json=text))
    if not changed.rowcount:
        connection.execute(insert(ATTRIBUTES).values(study_id=study, key=key, value_json=text))


def add_trial(
    connection: Connection,
    study: int,
    slot: int,
    parameters: Iterable[Parameter],
    queued: int | None = None,
) -> tuple[int, int]:
    """Add a running trial; returns its identity and number."""
    # Optuna's own way to keep two writers from taking one number.
    connection.execute(
        select(STUDIES.c.study_id).where(STUDIES.c.study_id == study).with_for_update()
    )
    last = (
        select(TRIALS.c.number)
        .where(TRIALS.c.study_id == study)
        .order_by(TRIALS.c.trial_id.desc())
        .limit(1)
    )
    before = connection.execute(last).scalar_one_or_none()
    number = 0 if before is None else before + 1
    row = {"number": number, "study_id": study, "state": "RUNNING", "datetime_start": _now()}
    identity = _identity(connection.execute(insert(TRIALS).values(row)))
    rows = [
        {
            "trial_id": identity,
            "param_name": one.name,
            "param_value": one.number,
            "distribution_json": one.distribution,
        }
        for one in parameters
    ]
    connection.execute(insert(PARAMS), rows)
    marks = {SLOT: slot} | ({} if queued is None else {QUEUED: queued})
    connection.execute(
        insert(TRIAL_ATTRIBUTES),
        [
            {"trial_id": identity, "key": key, "value_json": json.dumps(mark)}
            for key, mark in marks.items()
        ],
    )
    return identity, number


def end_trial(
    connection: Connection, identity: int, fitness: float | None, metrics: Mapping[str, object]
) -> bool:
    """Write what came of a running trial; False, and nothing is written, where it is not one."""
    state = "FAIL" if fitness is None else "COMPLETE"
    done = connection.execute(
        update(TRIALS)
        .where(TRIALS.c.trial_id == identity, TRIALS.c.state == "RUNNING")
        .values(state=state, datetime_complete=_now())
    )
    if not done.rowcount:
        return False
    text = json.dumps(metrics)
    connection.execute(
        insert(TRIAL_ATTRIBUTES).values(trial_id=identity, key=METRICS, value_json=text)
    )
    if fitness is not None:
        row = {"trial_id": identity, "objective": 0, "value": fitness, "value_type": "FINITE"}
        connection.execute(insert(VALUES).values(row))
    return True


def read_trials(connection: Connection, study: int, number: int | None = None) -> list[TrialRecord]:
    """Return all trials of a study, or the one of a number, in the order of their slots.

    Those without a slot come from somebody else's tool.
    """
    mine = TRIALS.c.study_id == study
    if number is not None:
        mine &= TRIALS.c.number == number
    values: dict[int, dict[str, Any]] = {}
    columns = (PARAMS.c.trial_id, PARAMS.c.param_name, PARAMS.c.param_value)
    query = _of(mine, PARAMS, *columns, PARAMS.c.distribution_json).order_by(PARAMS.c.param_id)
    kinds: dict[str, Any] = {}
    for identity, name, value, text in connection.execute(query):
        if text not in kinds:
            kinds[text] = _reader(text)
        values.setdefault(identity, {})[name] = kinds[text](value)
    worth = _of(mine, VALUES, VALUES.c.trial_id, VALUES.c.value)
    fitness = {row.trial_id: row.value for row in connection.execute(worth)}
    own = (TRIAL_ATTRIBUTES.c.trial_id, TRIAL_ATTRIBUTES.c.value_json)
    marks = _of(mine, TRIAL_ATTRIBUTES, *own).where(TRIAL_ATTRIBUTES.c.key == QUEUED)
    queued = {row.trial_id: int(row.value_json) for row in connection.execute(marks)}
    query = _slots(
        TRIALS.c.trial_id, TRIALS.c.number, TRIAL_ATTRIBUTES.c.value_json, TRIALS.c.state
    )
    records = [
        TrialRecord(
            identity,
            number,
            int(slot),
            _NAMES.get(state, "running"),
            values.get(identity, {}),
            fitness.get(identity) if state == "COMPLETE" else None,
            queued.get(identity),
        )
        for identity, number, slot, state in connection.execute(query.where(mine))
    ]
    return sorted(records, key=lambda record: record.slot)


def read_metrics(connection: Connection, study: int) -> dict[int, dict[str, Any]]:
    """Return what was recorded of every trial of a study that succeeded, by its number."""
    query = (
        select(TRIALS.c.number, TRIAL_ATTRIBUTES.c.value_json)
        .join(TRIAL_ATTRIBUTES, TRIAL_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study, TRIALS.c.state == "COMPLETE")
        .where(TRIAL_ATTRIBUTES.c.key == METRICS)
    )
    return {number: json.loads(text) for number, text in connection.execute(query)}


def _of(trials: ColumnElement[bool], table: Table, *columns: Column[Any]) -> Select[Any]:
    return select(*columns).join(TRIALS, TRIALS.c.trial_id == table.c.trial_id).where(trials)


def _slots(*columns: Any) -> Select[Any]:
    return select(*columns).join(
        TRIAL_ATTRIBUTES,
        (TRIAL_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id) & (TRIAL_ATTRIBUTES.c.key == SLOT),
    )


def _reader(distribution: str) -> Any:
    """Return how a number of this distribution is read back."""
    data = json.loads(distribution)
    if data["name"] == "CategoricalDistribution":
        choices = data["attributes"]["choices"]
        return lambda number: choices[int(number)]
    return int if data["name"] == "IntDistribution" else float


def summarize(connection: Connection, study: int) -> Summary:
    """Count a study's trials that have a slot, and find the best and the speed of the last."""
    mine = TRIALS.c.study_id == study
    counts = _slots(TRIALS.c.state, func.count()).where(mine).group_by(TRIALS.c.state)
    best = (
        _slots(TRIALS.c.number, VALUES.c.value)
        .join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
        .where(mine, TRIALS.c.state == "COMPLETE")
        .order_by(VALUES.c.value.desc(), TRIALS.c.number)
        .limit(1)
    )
    times = (
        _slots(TRIALS.c.datetime_start, TRIALS.c.datetime_complete)
        .where(mine, TRIALS.c.datetime_complete.is_not(None))
        .order_by(TRIALS.c.trial_id.desc())
        .limit(_RECENT)
    )
    seconds = sorted(
        (finished - started).total_seconds()
        for started, finished in connection.execute(times)
        if started is not None
    )
    first = connection.execute(best).one_or_none()
    found = {row[0]: row[1] for row in connection.execute(counts)}
    return Summary(
        {name: found.get(state, 0) for state, name in _NAMES.items()},
        None if first is None else (first[0], first[1]),
        seconds[len(seconds) // 2] if seconds else None,
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)  # as Optuna writes it
