"""What a search proposes, slot by slot, from the results of the slots before alone."""

from __future__ import annotations

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

    It is rebuilt by noting what is recorded: first `begin`, then `note` of every slot in turn.
    """

    def __init__(self, checked: CheckedStudy, points: Sequence[dict[str, Any]]) -> None:
        self._checked = checked
        self._settings = checked.file.search
        self._course = Course(checked.space, self._settings.stages, Architecture(checked.tensors))
        self._points = points
        self._results: list[Evaluated] = []  # of all slots, in order
        self._leg = _Leg(self._results, len(points), self._first_optimizer)
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

    def begin(self, slot: int) -> bool:
        """Go on to the stage that begins with a slot, if one does, all before it being known.

        Raises StudyError where nothing has succeeded for too long.
        """
        hopeless = self._settings.give_up
        if slot >= hopeless and all(one.fitness is None for one in self._results[:hopeless]):
            raise StudyError(
                f"the first {hopeless} trials all failed, so the search ends; correct the study "
                "and begin it under another --name"
            )
        if not self._course.begin(slot, self._results):
            return False
        self._leg = _Leg(self._results, slot, self._next_optimizer)
        self._stages.append(self._described())
        return True

    def starting(self, slot: int) -> bool:
        """Return whether a slot's point is a starting point."""
        return slot < len(self._points)

    def horizon(self) -> int:
        """Return how many slots the work on the next one may look at; see Optimizer."""
        return 0 if self.starting(len(self._results)) else self._leg.horizon()

    def note(self, evaluated: Evaluated, queued: bool) -> None:
        """Remember what came of the next slot."""
        self._leg.note(queued)
        self._results.append(evaluated)

    def values(self, slot: int) -> dict[str, Any]:
        """Return what to try in a slot, all slots before it being known."""
        return self._points[slot] if self.starting(slot) else self._leg.ask()

    def recommended(self) -> int | None:
        """Return the slot that the optimizer, told every result, recommends, if any."""
        return self._leg.recommended()

    def over(self) -> bool:
        """Return whether the search, in its last stage, has gone on for too long without a gain.

        An optimizer that learns by generations finishes the one that it is in.
        """
        patience = self._settings.patience
        if patience is None or not self._course.last or self.starting(len(self._results)):
            return False
        least = self._settings.min_gain
        best, gained = self._course.start.fitness, self._course.first
        for slot, one in enumerate(self._results[gained:], gained):
            if one.fitness is not None and (best is None or one.fitness - best > least):
                best, gained = one.fitness, slot + 1
        return len(self._results) - gained >= patience and self._leg.between_generations()

    def report(self, total: int) -> dict[str, Any]:
        """Return what a report says of the search: its stages, and why it ended early if it did."""
        done = len(self._results)
        ended = None
        if done < total:
            ended = (
                f"The search ended after {done} of {total} trials: the last "
                f"{self._settings.patience} brought no new best."
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
        self, results: Sequence[Evaluated], first: int, make: Callable[[], Optimizer]
    ) -> None:
        self._results = results  # of all slots of the search so far
        self._first = first  # the optimizer's first slot, or one of the queue
        self._make = make
        self._optimizer: Optimizer | None = None
        self._own: list[int] = []  # slots that the optimizer proposed
        self._next = first  # the slot to tell next
        self._told = 0  # of its own

    def note(self, queued: bool) -> None:
        """Remember whose the next slot is."""
        slot = len(self._results)
        if slot >= self._first and not queued:
            self._own.append(slot)

    def ask(self) -> dict[str, Any]:
        """Return the values to try in the next slot."""
        optimizer = self._ready()
        self._tell(optimizer.horizon(len(self._own)))
        return optimizer.ask(len(self._own))

    def recommended(self) -> int | None:
        """Return the slot that the optimizer, told every result, recommends, if any."""
        if not self._own:
            return None
        optimizer = self._ready()
        self._tell(len(self._own))
        found = optimizer.recommend()
        return None if found is None else self._own[found]

    def horizon(self) -> int:
        """Return below which slot of the study everything is known when the next one is begun.

        Where the optimizer never looks at results it is a multiple of `_BLOCK`.
        """
        slot, optimizer = len(self._own), self._ready()
        if optimizer.horizon(_FAR) == 0:
            return max(self._first, len(self._results) // _BLOCK * _BLOCK)
        known = optimizer.horizon(slot)
        return self._own[known] if known < slot else len(self._results)

    def between_generations(self) -> bool:
        """Return whether the next slot needs nothing that is under way."""
        slot, optimizer = len(self._own), self._ready()
        return optimizer.horizon(slot) == slot or optimizer.horizon(_FAR) == 0

    def _ready(self) -> Optimizer:
        if self._optimizer is None:
            self._optimizer = self._make()
        return self._optimizer

    def _tell(self, horizon: int) -> None:
        """Tell so many of its own slots, and what the queue brought before the next of them."""
        optimizer = self._ready()
        while self._next < len(self._results):
            point = self._results[self._next]
            if self._told == len(self._own) or self._own[self._told] != self._next:
                optimizer.learn(point)
            elif self._told == horizon:
                return
            else:
                optimizer.tell(self._told, point.values, point.fitness, point.objectives)
                self._told += 1
            self._next += 1
