"""What a search proposes, slot by slot, from the results of the slots before alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evomerge import optimizers
from evomerge.errors import StudyError
from evomerge.expressions import Values
from evomerge.genome import Genome
from evomerge.module_groups import Architecture
from evomerge.optimizers import Evaluated, Optimizer
from evomerge.recipe import Recipe
from evomerge.search_space import SearchSpace
from evomerge.study.file import CheckedStudy
from evomerge.study.stages import Course

_BLOCK = 16  # slots that are begun before any of them is known, with such an optimizer
_FAR = 2**40  # a slot whose horizon is 0 where an optimizer never looks at results


class Search:
    """A search: stages, each of an optimizer that is told what its horizon allows, and an end.

    Slots are begun in turn: once the next one is `ready`, `begin`, and `take` says what it tries.
    What comes of them is noted in turn too, some time later. What is proposed depends on the
    results below the slot's horizon alone, not on how many are known by then. A search is rebuilt
    by taking and noting what is recorded.
    """

    def __init__(self, checked: CheckedStudy, points: Sequence[dict[str, Any]]) -> None:
        self._checked = checked
        self._settings = checked.file.search
        self._course = Course(checked.space, self._settings.stages, Architecture(checked.tensors))
        self._points = points
        self._begun: list[Values] = []  # what all slots try, in order
        self._results: list[Evaluated] = []  # of those that are known, in order
        self._leg = _Leg(self._begun, self._results, len(points), self._first_optimizer)
        self._stages = [self._described()]

    @property
    def space(self) -> SearchSpace:
        """The space that is searched now."""
        return self._course.space

    @property
    def course(self) -> Course:
        """The spaces so far."""
        return self._course

    def decode(self, values: Values) -> Recipe:
        """Return the recipe of a trial of any stage so far."""
        return self._course.decode(values)

    @property
    def begun(self) -> int:
        """How many slots have been begun: the next one."""
        return len(self._begun)

    @property
    def known(self) -> int:
        """How many slots have been noted."""
        return len(self._results)

    def ready(self) -> bool:
        """Return whether all is known that the next slot depends on."""
        slot, hopeless = self.begun, self._settings.give_up
        if slot >= hopeless > self.known and self._failed(hopeless):
            return False
        if self.starting(slot):
            return True
        if self._course.begins(slot) or self.known < self._leg.first:
            return self.known == slot
        return self.known >= self._leg.horizon()

    def begin(self) -> bool:
        """Go on to the stage that begins with the next slot, if one does.

        Raises StudyError where nothing has succeeded for too long.
        """
        slot, hopeless = self.begun, self._settings.give_up
        if slot >= hopeless and self._failed(hopeless):
            raise StudyError(
                f"the first {hopeless} trials all failed, so the search ends; correct the study "
                "and begin it under another --name"
            )
        if not self._course.begin(slot, self._results):
            return False
        self._leg = _Leg(self._begun, self._results, slot, self._next_optimizer)
        self._stages.append(self._described())
        return True

    def _failed(self, count: int) -> bool:
        return all(one.fitness is None for one in self._results[:count])

    def starting(self, slot: int) -> bool:
        """Return whether a slot's point is a starting point."""
        return slot < len(self._points)

    def horizon(self) -> int:
        """Return how many slots the work on the next one may look at; see Optimizer."""
        return 0 if self.starting(self.begun) else self._leg.horizon()

    def values(self) -> dict[str, Any]:
        """Return what to try in the next slot."""
        return self._points[self.begun] if self.starting(self.begun) else self._leg.ask()

    def take(self, values: Values, queued: bool) -> None:
        """Remember what the next slot tries, and whether it came from the queue."""
        self._leg.take(queued)
        self._begun.append(values)

    def note(self, evaluated: Evaluated) -> None:
        """Remember what came of the first slot that is not known yet."""
        self._results.append(evaluated)

    def recommended(self) -> int | None:
        """Return the slot that the optimizer, told every result, recommends, if any."""
        return self._leg.recommended()

    def over(self) -> bool:
        """Return whether the search, in its last stage, has gone on for too long without a gain.

        What the next slot may not look at does not count: an optimizer that learns by generations
        finishes the one that it is in.
        """
        patience = self._settings.patience
        if patience is None or not self._course.last or self.starting(self.begun):
            return False
        least, horizon = self._settings.min_gain, self.horizon()
        best, gained = self._course.start.fitness, self._course.first
        for slot, one in enumerate(self._results[gained:horizon], gained):
            if one.fitness is not None and (best is None or one.fitness - best > least):
                best, gained = one.fitness, slot + 1
        return horizon - gained >= patience

    def width(self) -> int:
        """Return how many slots may be under way at once, the starting points being known."""
        return self._leg.width()

    def report(self, total: int) -> dict[str, Any]:
        """Return what a report says of the search: its stages, and why it ended early if it did."""
        done = len(self._results)
        ended = None
        if done < total:
            ended = (
                f"The search ended after {done} of {total} trials: "
                f"{self._settings.patience} in a row brought no new best."
            )
        return {"trials": done, "stages": self._stages, "ended": ended}

    def _described(self) -> dict[str, Any]:
        course = self._course
        return {"first": course.first, "dimensions": len(course.holes), "start": course.start.slot}

    def _first_optimizer(self) -> Optimizer:
        start = self._results[: len(self._points)]
        return self._optimizer(self._checked.optimizer, self._settings.seed, start)

    def _next_optimizer(self) -> Optimizer:
        """Return the optimizer of a later stage, which begins at the best so far."""
        course, genome = self._course, Genome(self._course.holes)
        name = self._checked.optimizer
        if self._settings.optimizer == optimizers.AUTO:
            ends = [one.after for one in self._settings.stages[course.number :]]
            length = (*ends, self._settings.trials)[0] - course.first
            name = optimizers.choose(genome, length, self._settings.objectives == "tasks")
        seed = np.random.SeedSequence([self._settings.seed, course.number]).generate_state(1)[0]
        best = course.start
        objectives = () if best.slot is None else self._results[best.slot].objectives
        start = [Evaluated(best.values, best.fitness, objectives)]
        return self._optimizer(name, int(seed), start)

    def _optimizer(self, name: str, seed: int, start: Sequence[Evaluated]) -> Optimizer:
        file = self._checked.file
        return optimizers.create(
            name,
            file.optimizer_settings,
            Genome(self._course.holes),
            seed,
            start,
            file.place / "search" / "optimizer",
        )


class _Leg:
    """One optimizer's part of a search.

    The optimizer's own slots are numbered from 0, those that a point of the queue took left out.
    """

    def __init__(
        self,
        begun: Sequence[Values],
        results: Sequence[Evaluated],
        first: int,
        make: Callable[[], Optimizer],
    ) -> None:
        self._begun = begun  # what all slots of the search try
        self._results = results  # of those that are known
        self.first = first  # the optimizer's first slot, or one of the queue
        self._make = make
        self._optimizer: Optimizer | None = None
        self._own: list[int] = []  # slots that the optimizer proposed
        self._next = first  # the slot to tell next
        self._told = 0  # of its own

    def take(self, queued: bool) -> None:
        """Remember whose the next slot is."""
        if len(self._begun) >= self.first and not queued:
            self._own.append(len(self._begun))

    def ask(self) -> dict[str, Any]:
        """Return the values to try in the next slot."""
        horizon = self._tell(self.horizon())
        return self._ready().ask(len(self._own), self._begun[horizon:])

    def recommended(self) -> int | None:
        """Return the slot that the optimizer, told every result, recommends, if any."""
        if not self._own:
            return None
        self._tell(len(self._results))
        found = self._ready().recommend()
        return None if found is None else self._own[found]

    def horizon(self) -> int:
        """Return below which slot of the study everything is known when the next one is begun.

        Where the optimizer never looks at results it is a multiple of `_BLOCK`.
        """
        slot, optimizer = len(self._own), self._ready()
        if optimizer.horizon(_FAR) == 0:
            return max(self.first, len(self._begun) // _BLOCK * _BLOCK)
        known = optimizer.horizon(slot)
        return self._own[known] if known < slot else len(self._begun)

    def width(self) -> int:
        """Return how many slots may be under way at once."""
        horizon = self._ready().horizon
        known = horizon(_FAR)
        if known == 0:
            return _BLOCK
        return next(count for count in itertools.count(1) if horizon(known + count) > known)

    def _ready(self) -> Optimizer:
        if self._optimizer is None:
            self._optimizer = self._make()
        return self._optimizer

    def _tell(self, horizon: int) -> int:
        """Tell what the slots below a horizon have brought, the queue's too; returns it."""
        optimizer = self._ready()
        for slot in range(self._next, horizon):
            point = self._results[slot]
            if self._told == len(self._own) or self._own[self._told] != slot:
                optimizer.learn(point)
            else:
                optimizer.tell(self._told, point.values, point.fitness, point.objectives)
                self._told += 1
        self._next = max(self._next, horizon)
        return horizon
