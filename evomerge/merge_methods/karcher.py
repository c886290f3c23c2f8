"""Karcher mean: the Riemannian mean of the models' directions on the sphere, at their mean norm."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evomerge.merge_methods import Array, MergeMethod, Parameter, Settings
from evomerge.merge_methods._weighted_sums import kernel, length, lengths

_ANTIPODAL = 1e-7  # no direction leads to a point of the sphere whose sine is smaller


def plan(settings: Settings) -> dict[str, Array]:
    """Find the mean as coefficients of the models, by the Gram matrix alone."""
    gram = settings.statistics.gram()
    count = gram.shape[1]
    if count == 1:
        return {"factor": np.ones((1, len(gram)))}
    tolerance = settings["tol"]
    norms = lengths(gram)
    usable = norms > tolerance[:, None]  # zeros have no direction
    divisor = np.where(usable, norms, 1.0)
    cosines = gram / (divisor[:, :, None] * divisor[:, None, :])
    mean = karcher_mean(cosines, usable, int(settings["max_iter"].max()), tolerance)
    return {"factor": (norms.mean(axis=1)[:, None] * mean / divisor).T}


def karcher_mean(
    cosines: Array, usable: npt.NDArray[np.bool_], steps: int, tolerance: Array
) -> Array:
    """Return coefficients [T, N] of the mean of unit vectors with inner products [T, N, N].

    `usable` [T, N] marks the vectors that count, equally. Each step goes along the geodesic of the
    mean of the logarithms; it ends where that is shorter than `tolerance` [T].
    """
    share = usable / np.maximum(usable.sum(axis=1, keepdims=True), 1)
    size = length(share, cosines)
    first = np.eye(share.shape[1])[np.argmax(usable, axis=1)] * usable
    cancelled = (size < tolerance)[:, None]
    mean: Array = np.where(cancelled, first, share / np.where(cancelled, 1.0, size[:, None]))
    going = usable.any(axis=1)
    for _ in range(steps):
        dots = np.clip(np.einsum("tij,tj->ti", cosines, mean), -1.0, 1.0)
        theta = np.arccos(dots)
        sine = np.sin(theta)
        apart = (theta >= tolerance[:, None]) & (sine >= _ANTIPODAL)
        pull = np.where(apart, share * theta / np.where(apart, sine, 1.0), 0.0)
        tangent = pull - (pull * dots).sum(axis=1, keepdims=True) * mean
        size = length(tangent, cosines)
        going &= size >= tolerance
        if not going.any():
            break
        angle = np.where(going, size, 1.0)[:, None]
        moved = np.cos(angle) * mean + np.sin(angle) / angle * tangent
        moved /= np.maximum(length(moved, cosines), 1e-30)[:, None]
        mean = np.where(going[:, None], moved, mean)
    return mean


METHOD = MergeMethod(
    paper=(
        "Karcher 1977, Riemannian center of mass and mollifier smoothing; algorithm A1 of Buss and "
        "Fillmore 2001, Spherical averages, https://doi.org/10.1145/502122.502124"
    ),
    equation=(
        "with u_i = x_i/|x_i|: m ← exp_m(Σ log_m(u_i)/N), log_m(u) = θ/sin θ (u − cos θ m); "
        "m Σ |x_i|/N"
    ),
    parameters=(
        Parameter("max_iter", "global", "int", 10, "most steps towards the mean", low=0),
        Parameter(
            "tol", "global", "float", 1e-5, "a shorter step ends the search", low=0.0, low_open=True
        ),
    ),
    base="unused",
    plan=plan,
    kernel=kernel,
)
