"""SCE: select entries by their variance, weigh task vectors by energy, erase minority signs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merge_methods import Array, Columns, MergeMethod, Parameter, Settings
from evomerge.merge_methods._task_vectors import (
    INT8_MASK,
    add_up,
    signs,
    variance,
    where_positive,
)

if TYPE_CHECKING:
    import torch

_LEAST = 1e-6  # of the summed energy, below which all weigh the same, and of a divisor


def plan(settings: Settings) -> dict[str, Array]:
    """Look up the least variance that is selected, and the energy of what is."""
    threshold, energy = settings.statistics.selected(settings["select_topk"])
    total = energy.sum(axis=0)
    faint = total < _LEAST
    weight = np.where(faint, 1.0 / len(energy), energy / np.where(faint, 1.0, total))
    return {"threshold": threshold, "weight": weight}


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Select by variance, elect signs by the unweighted sum, and average what agrees."""
    assert base is not None
    deltas = [model - base for model in models]
    selected = variance(deltas).ge_(columns["threshold"][0])
    elected = signs(add_up(deltas))  # what is not selected goes at the end
    agreeing = [delta.mul_(elected).relu_() for delta in deltas]
    weights = columns["weight"]
    divisor = add_up([where_positive(agreeing[i], weights[i]) for i in range(len(deltas))])
    merged = add_up([agreeing[i].mul_(weights[i]) for i in range(len(deltas))])
    return base + elected * merged / divisor.clamp_(min=_LEAST) * selected


METHOD = MergeMethod(
    paper="Wan et al. 2024, FuseChat: knowledge fusion of chat models, arXiv:2408.07990, section 3",
    equation=(
        "select the int(select_topk·nonzero) entries of largest variance (those equal to the last "
        "stay); w_i = mean(δ_i²) / Σ mean(δ_j²); base + Σ agreeing w_i δ_i / Σ agreeing w_i"
    ),
    parameters=(
        Parameter(
            "select_topk", "global", "float", 1.0, "fraction of entries that is selected",
            low=0.0, high=1.0, search=(0.1, 1.0),
        ),
        INT8_MASK,
    ),
    base="required",
    plan=plan,
    kernel=kernel,
)  # fmt: skip
