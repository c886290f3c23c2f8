"""Linear: a weighted mean of the models' weights (a model soup where the weights are equal)."""

from __future__ import annotations

import numpy as np

from evomerge.errors import CandidateError
from evomerge.merge_methods import Array, MergeMethod, Parameter, Settings
from evomerge.merge_methods._weighted_sums import kernel


def plan(settings: Settings) -> dict[str, Array]:
    """Divide the weights by their sum; raises CandidateError where that is 0 but for rounding."""
    weight = settings["weight"]
    total = weight.sum(axis=0)
    normalized = settings["normalize"] > 0
    zero = normalized & (np.abs(total) <= 1e-12 * np.abs(weight).sum(axis=0))
    if zero.any():
        name = settings.tensors[int(np.argmax(zero))]
        raise CandidateError(
            f"expected weights whose sum is not zero, got a sum of 0 for {name}; "
            "give a model a weight or set normalize: false"
        )
    return {"factor": weight / np.where(normalized, total, 1.0)}


METHOD = MergeMethod(
    paper="Wortsman et al. 2022, Model soups, arXiv:2203.05482, section 2",
    equation="Σ w_i x_i / Σ w_i (without the divisor where normalize is false)",
    parameters=(
        Parameter("weight", "model", "float", None, "share of the model", search=(0.0, 1.0)),
        Parameter("normalize", "global", "bool", True, "divide by the sum of the weights"),
    ),
    base="unused",
    plan=plan,
    kernel=kernel,
)
