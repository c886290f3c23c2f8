"""NSGA-II: a genetic algorithm towards the best trade-offs between several objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from evomerge import pareto
from evomerge.expressions import Hole, Values
from evomerge.genome import Genome, Vector
from evomerge.optimizers import Evaluated, OptimizerSettings, check_replay

_CROSSOVER_INDEX = 15.0  # η of simulated binary crossover: larger stays nearer to the parents
_MUTATION_INDEX = 5.0  # η of polynomial mutation: larger stays nearer to the child
_TRIES = 10  # for a child that is not a copy of another


class Settings(OptimizerSettings):
    """The settings of NSGA-II in a study file."""

    population: int = Field(16, ge=4, le=1000, description="candidates a generation")
    crossover: float = Field(0.9, ge=0, le=1, description="probability that two parents mix")
    mutation: float | None = Field(
        None, gt=0, le=1, description="probability that a value mutates (1 / d)"
    )


def settings_for(width: int) -> dict[str, int]:
    """Return the settings that let so many trials be under way at once."""
    return {"population": max(4, width)}


def create(settings: Settings, genome: Genome, seed: int, start: Sequence[Evaluated]) -> Nsga2:
    """Return NSGA-II, whose first population begins with the starting points."""
    return Nsga2(settings, genome, seed, start)


class Nsga2:
    """A population whose survivors are the least dominated, then the least crowded points.

    Deb et al. 2002, A fast and elitist multiobjective genetic algorithm: NSGA-II,
    doi:10.1109/4235.996017, with simulated binary crossover and polynomial mutation of numbers in
    [0, 1]^d; choices are exchanged and drawn anew. The first generation is scattered between the
    starting points and uniform ones. A failed trial survives nothing.
    """

    def __init__(
        self, settings: Settings, genome: Genome, seed: int, start: Sequence[Evaluated]
    ) -> None:
        self._genome = genome
        self._seed = seed
        self._size = settings.population
        self._crossover = settings.crossover
        self._mutation = settings.mutation or 1 / len(genome)
        self._counts = np.array([len(hole.choices) for hole in genome.holes])
        self._steps = np.array([_step(hole) for hole in genome.holes])
        self._starts = [genome.to_unit(one.values) for one in start]
        self._points: list[Vector] = []  # survivors, best first, then what has been told since
        self._worth: list[tuple[float, ...]] = []  # their objectives
        for one in start:
            self._keep(one.values, one.fitness, one.objectives)
        self._generation = -1
        self._children: list[Vector] = []

    def _keep(self, values: Values, fitness: float | None, objectives: tuple[float, ...]) -> None:
        if fitness is not None:
            self._points.append(self._genome.to_unit(values))
            self._worth.append(objectives or (fitness,))

    def horizon(self, slot: int) -> int:
        """Return the first slot of the slot's generation."""
        return slot // self._size * self._size

    def _child(self, slot: int) -> Vector:
        generation, member = divmod(slot, self._size)
        if generation != self._generation:
            assert generation == self._generation + 1
            self._generation = generation
            best = pareto.order(pareto.as_points(self._worth))[: self._size]
            self._points = [self._points[index] for index in best]
            self._worth = [self._worth[index] for index in best]
            self._children = self._breed()
        return self._children[member]

    def ask(self, slot: int, under_way: Sequence[Values] = ()) -> dict[str, Any]:
        """Return the slot's child of its generation."""
        return self._genome.from_unit(self._child(slot))

    def tell(
        self,
        slot: int,
        values: Values,
        fitness: float | None,
        objectives: tuple[float, ...] = (),
    ) -> None:
        """Let the slot's child compete; without objectives, by its fitness."""
        check_replay(self._genome, slot, self._child(slot), values)
        self._keep(values, fitness, objectives)

    def learn(self, point: Evaluated) -> None:
        """Let the point compete."""
        self._keep(point.values, point.fitness, point.objectives)

    def recommend(self) -> int | None:
        """Return None: the best trials are all there is."""
        return None

    def _breed(self) -> list[Vector]:
        """Return a generation of children of the survivors, none a copy if that can be had."""
        random = np.random.default_rng([self._seed, len(self._genome), self._generation])
        scatter = self._generation == 0 or not self._points
        seen = {self._key(point) for point in self._points}
        children: list[Vector] = []
        for _ in range(self._size):
            for _ in range(_TRIES):
                child = self._scattered(random) if scatter else self._offspring(random)
                if self._key(child) not in seen:
                    break
            seen.add(self._key(child))
            children.append(child)
        return children

    def _key(self, point: Vector) -> bytes:
        """Return what is the same of points that decode to the same candidate."""
        rounded: Vector = self._genome.to_unit(self._genome.from_unit(point)).round(9)
        return rounded.tobytes()

    def _scattered(self, random: np.random.Generator) -> Vector:
        """Return a point on the way from a starting point to anywhere; choices jump."""
        start = self._starts[random.integers(len(self._starts))]
        anywhere, way = random.random(len(start)), random.random()
        jumps = random.random(len(start)) < way
        between: Vector = start + way * (anywhere - start)
        return np.where(self._counts > 0, np.where(jumps, anywhere, start), between)

    def _offspring(self, random: np.random.Generator) -> Vector:
        """Return the child of two parents, each the better of two drawn."""
        drawn = random.integers(len(self._points), size=(2, 2)).min(axis=1)
        first, second = (self._points[one] for one in drawn)
        crossed = random.random() < self._crossover
        child = self._crossed(first, second, random) if crossed else first
        return self._mutated(child, random)

    def _crossed(self, first: Vector, second: Vector, random: np.random.Generator) -> Vector:
        """Return one child of simulated binary crossover in half of the values."""
        draw, mix, sign = random.random((3, len(first)))
        spread = _power(np.where(draw < 0.5, 2 * draw, 1 / (2 - 2 * draw)), _CROSSOVER_INDEX)
        spread = np.where(sign < 0.5, spread, -spread)
        number = ((1 + spread) * first + (1 - spread) * second) / 2
        other = np.where(self._counts > 0, second, number)
        return np.where(mix < 0.5, first, np.clip(other, 0, 1))

    def _mutated(self, child: Vector, random: np.random.Generator) -> Vector:
        """Return a child with some values moved, by a step at least, and some choices redrawn."""
        draw, which, anywhere = random.random((3, len(child)))
        low, high = _power(2 * draw, _MUTATION_INDEX) - 1, 1 - _power(2 - 2 * draw, _MUTATION_INDEX)
        move = np.where(draw < 0.5, low, high)
        move = np.where(draw < 0.5, -1, 1) * np.maximum(np.abs(move), self._steps)
        moved = np.where(self._counts > 0, anywhere, np.clip(child + move, 0, 1))
        return np.where(which < self._mutation, moved, child)


def _power(base: Vector, index: float) -> Vector:
    found: Vector = base ** (1 / (index + 1))
    return found


def _step(hole: Hole) -> float:
    """Return a hole's step in [0, 1]; 0 where it has none."""
    if hole.step is None or hole.choices:
        return 0.0
    return float(hole.step / (hole.high - hole.low))
