"""NearSwap: take the other model's weights where they are near those of the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from evomerge.merge_methods import Array, Columns, MergeMethod, Parameter, Settings

if TYPE_CHECKING:
    import torch

_LEAST = 1e-6  # of a distance


def plan(settings: Settings) -> dict[str, Array]:
    """Pass the distance on."""
    return {"t": settings["t"]}


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Interpolate by how the distance between the two compares to t."""
    assert base is not None
    distance = (models[0] - base).abs_().clamp_(min=_LEAST)
    share = (columns["t"][0] / distance).clamp_(max=1.0)
    return share * models[0] + (1.0 - share) * base


METHOD = MergeMethod(
    paper=(
        "alchemonaut 2024, QuartetAnemoi-70B-t0.0001, "
        "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    ),
    equation="base + λ (x − base), λ = min(1, t / |x − base|) for each entry",
    parameters=(
        Parameter(
            "t", "global", "float", None, "distance up to which the other model is taken",
            low=0.0, search=(0.0, 0.01),
        ),
    ),
    base="required",
    plan=plan,
    kernel=kernel,
    maximum=1,
)  # fmt: skip
