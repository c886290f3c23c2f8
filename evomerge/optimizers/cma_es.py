"""CMA-ES: covariance matrix adaptation, diagonal from 16 dimensions on (pycma)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from evomerge.errors import StudyError
from evomerge.expressions import Values
from evomerge.genome import Genome
from evomerge.optimizers import Evaluated, OptimizerSettings, best_start

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for matplotlib, whose plots nobody calls
    import cma

_DIAGONAL_FROM = 16  # dimensions; measured to learn faster at the budgets of merge studies
_REPLAY_TOLERANCE = 1e-6  # other CPUs move proposals by a few 1e-9


class Settings(OptimizerSettings):
    """The settings of CMA-ES in a study file."""

    sigma: float = Field(0.07, gt=0, le=1, description="initial step, in ranges")
    population: int | None = Field(
        None, ge=4, le=10**4, description="candidates a generation (4 + 3 ln d)"
    )


def create(settings: Settings, genome: Genome, seed: int, start: Sequence[Evaluated]) -> CmaEs:
    """Return CMA-ES started at the best of the starting points.

    Raises StudyError for a space with choices or of one dimension, which CMA-ES cannot search.
    """
    if not genome.numeric or len(genome) < 2:
        raise StudyError(
            "expected a space of at least two numbers for cma_es, got "
            + ("one hole" if genome.numeric else "a choice among its holes")
            + "; use the optimizer tpe, gp or auto"
        )
    return CmaEs(settings, genome, seed, best_start(start))


class CmaEs:
    """CMA-ES told whole generations in asking order.

    From the second generation on, the mean of the distribution takes a slot before the members: it
    is evaluated as a trial of its own and not told to the strategy.

    Hansen 2016, The CMA evolution strategy: a tutorial, arXiv:1604.00772; the diagonal variant is
    Ros and Hansen 2008, A simple modification in CMA-ES achieving linear time and space complexity.
    """

    def __init__(self, settings: Settings, genome: Genome, seed: int, start: Values) -> None:
        self._genome = genome
        self._random = np.random.RandomState(
            np.random.SeedSequence([seed, len(genome)]).generate_state(4)
        ).get_state(legacy=False)
        options = {
            "bounds": [0, 1],
            "seed": np.nan,  # the stream is lent, see _lent_stream
            "verbose": -9,
            "signals_filename": None,
            "CMA_diagonal": len(genome) >= _DIAGONAL_FROM,
            "popsize": settings.population or 4 + int(3 * np.log(len(genome))),
        }
        with self._lent_stream(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the spelling of its own defaults
            self._strategy = cma.CMAEvolutionStrategy(
                genome.to_unit(start), settings.sigma, options
            )
        self._size: int = self._strategy.popsize
        self._generation = -1
        self._population: list[npt.NDArray[np.float64]] = []
        self._told: list[float | None] = []  # of the generation, in slot order
        self._last_mean: int | None = None

    @contextlib.contextmanager
    def _lent_stream(self) -> Iterator[None]:
        """Lend pycma, which draws from NumPy's global stream, a stream of its own."""
        callers = np.random.get_state()
        np.random.set_state(self._random)
        try:
            yield
        finally:
            self._random = np.random.get_state(legacy=False)
            np.random.set_state(callers)

    def _place(self, slot: int) -> tuple[int, int | None]:
        """Return the generation of a slot and its member, None for the mean before the members."""
        generation, member = divmod(slot + 1, self._size + 1)
        return generation, member - 1 if member else None

    def horizon(self, slot: int) -> int:
        """Return the first slot of the slot's generation."""
        return max(0, self._place(slot)[0] * (self._size + 1) - 1)

    def _point(self, slot: int) -> dict[str, Any]:
        generation, member = self._place(slot)
        if member is None:
            return self._genome.from_unit(np.clip(self._strategy.result.xfavorite, 0, 1))
        if generation != self._generation:
            assert generation == self._generation + 1
            assert not self._told
            with self._lent_stream():
                self._population = self._strategy.ask()
            self._generation += 1
        return self._genome.from_unit(self._population[member])

    def ask(self, slot: int) -> dict[str, Any]:
        """Return the slot's member of its generation, or the mean that goes before them."""
        return self._point(slot)

    def tell(self, slot: int, values: Values, fitness: float | None) -> None:
        """Note the slot; with the last of a generation, update. A failed trial is the worst."""
        if self._genome.distance(self._point(slot), values) > _REPLAY_TOLERANCE:
            raise StudyError(
                f"expected the recorded trial at slot {slot} to be what the seed proposes, got "
                "other parameters; the study was made with another version of evomerge or pycma"
            )
        if self._place(slot)[1] is None:
            self._last_mean = slot if fitness is not None else self._last_mean
            return
        self._told.append(fitness)
        if len(self._told) < self._size:
            return
        worst = min((one for one in self._told if one is not None), default=0.0)
        losses = [-(worst if one is None else one) for one in self._told]
        with self._lent_stream():
            self._strategy.tell(self._population, losses)
        self._told.clear()

    def recommend(self) -> int | None:
        """Return the slot of the last mean, which noise misleads less than the best trial."""
        return self._last_mean
