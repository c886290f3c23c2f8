"""Studies from Python: create or open one, run it, look at it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from evomerge.errors import Place, RecipeError, StudyError, StudyFileError
from evomerge.recipe import Recipe, load_recipe, parse_recipe
from evomerge.study import loop
from evomerge.study.export import chosen_recipe
from evomerge.study.file import StudyFile, load_study_file, parse_study
from evomerge.study.loop import Machine
from evomerge.study.queue import enqueue
from evomerge.study.results import TrialResult, results, slot_result
from evomerge.study.store import Store
from evomerge.study.summary import stored_report

if TYPE_CHECKING:
    import pandas as pd

    from evomerge.study.run import Watcher

__all__ = ["StopStudy", "Study", "TrialResult"]

Callback = Callable[[TrialResult], object]


class StopStudy(Exception):  # noqa: N818 - it is no error
    """Raised by a callback to end a study's run after the trial that it was called with."""


class Study:
    """A study in its database, which is all of its state: objects of this class hold none."""

    def __init__(self, name: str, storage: str | None) -> None:
        self.name = name
        self.storage = storage

    @classmethod
    def create(
        cls,
        study: str | Path | Mapping[str, Any],
        *,
        name: str | None = None,
        storage: str | None = None,
        trust: bool = False,
    ) -> Study:
        """Check a study, a file or its content, against its models and record it; loads no weights.

        Paths in a mapping are relative to the working directory, and a mapping needs a `name`.
        """
        file, source = _read(study)
        if name is None:
            if source is None:
                raise StudyError("expected a name for a study that is no file, got none")
            name = loop.default_name(Path(source["file"]))
        loop.create(file, name, source, storage, trust)
        return cls(name, storage)

    @classmethod
    def open(cls, name: str, *, storage: str | None = None) -> Study:
        """Return a study that exists; StudyError where there is none."""
        Store.open(name, storage)
        return cls(name, storage)

    def run(
        self,
        trials: int | None = None,
        callbacks: Sequence[Callback] = (),
        watcher: Watcher | None = None,
        **machine: Unpack[Machine],
    ) -> dict[str, Any] | None:
        """Run the study to its end; returns its report, or None where a callback stopped it.

        `trials` is a total. Callbacks are called with every trial that ends, in order, once it is
        in the database: one that raises ends the run, and a later one goes on after that trial; by
        then others of several workers (`elsewhere`) may have ended trials that none is called with.
        """
        calling = Calling(self, callbacks, watcher)
        with contextlib.suppress(StopStudy):
            return loop.resume(
                self.name, trials=trials, url=self.storage, watcher=calling, **machine
            )
        return None

    def results(self) -> list[TrialResult]:
        """Return all trials."""
        return results(Store.open(self.name, self.storage))

    @property
    def trials(self) -> pd.DataFrame:
        """All trials as a table by their numbers.

        Its columns are state, fitness, seconds, the items answered, a `score` and an `accuracy` of
        each task, and each hole of the search space by its name.
        """
        import pandas as pd

        found = self.results()
        columns: dict[str, list[Any]] = {
            "state": [one.state for one in found],
            "fitness": [one.fitness for one in found],
            "seconds": [one.seconds for one in found],
            "answered": [one.answered for one in found],
        }
        for task in dict.fromkeys(task for one in found for task in one.tasks):
            for kind in ("score", "accuracy"):
                scores = [one.tasks.get(task, {}).get(kind) for one in found]
                columns[f"{task} {kind}"] = scores
        numbers = [name for name in columns if name != "state"]
        for hole in dict.fromkeys(name for one in found for name in one.values):
            name = f"hole {hole}" if hole in columns else hole
            columns[name] = [one.values.get(hole) for one in found]
        table = pd.DataFrame(columns, index=pd.Index([one.number for one in found], name="number"))
        return table.astype(dict.fromkeys(numbers, "float64"))

    @property
    def best_recipe(self) -> Recipe:
        """The winner's recipe, or that of the best trial so far; StudyError where there is none."""
        store = Store.open(self.name, self.storage)
        return chosen_recipe(store, self.name, None, store.get("report"))[0]

    @property
    def report(self) -> dict[str, Any]:
        """The report of a finished study as data; StudyError where it has none yet."""
        return stored_report(self.name, self.storage)

    def enqueue(self, recipe: Recipe | str | Path | Mapping[str, Any]) -> int:
        """Let the study try a recipe in its next free trial; returns its number in the queue.

        Also while another process runs it. Raises SpaceError where the space does not hold it.
        """
        source, folder = "the recipe", Path.cwd()
        if isinstance(recipe, str | Path):
            source, folder = str(recipe), Path(recipe).parent
            recipe = load_recipe(Path(recipe))
        if not isinstance(recipe, Recipe):
            recipe = parse_recipe(recipe, Place(source, RecipeError))
        return enqueue(self.name, self.storage, recipe, source, folder)


def _read(study: str | Path | Mapping[str, Any]) -> tuple[StudyFile, dict[str, Any] | None]:
    if isinstance(study, Mapping):
        return parse_study(dict(study), Path.cwd(), Place("the study", StudyFileError)), None
    path = Path(study)
    source = {"file": str(path.resolve()), "trials": None, "seed": None}
    return load_study_file(path), source


class Calling:
    """A watcher that calls back with every trial that ends."""

    def __init__(
        self, study: Study, callbacks: Sequence[Callback], watcher: Watcher | None
    ) -> None:
        self._study = study
        self._callbacks = callbacks
        self._watcher = watcher

    def stage(self, text: str, done: int, total: int) -> None:
        if self._watcher is not None:
            self._watcher.stage(text, done, total)

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
        if self._watcher is not None:
            self._watcher.trial(done, total, best, seconds)
        if self._callbacks and seconds is not None:
            result = slot_result(Store.open(self._study.name, self._study.storage), done - 1)
            for callback in self._callbacks:
                callback(result)

    def note(self, text: str) -> None:
        if self._watcher is not None:
            self._watcher.note(text)
