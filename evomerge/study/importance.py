"""How much of the trials' fitness goes with each hole of the space: a ridge regression."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from evomerge.expressions import Hole
from evomerge.genome import Genome
from evomerge.study.rows import TrialRecord

LEAST = 20  # trials; of fewer, nothing is said
_RIDGES = np.logspace(-3, 5, 33)
Matrix = npt.NDArray[np.float64]


def importance(holes: Sequence[Hole], trials: Sequence[TrialRecord]) -> dict[str, Any] | None:
    """Return each hole's share of the fitness that a regression on the trials explains.

    The ranks of the fitness are regressed on every hole's position in its range and that squared,
    of a choice on each of its values, all together, with the ridge of least generalized
    cross-validation (Golub, Heath and Wahba 1979). A hole's share is the variance of its terms over
    the trials, relative to all of them. `explained` is the R² of each trial's rank by a regression
    on the other trials: what the shares can be trusted. Only trials count that have just these
    holes, those of one stage and branch; None where these are fewer than `LEAST` or all alike.
    """
    done = [one for one in trials if one.fitness is not None]
    names = {hole.name for hole in holes}
    kinds = Counter(frozenset(one.values) for one in done if one.values.keys() <= names)
    if not kinds:
        return None
    kind = max(kinds, key=lambda one: kinds[one])
    done = [one for one in done if one.values.keys() == kind]
    genome = Genome(tuple(hole for hole in holes if hole.name in kind))
    ranks = rankdata([one.fitness for one in done])
    ranks -= ranks.mean()
    if len(done) < LEAST or not ranks.any():
        return None
    columns, owners = _terms(genome, np.stack([genome.to_unit(one.values) for one in done]))
    if not len(owners):
        return None
    parts, explained = _ridge(columns, ranks)
    shares = np.array([parts[:, owners == index].sum(axis=1).var() for index in range(len(genome))])
    total = shares.sum() or 1.0
    found = zip((hole.name for hole in genome.holes), shares / total, strict=True)
    return {
        "trials": len(done),
        "explained": explained,
        "holes": [
            {"name": name, "share": float(share)}
            for name, share in sorted(found, key=lambda one: -one[1])
        ],
    }


def _terms(genome: Genome, points: Matrix) -> tuple[Matrix, npt.NDArray[np.intp]]:
    """Return the columns to regress on, each of mean 0 and variance 1, and whose they are."""
    columns, owners = [], []
    for index, hole in enumerate(genome.holes):
        unit = points[:, index]
        if hole.choices:
            own = [unit == value for value in np.unique(unit)]
        else:
            own = [unit, (unit - unit.mean()) ** 2]
        for column in own:
            if np.std(column) > 1e-9:
                columns.append((column - np.mean(column)) / np.std(column))
                owners.append(index)
    empty = np.zeros((len(points), 0))
    return (np.stack(columns, axis=1) if columns else empty), np.array(owners, dtype=np.intp)


def _ridge(columns: Matrix, target: Matrix) -> tuple[Matrix, float]:
    """Return every column times its coefficient, and the R² of leaving each row out in turn."""
    left, sizes, right = np.linalg.svd(columns, full_matrices=False)
    along = left.T @ target
    count = len(target)

    def kept(ridge: float) -> Matrix:
        return np.asarray(sizes**2 / (sizes**2 + ridge))

    def criterion(ridge: float) -> float:
        residual = target - left @ (kept(ridge) * along)
        return float((residual**2).sum() / (count - 1 - kept(ridge).sum()) ** 2)

    # A fit with as many degrees of freedom as trials, less one, has nothing to be judged by.
    ridge = min((one for one in _RIDGES if kept(one).sum() < 0.9 * (count - 1)), key=criterion)
    keep = kept(ridge)
    factors = right.T @ (sizes / (sizes**2 + ridge) * along)
    leverage = (left**2) @ keep + 1 / count
    residual = (target - left @ (keep * along)) / (1 - leverage)
    return columns * factors, float(1 - (residual**2).sum() / (target**2).sum())
