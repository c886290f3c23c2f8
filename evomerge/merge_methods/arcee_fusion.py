"""Arcee Fusion: take of the other model the entries that matter most, by size and by divergence.

The importance of an entry is |δ| times the divergence of its row; both, and the threshold, depend
on the models alone. They are found once, in one pass over each tensor, and no candidate repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merge_methods import ROWS, Array, Columns, MergeMethod, Settings

if TYPE_CHECKING:
    import torch


def plan(settings: Settings) -> dict[str, Array]:
    """Look up the divergence of each row and the least importance that counts."""
    divergence, threshold = settings.statistics.importance()
    return {"divergence": divergence, "threshold": threshold}


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Take the entries of at least the threshold's importance, keep the base elsewhere."""
    assert base is not None
    delta = models[0] - base
    important = (delta.abs() * columns["divergence"][0]).ge_(columns["threshold"][0])
    return base + delta * important


def along(settings: Settings) -> Array:
    """Plan every row of every tensor by itself."""
    return np.full(len(settings.tensors), ROWS)


METHOD = MergeMethod(
    paper="Arcee AI 2025, Arcee Fusion, https://www.arcee.ai, as mergekit 0.1.5 has it",
    equation=(
        "base + δ where |δ|·KL(softmax(x) | softmax(base)) of the row ≥ q50 + 1.5 (q75 − q25), the "
        "quantiles of all these products in the tensor, exact (mergekit draws a million of them at "
        "random); KL in float64 (in float32, as mergekit has it, rounding is most of it)"
    ),
    parameters=(),
    base="required",
    plan=plan,
    kernel=kernel,
    maximum=1,
    along=along,
)
