"""Model Breadcrumbs with TIES: drop the smallest and the largest entries, elect signs, merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from evomerge.merge_methods import Array, Columns, MergeMethod, Settings
from evomerge.merge_methods._task_vectors import (
    DENSITY,
    GAMMA,
    INT8_MASK,
    LAMBDA,
    WEIGHT,
    band_columns,
    elect_and_merge,
    normalize,
    rescale,
    weighted_columns,
    within_band,
)

if TYPE_CHECKING:
    import torch


def plan(settings: Settings) -> dict[str, Array]:
    """Look up the bounds of what is kept of each task vector, and its rescaling."""
    bounds, gain = band_columns(settings)
    return {**weighted_columns(settings, gain), **bounds}


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Mask by magnitude at both ends, then merge by sign consensus."""
    assert base is not None
    factor = columns["factor"]
    banded = [within_band(model - base, columns, i) for i, model in enumerate(models)]
    return elect_and_merge(base, [delta.mul_(factor[i]) for i, delta in enumerate(banded)], columns)


METHOD = MergeMethod(
    paper=(
        "Davari and Belilovsky 2023, Model Breadcrumbs, arXiv:2312.06795, section 3; "
        "Yadav et al. 2023, TIES-Merging, arXiv:2306.01708, section 3"
    ),
    equation=(
        "keep the int(density·n) largest |δ_i| but for the int(gamma·n) top ones (entries equal to "
        "a bound stay); then as TIES: base + λ Σ agreeing w_i δ_i / d"
    ),
    parameters=(WEIGHT, DENSITY, GAMMA, normalize(False), rescale(False), LAMBDA, INT8_MASK),
    base="required",
    plan=plan,
    kernel=kernel,
)
