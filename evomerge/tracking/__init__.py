"""Trackers that a study's trials are told to: one file each, found by its name.

A tracker is a module with `start(name, identity, folder, config)`, which returns a Log. The package
that it is made for has the module's name, as has the extra that installs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import Connection, select

from evomerge import plugins
from evomerge.errors import InputError, Place, StudyError, first_line
from evomerge.study.api import Calling, Study
from evomerge.study.results import TrialResult
from evomerge.study.store import Store, run_folder
from evomerge.study.tables import TRIALS

if TYPE_CHECKING:
    from evomerge.study.run import Watcher

Values = Mapping[str, float | str]  # of a trial, by name; a text is what a hole has chosen


class Log(Protocol):
    """A run of a tracker, which a study that is resumed goes on with."""

    def logged(self) -> Container[int] | None:
        """Return the numbers of the trials that it has; None where it cannot know."""
        ...

    def write(self, number: int, values: Values) -> None:
        """Add a trial, whole or not at all."""
        ...

    def close(self) -> None:
        """End the run, for now."""
        ...


class Tracker:
    """Tells a tracker of every trial once: a callback of `Study.run`; use as a context manager.

    Trials that ended before, and are not logged, are logged first. A tracker that fails is told
    nothing more, and `note` why: the study goes on. Raises InputError where there is no such
    tracker, StudyError where its package is not installed.
    """

    def __init__(
        self, kind: str, study: Study, note: Callable[[str], object] = warnings.warn
    ) -> None:
        place = Place("the command line", InputError, "--track")
        self._start = plugins.load("evomerge.tracking", kind, "tracker", place).start
        if importlib.util.find_spec(kind) is None:
            raise StudyError(f"{kind} is not installed; pip install 'evomerge[{kind}]'")
        self._kind = kind
        self._study = study
        self._note = note
        self._log: Log | None = None
        self._best: float | None = None
        self._over = False

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and not self._over:  # a kill may have kept trials from it
            self._safely(lambda: self._tell(None))
        if self._log is not None:
            self._safely(self._log.close)

    def __call__(self, trial: TrialResult) -> None:
        """Log a trial that has ended."""
        if not self._over:
            self._safely(lambda: self._tell(trial))

    def _safely(self, action: Callable[[], None]) -> None:
        """Do something that may fail in any way; the first time is noted and is the last."""
        try:
            action()
        except Exception as problem:
            if self._over:
                return
            self._over = True
            reason = first_line(problem)
            self._note(f"{self._kind} is told no more trials, the study goes on: {reason}")

    def _tell(self, trial: TrialResult | None) -> None:
        if self._log is not None:
            if trial is not None:
                self._log.write(trial.number, self._values(trial))
            return
        store = Store.open(self._study.name, self._study.storage)
        begun = store.look(_begun)
        if begun is None:
            return
        identity = hashlib.sha256(f"{self._study.name} {begun}".encode()).hexdigest()[:16]
        folder = run_folder(self._study.name)
        self._log = self._start(self._study.name, identity, folder, store.get("study")["study"])
        logged = self._log.logged()
        for one in self._study.results():
            if trial is not None and one.number > trial.number:  # it will be told of those
                break
            values = self._values(one)
            new = one.number not in logged if logged is not None else one == trial
            if new and one.state != "running":
                self._log.write(one.number, values)

    def _values(self, trial: TrialResult) -> Values:
        """Return what is logged of the next trial; those before it have been here."""
        found: dict[str, float | str] = {}
        if trial.fitness is not None:
            self._best = max(trial.fitness, self._best if self._best is not None else trial.fitness)
            found["fitness"] = trial.fitness
        if self._best is not None:
            found["best"] = self._best
        for task, scores in trial.tasks.items():
            found |= {f"{kind}/{task}": value for kind, value in scores.items()}
        found |= {f"hole/{name}": value for name, value in trial.values.items()}
        if trial.answered is not None:
            found["answered"] = trial.answered
        if trial.seconds is not None:
            found["seconds"] = trial.seconds
        return found


def _begun(connection: Connection, study: int) -> str | None:
    """Return when the first trial began, which tells a study from others of its name."""
    query = select(TRIALS.c.datetime_start).where(TRIALS.c.study_id == study, TRIALS.c.number == 0)
    found = connection.execute(query).scalar_one_or_none()
    return None if found is None else found.isoformat()


@contextlib.contextmanager
def tracked(
    kinds: Iterable[str], study: Study, watcher: Watcher, note: Callable[[str], object]
) -> Iterator[Watcher]:
    """Yield a watcher that also tells trackers of every trial of a study that is about to run."""
    with contextlib.ExitStack() as stack:
        trackers = [
            stack.enter_context(Tracker(kind, study, note)) for kind in dict.fromkeys(kinds)
        ]
        yield Calling(study, trackers, watcher) if trackers else watcher
