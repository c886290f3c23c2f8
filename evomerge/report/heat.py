"""A recipe's parameters as heat maps: layer by layer, for each model and module group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.errors import EvomergeError, Place, RecipeError
from evomerge.merge_methods import Parameter
from evomerge.module_groups import GROUPS, OTHER, group_of, tensor_names_by_layer
from evomerge.recipe import Recipe, parse_recipe, resolve

Array = npt.NDArray[np.float64]
_OUTSIDE = ("embeddings", "norms", "head", OTHER)


def heat_maps(
    recipe: Mapping[str, Any], tensors: Sequence[str], names: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return a map of each parameter that is not the same everywhere, and the others' one value.

    `names` has a study's own names of its models by their references. A cell is the mean over the
    tensors of one group in one layer; outside the layers, over those of the group. Groups with the
    same values in all layers share a row. None for a recipe that does not resolve.
    """
    try:
        parsed = parse_recipe(recipe, Place("the recipe", RecipeError))
        values = resolve(parsed, tensors)
    except EvomergeError:
        return None
    cells = _cells(tensors)
    models = [names.get(str(entry.model), str(entry.model)) for entry in parsed.entries]
    maps, fixed = [], []
    for declared in parsed.method.parameters:
        found = values[declared.name]
        given = _given(parsed, declared)
        if np.ptp(found) > 0:
            rows = _rows(found if found.ndim > 1 else found[None], models, cells)
            columns = list(dict.fromkeys(column for _, column in cells))
            inside = len({column for group, column in cells if column != group})
            about = {"name": declared.name, "help": declared.help, "layers": inside}
            maps.append({**about, **_map(rows, columns)})
        elif given and found.size:
            fixed.append({"name": declared.name, "value": f"{found.flat[0]:g}"})
    return {"maps": maps, "fixed": fixed}


def _given(recipe: Recipe, declared: Parameter) -> bool:
    return any(declared.name in settings for settings in recipe.settings)


def _cells(tensors: Sequence[str]) -> dict[tuple[str, str], list[int]]:
    """Return which tensors make up the cell of a group and a column, layers in order first."""
    layers = tensor_names_by_layer(tensors)
    stacks = {where[0] for where in layers.values() if where}
    found: dict[tuple[Any, ...], list[int]] = {}
    for index, name in enumerate(tensors):
        where, group = layers[name], group_of(name)
        if where is None:
            key = (1, "", _OUTSIDE.index(group) if group in _OUTSIDE else len(_OUTSIDE), group, "")
        else:
            prefix = f"{where[0]} " if len(stacks) > 1 else ""
            key = (0, prefix, where[1], group, f"{prefix}{where[1]}")
        found.setdefault(key, []).append(index)
    # Outside the layers a column is a group, and its cell stands in the row of that group.
    return {(key[3], key[4] or key[3]): found[key] for key in sorted(found)}


def _rows(
    values: Array, models: Sequence[str], cells: Mapping[tuple[str, str], Sequence[int]]
) -> list[dict[str, Any]]:
    order = [*(one for one in GROUPS if one not in _OUTSIDE), *_OUTSIDE]
    groups = sorted({group for group, _ in cells}, key=order.index)
    rows = []
    for index in range(len(values)):
        model = models[index] if len(values) > 1 else ""
        made: list[tuple[list[str], dict[str, float]]] = []
        for group in groups:
            own = {
                column: float(np.mean(values[index, list(found)]))
                for (one, column), found in cells.items()
                if one == group
            }
            _put(made, group, own, own.keys() != {group})
        if len(made) == 1:
            made = [(["all"], made[0][1])]
        rows += [
            {"model": model, "groups": names, "cells": own, "span": 0 if place else len(made)}
            for place, (names, own) in enumerate(made)
        ]
    return rows


def _put(
    made: list[tuple[list[str], dict[str, float]]], group: str, own: dict[str, float], inside: bool
) -> None:
    """Add a group's cells to the first row that says nothing else, or as a row of its own.

    A row is called by its groups inside the layers: what stands outside has a column's name.
    """
    for names, cells in made:
        shared = own.keys() & cells.keys()
        if all(abs(own[one] - cells[one]) < 1e-9 for one in shared):
            names.extend([group] if inside else [])
            cells.update(own)
            return
    made.append(([group], own))


def _map(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    every = [value for row in rows for value in row["cells"].values()]
    most = max(abs(value) for value in every) or 1.0
    table = [
        {**row, "cells": [
            None if column not in row["cells"]
            else {"value": row["cells"][column], "share": round(row["cells"][column] / most, 3)}
            for column in columns
        ]}
        for row in rows
    ]  # fmt: skip
    return {"rows": table, "columns": list(columns), "low": min(every), "high": max(every)}
