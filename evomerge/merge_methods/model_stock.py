"""Model Stock: the mean of the models, drawn towards the base by the angle between task vectors."""

from __future__ import annotations

import numpy as np

from evomerge.merge_methods import ROWS, WHOLE, Array, MergeMethod, Parameter, Settings
from evomerge.merge_methods._weighted_sums import kernel, lengths

_LEAST = 1e-6  # of a product of norms, and of the ratio's denominator


def plan(settings: Settings) -> dict[str, Array]:
    """Take the mean cosine between task vectors from their Gram matrix."""
    gram = settings.statistics.task_gram()
    count = gram.shape[1]
    norms = lengths(gram)
    first, second = np.triu_indices(count, 1)
    products = np.maximum(norms[:, first] * norms[:, second], _LEAST)
    cosine = np.clip(gram[:, first, second] / products, -1.0, 1.0).mean(axis=1)
    denominator = 1.0 + (count - 1) * cosine
    singular = np.abs(denominator) < _LEAST  # task vectors that cancel
    ratio = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, denominator))
    return {"factor": np.tile(ratio / count, (count, 1))}


def along(settings: Settings) -> Array:
    """Return what shares a ratio."""
    return np.where(settings["filter_wise"] > 0, ROWS, WHOLE)


METHOD = MergeMethod(
    paper="Jang et al. 2024, Model Stock, arXiv:2403.19522, section 4",
    equation=(
        "base + t (Σ x_i / N − base), t = N cos θ / (1 + (N−1) cos θ), cos θ the mean cosine "
        "between two task vectors, per tensor or, filter_wise, per row"
    ),
    parameters=(
        Parameter(
            "filter_wise", "global", "bool", False,
            "one ratio per row instead of one per tensor",
        ),
    ),
    base="required",
    plan=plan,
    kernel=kernel,
    minimum=2,
    along=along,
)  # fmt: skip
