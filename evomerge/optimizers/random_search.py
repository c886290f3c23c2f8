"""Random search: uniform points, each drawn from (seed, slot)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.expressions import Values
from evomerge.genome import Genome
from evomerge.optimizers import Evaluated, OptimizerSettings


class Settings(OptimizerSettings):
    """Random search has no settings."""


def create(
    settings: Settings, genome: Genome, seed: int, start: Sequence[Evaluated]
) -> RandomSearch:
    """Return a random search; the starting points do not matter to it."""
    return RandomSearch(genome, seed)


class RandomSearch:
    """Uniform sampling of [0, 1]^d; the yardstick for the others."""

    def __init__(self, genome: Genome, seed: int) -> None:
        self._genome = genome
        self._seed = seed

    def horizon(self, slot: int) -> int:
        """Nothing need be known."""
        return 0

    def ask(self, slot: int, under_way: Sequence[Values] = ()) -> dict[str, Any]:
        """Draw the slot's point."""
        generator = np.random.default_rng([self._seed, slot])
        return self._genome.from_unit(generator.random(len(self._genome)))

    def tell(
        self,
        slot: int,
        values: Values,
        fitness: float | None,
        objectives: tuple[float, ...] = (),
    ) -> None:
        """Nothing is learnt."""

    def learn(self, point: Evaluated) -> None:
        """Nothing is learnt."""

    def recommend(self) -> int | None:
        """Return None: the best trial is all there is."""
        return None
