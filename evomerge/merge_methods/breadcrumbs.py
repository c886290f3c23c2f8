"""Model Breadcrumbs: drop the smallest and the largest entries of each task vector, add them up."""

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
    add_to,
    band_columns,
    normalize,
    rescale,
    summed_columns,
    within_band,
)

if TYPE_CHECKING:
    import torch


def plan(settings: Settings) -> dict[str, Array]:
    """Look up the bounds of what is kept; fold rescaling, λ and the divisor into one factor."""
    bounds, gain = band_columns(settings)
    return {**summed_columns(settings, gain), **bounds}


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Mask by magnitude at both ends, and add up what is kept."""
    assert base is not None
    factor = columns["factor"]
    banded = [within_band(model - base, columns, i) for i, model in enumerate(models)]
    return add_to(base, [delta.mul_(factor[i]) for i, delta in enumerate(banded)])


METHOD = MergeMethod(
    paper="Davari and Belilovsky 2023, Model Breadcrumbs, arXiv:2312.06795, section 3",
    equation=(
        "keep the int(density·n) largest |δ_i| but for the int(gamma·n) top ones (entries equal to "
        "a bound stay); base + λ Σ w_i δ_i / d, d = Σ w if normalize else 1"
    ),
    parameters=(WEIGHT, DENSITY, GAMMA, normalize(False), rescale(False), LAMBDA, INT8_MASK),
    base="required",
    plan=plan,
    kernel=kernel,
)
