"""All workers of a study as one: what scores its rows, and what evaluates its trials."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evomerge.checkpoints import ModelRef
from evomerge.errors import CandidateError
from evomerge.evaluator import Split, TaskItems
from evomerge.fitness import TaskScores
from evomerge.recipe import Recipe
from evomerge.study.pool import Pool
from evomerge.study.scorer import Call
from evomerge.study.workers import Done, Job


class Crew:
    """Scores like a `Scorer`, each call by a worker that is free; what one has loaded, all have."""

    def __init__(self, pool: Pool, tasks: Sequence[TaskItems]) -> None:
        self._pool = pool
        self._asked: set[str] = set()  # scores that have been asked for and not been fetched
        loaded = pool.first()
        self.tasks = tuple(tasks)
        self.side_by_side = loaded.side_by_side
        self.fingerprints = dict(loaded.fingerprints)

    @property
    def size(self) -> int:
        """How many workers there are, or will be."""
        return self._pool.size

    @property
    def free(self) -> bool:
        """Whether one of them has nothing to do."""
        return self._pool.free

    def submit(self, job: Job) -> None:
        """Let one that is free evaluate a candidate."""
        self._pool.submit(job.slot, f"the trial of slot {job.slot}", "evaluate", (job,))

    def wait(self) -> list[Done]:
        """Wait a while for candidates to be evaluated; returns those that are."""
        self._pool.turn()
        keys = [key for key in self._pool.done if isinstance(key, int)]
        return [self._pool.done.pop(key).result for key in keys]

    def fit_temperatures(self) -> dict[str, float]:
        """Let one of them fit the temperatures; all use them from now on."""
        found: dict[str, float] = self._ask("fit_temperatures", ())
        self.set_temperatures(found)
        return found

    def set_temperatures(self, found: Mapping[str, float]) -> None:
        """Let all use temperatures that have been fitted."""
        self._pool.temperatures = dict(found)

    def recipe(self, recipe: Recipe, split: Split, exact: bool) -> TaskScores:
        """Merge a recipe and score it; raises CandidateError where either is impossible."""
        found: TaskScores = self._ask("recipe", (recipe, split, exact))
        return found

    def model(self, ref: ModelRef, split: Split, exact: bool) -> TaskScores:
        """Score one of the inputs as it is."""
        found: TaskScores = self._ask("model", (ref, split, exact))
        return found

    def ensemble(self, refs: Sequence[ModelRef], split: Split, exact: bool) -> TaskScores:
        """Score the probability ensemble of some inputs, which must be `side_by_side`."""
        found: TaskScores = self._ask("ensemble", (list(refs), split, exact))
        return found

    def digest(self, recipe: Recipe) -> str:
        """Merge a recipe; returns what tells its weights from others."""
        found: str = self._ask("digest", (recipe,))
        return found

    def ahead(self, calls: Iterable[Call]) -> None:
        """Let workers begin with scores that will be asked for next."""
        for method, arguments in calls:
            self._begin(method, arguments)

    def _begin(self, method: str, arguments: tuple[Any, ...]) -> str:
        key = json.dumps([method, *arguments], default=_plain)
        if key not in self._asked:
            self._asked.add(key)
            self._pool.submit(key, f"a score by {method}", method, arguments)
        return key

    def _ask(self, method: str, arguments: tuple[Any, ...]) -> Any:
        key = self._begin(method, arguments)
        while key not in self._pool.done:
            self._pool.turn()
        self._asked.discard(key)
        reply = self._pool.done.pop(key)
        if reply.failure is not None:
            raise CandidateError(reply.failure)
        return reply.result


def _plain(one: Any) -> Any:
    return one.to_mapping() if isinstance(one, Recipe) else str(one)
