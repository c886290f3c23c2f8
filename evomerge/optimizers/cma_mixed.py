"""Mixed CMA-ES: CatCMA with margin, for spaces of choices, integers and numbers (cmaes)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from cmaes import CatCMAwM
from pydantic import Field

from evomerge.expressions import Hole
from evomerge.genome import Genome, Vector
from evomerge.optimizers import Evaluated, OptimizerSettings, best_start
from evomerge.optimizers._generations import Generations

_COARSE = 20  # values; a finer grid is searched as the interval that it covers
_PACE = 0.3  # of a generation's say in which choices are the favourites

Table = npt.NDArray[np.float64]


class Settings(OptimizerSettings):
    """The settings of mixed CMA-ES in a study file."""

    sigma: float = Field(0.1, gt=0, le=1, description="initial step of numbers, in ranges")
    population: int | None = Field(
        None, ge=4, le=10**4, description="candidates a generation (4 + 3 ln d)"
    )
    prior: float = Field(0.5, gt=0, lt=1, description="probability of the first point's choices")


def settings_for(width: int) -> dict[str, int]:
    """Return the settings that let a generation and its center be so many trials."""
    return {"population": max(4, width - 1)}


def create(
    settings: Settings, genome: Genome, seed: int, start: Sequence[Evaluated]
) -> Generations:
    """Return mixed CMA-ES started at the best of the starting points."""
    return Generations(CmaMixed(settings, genome, seed, start), genome)


class CmaMixed:
    """A normal distribution of the numbers beside a categorical one of each choice.

    Hamano et al. 2025, CatCMA with margin: stochastic optimization for continuous, integer, and
    categorical variables, arXiv:2504.07884. A margin keeps every value of a choice or of a coarse
    grid within reach.
    """

    def __init__(
        self, settings: Settings, genome: Genome, seed: int, start: Sequence[Evaluated]
    ) -> None:
        self._center = genome.to_unit(best_start(start))
        grids = [_grid(hole) for hole in genome.holes]
        places = range(len(genome))
        self._choices = [at for at in places if genome.holes[at].choices]
        self._coarse = [at for at in places if 0 < len(grids[at]) <= _COARSE]
        self._plain = sorted({*places}.difference(self._choices, self._coarse))
        self._counts = np.array([len(genome.holes[at].choices) for at in self._choices], int)
        self._votes = self._prior(settings.prior)
        numbers = [*self._plain, *self._coarse]
        steps = [float(np.diff(grids[at]).max()) if at in self._coarse else 0.0 for at in numbers]
        widths = np.maximum(settings.sigma, np.array(steps) / 2) / settings.sigma
        self.size = settings.population or 4 + int(3 * np.log(len(genome)))
        self._strategy = CatCMAwM(
            x_space=[[0.0, 1.0]] * len(self._plain) or None,
            z_space=[grids[at] for at in self._coarse] or None,
            c_space=self._counts.tolist() or None,
            population_size=self.size,
            mean=self._center[numbers] if numbers else None,
            sigma=settings.sigma,
            cov=np.diag(widths**2) if numbers else None,
            cat_param=self._votes.copy() if self._choices else None,
            seed=int(np.random.SeedSequence([seed, len(genome)]).generate_state(1)[0]),
        )
        self._drawn: list[CatCMAwM.Solution] = []

    def _prior(self, share: float) -> Table:
        """Return the probabilities of all choices: a share for the start's, the rest evenly."""
        table = np.zeros((len(self._choices), int(self._counts.max(initial=0))))
        for row, (at, count) in enumerate(zip(self._choices, self._counts, strict=True)):
            table[row, :count] = (1 - share) / (count - 1)
            table[row, int(self._center[at] * count)] = share
        return table

    def _vector(self, drawn: CatCMAwM.Solution) -> Vector:
        found = self._center.copy()
        if self._plain:
            found[self._plain] = drawn.x
        if self._coarse:
            found[self._coarse] = drawn.z
        if self._choices:
            found[self._choices] = (drawn.c.argmax(axis=1) + 0.5) / self._counts
        return found

    def sample(self) -> list[Vector]:
        """Draw a generation."""
        self._drawn = [self._strategy.ask() for _ in range(self.size)]
        return [self._vector(one) for one in self._drawn]

    def update(self, losses: Sequence[float]) -> None:
        """Learn a generation by its ranks, which also scale the penalties at the bounds."""
        order = np.argsort(losses, kind="stable")
        ranked = [self._drawn[member] for member in order]
        self._strategy.tell([(one, float(rank)) for rank, one in enumerate(ranked)])
        best = ranked[: self.size // 2]
        weights = np.log((self.size + 1) / 2) - np.log(np.arange(len(best)) + 1)
        weights /= weights.sum()
        self._center = np.tensordot(weights, np.array([self._vector(one) for one in best]), 1)
        if self._choices:
            votes = np.tensordot(weights, np.array([one.c for one in best], float), 1)
            self._votes += _PACE * (votes - self._votes)
            self._center[self._choices] = (self._votes.argmax(axis=1) + 0.5) / self._counts

    def center(self) -> Vector:
        """Return the mean of the numbers and the favourite of each choice."""
        return self._center


def _grid(hole: Hole) -> list[float]:
    """Return the points of [0, 1] that a hole with a step can take."""
    if hole.step is None or hole.choices:
        return []
    count = int((hole.high - hole.low) / hole.step + 1e-9) + 1
    return [index * hole.step / (hole.high - hole.low) for index in range(count)]
