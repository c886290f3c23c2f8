"""The random masks once more, straight from their definitions, in float64."""

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merger import random

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def drawn(
    seed: int, position: int, name: str, elements: int, purpose: str = ""
) -> npt.NDArray[np.int32]:
    """Return the random numbers of a tensor's elements, for the model at a position."""
    first, second = torch.tensor(random.keys(seed, [position], [name], purpose)[0, 0])
    index = torch.arange(elements, dtype=torch.int32)
    numbers: npt.NDArray[np.int32] = random.draw(first, second, index).numpy()
    return numbers


def uniform(seed: int, position: int, name: str, elements: int, purpose: str = "") -> Array:
    """Return the same numbers in [0, 1), exact."""
    return (drawn(seed, position, name, elements, purpose).astype(float) + 2.0**31) / 2.0**32


def dare_mask(seed: int, position: int, name: str, elements: int, density: float) -> Mask:
    """Keep with the probability `density`."""
    return uniform(seed, position, name, elements) < density


def shares(delta: npt.NDArray[np.float32], ties: npt.NDArray[np.int32]) -> Array:
    """Return the rank of each magnitude in its row, from 0 to 1; equal ones by `ties`.

    Rows lie along the second dimension, a vector is one; an entry alone in its row is at 1/2.
    """
    rows, others = (
        (one if one.ndim > 1 else one.reshape(1, -1)).swapaxes(1, -1) for one in (delta, ties)
    )
    length = rows.shape[-1]
    if length < 2:
        return np.full(delta.shape, 0.5)
    order = np.lexsort((others.view(np.uint32), np.abs(rows)), axis=-1)
    ranks = np.argsort(order, axis=-1) / (length - 1)
    found: Array = ranks.swapaxes(1, -1).reshape(delta.shape)
    return found


def della_mask(
    seed: int,
    position: int,
    name: str,
    delta: npt.NDArray[np.float32],
    density: float,
    epsilon: float,
) -> Mask:
    """Keep with the probability density − ε + 2ε r, r the rank: see merger/masks.py."""
    if density >= 1:
        return np.ones(delta.shape, dtype=bool)
    size = delta.size
    ties = drawn(seed, position, name, size, "/ties").reshape(delta.shape)
    chance = uniform(seed, position, name, size, "/ranks").reshape(delta.shape)
    bit = chance < shares(delta, ties)
    level = uniform(seed, position, name, size).reshape(delta.shape)
    kept: Mask = level < np.where(bit, density + epsilon, density - epsilon)
    return kept
