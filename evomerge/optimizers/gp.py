"""GP: Bayesian optimization with a Gaussian process (Optuna), for few trials in few dimensions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import GPSampler
from pydantic import Field

from evomerge.genome import Genome
from evomerge.optimizers import Evaluated, OptimizerSettings
from evomerge.optimizers._optuna import ReplayedSampler

_PRELIMINARY = 512  # of Optuna's 2048 points that it looks at before it climbs from the best


class Settings(OptimizerSettings):
    """The settings of the Gaussian process in a study file."""

    startup_trials: int = Field(10, ge=1, le=10**6, description="trials before the model is used")
    lag: int = Field(
        1, ge=1, le=10**4, description="trials that may be under way at once, on so many workers"
    )


def settings_for(width: int) -> dict[str, int]:
    """Return the settings that let so many trials be under way at once."""
    return {"lag": width}


def create(
    settings: Settings, genome: Genome, seed: int, start: Sequence[Evaluated]
) -> ReplayedSampler:
    """Return a Gaussian process with log expected improvement.

    Ament et al. 2023, Unexpected improvements to expected improvement, arXiv:2310.20708. Where
    trials are under way, it is the improvement expected of all of them together.
    """

    def make(seed: int) -> GPSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = GPSampler(seed=seed, n_startup_trials=settings.startup_trials)
        if settings.lag > 1:  # a point costs as much more as there are trials under way
            sampler._n_preliminary_samples = _PRELIMINARY
        return sampler

    return ReplayedSampler(make, genome, seed, start, settings.lag)
