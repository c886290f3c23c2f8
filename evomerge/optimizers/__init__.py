"""Optimizers: one ask–tell optimizer per file, found by its name.

A file holds `Settings` (a pydantic model: the optimizer's own part of a study file) and `create`;
`settings_for(width)`, where it has settings that let more trials be under way at once.
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
from evomerge.errors import InputError, Place, StudyError
from evomerge.expressions import Values
from evomerge.genome import Genome, Vector

AUTO = "auto"
_FEW_DIMENSIONS = 32
_FEW_TRIALS = 300
_BUSY = 0.9  # of the workers' time, with which nobody is bothered
_TOLERANCE = 1e-6  # of a replay; other CPUs move proposals by a few 1e-9


class OptimizerSettings(BaseModel):
    """What an optimizer reads from a study file; empty unless a file says more."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Evaluated:
    """A point that has been evaluated; `fitness` None where the trial failed.

    `objectives` are what a study of several maximizes: each task's score over the best expert's.
    They are empty where the trial failed, and in a study of the fitness alone.
    """

    values: Values
    fitness: float | None
    objectives: tuple[float, ...] = ()


class Optimizer(Protocol):
    """Proposes points slot by slot; fitness is higher-is-better.

    Slots are numbered from 0 after the starting points. `ask(k)` may be called once all slots
    below `horizon(k)` have been told, in slot order; what it returns depends on those and on what
    is `under_way` alone: the values of the others up to k, of which nothing else is known. A slot
    that is told need not have been asked in this process.
    """

    def horizon(self, slot: int) -> int:
        """Return how many slots must have been told before this one is asked."""
        ...

    def ask(self, slot: int, under_way: Sequence[Values] = ()) -> dict[str, Any]:
        """Return the values to try in a slot, those of `under_way` being tried already."""
        ...

    def tell(
        self,
        slot: int,
        values: Values,
        fitness: float | None,
        objectives: tuple[float, ...] = (),
    ) -> None:
        """Report a slot; None is a failed trial. Raises StudyError where a replay differs.

        An optimizer of one objective has no use for `objectives`.
        """
        ...

    def learn(self, point: Evaluated) -> None:
        """Take note of a point that somebody else proposed, between two slots."""
        ...

    def recommend(self) -> int | None:
        """Return the slot of the optimizer's own idea of the optimum, if it has told one."""
        ...


def get(name: object, place: Place) -> ModuleType:
    """Return an optimizer's module; raises the place's error with the nearest right name."""
    if name not in plugins.names(__name__) and isinstance(name, str):
        raise place.unknown(name, "optimizer", [AUTO, *plugins.names(__name__)])
    return plugins.load(__name__, name, "optimizer", place)


def choose(genome: Genome, trials: int, several: bool = False) -> str:
    """Return the optimizer that `auto` stands for.

    Several objectives ask for TPE, whose fronts are wider than those of NSGA-II while its model is
    cheaper than the trials; choices for mixed CMA-ES; few dimensions and few trials for a Gaussian
    process, whose cost grows with the cube of the trials; everything else for CMA-ES.
    """
    if several:
        return "tpe" if trials <= _FEW_TRIALS else "nsga2"
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


def advice(name: str, width: int, workers: int) -> str | None:
    """Return what would keep workers busy that an optimizer of some width does not, if anything.

    The width is how many trials it lets be under way at once.
    """
    rounds = -(-width // workers)
    busy = width / (rounds * workers)
    if busy >= _BUSY:
        return None
    trials = f"{width} trials" if width > 1 else "one trial"
    text = f"{name} begins {trials} at a time, so that {workers} workers are busy {busy:.0%} of it"
    module = get(name, Place("the study", InputError))
    if not hasattr(module, "settings_for"):
        return text
    settings = {"optimizer": name, **module.settings_for(rounds * workers)}
    words = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return f"{text}; a study file with search: {{{words}}} would keep them all busy"


def best_start(start: Sequence[Evaluated]) -> Values:
    """Return the values of the best starting point; the first where all failed."""
    done = [point for point in start if point.fitness is not None]
    return (
        max(done, key=lambda point: float(point.fitness or 0)).values if done else start[0].values
    )


def check_replay(genome: Genome, slot: int, point: Vector, values: Values) -> None:
    """Raise StudyError where recorded values are not what a point of [0, 1]^d stands for."""
    if not genome.near(point, values, _TOLERANCE):
        raise StudyError(
            f"expected the recorded trial at slot {slot} to be what the seed proposes, got "
            "other parameters; the study was made with another version of evomerge or of the "
            "optimizer's library"
        )
