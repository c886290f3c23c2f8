"""What a candidate would score on all items, estimated from those that it has answered."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_PENALTIES = np.logspace(-4, 4, 17)  # of the ridge, relative to the rows' mean square
_EXPLAINED = 1e-4  # of the rows' variance, what is too little to choose items by


class Ridge:
    """Ridge regression of several targets, with a constant that is not penalized.

    It is trained on `rows`, float64 [r, n], and their `targets`, float64 [r, t], r being at least
    2. The penalty is that of the least squared errors of rows left out (PRESS, Allen 1974), over
    all targets; `left_out` [r, t] are these errors, target less prediction. In the rows' principal
    directions each costs no more than a product (Golub, Heath and Wahba 1979, section 3).
    """

    def __init__(self, rows: Matrix, targets: Matrix) -> None:
        self._centre, self._constant = rows.mean(0), targets.mean(0)
        rows = rows - self._centre
        squares, directions = np.linalg.eigh(rows @ rows.T)
        squares = np.maximum(squares, 0.0)
        along = directions.T @ (targets - self._constant)
        scale = max(float(squares.mean()), 1e-9)  # of rows that are all alike 0
        least = np.inf
        for penalty in _PENALTIES * scale:
            left = penalty / (squares + penalty)  # of each direction, what is not explained
            free = np.square(directions) @ left - 1 / len(rows)
            left_out = directions @ (left[:, None] * along) / free[:, None]
            if np.sum(left_out**2) < least:
                least = float(np.sum(left_out**2))
                self.left_out: Matrix = left_out
                solved = directions @ (along / (squares + penalty)[:, None])
        self._weights = rows.T @ solved

    def predict(self, new: Matrix) -> Matrix:
        """Return the targets [k, t] that rows [k, n] are expected to have."""
        found: Matrix = self._constant + (new - self._centre) @ self._weights
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
