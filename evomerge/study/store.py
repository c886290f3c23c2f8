"""The database of a study: an Optuna study whose trials are written in single transactions.

A trial's `slot` is its number in the search. A proposal is one transaction before any work; its
result is one attribute and then one `tell`. A trial found running was interrupted and is evaluated
again under its number.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.errors import StudyError
from evomerge.expressions import Hole, Values
from evomerge.fitness import TaskScores
from evomerge.optimizers._optuna import distribution
from evomerge.proxy_tasks import ItemScores

RUNS = Path("runs")
_NAME = re.compile(r"\w[\w.-]*\Z")
_PREFIX = "evomerge:"
_SQLITE = "sqlite:///"
_BUSY_SECONDS = 60
_STATES = {TrialState.COMPLETE: "complete", TrialState.FAIL: "failed"}

T = TypeVar("T")

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the database holds it; `fitness` is None unless `state` is complete."""

    number: int
    slot: int
    state: str  # complete, failed or running
    values: Values
    fitness: float | None
    started: datetime | None
    finished: datetime | None


def run_folder(name: str) -> Path:
    """Return the folder of a study: what it leaves beside its database."""
    if not _NAME.match(name):
        raise StudyError(
            "expected a study's name of letters, digits, -, _ and dots that begins with a letter "
            f"or digit, got {name!r}"
        )
    return RUNS / name


def storage_url(name: str, url: str | None) -> str:
    """Return the database of a study: the one named, or SQLite in the study's folder."""
    folder = run_folder(name)
    return url or f"{_SQLITE}{folder / 'study.db'}"


def command(verb: str, name: str, url: str | None) -> str:
    """Return the command that does something with a study, to be named in messages."""
    return f"`evomerge {verb} {name}" + (f" --storage {url}`" if url else "`")


@contextlib.contextmanager
def only_writer(name: str, url: str | None) -> Iterator[None]:
    """Hold the study's lock, which the kernel drops when this process ends in any way.

    The lock lies beside an SQLite file; for a database server it lies in the study's folder, so
    there it holds for one folder. Raises StudyError where another process holds it.
    """
    path = _sqlite_path(storage_url(name, url)) or run_folder(name) / "study.db"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.with_name(f".{path.name}.{name}.lock").open("a+")
    except OSError as problem:
        raise StudyError(f"cannot write to {path.parent}: {problem.strerror}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(
                f"the study {name} is being run by another process; wait for it or stop it first"
            ) from None
        yield


class Store:
    """One study in a database."""

    def __init__(self, storage: RDBStorage, identity: int) -> None:
        self._storage = storage
        self._study = identity
        self._distributions: dict[str, BaseDistribution] = {}

    @classmethod
    def create(cls, name: str, url: str | None, record: Mapping[str, Any]) -> Store:
        """Make a new study that holds its record; StudyError where one of that name exists.

        A new SQLite file appears whole, with the study in it, or not at all.
        """
        where = storage_url(name, url)
        path = _sqlite_path(where)
        if path is not None and not path.exists():
            partial = path.with_name(f".{path.name}.partial")
            partial.unlink(missing_ok=True)
            storage = _connect(f"{_SQLITE}{partial}")
            cls._new(storage, name, record)
            storage.remove_session()
            storage.engine.dispose()
            partial.replace(path)
            return cls.open(name, url)
        refuse_existing(name, url)
        storage = _connect(where)
        try:
            existing = cls(storage, _try(lambda: storage.get_study_id_from_name(name)))
        except KeyError:
            return cls._new(storage, name, record)
        existing.set("study", record)  # its process ended before anything was written
        return existing

    @classmethod
    def _new(cls, storage: RDBStorage, name: str, record: Mapping[str, Any]) -> Store:
        directions = [StudyDirection.MAXIMIZE]
        store = cls(storage, _try(lambda: storage.create_new_study(directions, name)))
        store.set("study", record)
        return store

    @classmethod
    def open(cls, name: str, url: str | None) -> Store:
        """Open an existing study; raises StudyError where there is none."""
        where = storage_url(name, url)
        listing = "`evomerge status" + (f" --storage {url}`" if url else "`")
        missing = StudyError(f"there is no study {name!r} in {where}; {listing} lists the studies")
        path = _sqlite_path(where)
        if path is not None and not path.is_file():
            raise missing
        storage = _connect(where)
        try:
            store = cls(storage, _try(lambda: storage.get_study_id_from_name(name)))
        except KeyError:
            raise missing from None
        if store.get("study") is None:
            raise missing
        return store

    def bind(self, holes: tuple[Hole, ...]) -> None:
        """Say what the parameters of this study's trials are, before the first proposal."""
        self._distributions = {hole.name: distribution(hole) for hole in holes}

    def get(self, key: str) -> Any:
        """Return an attribute of the study, or None."""
        return _try(lambda: self._storage.get_study_user_attrs(self._study)).get(_PREFIX + key)

    def set(self, key: str, value: object) -> None:
        """Write an attribute of the study in one transaction; it may be written again."""
        _try(lambda: self._storage.set_study_user_attr(self._study, _PREFIX + key, value))

    def trials(self) -> list[TrialRecord]:
        """Return all trials in the order of their slots."""
        found = _try(lambda: self._storage.get_all_trials(self._study, deepcopy=False))
        # A trial without a slot is not ours: somebody else's tool wrote into the study.
        records = [_record(trial) for trial in found if "slot" in trial.user_attrs]
        return sorted(records, key=lambda record: record.slot)

    def propose(self, slot: int, values: Values) -> int:
        """Write a proposal as a running trial, in one transaction; returns its number."""
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(values),
            distributions=self._distributions,
            user_attrs={"slot": slot},
        )
        identity = _try(lambda: self._storage.create_new_trial(self._study, trial))
        return _try(lambda: self._storage.get_trial_number_from_id(identity))

    def finish(self, number: int, fitness: float | None, metrics: Mapping[str, object]) -> None:
        """Write a trial's metrics, then its value; `fitness` None makes it a failed trial."""
        storage = self._storage
        identity = _try(
            lambda: storage.get_trial_id_from_study_id_trial_number(self._study, number)
        )
        _try(lambda: storage.set_trial_user_attr(identity, "metrics", metrics))
        state = TrialState.FAIL if fitness is None else TrialState.COMPLETE
        values = None if fitness is None else [fitness]
        _try(lambda: storage.set_trial_state_values(identity, state, values))


def _record(trial: FrozenTrial) -> TrialRecord:
    state = _STATES.get(trial.state, "running")
    return TrialRecord(
        trial.number,
        int(trial.user_attrs["slot"]),
        state,
        trial.params,
        trial.value if state == "complete" else None,
        trial.datetime_start,
        trial.datetime_complete,
    )


def refuse_existing(name: str, url: str | None) -> None:
    """Raise StudyError where a study of that name has been started."""
    if name in studies(url):
        raise StudyError(
            f"the study {name} exists; go on with {command('resume', name, url)}, "
            "or choose another --name"
        )


def studies(url: str | None) -> list[str]:
    """Return the names of the studies in a database, or in this folder's `runs/`."""
    if url is None:
        return sorted(path.parent.name for path in RUNS.glob("*/study.db"))
    path = _sqlite_path(url)
    if path is not None and not path.is_file():
        return []
    storage = _connect(url)
    found = _try(storage.get_all_studies)
    return sorted(one.study_name for one in found if _PREFIX + "study" in one.user_attrs)


def pack(scores: TaskScores) -> dict[str, dict[str, str]]:
    """Return item scores as text, float32 in base64, for the item-by-trial table."""
    return {
        task: {"score": _encode(items.score), "correct": _encode(items.correct)}
        for task, items in scores.items()
    }


def unpack(packed: Mapping[str, Mapping[str, str]]) -> dict[str, ItemScores]:
    """Undo `pack`."""
    return {
        task: ItemScores(_decode(columns["score"]), _decode(columns["correct"]))
        for task, columns in packed.items()
    }


def _encode(vector: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _decode(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64)


def _sqlite_path(url: str) -> Path | None:
    """Return the file of an SQLite URL, None for other databases."""
    if not url.startswith(_SQLITE):
        return None
    return Path(url.removeprefix(_SQLITE).partition("?")[0])


def _connect(url: str) -> RDBStorage:
    sqlite = url.startswith(_SQLITE)
    arguments = {"connect_args": {"timeout": _BUSY_SECONDS}} if sqlite else {}
    try:
        return RDBStorage(url, engine_kwargs=arguments)
    except Exception as problem:  # SQLAlchemy's and the driver's own errors, by any name
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        raise StudyError(
            f"cannot open the database {url}: {type(problem).__name__}: {reason}"
        ) from None


def _try(action: Callable[[], T]) -> T:
    """Do something with the database, again while another process keeps it locked."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return action()
        except optuna.exceptions.StorageInternalError as problem:
            if "locked" not in str(problem.__cause__ or problem) or time.monotonic() > deadline:
                reason = str(problem.__cause__ or problem).splitlines()[0]
                raise StudyError(f"the database failed: {reason}") from None
            time.sleep(0.2)
