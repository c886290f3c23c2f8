"""What the methods share that end as a weighted sum of models or of task vectors.

The kernel is the same for all; where a plan needs lengths and angles, it takes them from Gram
matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merge_methods import Array, Columns
from evomerge.merge_methods._task_vectors import add_to

if TYPE_CHECKING:
    import torch


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Sum the models, or the task vectors onto the base where there is one, by their factors."""
    factor = columns["factor"]
    if base is not None:
        return add_to(base, [(model - base).mul_(factor[i]) for i, model in enumerate(models)])
    total = models[0] * factor[0]
    for index in range(1, len(models)):
        total.add_(models[index] * factor[index])
    return total


def lengths(gram: Array) -> Array:
    """Return the norms of the vectors of Gram matrices [T, N, N], as [T, N]."""
    norms: Array = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    return norms


def length(coefficients: Array, gram: Array) -> Array:
    """Return the norms [T] of linear combinations [T, N] of the vectors of Gram matrices."""
    squared: Array = np.einsum("ti,tij,tj->t", coefficients, gram, coefficients)
    norms: Array = np.sqrt(np.maximum(squared, 0.0))
    return norms
