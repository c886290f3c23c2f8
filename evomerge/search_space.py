"""A search space: a recipe with holes, or several, and what makes recipes of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import Place
from evomerge.expressions import (
    Expression,
    Filtered,
    Hole,
    OpenGradient,
    OpenSetting,
    Product,
    Share,
    Values,
    names_in,
    snap,
    to_plain,
)
from evomerge.recipe import Recipe, parse_recipe

EITHER = "either"  # the hole that chooses among the branches of a space
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
class Branch:
    """A recipe with holes. `name` is empty where it is the whole of a space."""

    name: str
    merge_method: str
    base_model: str | None
    models: tuple[SpaceModel, ...]
    parameters: Mapping[str, OpenSetting]

    @property
    def prefix(self) -> str:
        """What the names of its own holes begin with."""
        return f"{self.name}." if self.name else ""

    def filled(self, values: Values) -> dict[str, Any]:
        """Return the recipe at some values of the holes, as plain data."""
        data: dict[str, Any] = {"merge_method": self.merge_method}
        if self.base_model is not None:
            data["base_model"] = self.base_model
        data["models"] = [
            {"model": model.ref, "parameters": _fill(model.parameters, values)}
            for model in self.models
        ]
        return data | {"parameters": _fill(self.parameters, values)}


@dataclass(frozen=True)
class SearchSpace:
    """Recipes with holes, for given inputs and a given architecture.

    With several branches, the hole `either` names the one whose holes count.
    """

    branches: tuple[Branch, ...]
    holes: tuple[Hole, ...]
    result_dtype: str
    place: Place

    def branch(self, values: Values) -> Branch:
        """Return the branch that counts."""
        chosen = values.get(EITHER)
        return next(one for one in self.branches if chosen in (None, one.name))

    def decode(self, values: Values) -> Recipe:
        """Fill the holes; raises SpaceError where the result is no legal recipe."""
        data = self.branch(values).filled(values)
        data["dtype"] = "float32"
        data["out_dtype"] = self.result_dtype
        return parse_recipe(data, self.place)

    @property
    def initial(self) -> dict[str, Any]:
        """The values of all holes at their `init`."""
        return {hole.name: hole.init for hole in self.holes}

    def weighted(self, weights: Mapping[str, float]) -> dict[str, Any] | None:
        """Return values at which every model's weight is the one given for its name.

        All that is not a model's own stays at its init. Of several branches it is the first that
        holds such a point, the initial one before the others; None where none does.
        """
        first = self.branch(self.initial)
        for branch in (first, *(one for one in self.branches if one != first)):
            found = self._weighted(branch, weights)
            if found is not None:
                return found
        return None

    def _weighted(self, branch: Branch, weights: Mapping[str, float]) -> dict[str, Any] | None:
        values = self.initial | ({EITHER: branch.name} if branch.name else {})
        wanted = [
            (model.parameters.get("weight"), weights[model.name], f"{branch.prefix}{model.name}.")
            for model in branch.models
            if model.name in weights
        ]
        weighted: list[tuple[Expression, float]] = []
        for setting, weight, own in wanted:
            if setting is None or isinstance(setting, (OpenGradient, Filtered)):
                return None
            values |= self._solved(setting, weight, math.fsum(weights.values()), own)
            weighted.append((setting, weight))
        for setting, weight in weighted:
            numbers = _numbers(setting, values)
            if not all(math.isclose(one, weight, rel_tol=1e-9, abs_tol=1e-12) for one in numbers):
                return None
        return values

    def _solved(self, setting: Expression, weight: float, total: float, own: str) -> dict[str, Any]:
        """Return values of one factor, the model's own where it has one, that give the weight.

        Where that is a share of `total`, another factor becomes the total.
        """
        factors = setting.factors if isinstance(setting, Product) else (setting,)
        searched = [factor for factor in factors if names_in(factor)]
        if not searched:
            return {}
        free = next((one for one in searched if names_in(one)[0].startswith(own)), searched[0])
        if not isinstance(free, Share):
            return self._valued(free, weight, self._product(factors, free))
        scale = next((one for one in searched if one is not free), None)
        found = self._valued(free, weight, total)
        if scale is not None:
            found |= self._valued(scale, total, self._product(factors, free, scale))
        return found

    def _product(self, factors: Sequence[Expression], *without: Expression) -> float:
        """Return the product of the other factors; all knots of a curve have one init."""
        others = [one for one in factors if all(one is not other for other in without)]
        return math.prod(_numbers(one, self.initial)[0] for one in others)

    def _valued(self, factor: Expression, product: float, rest: float) -> dict[str, Any]:
        """Return the values of a factor's holes at which the product with the rest is given."""
        holes = [hole for hole in self.holes if hole.name in names_in(factor)]
        return {
            hole.name: snap(product / rest, hole.low, hole.high, hole.step)
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
