"""One study in its database: an Optuna study whose trials are written in single transactions.

A trial's `slot` is its number in the search. A proposal is one transaction before any work, its
result another. A trial found running was interrupted and is evaluated again under its number.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import IntegrityError

from evomerge.errors import StudyError, nearest
from evomerge.expressions import Hole, Values
from evomerge.study import locks, rows
from evomerge.study.database import Database, command, making
from evomerge.study.writer import Writer

RUNS = Path("runs")
_NAME = re.compile(r"\w[\w.-]*\Z")
_PREFIX = "evomerge:"

T = TypeVar("T")


def run_folder(name: str) -> Path:
    """Return the folder of a study: what it leaves beside its database."""
    if not _NAME.match(name):
        raise StudyError(
            "expected a study's name of letters, digits, -, _ and dots that begins with a letter "
            f"or digit, got {name!r}"
        )
    return RUNS / name


def database(name: str, url: str | None, *, keep: bool = False) -> Database:
    """Return the database of a study: the one named, or SQLite in the study's folder."""
    folder = run_folder(name)
    return Database(url or f"sqlite:///{folder / 'study.db'}", keep=keep)


@contextlib.contextmanager
def only_writer(
    name: str, url: str | None, note: Callable[[str], None] = lambda text: None
) -> Iterator[Database]:
    """Hold the study's lock, which is dropped when this process ends in any way.

    Yields the database to be written. `note` is told when a server that is away is waited for.
    Raises StudyError where another process holds the lock.
    """
    place = database(name, url, keep=True)
    if place.file is not None:
        with locks.file_lock(place.file, name), contextlib.closing(place):
            yield place
        return
    with contextlib.closing(Writer(place.url, name, note)) as writer:
        writer.take()
        yield writer


class Store:
    """One study in a database; the writer's one, which `only_writer` gives, can be written."""

    def __init__(
        self,
        place: Database,
        identity: int,
        resume: str,
        writable: bool,
    ) -> None:
        self._database = place
        self._resume = resume  # the command that goes on with it
        self._study = identity
        self._writable = writable
        self._describe: Callable[[Values], list[rows.Parameter]] | None = None
        self._identities: dict[int, int] = {}  # of trials by number

    @classmethod
    def create(
        cls, name: str, url: str | None, record: Mapping[str, Any], writer: Database
    ) -> Store:
        """Make a new study that holds its record; StudyError where one of that name exists.

        The study, and with it a new SQLite file, appears whole or not at all.
        """
        with making(writer.file):
            if writer.file is None or writer.file.exists():
                cls._new(writer, name, record)
            else:
                partial = writer.file.with_name(f".{writer.file.name}.partial")
                partial.unlink(missing_ok=True)
                cls._new(Database(f"sqlite:///{partial}"), name, record)
                partial.replace(writer.file)
        return cls.open(name, url, writer)

    @staticmethod
    def _new(place: Database, name: str, record: Mapping[str, Any]) -> None:
        place.make_tables()

        def new(connection: Any) -> None:
            identity = rows.new_study(connection, name)
            rows.put(connection, identity, _PREFIX + "study", record)

        try:
            place.write(new)
        except IntegrityError:
            raise StudyError(
                f"the database {place.name} holds a study {name} that is not evomerge's; "
                "choose another --name"
            ) from None

    @classmethod
    def open(cls, name: str, url: str | None, writer: Database | None = None) -> Store:
        """Open an existing study, to be read unless `writer` is given.

        Raises StudyError where there is none.
        """
        place = writer or database(name, url)
        identity = None
        if (place.file is None or place.file.is_file()) and place.has_tables():
            identity = place.read(lambda one: rows.find_study(one, name))
        if identity is not None:
            store = cls(place, identity, command("resume", name, url), writer is not None)
            if store.get("study") is not None:
                if writer is not None:
                    place.make_faster()
                return store
        place.close()
        near = nearest(name, sorted(one.parent.name for one in RUNS.glob("*/study.db")))
        hint = f"{command('status', None, url)} lists the studies"
        if url is None and near not in (None, name):
            hint = f"did you mean {near!r}?"
        raise StudyError(f"there is no study {name!r} in {place.name}; {hint}")

    def close(self) -> None:
        """Close the connections; what SQLite keeps beside the file while it is open goes."""
        self._database.close()

    def bind(self, holes: tuple[Hole, ...]) -> None:
        """Say what the parameters of this study's trials are, before the first proposal."""
        from evomerge.study.parameters import describe

        self._describe = describe(holes)

    def get(self, key: str) -> Any:
        """Return an attribute of the study, or None."""
        return self._database.read(lambda one: rows.get(one, self._study, _PREFIX + key))

    def set(self, key: str, value: object) -> None:
        """Write an attribute of the study in one transaction; it may be written again."""
        self._write(lambda one: rows.put(one, self._study, _PREFIX + key, value))

    def _write(self, action: Callable[[Any], T]) -> T:
        assert self._writable
        return self._database.write(action)

    def trials(self, number: int | None = None) -> list[rows.TrialRecord]:
        """Return all trials in the order of their slots, or the one of a number."""
        found = self._database.read(lambda one: rows.read_trials(one, self._study, number))
        self._identities |= {record.number: record.identity for record in found}
        return found

    def metrics(self) -> dict[int, dict[str, Any]]:
        """Return what was recorded of every trial that succeeded, by its number."""
        return self._database.read(lambda one: rows.read_metrics(one, self._study))

    def scores(self) -> dict[int, dict[str, float]]:
        """Return each task's mean score of every trial that succeeded, by its number."""
        return {
            number: {task: one["score"] for task, one in metrics["tasks"].items()}
            for number, metrics in self.metrics().items()
        }

    def summary(self) -> rows.Summary:
        """Return how far the study is, without reading its trials one by one."""
        return self._database.read(lambda one: rows.summarize(one, self._study))

    def beside(self, action: Callable[[Any, int], T]) -> T:
        """Do something to this study in one transaction that needs no writer's lock."""
        return self._database.write(lambda one: action(one, self._study))

    def look(self, action: Callable[[Any, int], T]) -> T:
        """Read something of this study."""
        return self._database.read(lambda one: action(one, self._study))

    def propose(self, slot: int, values: Values, queued: int | None = None) -> int:
        """Write a proposal as a running trial, in one transaction; returns its number.

        `queued` says which entry of the queue it is.
        """
        assert self._describe is not None
        parameters = self._describe(values)
        identity, number = self._write(
            lambda one: rows.add_trial(one, self._study, slot, parameters, queued)
        )
        self._identities[number] = identity
        return number

    def finish(self, number: int, fitness: float | None, metrics: Mapping[str, object]) -> None:
        """Write what came of a trial, in one transaction; `fitness` None makes it a failed one."""
        identity = self._identities[number]
        if not self._write(lambda one: rows.end_trial(one, identity, fitness, metrics)):
            raise StudyError(
                f"another program ended trial {number} while it ran; go on with {self._resume}"
            )


def studies(url: str | None) -> list[str]:
    """Return the names of the studies in a database, or in this folder's `runs/`."""
    if url is None:
        return sorted(path.parent.name for path in RUNS.glob("*/study.db"))
    place = Database(url)
    if (place.file is not None and not place.file.is_file()) or not place.has_tables():
        return []
    return place.read(lambda one: rows.names(one, _PREFIX + "study"))
