"""TIES: trim each task vector to its largest entries, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from evomerge.merge_methods import Array, Columns, MergeMethod, Settings
from evomerge.merge_methods._task_vectors import (
    DENSITY,
    INT8_MASK,
    LAMBDA,
    WEIGHT,
    elect_and_merge,
    normalize,
    rescale,
    weighted_columns,
)


def plan(settings: Settings) -> dict[str, Array]:
    """Look up each task vector's threshold; every entry of at least that magnitude is kept."""
    density = settings["density"]
    gain = (
        settings.statistics.magnitude_rescale(density)
        if settings["rescale"].any()
        else density * 0 + 1
    )
    return {
        **weighted_columns(settings, gain),
        "threshold": settings.statistics.thresholds(density),
    }


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    uniform: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Trim by threshold, then merge by sign consensus."""
    assert base is not None
    weighted = []
    for index, model in enumerate(models):
        delta = model - base
        kept = delta.abs().ge_(columns["threshold"][index])
        weighted.append(delta * kept * columns["factor"][index])
    return elect_and_merge(base, weighted, columns)


METHOD = MergeMethod(
    paper="Yadav et al. 2023, TIES-Merging, arXiv:2306.01708, section 3 and algorithm 1",
    equation=(
        "trim: keep |δ_i| ≥ the int(density·n)-th largest (all entries equal to it stay); "
        "elect: sign of Σ w_i δ_i; base + λ Σ agreeing w_i δ_i / d, d = Σ agreeing w_i"
    ),
    parameters=(WEIGHT, DENSITY, normalize(True), rescale(False), LAMBDA, INT8_MASK),
    base="required",
    plan=plan,
    kernel=kernel,
)
