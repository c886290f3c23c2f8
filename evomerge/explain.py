"""Where the numbers of a recipe come from: sources and values of every tensor, with their lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.assembly import Value, assemble, value_of
from evomerge.checkpoints import Checkpoint, ModelRef
from evomerge.compatibility import check_alike
from evomerge.errors import Place, RecipeError
from evomerge.placement import Placed, models_of, place_tensors
from evomerge.recipe import Recipe
from evomerge.slices import SlicedRecipe, as_sliced


@dataclass(frozen=True)
class Origin:
    """One source of a tensor: a model, the tensor's name there, and the values of its own."""

    model: ModelRef
    tensor: str
    values: dict[str, Value]


@dataclass(frozen=True)
class Explained:
    """How one tensor of the result is made; without a base and values where it is copied."""

    name: str
    base: Origin | None
    models: tuple[Origin, ...]
    values: dict[str, Value]


def explain(recipe: Recipe | SlicedRecipe, opened: Sequence[Checkpoint]) -> list[Explained]:
    """Return how each tensor that a recipe writes is made; the first of `opened` is the donor.

    Raises RecipeError and CheckpointError where the recipe does not fit the checkpoints.
    """
    if isinstance(recipe, Recipe):
        names = check_alike(opened)
        recipe = as_sliced(recipe, Place("the recipe", RecipeError))
        copied = {one for one in names if not opened[0].tensors[one].floating}
    else:
        parts = assemble(recipe, opened)
        names = tuple(name for part in parts for name in part.names)
        copied = {
            name
            for part in parts
            for name in part.names
            if not part.checkpoints[0].tensors[name].floating
        }
    placed = place_tensors(recipe, opened)
    return [
        _explained(recipe, name, placed[name], name in copied)
        if name in placed
        else Explained(name, None, (Origin(opened[0].ref, name, {}),), {})
        for name in sorted(names, key=_in_counting_order)
    ]


def _in_counting_order(name: str) -> list[tuple[int, str]]:
    """Return a key that puts layer 2 before layer 10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in name.split(".")]


def _explained(recipe: SlicedRecipe, name: str, placed: Placed, copied: bool) -> Explained:
    present = [ref for ref in models_of(recipe, placed.slice) if ref in placed.sources]
    if copied:
        ref = present[0]
        return Explained(name, None, (Origin(ref, placed.sources[ref], {}),), {})
    base = recipe.base_of(placed.slice)
    own, shared = (
        [declared for declared in recipe.method.parameters if declared.scope == scope]
        for scope in ("model", "global")
    )
    models = tuple(
        Origin(
            ref,
            placed.sources[ref],
            {one.name: value_of(recipe, placed, one, name, ref) for one in own},
        )
        for ref in present
        if ref != base
    )
    values = {one.name: value_of(recipe, placed, one, name) for one in shared}
    start = Origin(base, placed.sources[base], {}) if base and base in placed.sources else None
    return Explained(name, start, models, values)


def as_data(explained: Sequence[Explained]) -> list[dict[str, Any]]:
    """Return explanations as plain data, ready for JSON."""
    return [
        {
            "tensor": one.name,
            "base": None if one.base is None else _origin(one.base),
            "models": [_origin(model) for model in one.models],
            "parameters": _values(one.values),
        }
        for one in explained
    ]


def _origin(one: Origin) -> dict[str, Any]:
    return {"model": str(one.model), "tensor": one.tensor, "parameters": _values(one.values)}


def _values(values: dict[str, Value]) -> dict[str, Any]:
    return {name: {"value": one.value, "from": one.origin} for name, one in values.items()}


def as_lines(explained: Sequence[Explained]) -> Iterator[str]:
    """Yield explanations as text: a line for each tensor, and one for each of its sources."""
    for one in explained:
        yield one.name + _shown(one.values)
        if one.base:
            yield f"  base {one.base.model}{_renamed(one.base, one.name)}"
        for model in one.models:
            yield f"  {model.model}{_renamed(model, one.name)}{_shown(model.values)}"


def _renamed(origin: Origin, name: str) -> str:
    return "" if origin.tensor == name else f" {origin.tensor}"


def _shown(values: dict[str, Value]) -> str:
    """Return values with their lines, those of the same line together, defaults last."""
    by_origin: dict[str, list[str]] = {}
    for name, one in sorted(values.items(), key=lambda item: item[1].origin == "default"):
        by_origin.setdefault(one.origin, []).append(f"{name} {one.value:g}")
    texts = [f"{', '.join(texts)} ← {origin}" for origin, texts in by_origin.items()]
    return f": {'; '.join(texts)}" if texts else ""
