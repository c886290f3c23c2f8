"""Task arithmetic: the base plus a weighted sum of task vectors."""

from __future__ import annotations

from evomerge.merge_methods import Array, MergeMethod, Settings
from evomerge.merge_methods._task_vectors import (
    INT8_MASK,
    LAMBDA,
    WEIGHT,
    normalize,
    summed_columns,
)
from evomerge.merge_methods._weighted_sums import kernel


def plan(settings: Settings) -> dict[str, Array]:
    """Fold λ and the divisor into one factor per model."""
    return summed_columns(settings)


METHOD = MergeMethod(
    paper="Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089, section 2",
    equation="base + λ Σ w_i (x_i − base) / d, d = Σ w if normalize else 1",
    parameters=(WEIGHT, normalize(False), LAMBDA, INT8_MASK),
    base="required",
    plan=plan,
    kernel=kernel,
)
