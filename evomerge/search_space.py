"""A search space is a recipe with holes: `{range: [0, 1.5], init: 0.4}` where a number would stand.

Beside plain holes there are curves over depth (`{curve: 4, over: [attention, mlp, other], …}`),
products of holes, holes with a name that stand wherever the name does, and `each: experts`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge import merge_methods
from evomerge.errors import Found, Place, SpaceError
from evomerge.expression_reader import Reader
from evomerge.expressions import (
    Constant,
    Expression,
    Filtered,
    Hole,
    OpenGradient,
    OpenSetting,
    Product,
    Values,
    names_in,
    snap,
    to_plain,
)
from evomerge.files import exists, load_yaml
from evomerge.merge_methods import MergeMethod
from evomerge.module_groups import Architecture
from evomerge.recipe import Recipe, parse_recipe

_KEYS = ("merge_method", "base_model", "models", "parameters", "holes")
_POSITION = re.compile(r"inputs\[(-?\d{1,4})\]")


@dataclass(frozen=True)
class Inputs:
    """The models of a study: reference of each, by the name that a space calls it."""

    base: str
    experts: Mapping[str, str]

    def ref(self, alias: object, place: Place) -> tuple[str, str]:
        """Return (name, reference) of what a space calls `base`, an expert's name or `inputs[-1]`.

        `inputs` are the base and the experts in order. Raises the place's error.
        """
        named = {"base": self.base, **self.experts}
        if not isinstance(alias, str):
            raise place.fail("base, the name of an expert, or inputs[-1]", alias)
        position = _POSITION.fullmatch(alias)
        if position:
            number = int(position[1])
            if not -len(named) <= number < len(named):
                raise place.fail(f"one of the study's {len(named)} inputs", alias)
            alias = list(named)[number]
        if alias not in named:
            raise place.unknown(alias, "model", named)
        return alias, named[alias]


@dataclass(frozen=True)
class SpaceModel:
    """One model entry of a space; `name` is what the study calls it."""

    name: str
    ref: str
    parameters: Mapping[str, OpenSetting]


@dataclass(frozen=True)
class SearchSpace:
    """A recipe with holes, for given inputs and a given architecture."""

    merge_method: str
    base_model: str | None
    models: tuple[SpaceModel, ...]
    parameters: Mapping[str, OpenSetting]
    holes: tuple[Hole, ...]
    result_dtype: str
    place: Place

    def decode(self, values: Values) -> Recipe:
        """Fill the holes; raises SpaceError where the result is no legal recipe."""
        data: dict[str, Any] = {"merge_method": self.merge_method}
        if self.base_model is not None:
            data["base_model"] = self.base_model
        data["models"] = [
            {"model": model.ref, "parameters": _fill(model.parameters, values)}
            for model in self.models
        ]
        data["parameters"] = _fill(self.parameters, values)
        data["dtype"] = "float32"
        data["out_dtype"] = self.result_dtype
        return parse_recipe(data, self.place)

    @property
    def initial(self) -> dict[str, Any]:
        """The values of all holes at their `init`."""
        return {hole.name: hole.init for hole in self.holes}

    def weighted(self, weights: Mapping[str, float]) -> dict[str, Any] | None:
        """Return values at which every model's weight is the one given for its name.

        All that is not a model's own stays at its init. None where the space holds no such point.
        """
        values = self.initial
        wanted = [
            (model.parameters.get("weight"), weights[model.name], f"{model.name}.")
            for model in self.models
            if model.name in weights
        ]
        weighted: list[tuple[Expression, float]] = []
        for setting, weight, own in wanted:
            if setting is None or isinstance(setting, (OpenGradient, Filtered)):
                return None
            values |= self._solved(setting, weight, own)
            weighted.append((setting, weight))
        for setting, weight in weighted:
            numbers = _numbers(setting, values)
            if not all(math.isclose(one, weight, rel_tol=1e-9, abs_tol=1e-12) for one in numbers):
                return None
        return values

    def _solved(self, setting: Expression, weight: float, own: str) -> dict[str, Any]:
        """Return values of one factor, the model's own where it has one, that give the weight."""
        factors = setting.factors if isinstance(setting, Product) else (setting,)
        searched = [factor for factor in factors if names_in(factor)]
        if not searched:
            return {}
        free = next((one for one in searched if names_in(one)[0].startswith(own)), searched[0])
        rest = 1.0
        for factor in factors:
            if factor is not free:
                rest *= _numbers(factor, self.initial)[0]  # all knots of a curve have one init
        holes = [hole for hole in self.holes if hole.name in names_in(free)]
        return {
            hole.name: snap(weight / rest, hole.low, hole.high, hole.step)
            for hole in holes
            if hole.kind == "float" and rest != 0
        }


def _numbers(expression: Expression, values: Values) -> list[float]:
    """Return the one number of an expression, or all knots of its curve."""
    found = expression.number(values)
    if not isinstance(found, dict):
        return [float(found)]
    return [knot for knots in found.values() for knot in knots]


def _fill(parameters: Mapping[str, OpenSetting], values: Values) -> dict[str, Any]:
    return {name: to_plain(setting, values) for name, setting in parameters.items()}


def space_folder() -> Path:
    """Return the folder of the ready-made search spaces, in a checkout or an installed package."""
    installed = Path(__file__).parent / "search_spaces"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "search_spaces"


def space_names() -> list[str]:
    """Return the names of the ready-made search spaces."""
    return sorted(path.stem for path in space_folder().glob("*.yaml"))


def load_space(source: object, folder: Path, place: Place) -> tuple[dict[str, Any], Place]:
    """Return the mapping of a space, given by name, by path or as itself, and its own place.

    A path ends in .yaml or .yml and is relative to `folder`. Raises the place's error, with the
    nearest name, where there is no such space.
    """
    if isinstance(source, dict):
        return source, Place(place.document, SpaceError, place.path)
    if not isinstance(source, str):
        raise place.fail("the name of a search space, a path, or a mapping", source)
    path = space_folder() / f"{source}.yaml"
    if source not in space_names():
        if not source.endswith((".yaml", ".yml")):
            raise place.unknown(source, "search space", space_names())
        path = folder / source
        if not exists(path):
            raise place.fail("the file of a search space", Found(f"{path}, which does not exist"))
    here = Place(str(path), SpaceError)
    return here.mapping(load_yaml(path, SpaceError)), here


def parse_space(
    data: object,
    inputs: Inputs,
    architecture: Architecture,
    result_dtype: str,
    seed: int,
    place: Place,
) -> SearchSpace:
    """Check a space against the study's models; raises SpaceError at the first mistake.

    `seed` becomes the seed of the masks where the method is stochastic and the space names none.
    """
    top = place.mapping(data, _KEYS)
    if "merge_method" not in top:
        raise place.fail("a merge_method", None)
    method = merge_methods.get(top["merge_method"], place / "merge_method")
    reader = Reader(architecture, top.get("holes"), place / "holes")
    base_model = None
    if top.get("base_model") is not None:
        base_model = inputs.ref(top["base_model"], place / "base_model")[1]
    models = _models(top.get("models"), inputs, method, reader, place / "models")
    parameters = _settings(top.get("parameters"), "", method, reader, place / "parameters")
    if method.stochastic and "seed" not in parameters:
        parameters["seed"] = Constant(seed)
    for name in reader.unused():
        raise (place / "holes" / name).fail("a hole that is used", Found("one that nothing names"))
    space = SearchSpace(
        str(top["merge_method"]),
        base_model,
        models,
        parameters,
        tuple(reader.holes.values()),
        result_dtype,
        place,
    )
    _check(space, inputs, place)
    return space


def _models(
    data: object, inputs: Inputs, method: MergeMethod, reader: Reader, place: Place
) -> tuple[SpaceModel, ...]:
    if not isinstance(data, list) or not data:
        raise place.fail("a list of models", data)
    found: list[SpaceModel] = []
    for index, item in enumerate(data):
        here = place[index]
        fields = here.mapping(item, ("model", "each", "parameters"))
        if ("model" in fields) == ("each" in fields):
            raise here.fail("either model or each", item)
        if "each" in fields and fields["each"] != "experts":
            raise (here / "each").fail("experts", fields["each"])
        aliases: Sequence[object] = list(inputs.experts) if "each" in fields else [fields["model"]]
        for alias in aliases:
            name, ref = inputs.ref(alias, here / "model")
            settings = _settings(
                fields.get("parameters"), f"{name}.", method, reader, here / "parameters"
            )
            found.append(SpaceModel(name, ref, settings))
    return tuple(found)


def _settings(
    data: object, prefix: str, method: MergeMethod, reader: Reader, place: Place
) -> dict[str, OpenSetting]:
    if data is None:
        return {}
    found: dict[str, OpenSetting] = {}
    known = [
        declared.name for declared in method.parameters if not prefix or declared.scope == "model"
    ]
    for name, value in place.mapping(data).items():
        if name not in known:
            raise place.unknown(name, "parameter", known)
        declared = method.parameter(name)
        assert declared is not None
        found[name] = reader.setting(value, declared, f"{prefix}{name}", place / name)
    return found


def _check(space: SearchSpace, inputs: Inputs, place: Place) -> None:
    """Prove that the space has holes, uses every expert and makes legal recipes."""
    if not space.holes:
        raise place.fail("a recipe with at least one hole", Found("none"))
    used = {model.ref for model in space.models} | {space.base_model}
    for name, ref in inputs.experts.items():
        if ref not in used:
            raise (place / "models").fail(
                "every expert of the study",
                Found(f"none for {name}"),
                "add it or use `each: experts`",
            )
    space.decode(space.initial)  # holes change numbers alone, whose limits are known to hold
