"""What a candidate would score on all items, estimated from those that it has answered.

Kriging on the item scores of candidates that have answered every item, which is ridge regression
with its predictive error (Dubrule 1983, "Cross validation of kriging in a unique neighborhood").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_PENALTIES = np.logspace(-4, 4, 17)  # of the ridge, relative to the rows' mean square
_OWN = 2.0  # rows of the table that the candidate's own items count as, in an error
_EXPLAINED = 1e-4  # of the rows' variance, what is too little to choose items by
_FEWEST = 3  # rows of a table that a regression is trained on


@dataclass(frozen=True)
class Estimate:
    """The estimated mean of a row over all items, and its standard error."""

    mean: float
    error: float


def ridge(table: Matrix, seen: Indices, values: Vector) -> Estimate:
    """Estimate the mean over all n items of a row of which `values` [s] at `seen` [s] are known.

    `table`, float64 [r, n], has rows that are known in full; see `ridges`.
    """
    means, errors = ridges(table, seen, values[None])
    return Estimate(float(means[0]), float(errors[0]))


def ridges(table: Matrix, seen: Indices, values: Matrix) -> tuple[Vector, Vector]:
    """Return the means and the standard errors, float64 [k], of k rows known at the same items.

    `values` is float64 [k, s], scores in [0, 1] with none missing; `seen` has no item twice. What
    is seen counts as it is. Of the unseen items the mean less that of the seen ones is regressed on
    the seen scores, by the table's rows; so a large penalty, which the leave-one-out error of these
    rows chooses (PRESS, Allen 1974), leaves the difference estimator (Cochran 1977, ch. 7). The
    error is what leaving out rows has shown, more where a row is unlike those of the table, and
    together with the sampling error of the difference estimator, which counts as `_OWN` rows do:
    it alone is left where the table has fewer than `_FEWEST` rows.
    """
    table, values = np.asarray(table, np.float64), np.asarray(values, np.float64)
    items, count = table.shape[1], len(seen)
    sampled, sampling = _differences(table, seen, values)
    if count == items or len(table) < _FEWEST:
        return sampled, sampling
    unseen = np.setdiff1d(np.arange(items), seen)
    known = table[:, seen]
    offset, offsets = (one.mean(1) if count else np.zeros(len(one)) for one in (known, values))
    model = Kriging(known, (table[:, unseen].mean(1) - offset)[:, None])
    found, squares = model.predict(values)[:, 0], model.variance[0] * model.spread(values)
    share = len(unseen) / items
    means = (values.sum(1) + len(unseen) * (offsets + found)) / items
    rows = len(table)
    return means, np.sqrt((rows * share**2 * squares + _OWN * sampling**2) / (rows + _OWN))


def _differences(table: Matrix, seen: Indices, values: Matrix) -> tuple[Vector, Vector]:
    """Return the difference estimates from the table's mean row, and their sampling errors."""
    items, count = table.shape[1], len(seen)
    usual = table.mean(0) if len(table) else np.zeros(items)
    if not count:  # nothing is known of the row: its items may be anything in [0, 1]
        return np.full(len(values), usual.mean() if len(table) else 0.5), np.full(len(values), 0.5)
    own = values - usual[seen]
    variance = own.var(1, ddof=1) if count > 1 else np.full(len(values), 0.25)
    errors = np.sqrt(variance / count * (1 - count / items))
    if len(table) == 0:
        return values.mean(1), errors
    return usual.mean() + own.mean(1), errors


class Kriging:
    """Universal kriging with a constant and the kernel of inner products, of several targets.

    It is trained on `rows` [r, s], the seen scores of candidates, and their `targets` [r, t]. With
    M = XXᵀ + λI and Q = M⁻¹ − M⁻¹11ᵀM⁻¹ / 1ᵀM⁻¹1, a row that is left out is mispredicted by
    (Qy)ᵢ / Qᵢᵢ and has the variance σ² / Qᵢᵢ, σ² being the mean of (Qy)ᵢ² / Qᵢᵢ. The penalty λ is
    that of the least squared errors of rows left out (PRESS, Allen 1974), over all targets.
    `left_out` [r, t] are these errors, target less prediction, and `variance` [t] is σ².
    """

    def __init__(self, rows: Matrix, targets: Matrix) -> None:
        self._centre = rows.mean(0)
        self._rows = rows - self._centre
        gram = self._rows @ self._rows.T
        scale = max(np.trace(gram) / len(rows), 1e-9)  # of rows that are all alike 0
        least = np.inf
        for penalty in _PENALTIES * scale:
            inverse = np.linalg.inv(gram + penalty * np.eye(len(rows)))
            ones = inverse.sum(1)
            projected = inverse - np.outer(ones, ones) / ones.sum()
            solved, diagonal = projected @ targets, np.diag(projected)[:, None]
            left_out = solved / diagonal
            if np.sum(left_out**2) < least:
                least = float(np.sum(left_out**2))
                self._penalty, self._inverse, self._ones = float(penalty), inverse, ones
                self._weights, self.left_out = solved, left_out
                self.variance: Vector = np.mean(solved**2 / diagonal, axis=0)
        self._constant = self._ones @ targets / self._ones.sum()

    def predict(self, new: Matrix) -> Matrix:
        """Return the targets [k, t] that rows [k, s] are expected to have."""
        found: Matrix = self._constant + ((new - self._centre) @ self._rows.T) @ self._weights
        return found

    def spread(self, new: Matrix) -> Vector:
        """Return by what the variance of the predictions for rows [k, s] is more than σ², [k]."""
        new = new - self._centre
        cross = new @ self._rows.T
        found: Vector = self._penalty + np.einsum("ij,ij->i", new, new)
        found -= np.einsum("ij,jk,ik->i", cross, self._inverse, cross)
        found += (1 - cross @ self._ones) ** 2 / self._ones.sum()
        return found


def anchors(table: Matrix, count: int, seed: int) -> Indices:
    """Return `count` items that stand for all n of a table, float64 [r, n], every prefix for them.

    An item is the vector of its r scores. Each anchor is the item that most lessens the sum, over
    all items, of the squared distance to the nearest anchor: k-means whose centres are items, by
    the greedy rule, which comes within 1 − 1/e of the best set (Nemhauser, Wolsey and Fisher 1978).
    The seed orders items that answer alike. int64 [count], each item once.
    """
    items = table.shape[1]
    order = np.random.default_rng(seed).permutation(items)
    points = np.asarray(table, np.float64).T[order]
    squares = np.einsum("ij,ij->i", points, points)
    distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0.0)
    nearest = np.full(items, np.inf)
    chosen: list[int] = []
    free = np.ones(items, dtype=bool)
    for _ in range(min(count, items)):
        potential = np.minimum(distances, nearest[:, None]).sum(0)
        one = int(np.argmin(np.where(free, potential, np.inf)))
        chosen.append(one)
        free[one] = False
        nearest = np.minimum(nearest, distances[:, one])
    return order[chosen].astype(np.int64)


def shares(table: Matrix, chosen: Indices) -> Vector:
    """Return the share of the items whose nearest anchor each is, float64 [count], of sum 1.

    The mean of anchors' scores so weighted is the anchor points estimate (arXiv:2309.08638).
    """
    points = np.asarray(table, np.float64).T
    squares = np.einsum("ij,ij->i", points, points)
    at = points[chosen]
    nearest = np.argmin(squares[chosen] - 2 * points @ at.T, axis=1)
    nearest[chosen] = np.arange(len(chosen))  # of items that answer alike, each is its own
    found: Vector = np.bincount(nearest, minlength=len(chosen)) / table.shape[1]
    return found


def informative(table: Matrix, seed: int) -> Indices:
    """Return all n items of a table, float64 [r, n], those that tell most of the mean first.

    Each is the one that, beside those before it, lessens most what a regression of the rows' means
    leaves unexplained: orthogonal matching pursuit (Pati et al. 1993), with a penalty that keeps
    items of little variance from seeming to tell all. Once nothing is left to explain, as after as
    many items as rows, the order is the seed's. int64 [n].
    """
    items = table.shape[1]
    order = np.random.default_rng(seed).permutation(items)
    points = np.asarray(table, np.float64)[:, order]
    points = points - points.mean(0)
    unexplained = points.mean(1)
    total = float(unexplained @ unexplained)
    penalty = 0.5 * float(np.einsum("ij,ij->j", points, points).mean())
    chosen: list[int] = []
    while len(chosen) < items and float(unexplained @ unexplained) > _EXPLAINED * total:
        squares = np.einsum("ij,ij->j", points, points) + penalty
        gains = (unexplained @ points) ** 2 / squares
        gains[chosen] = -1.0
        best = int(gains.argmax())
        chosen.append(best)
        column = points[:, best] / np.sqrt(squares[best])
        unexplained = unexplained - column * (column @ unexplained)
        points = points - np.outer(column, column @ points)
    rest = np.setdiff1d(np.arange(items), chosen)
    found: Indices = order[np.concatenate([np.array(chosen, dtype=np.int64), rest])]
    return found
