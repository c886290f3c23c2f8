"""TPE: tree-structured Parzen estimator (Optuna), for spaces with choices."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from pydantic import Field

from evomerge.genome import Genome
from evomerge.optimizers import Evaluated, OptimizerSettings
from evomerge.optimizers._optuna import ReplayedSampler


class Settings(OptimizerSettings):
    """The settings of TPE in a study file."""

    startup_trials: int = Field(10, ge=0, le=10**6, description="trials before the model is used")
    multivariate: bool = Field(True, description="model all parameters together")
    lag: int = Field(
        1, ge=1, le=10**4, description="trials that may be under way at once, on so many workers"
    )


def settings_for(width: int) -> dict[str, int]:
    """Return the settings that let so many trials be under way at once."""
    return {"lag": width}


def create(
    settings: Settings, genome: Genome, seed: int, start: Sequence[Evaluated]
) -> ReplayedSampler:
    """Return TPE (Bergstra et al. 2011, Algorithms for hyper-parameter optimization).

    Trials under way count among the bad ones, so that it keeps away from them.
    """

    def make(seed: int) -> TPESampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(
                seed=seed,
                n_startup_trials=settings.startup_trials,
                multivariate=settings.multivariate,
                constant_liar=settings.lag > 1,
            )

    return ReplayedSampler(make, genome, seed, start, settings.lag)
