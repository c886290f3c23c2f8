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


def create(
    settings: Settings, genome: Genome, seed: int, start: Sequence[Evaluated]
) -> ReplayedSampler:
    """Return TPE (Bergstra et al. 2011, Algorithms for hyper-parameter optimization)."""

    def make(seed: int) -> TPESampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(
                seed=seed,
                n_startup_trials=settings.startup_trials,
                multivariate=settings.multivariate,
                constant_liar=False,
            )

    return ReplayedSampler(make, genome, seed, start)
