"""NuSLERP: spherical interpolation of two models, or of two task vectors where there is a base."""

from __future__ import annotations

import numpy as np

from evomerge.merge_methods import COLUMNS, ROWS, WHOLE, Array, MergeMethod, Parameter, Settings
from evomerge.merge_methods._weighted_sums import kernel, lengths

_ZERO_SUM = 1e-6  # weights whose sum is smaller count as equal
_ZERO_NORM = 1e-7  # a vector of smaller norm counts as that much shorter than a unit
_COLINEAR = 1e-12  # of the squared sine: float32 tells no such vectors apart


def plan(settings: Settings) -> dict[str, Array]:
    """Take the angle between the two flattened vectors from their Gram matrix."""
    weight = settings["weight"]
    total = weight.sum(axis=0)
    equal = np.abs(total) < _ZERO_SUM
    t = np.where(equal, 0.5, weight[1] / np.where(equal, 1.0, total))
    gram = settings.statistics.task_gram()
    norms = np.maximum(lengths(gram), _ZERO_NORM)
    cosine = np.clip(gram[:, 0, 1] / norms.prod(axis=1), -1.0, 1.0)
    straight = 1.0 - cosine**2 <= _COLINEAR
    theta = np.arccos(cosine)
    sine = np.where(straight, 1.0, np.sin(theta))
    first = np.where(straight, 1.0 - t, np.sin((1.0 - t) * theta) / sine)
    second = np.where(straight, t, np.sin(t * theta) / sine)
    return {"factor": np.stack([first, second])}


def along(settings: Settings) -> Array:
    """Return what shares an angle; the names of the parameters are mergekit's."""
    lines = np.where(settings["nuslerp_row_wise"] > 0, COLUMNS, ROWS)
    return np.where(settings["nuslerp_flatten"] > 0, WHOLE, lines)


METHOD = MergeMethod(
    paper=(
        "Shoemake 1985, Animating rotation with quaternion curves, SIGGRAPH, section 3.3; "
        "as mergekit's NuSLERP, https://github.com/arcee-ai/mergekit"
    ),
    equation=(
        "sin((1−t)θ)/sin θ · v_0 + sin(tθ)/sin θ · v_1, t = w_1/(w_0 + w_1), of the models, or of "
        "the task vectors and then added to the base; linear where they are colinear"
    ),
    parameters=(
        Parameter("weight", "model", "float", None, "share of the model", search=(0.05, 1.0)),
        Parameter(
            "nuslerp_flatten", "global", "bool", True,
            "one angle per tensor; else one per row",
        ),
        Parameter(
            "nuslerp_row_wise", "global", "bool", False,
            "without nuslerp_flatten, one angle per column instead of one per row",
        ),
    ),
    base="optional",
    plan=plan,
    kernel=kernel,
    minimum=2,
    maximum=2,
    along=along,
)  # fmt: skip
