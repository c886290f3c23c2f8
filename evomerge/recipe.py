"""Merge recipes: reading, checking and writing mergekit's YAML, and resolving its settings."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import merge_methods
from evomerge.checkpoints import ModelRef
from evomerge.errors import Found, Place, RecipeError
from evomerge.files import dump_yaml, load_yaml
from evomerge.merge_methods import Array, MergeMethod, Parameter
from evomerge.module_groups import tensor_names_by_layer
from evomerge.settings import Setting, parse_setting, plain, value_at

DTYPES = ("float32", "bfloat16", "float16")
KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype")
_LATER = ("slices", "modules", "tokenizer_source", "tokenizer", "chat_template")


@dataclass(frozen=True)
class ModelEntry:
    """One input model of a recipe with the parameters of its own."""

    model: ModelRef
    parameters: Mapping[str, Setting]


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
        return data

    def to_yaml(self, comment: str = "") -> str:
        """Return the recipe as YAML text under a comment."""
        head = "".join(f"# {line}\n" for line in comment.splitlines())
        return head + dump_yaml(self.to_mapping())


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file; raises RecipeError with the place of the first mistake."""
    return parse_recipe(load_yaml(path, RecipeError), Place(str(path), RecipeError))


def parse_recipe(data: object, place: Place) -> Recipe:
    """Check plain data to be a recipe; raises the place's error at the first mistake."""
    if isinstance(data, dict):
        for key in _LATER:
            if key in data:
                raise place.fail(f"no {key}", Found("one"), f"{key} is not supported yet")
    top = place.mapping(data, KEYS)
    if "merge_method" not in top:
        raise place.fail("a merge_method", None)
    name = top["merge_method"]
    method = merge_methods.get(name, place / "merge_method")
    base = (
        ModelRef.parse(top["base_model"], place / "base_model")
        if top.get("base_model") is not None
        else None
    )
    if method.base == "required" and base is None:
        raise place.fail(f"a base_model, which {name} needs", None)
    recipe = Recipe(
        merge_method=str(name),
        method=method,
        base_model=base,
        models=_models(top.get("models"), method, base, place / "models"),
        parameters=_parameters(top.get("parameters"), method, "global", place / "parameters"),
        dtype=_dtype(top, "dtype", place),
        out_dtype=_dtype(top, "out_dtype", place),
    )
    _check_complete(recipe, str(name), place)
    return recipe


def _models(
    data: object, method: MergeMethod, base: ModelRef | None, place: Place
) -> tuple[ModelEntry, ...]:
    if not isinstance(data, list) or not data:
        raise place.fail("a list of models", data)
    entries: list[ModelEntry] = []
    for index, item in enumerate(data):
        here = place[index]
        fields = here.mapping(item, ("model", "parameters"))
        ref = ModelRef.parse(fields.get("model"), here / "model")
        if any(ref == earlier.model for earlier in entries):
            raise (here / "model").fail("each model once", str(ref))
        parameters = _parameters(fields.get("parameters"), method, "model", here / "parameters")
        entries.append(ModelEntry(ref, parameters))
    return tuple(entries)


def _parameters(data: object, method: MergeMethod, scope: str, place: Place) -> dict[str, Setting]:
    if data is None:
        return {}
    known = [
        declared.name
        for declared in method.parameters
        if scope in (declared.scope, "global")  # a global value serves every model
    ]
    found: dict[str, Setting] = {}
    for name, value in place.mapping(data).items():
        if name not in known:
            raise place.unknown(name, "parameter", known)
        declared = method.parameter(name)
        assert declared is not None
        found[name] = parse_setting(value, declared, place / name)
    return found


def _dtype(top: Mapping[str, object], key: str, place: Place) -> str | None:
    value = top.get(key)
    if value is None:
        return None
    if value not in DTYPES:
        raise (place / key).fail(f"one of {', '.join(DTYPES)}", value)
    return str(value)


def _check_complete(recipe: Recipe, name: str, place: Place) -> None:
    method, entries = recipe.method, recipe.entries
    here = place / "models"
    if len(entries) < method.minimum:
        what = f"at least {method.minimum} model(s) beside the base for {name}"
        raise here.fail(what, Found(str(len(entries))))
    if method.maximum is not None and len(entries) > method.maximum:
        what = f"at most {method.maximum} model(s) beside the base for {name}"
        raise here.fail(what, Found(str(len(entries))))
    for declared in method.parameters:
        if declared.default is not None or declared.name in recipe.parameters:
            continue
        if declared.scope == "global":
            raise (place / "parameters").fail(f"{declared.name}, which {name} needs", None)
        for index, entry in enumerate(recipe.models):
            if entry in entries and declared.name not in entry.parameters:
                what = f"{declared.name}, which {name} needs of every model"
                raise (here[index] / "parameters").fail(what, None)


def resolve(recipe: Recipe, tensors: Sequence[str]) -> dict[str, Array]:
    """Resolve every parameter for every tensor: arrays [T], or [M, T] for a model's parameters.

    `tensors` must be all tensors of the models, since a gradient's position is the layer's index
    over the number of layers less one; tensors outside the layers take the first anchor. A model's
    own setting is asked first, then the recipe's, then the default. Raises RecipeError where no
    level yields a value for a parameter that has no default.
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


def depths(tensors: Sequence[str]) -> Array:
    """Return each tensor's position in its stack of layers, in [0, 1]; 0 outside the layers."""
    return _depths(tuple(tensors))


@functools.lru_cache(maxsize=8)
def _depths(tensors: tuple[str, ...]) -> Array:
    layers = tensor_names_by_layer(tensors)
    last: dict[str, int] = {}
    for where in layers.values():
        if where:
            last[where[0]] = max(last.get(where[0], 0), where[1])
    return np.array(
        [where[1] / max(1, last[where[0]]) if where else 0.0 for where in layers.values()]
    )


def _column(
    declared: Parameter, levels: Sequence[Setting | None], tensors: Sequence[str], depth: Array
) -> Array:
    present = [level for level in levels if level is not None]
    if present and not isinstance(present[0], tuple):
        return np.full(len(tensors), float(present[0]))
    column = np.empty(len(tensors))
    for index, name in enumerate(tensors):
        value: float | None = None
        for level in present:
            value = value_at(level, name, float(depth[index]))
            if value is not None:
                break
        if value is None:
            if declared.default is None:
                raise RecipeError(
                    f"expected a value of {declared.name} for every tensor, got none for {name}; "
                    "add a last entry without a filter"
                )
            value = float(declared.default)
        column[index] = value
    return column
