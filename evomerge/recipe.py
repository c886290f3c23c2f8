"""Merge recipes: reading, checking and writing mergekit's YAML, and resolving its settings."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from evomerge.checkpoints import ModelRef
from evomerge.errors import Found, Place, RecipeError
from evomerge.files import load_yaml
from evomerge.merge_methods import Array, MergeMethod, Parameter
from evomerge.module_groups import stacks, tensor_names_by_layer
from evomerge.recipe_fields import ModelEntry, as_yaml, check_count, parse_head, parse_models
from evomerge.settings import ByName, Setting, plain, value_at
from evomerge.tokenizer_rules import KEYS as TEXT_KEYS
from evomerge.tokenizer_rules import NO_TEXT_RULES, TextRules, parse_text_rules

KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", *TEXT_KEYS)


@dataclass(frozen=True)
class Recipe:
    """A complete merge: every number is there. `models` keeps the order of the file."""

    merge_method: str
    method: MergeMethod
    base_model: ModelRef | None
    models: tuple[ModelEntry, ...]
    parameters: Mapping[str, Setting]
    dtype: str | None = None
    out_dtype: str | None = None
    text: TextRules = NO_TEXT_RULES

    @property
    def entries(self) -> tuple[ModelEntry, ...]:
        """The models that the method merges: without the base where the method has one."""
        if self.method.base == "unused":
            return self.models
        return tuple(entry for entry in self.models if entry.model != self.base_model)

    @property
    def base(self) -> ModelRef | None:
        """The base model of the arithmetic; None for a method or recipe without."""
        return None if self.method.base == "unused" else self.base_model

    @property
    def donor(self) -> ModelRef:
        """The model whose configuration and tokenizer the result takes: the base, or the first."""
        return self.base_model or self.models[0].model

    @property
    def inputs(self) -> tuple[ModelRef, ...]:
        """All models whose weights are read: the base first, then the others in order."""
        base = (self.base,) if self.base else ()
        return base + tuple(entry.model for entry in self.entries)

    @property
    def settings(self) -> tuple[Mapping[str, Setting], ...]:
        """All settings that the file has, by name."""
        return (self.parameters, *(entry.parameters for entry in self.models))

    @property
    def result_dtype(self) -> str | None:
        """The dtype of what is written; None keeps that of the first input."""
        return self.out_dtype or self.dtype

    def to_mapping(self) -> dict[str, Any]:
        """Return the recipe as plain data, ready for YAML."""
        data: dict[str, Any] = {"merge_method": self.merge_method}
        if self.base_model:
            data["base_model"] = str(self.base_model)
        data["models"] = [
            {"model": str(entry.model)}
            | ({"parameters": plain(entry.parameters)} if entry.parameters else {})
            for entry in self.models
        ]
        if self.parameters:
            data["parameters"] = plain(self.parameters)
        for key in ("dtype", "out_dtype"):
            if getattr(self, key):
                data[key] = getattr(self, key)
        return data | self.text.to_mapping()

    def to_yaml(self, comment: str = "") -> str:
        """Return the recipe as YAML text under a comment."""
        return as_yaml(self.to_mapping(), comment)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file; raises RecipeError with the place of the first mistake."""
    return parse_recipe(load_yaml(path, RecipeError), Place(str(path), RecipeError))


def parse_recipe(data: object, place: Place) -> Recipe:
    """Check plain data to be a recipe; raises the place's error at the first mistake.

    Recipes of slices or modules are those of `evomerge.slices`.
    """
    for key in ("slices", "modules"):
        if isinstance(data, dict) and key in data:
            hint = "only merge and check take slices and modules"
            raise place.fail("a recipe of models", Found(key), hint)
    head = parse_head(data, KEYS, place)
    if head.method.base == "required" and head.base_model is None:
        hint = "name the model that the others were tuned from"
        raise place.fail(f"a base_model, which {head.merge_method} needs", None, hint)
    models = parse_models(head.fields.get("models"), head.method, place / "models")
    recipe = Recipe(
        head.merge_method, head.method, head.base_model, models, head.parameters, head.dtype,
        head.out_dtype, parse_text_rules(head.fields, place),
    )  # fmt: skip
    _check_complete(recipe, place)
    return recipe


def _check_complete(recipe: Recipe, place: Place) -> None:
    method, name, entries = recipe.method, recipe.merge_method, recipe.entries
    here = place / "models"
    check_count(method, name, len(entries), here)
    for declared in method.parameters:
        if declared.default is not None or declared.name in recipe.parameters:
            continue
        if declared.scope == "global":
            what = f"{declared.name}, which {name} needs"
            raise (place / "parameters").fail(what, None, f"add {declared.name} there")
        for index, entry in enumerate(recipe.models):
            if entry in entries and declared.name not in entry.parameters:
                what = f"{declared.name}, which {name} needs of every model"
                raise (here[index] / "parameters").fail(what, None, f"add {declared.name} there")


def resolve(recipe: Recipe, tensors: Sequence[str]) -> dict[str, Array]:
    """Resolve every parameter for every tensor: arrays [T], or [M, T] for a model's parameters.

    `tensors` must be all tensors of the models, since a gradient's position is the layer's index
    over the number of layers less one; tensors outside the layers take the first anchor, and a
    single layer the last, as in mergekit. A model's own setting is asked first, then the recipe's,
    then the default. Raises RecipeError where no level yields a value for a parameter that has no
    default.
    """
    depth = depths(tensors)
    found: dict[str, Array] = {}
    for declared in recipe.method.parameters:
        shared = recipe.parameters.get(declared.name)
        if declared.scope == "global":
            found[declared.name] = _column(declared, [shared], tensors, depth)
        else:
            columns = [
                _column(declared, [entry.parameters.get(declared.name), shared], tensors, depth)
                for entry in recipe.entries
            ]
            found[declared.name] = np.stack(columns)
    return found


def weights_key(recipe: Recipe, tensors: Sequence[str]) -> str:
    """Return a key that recipes for the same inputs share where every tensor gets the same values.

    Such recipes make the same weights to the last bit, however they are written.
    """
    models = [str(recipe.base), *(str(entry.model) for entry in recipe.entries)]
    seed = recipe.parameters.get("seed", 0) if recipe.method.stochastic else None
    parts = [recipe.merge_method, *models, repr(seed), str(recipe.dtype), str(recipe.out_dtype)]
    found = xxhash.xxh3_128("\n".join(parts).encode())
    for name, values in sorted(resolve(recipe, tensors).items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    return found.hexdigest()


def depths(tensors: Sequence[str]) -> Array:
    """Return each tensor's position in its stack of layers, in [0, 1]; 0 outside the layers."""
    return _depths(tuple(tensors))


@functools.lru_cache(maxsize=8)
def _depths(tensors: tuple[str, ...]) -> Array:
    counts = stacks(tensors)
    places = tensor_names_by_layer(tensors).values()
    return np.array([depth_of(where[1], counts[where[0]]) if where else 0.0 for where in places])


def depth_of(layer: int, layers: int) -> float:
    """Return a layer's position among `layers`, in [0, 1]; a single one is at the end."""
    return layer / (layers - 1) if layers > 1 else 1.0


def _column(
    declared: Parameter, levels: Sequence[Setting | None], tensors: Sequence[str], depth: Array
) -> Array:
    present = [level for level in levels if level is not None]
    if present and not isinstance(present[0], (tuple, ByName)):
        return np.full(len(tensors), float(present[0]))
    if not present and len(tensors):
        return np.full(len(tensors), default_of(declared, tensors[0]))
    column = np.empty(len(tensors))
    for index, name in enumerate(tensors):
        value: float | None = None
        for level in present:
            value = value_at(level, name, float(depth[index]))
            if value is not None:
                break
        if value is None:
            value = default_of(declared, name)
        column[index] = value
    return column


def default_of(declared: Parameter, name: str) -> float:
    """Return a parameter's default; raises RecipeError, naming the tensor, where it has none."""
    if declared.default is None:
        raise RecipeError(
            f"expected a value of {declared.name} for every tensor, got none for {name}; "
            "add a last entry without a filter"
        )
    return float(declared.default)
