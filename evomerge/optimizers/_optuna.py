"""Optuna's samplers as optimizers that can be replayed.

An in-memory study holds the points told so far; every slot is asked of a new sampler seeded from
(seed, slot), of which nothing lives longer than that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from evomerge.expressions import Hole, Values, snap
from evomerge.genome import Genome
from evomerge.optimizers import Evaluated
from evomerge.threads import one_thread

optuna.logging.set_verbosity(optuna.logging.WARNING)


def distribution(hole: Hole) -> BaseDistribution:
    """Return Optuna's description of a hole."""
    if hole.kind == "categorical":
        return CategoricalDistribution(hole.choices)
    if hole.kind == "int":
        return IntDistribution(int(hole.low), int(hole.high), step=int(hole.step or 1))
    if hole.step is None:
        return FloatDistribution(hole.low, hole.high, log=hole.log)
    return FloatDistribution(hole.low, hole.high, step=hole.step)


class ReplayedSampler:
    """An optimizer that asks a freshly seeded Optuna sampler for every slot.

    What has been asked is at once a failed trial of the study, which no sampler looks at: the trial
    that counts is the one that is told. Up to `lag` slots may be under way at once, of which a
    sampler sees running trials, so that it does not propose them again.
    """

    def __init__(
        self,
        make_sampler: Callable[[int], BaseSampler],
        genome: Genome,
        seed: int,
        start: Sequence[Evaluated],
        lag: int = 1,
    ) -> None:
        self._lag = lag
        self._running: deque[tuple[int, Values]] = deque()  # trials under way, in slot order
        self._make_sampler = make_sampler
        self._genome = genome
        self._seed = seed
        self._distributions = {hole.name: distribution(hole) for hole in genome.holes}
        self._study = self._empty(1)
        for point in start:
            self._add(point.values, point.fitness, point.objectives)

    def _empty(self, objectives: int) -> optuna.Study:
        return optuna.create_study(
            directions=["maximize"] * objectives, sampler=self._make_sampler(0)
        )

    def _add(self, values: Values, fitness: float | None, objectives: tuple[float, ...]) -> None:
        """Remember a point, the first that is under way where any is."""
        running = self._running.popleft()[0] if self._running else None
        worth = None if fitness is None else objectives or (fitness,)
        others: list[Values] = []
        if worth is not None and len(self._study.directions) != len(worth):
            # The first success of several objectives: only now is known how many.
            others, running = [one for _, one in self._running], None
            self._study, self._running = self._empty(len(worth)), deque()
        if running is not None:
            state = TrialState.FAIL if worth is None else TrialState.COMPLETE
            self._study.tell(running, worth, state)
        elif worth is not None:
            self._study.add_trial(
                create_trial(values=worth, params=dict(values), distributions=self._distributions)
            )
        for one in others:
            self._run(one)

    def _run(self, values: Values) -> None:
        """Let the sampler see a point as a running trial."""
        number = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(values),
                distributions=self._distributions,
            )
        )
        self._running.append((number, values))

    def horizon(self, slot: int) -> int:
        """Return the first slot that may be under way still."""
        return max(0, slot + 1 - self._lag)

    def ask(self, slot: int, under_way: Sequence[Values] = ()) -> dict[str, Any]:
        """Ask a new sampler, in the study that knows what has been told and what is under way."""
        for values in under_way[len(self._running) :]:
            self._run(values)
        state = np.random.SeedSequence([self._seed, slot]).generate_state(1)
        self._study.sampler = self._make_sampler(int(state[0]))
        with one_thread():  # else the last bits of a model are the machine's
            asked = self._study.ask(self._distributions)
        self._study.tell(asked, state=TrialState.FAIL)
        return {hole.name: _tidy(hole, asked.params[hole.name]) for hole in self._genome.holes}

    def tell(
        self,
        slot: int,
        values: Values,
        fitness: float | None,
        objectives: tuple[float, ...] = (),
    ) -> None:
        """Remember the slot."""
        self._add(values, fitness, objectives)

    def learn(self, point: Evaluated) -> None:
        """Remember the point as if it were a slot's."""
        self._add(point.values, point.fitness, point.objectives)

    def recommend(self) -> int | None:
        """Return None: the best trial is all there is."""
        return None


def _tidy(hole: Hole, value: Any) -> Any:
    """Return the value on the hole's grid to the last bit, which the merger's tables ask for."""
    on_grid = hole.kind == "float" and hole.step is not None
    return snap(value, hole.low, hole.high, hole.step) if on_grid else value
