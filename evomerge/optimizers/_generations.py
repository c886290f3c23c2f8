"""Evolution strategies as optimizers that can be replayed, told whole generations in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from evomerge.expressions import Values
from evomerge.genome import Genome, Vector
from evomerge.optimizers import Evaluated, check_replay


class Strategy(Protocol):
    """A distribution over [0, 1]^d that moves towards the better half of each generation.

    It draws from a stream of its own and from nothing else.
    """

    size: int

    def sample(self) -> Sequence[Vector]:
        """Return the members of the next generation."""
        ...

    def update(self, losses: Sequence[float]) -> None:
        """Learn the losses, smaller is better, of the members last sampled."""
        ...

    def center(self) -> Vector:
        """Return the distribution's own idea of the optimum."""
        ...


class Generations:
    """An optimizer that a strategy makes.

    From the second generation on, the center of the distribution takes a slot before the members:
    it is evaluated as a trial of its own and not told to the strategy.
    """

    def __init__(self, strategy: Strategy, genome: Genome) -> None:
        self._strategy = strategy
        self._genome = genome
        self._generation = -1
        self._center = np.empty(0)
        self._members: Sequence[Vector] = ()
        self._told: list[float | None] = []  # of the generation, in slot order
        self._last_center: int | None = None

    def _place(self, slot: int) -> tuple[int, int | None]:
        """Return the generation of a slot and its member, None for the center."""
        generation, member = divmod(slot + 1, self._strategy.size + 1)
        return generation, member - 1 if member else None

    def horizon(self, slot: int) -> int:
        """Return the first slot of the slot's generation."""
        return max(0, self._place(slot)[0] * (self._strategy.size + 1) - 1)

    def _point(self, slot: int) -> Vector:
        generation, member = self._place(slot)
        if generation != self._generation:
            assert generation == self._generation + 1
            assert not self._told
            self._center = self._strategy.center()
            self._members = self._strategy.sample()
            self._generation += 1
        return self._center if member is None else self._members[member]

    def ask(self, slot: int, under_way: Sequence[Values] = ()) -> dict[str, Any]:
        """Return the slot's member of its generation, or the center that goes before them."""
        return self._genome.from_unit(self._point(slot))

    def tell(
        self,
        slot: int,
        values: Values,
        fitness: float | None,
        objectives: tuple[float, ...] = (),
    ) -> None:
        """Note the slot; with the last of a generation, update. A failed trial is the worst."""
        check_replay(self._genome, slot, self._point(slot), values)
        if self._place(slot)[1] is None:
            self._last_center = slot if fitness is not None else self._last_center
            return
        self._told.append(fitness)
        if len(self._told) == self._strategy.size:
            worst = min((one for one in self._told if one is not None), default=0.0)
            self._strategy.update([-(worst if one is None else one) for one in self._told])
            self._told.clear()

    def learn(self, point: Evaluated) -> None:
        """Nothing: a distribution learns from what was drawn from it alone."""

    def recommend(self) -> int | None:
        """Return the slot of the last center, which noise misleads less than the best trial."""
        return self._last_center
