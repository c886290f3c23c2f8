"""SLERP: spherical interpolation from the base model to one other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merge_methods import Array, Columns, MergeMethod, Parameter, Settings

if TYPE_CHECKING:
    import torch

_NEARLY_PARALLEL = 0.9995
_ZERO_NORM = 1e-8  # a tensor of smaller norm counts as orthogonal to everything


def plan(settings: Settings) -> dict[str, Array]:
    """Take the angle between the flattened tensors from their Gram matrix."""
    t = settings["t"]
    gram = settings.statistics.gram()
    norms = np.sqrt(gram[:, [0, 1], [0, 1]])
    norms = np.where(norms > _ZERO_NORM, norms, 1.0)
    cosine = np.clip(gram[:, 0, 1] / norms.prod(axis=1), -1.0, 1.0)
    straight = np.abs(cosine) > _NEARLY_PARALLEL
    theta = np.arccos(cosine)
    sine = np.where(straight, 1.0, np.sin(theta))
    start = np.where(straight, 1.0 - t, np.sin((1.0 - t) * theta) / sine)
    end = np.where(straight, t, np.sin(t * theta) / sine)
    return {"start": start, "end": end}


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Combine the two ends, not normalized, with the coefficients of the plan."""
    assert base is not None
    return base * columns["start"][0] + models[0] * columns["end"][0]


METHOD = MergeMethod(
    paper="Shoemake 1985, Animating rotation with quaternion curves, SIGGRAPH, section 3.3",
    equation="sin((1−t)θ)/sin θ · base + sin(tθ)/sin θ · x; linear where |cos θ| > 0.9995",
    parameters=(
        Parameter(
            "t", "global", "float", None, "0 is the base, 1 the other model", search=(0.0, 1.0)
        ),
    ),
    base="required",
    plan=plan,
    kernel=kernel,
    maximum=1,
)
