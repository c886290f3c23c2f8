"""CMA-ES: covariance matrix adaptation, diagonal from 10 dimensions on (pycma)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import Field

from evomerge.errors import StudyError
from evomerge.genome import Genome, Vector
from evomerge.optimizers import Evaluated, OptimizerSettings, best_start
from evomerge.optimizers._generations import Generations

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for matplotlib, whose plots nobody calls
    import cma

_DIAGONAL_FROM = 10  # dimensions; measured to learn faster at the budgets of merge studies


class Settings(OptimizerSettings):
    """The settings of CMA-ES in a study file."""

    sigma: float = Field(0.1, gt=0, le=1, description="initial step, in ranges")
    population: int | None = Field(
        None, ge=4, le=10**4, description="candidates a generation (4 + 3 ln d)"
    )
    diagonal: bool | None = Field(
        None, description="adapt variances alone, no correlations (from 10 dimensions on)"
    )


def settings_for(width: int) -> dict[str, int]:
    """Return the settings that let a generation and its center be so many trials."""
    return {"population": max(4, width - 1)}


def create(
    settings: Settings, genome: Genome, seed: int, start: Sequence[Evaluated]
) -> Generations:
    """Return CMA-ES started at the best of the starting points.

    Raises StudyError for a space with choices or of one dimension, which CMA-ES cannot search.
    """
    if not genome.numeric or len(genome) < 2:
        raise StudyError(
            "expected a space of at least two numbers for cma_es, got "
            + ("one hole" if genome.numeric else "a choice among its holes")
            + "; use the optimizer cma_mixed, tpe, gp or auto"
        )
    return Generations(CmaEs(settings, genome, seed, start), genome)


class CmaEs:
    """CMA-ES within [0, 1]^d, told its evaluated starting points with the first generation.

    Hansen 2016, The CMA evolution strategy: a tutorial, arXiv:1604.00772; the diagonal variant is
    Ros and Hansen 2008, A simple modification in CMA-ES achieving linear time and space complexity.
    """

    def __init__(
        self, settings: Settings, genome: Genome, seed: int, start: Sequence[Evaluated]
    ) -> None:
        self._random = np.random.RandomState(
            np.random.SeedSequence([seed, len(genome)]).generate_state(4)
        ).get_state(legacy=False)
        diagonal = settings.diagonal
        options = {
            "bounds": [0, 1],
            "seed": np.nan,  # the stream is lent, see _lent_stream
            "verbose": -9,
            "signals_filename": None,
            "CMA_diagonal": len(genome) >= _DIAGONAL_FROM if diagonal is None else diagonal,
            "CMA_eigenmethod": _signed_eigh,
            "popsize": settings.population or 4 + int(3 * np.log(len(genome))),
        }
        with self._lent_stream(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the spelling of its own defaults
            self._strategy = cma.CMAEvolutionStrategy(
                genome.to_unit(best_start(start)), settings.sigma, options
            )
        self.size: int = self._strategy.popsize
        self._members: list[Vector] = []
        self._known = [
            (genome.to_unit(one.values), -one.fitness) for one in start if one.fitness is not None
        ]

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

    def sample(self) -> list[Vector]:
        """Draw a generation."""
        with self._lent_stream():
            self._members = self._strategy.ask()
        return self._members

    def update(self, losses: Sequence[float]) -> None:
        """Learn a generation, the first together with the starting points."""
        points = self._members + [point for point, _ in self._known]
        with self._lent_stream():
            self._strategy.tell(points, [*losses, *(loss for _, loss in self._known)])
        self._known.clear()

    def center(self) -> Vector:
        """Return the mean."""
        mean: Vector = np.clip(self._strategy.result.xfavorite, 0, 1)
        return mean


def _signed_eigh(matrix: Vector) -> tuple[Vector, Vector]:
    """Return eigenvalues and vectors, whose signs are else the choice of the linear algebra."""
    values, vectors = np.linalg.eigh(matrix)
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))]
    return values, vectors * np.where(largest < 0, -1.0, 1.0)
