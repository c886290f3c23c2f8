"""Task arithmetic: the base plus a weighted sum of task vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from evomerge.merge_methods import Array, Columns, MergeMethod, Settings
from evomerge.merge_methods._task_vectors import INT8_MASK, LAMBDA, WEIGHT, normalize


def plan(settings: Settings) -> dict[str, Array]:
    """Fold λ and the divisor into one factor per model."""
    weight = settings["weight"]
    total = weight.sum(axis=0)
    divisor = np.where((settings["normalize"] == 0) | (np.abs(total) < 1e-8), 1.0, total)
    return {"factor": weight / divisor * settings["lambda"]}


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    uniform: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Add the weighted task vectors first and the base last, so that no large terms cancel."""
    assert base is not None
    total = (models[0] - base) * columns["factor"][0]
    for index in range(1, len(models)):
        total = total + (models[index] - base) * columns["factor"][index]
    return base + total


METHOD = MergeMethod(
    paper="Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089, section 2",
    equation="base + λ Σ w_i (x_i − base) / d, d = Σ w if normalize else 1",
    parameters=(WEIGHT, normalize(False), LAMBDA, INT8_MASK),
    base="required",
    plan=plan,
    kernel=kernel,
)
