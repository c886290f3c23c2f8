"""DELLA, linear: drop entries of each task vector at random by rank, add them up."""

from __future__ import annotations

from dataclasses import replace

from evomerge.merge_methods import Array, MergeMethod, Settings
from evomerge.merge_methods._task_vectors import (
    DENSITY,
    EPSILON,
    INT8_MASK,
    LAMBDA,
    SEED,
    WEIGHT,
    drop_and_sum,
    normalize,
    ranked_columns,
    rescale,
    summed_columns,
)


def plan(settings: Settings) -> dict[str, Array]:
    """Set the probabilities at both ends of the ranks; look up the L1 norm that the masks keep."""
    chances, gain = ranked_columns(settings)
    return {**summed_columns(settings, gain), **chances}


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
    kernel=drop_and_sum,
    probabilities=("small", "large"),
)
