"""Who evaluates candidates: this process, one after the other, or others beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from evomerge.errors import CandidateError, InputError
from evomerge.racing import Race, Raced
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from evomerge.study.scorer import Scorer


@dataclass(frozen=True)
class Job:
    """What a worker does: a recipe to be merged, and what it is to answer."""

    slot: int
    recipe: Recipe
    race: Race


@dataclass(frozen=True)
class Done:
    """What has come of a job; `raced` None where the recipe failed, and why it did."""

    slot: int
    raced: Raced | None
    error: str | None
    seconds: float


@dataclass(frozen=True)
class Elsewhere:
    """Workers that are processes of their own: how many, where, and how long one may take.

    Without an `address` they are on this machine. Without a number there are as many as there is
    room for. `gpus` is the share of a GPU that each has, a whole one by default.
    """

    workers: int | None = None
    address: str | None = None
    gpus: float | None = None
    deadline: float | None = None  # seconds, after which one that gives no answer is given up


class Workers(Protocol):
    """Those who evaluate: what they find does not depend on which of them does."""

    @property
    def size(self) -> int:
        """How many of them there are, or will be."""
        ...

    @property
    def free(self) -> bool:
        """Whether one of them can begin with a job at once."""
        ...

    def submit(self, job: Job) -> None:
        """Let one that is free begin with a job."""
        ...

    def wait(self) -> list[Done]:
        """Wait until jobs are done, which are returned, or one of them is free."""
        ...


def evaluate(scorer: Scorer, job: Job) -> Done:
    """Do a job; a recipe that cannot be merged or scored is a failure of its own."""
    begun = time.perf_counter()
    raced, error = None, None
    try:
        raced = job.race.run(scorer.candidate(job.recipe, "search"))
    except (CandidateError, InputError) as problem:
        error = str(problem)
    return Done(job.slot, raced, error, time.perf_counter() - begun)


class OneWorker:
    """This process as the only worker: a job is done as it is submitted."""

    size = 1

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._done: list[Done] = []

    @property
    def free(self) -> bool:
        """Whether what has been done is fetched."""
        return not self._done

    def submit(self, job: Job) -> None:
        """Do the job."""
        self._done.append(evaluate(self._scorer, job))

    def wait(self) -> list[Done]:
        """Return what has been done."""
        done, self._done = self._done, []
        return done
