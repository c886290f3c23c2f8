"""Task arithmetic: the base plus a weighted sum of task vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from evomerge.merge_methods import Array, Columns, MergeMethod, Settings
from evomerge.merge_methods._task_vectors import (
    INT8_MASK,
    LAMBDA,
    WEIGHT,
    add_to,
    normalize,
    summed_columns,
)


def plan(settings: Settings) -> dict[str, Array]:
    """Fold λ and the divisor into one factor per model."""
    return summed_columns(settings)


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Add the weighted task vectors to the base."""
    assert base is not None
    factor = columns["factor"]
    return add_to(base, [(model - base).mul_(factor[i]) for i, model in enumerate(models)])


METHOD = MergeMethod(
    paper="Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089, section 2",
    equation="base + λ Σ w_i (x_i − base) / d, d = Σ w if normalize else 1",
    parameters=(WEIGHT, normalize(False), LAMBDA, INT8_MASK),
    base="required",
    plan=plan,
    kernel=kernel,
)
