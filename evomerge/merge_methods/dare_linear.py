"""DARE, linear: drop entries of each task vector at random, rescale, add them up."""

from __future__ import annotations

from evomerge.merge_methods import Array, MergeMethod, Settings
from evomerge.merge_methods._task_vectors import (
    DENSITY,
    INT8_MASK,
    LAMBDA,
    RESCALE_BY_DENSITY,
    SEED,
    WEIGHT,
    bernoulli_gain,
    drop_and_sum,
    normalize,
    rescale,
    summed_columns,
)


def plan(settings: Settings) -> dict[str, Array]:
    """Fold the rescaling, λ and the divisor into one factor per model."""
    return {**summed_columns(settings, bernoulli_gain(settings)), "density": settings["density"]}


METHOD = MergeMethod(
    paper="Yu et al. 2024, Language models are super Mario (DARE), arXiv:2311.03099, section 3.2",
    equation=(
        "δ_i ← δ_i·m_i·Σ|δ_i|/Σ|m_i δ_i|, m_i Bernoulli(density); base + λ Σ w_i δ_i / d, "
        "d = Σ w if normalize else 1. The rescale is by the L1 norm kept in each tensor, whose "
        "expectation is the paper's 1/density"
    ),
    parameters=(
        WEIGHT,
        DENSITY,
        normalize(False),
        rescale(True),
        RESCALE_BY_DENSITY,
        LAMBDA,
        INT8_MASK,
        SEED,
    ),
    base="required",
    plan=plan,
    kernel=drop_and_sum,
    probabilities=("density",),
)
