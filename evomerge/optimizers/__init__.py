"""Optimizers: one ask–tell optimizer per file, found by its name.

A file holds `Settings` (a pydantic model: the optimizer's own part of a study file) and `create`.
All randomness derives from (seed, slot or generation), so an optimizer is rebuilt by telling it
what is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from evomerge import plugins
from evomerge.errors import Place
from evomerge.expressions import Values
from evomerge.genome import Genome

AUTO = "auto"
_FEW_DIMENSIONS = 32
_FEW_TRIALS = 150


class OptimizerSettings(BaseModel):
    """What an optimizer reads from a study file; empty unless a file says more."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Evaluated:
    """A point that has been evaluated; `fitness` None where the trial failed."""

    values: Values
    fitness: float | None


class Optimizer(Protocol):
    """Proposes points slot by slot; fitness is higher-is-better.

    Slots are numbered from 0 after the starting points. `ask(k)` may be called once all slots
    below `horizon(k)` have been told, in slot order; what it returns depends on those alone. A slot
    that is told need not have been asked in this process.
    """

    def horizon(self, slot: int) -> int:
        """Return how many slots must have been told before this one is asked."""
        ...

    def ask(self, slot: int) -> dict[str, Any]:
        """Return the values to try in a slot."""
        ...

    def tell(self, slot: int, values: Values, fitness: float | None) -> None:
        """Report a slot; None is a failed trial. Raises StudyError where a replay differs."""
        ...

    def recommend(self) -> int | None:
        """Return the slot of the optimizer's own idea of the optimum, if it has told one."""
        ...


def get(name: object, place: Place) -> ModuleType:
    """Return an optimizer's module; raises the place's error with the nearest right name."""
    if name not in plugins.names(__name__) and isinstance(name, str):
        raise place.unknown(name, "optimizer", [AUTO, *plugins.names(__name__)])
    return plugins.load(__name__, name, "optimizer", place)


def choose(genome: Genome, trials: int) -> str:
    """Return the optimizer that `auto` stands for.

    Choices ask for mixed CMA-ES; few dimensions and few trials for a Gaussian process, whose cost
    grows with the cube of the trials; everything else for CMA-ES.
    """
    if not genome.numeric:
        return "cma_mixed"
    if len(genome) <= _FEW_DIMENSIONS and trials <= _FEW_TRIALS:
        return "gp"
    return "cma_es" if len(genome) > 1 else "cma_mixed"


def create(
    name: str,
    settings: OptimizerSettings,
    genome: Genome,
    seed: int,
    start: Sequence[Evaluated],
    place: Place,
) -> Optimizer:
    """Return an optimizer that goes on from the evaluated starting points (at least one).

    Settings of `auto`, which has none of its own, become the chosen optimizer's defaults.
    """
    module = get(name, place)
    own = settings if isinstance(settings, module.Settings) else module.Settings()
    optimizer: Optimizer = module.create(own, genome, seed, start)
    return optimizer


def best_start(start: Sequence[Evaluated]) -> Values:
    """Return the values of the best starting point; the first where all failed."""
    done = [point for point in start if point.fitness is not None]
    return (
        max(done, key=lambda point: float(point.fitness or 0)).values if done else start[0].values
    )
