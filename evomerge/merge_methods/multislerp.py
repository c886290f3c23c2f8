"""Multi-SLERP: the weighted mean of many directions on the sphere, at the weighted mean norm.

The published procedure maps the directions to the tangent space at their weighted mean m, adds them
up by weight and maps the sum back. That sum, Σ w_i u_i − (Σ w_i u_i·m) m with m along Σ w_i u_i, is
always zero: what is left is m at the mean norm.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evomerge.errors import CandidateError
from evomerge.merge_methods import Array, MergeMethod, Parameter, Settings
from evomerge.merge_methods._weighted_sums import kernel, length, lengths

_CANCELLED = 1e-7  # of the weighted mean of unit vectors, below which rounding alone gives it


def plan(settings: Settings) -> dict[str, Array]:
    """Take norms and the length of the mean direction from the Gram matrix.

    Raises CandidateError for weights that sum to zero, or directions of three models or more that
    cancel.
    """
    weight = settings["weight"].T
    count = weight.shape[1]
    if count == 1:
        return {"factor": np.ones((1, len(weight)))}
    normalized = (settings["normalize_weights"] > 0)[:, None]
    total = weight.sum(axis=1, keepdims=True)
    _refuse(
        normalized & (np.abs(total) <= 1e-12 * np.abs(weight).sum(axis=1, keepdims=True)),
        "weights whose sum is not zero, got a sum of 0",
        settings,
    )
    weight = weight / np.where(normalized, total, 1.0)
    gram = settings.statistics.task_gram()
    norms = lengths(gram)
    unit = weight / (norms + settings["eps"][:, None])
    size = length(unit, gram)[:, None]
    cancelled = size < np.maximum(settings["eps"], _CANCELLED)[:, None]
    if count > 2:
        something = norms.any(axis=1, keepdims=True)  # task vectors that are all zero add nothing
        what = "directions with a weighted mean, got models that cancel"
        _refuse(cancelled & something, what, settings)
    radius = (weight * norms).sum(axis=1, keepdims=True)
    factor = np.where(cancelled, weight, unit * radius / np.where(cancelled, 1.0, size))
    return {"factor": factor.T}


def _refuse(wrong: npt.NDArray[np.bool_], expected: str, settings: Settings) -> None:
    if wrong.any():
        name = settings.tensors[int(np.argmax(wrong))]
        raise CandidateError(f"expected {expected} for {name}; choose other weights")


METHOD = MergeMethod(
    paper="Goddard 2025, Multi-SLERP, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    equation=(
        "with u_i = v_i/(|v_i| + eps) and M = Σ w_i u_i: M/|M| · Σ w_i |v_i|, v_i the models, or "
        "the task vectors and then added to the base; Σ w_i v_i for two that cancel"
    ),
    parameters=(
        Parameter("weight", "model", "float", None, "share of the model", search=(0.05, 1.0)),
        Parameter("normalize_weights", "global", "bool", True, "divide the weights by their sum"),
        Parameter("eps", "global", "float", 1e-8, "what keeps divisors from zero", low=0.0),
    ),
    base="optional",
    plan=plan,
    kernel=kernel,
)
