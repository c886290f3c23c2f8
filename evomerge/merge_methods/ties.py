"""TIES: trim each task vector to its largest entries, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merge_methods import Array, Columns, MergeMethod, Parameter, Settings
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

if TYPE_CHECKING:
    import torch


def plan(settings: Settings) -> dict[str, Array]:
    """Look up each task vector's threshold; every entry of at least that magnitude is kept."""
    density, whole = settings["density"], settings["trim_whole_model"] > 0
    gains = bool((settings["rescale"] > 0).any())
    least, gain = np.zeros_like(density), np.ones_like(density)
    for chosen, over_model in ((~whole, False), (whole, True)):
        if chosen.any():
            found, rescaled = settings.statistics.thresholds(density, over_model, gains)
            least = np.where(chosen, found, least)
            gain = np.where(chosen, rescaled, gain)
    columns = weighted_columns(settings, gain, settings["elect_unweighted"])
    return {**columns, "threshold": least}


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Trim by threshold, then merge by sign consensus."""
    assert base is not None
    weighted = []
    for index, model in enumerate(models):
        delta = model - base
        large = delta.abs().ge_(columns["threshold"][index])
        weighted.append(delta.mul_(large).mul_(columns["factor"][index]))
    return elect_and_merge(base, weighted, columns)


METHOD = MergeMethod(
    paper="Yadav et al. 2023, TIES-Merging, arXiv:2306.01708, section 3 and algorithm 1",
    equation=(
        "trim: keep |δ_i| ≥ the int(density·n)-th largest (all entries equal to it stay); "
        "elect: sign of Σ w_i δ_i; base + λ Σ agreeing w_i δ_i / d, d = Σ agreeing w_i. As the "
        "paper's own code does it, trim_whole_model ranks the entries of all tensors together, and "
        "elect_unweighted elects the sign of Σ δ_i"
    ),
    parameters=(
        WEIGHT,
        DENSITY,
        normalize(True),
        rescale(False),
        LAMBDA,
        INT8_MASK,
        Parameter(
            "trim_whole_model", "global", "bool", False,
            "one threshold per model instead of one per tensor", own=True,
        ),
        Parameter(
            "elect_unweighted", "global", "bool", False,
            "elect signs before weighing", own=True,
        ),
    ),
    base="required",
    plan=plan,
    kernel=kernel,
)  # fmt: skip
