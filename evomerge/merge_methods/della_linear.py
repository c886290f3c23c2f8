"""DELLA, linear: drop entries of each task vector at random by rank, add them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from evomerge.merge_methods import Array, Columns, MergeMethod, Settings
from evomerge.merge_methods._task_vectors import (
    DENSITY,
    EPSILON,
    INT8_MASK,
    LAMBDA,
    SEED,
    WEIGHT,
    add_to,
    dropped,
    normalize,
    ranked_columns,
    rescale,
    summed_columns,
)


def plan(settings: Settings) -> dict[str, Array]:
    """Set the probabilities at both ends of the ranks; look up the L1 norm that the masks keep."""
    chances, gain = ranked_columns(settings)
    return {**summed_columns(settings, gain), **chances}


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Keep entries by the random masks, and add up what is kept."""
    assert base is not None
    return add_to(base, dropped(base, models, columns, kept))


METHOD = MergeMethod(
    paper="Deep et al. 2024, DELLA-Merging, arXiv:2406.11617, section 3",
    equation=(
        "δ_i ← δ_i·m_i·Σ|δ_i|/Σ|m_i δ_i|, m_i Bernoulli(density − ε + 2ε r), r the rank of "
        "|δ_i| in its row from 0 to 1; base + λ Σ w_i δ_i / d, d = Σ w if normalize "
        "else 1. The paper "
        "rescales by 1/p of each entry; this is by the L1 norm kept, as mergekit does it"
    ),
    parameters=(
        WEIGHT,
        replace(DENSITY, search=(0.2, 0.8)),
        EPSILON,
        normalize(False),
        rescale(True),
        LAMBDA,
        INT8_MASK,
        SEED,
    ),
    base="required",
    plan=plan,
    kernel=kernel,
    probabilities=("small", "large"),
)
