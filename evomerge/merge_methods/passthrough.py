"""Passthrough: one model as it is, or scaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from evomerge.merge_methods import Array, Columns, MergeMethod, Parameter, Settings

if TYPE_CHECKING:
    import torch


def plan(settings: Settings) -> dict[str, Array]:
    """Pass the scale on."""
    return {"scale": settings["scale"]}


def kernel(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Scale the model."""
    return models[0] * columns["scale"][0]


METHOD = MergeMethod(
    paper="mergekit's passthrough, 2023, https://github.com/arcee-ai/mergekit",
    equation="λ x, λ = scale",
    parameters=(Parameter("scale", "model", "float", 1.0, "factor of the model"),),
    base="unused",
    plan=plan,
    kernel=kernel,
    maximum=1,
)
