"""What a search space makes of every tensor, as equations in its holes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.expressions import (
    Constant,
    Curve,
    Expression,
    Factor,
    Filtered,
    Hole,
    OpenGradient,
    OpenSetting,
    Product,
    Reference,
    Share,
    curve_of,
)
from evomerge.merge_methods import Array, Parameter
from evomerge.recipe import default_of, depths
from evomerge.search_space import Branch


@dataclass(frozen=True)
class Anchor:
    """A number of a recipe: a scale times holes, over sums of holes."""

    scale: float
    holes: tuple[str, ...] = ()
    sums: tuple[tuple[str, ...], ...] = ()


Terms = tuple[tuple[float, Anchor], ...]  # a number between anchors: parts of each


class Equations:
    """Numbers of tensors as functions of the holes; every hole is a float here.

    A logarithmic hole's coordinate is its logarithm.
    """

    def __init__(self, terms: Sequence[Terms], wanted: Sequence[float]) -> None:
        rows = list(dict.fromkeys(zip(terms, wanted, strict=True)))
        self.terms = [row for row, _ in rows]
        self.wanted = np.array([number for _, number in rows])
        self.anchors = list(dict.fromkeys(anchor for row in self.terms for _, anchor in row))
        index = {anchor: number for number, anchor in enumerate(self.anchors)}
        self._parts = np.zeros((len(rows), len(self.anchors)))
        for number, row in enumerate(self.terms):
            for part, anchor in row:
                self._parts[number, index[anchor]] += part

    @property
    def names(self) -> list[str]:
        """The holes that occur, each once."""
        found = [name for one in self.anchors for name in (*one.holes, *_flat(one.sums))]
        return list(dict.fromkeys(found))

    def at(self, values: dict[str, float], free: Sequence[Hole]) -> tuple[Array, Array]:
        """Return by how much the numbers miss what is wanted, and the slopes in free holes."""
        column = {hole.name: number for number, hole in enumerate(free)}
        numbers = np.empty(len(self.anchors))
        slopes = np.zeros((len(self.anchors), len(free)))
        for index, anchor in enumerate(self.anchors):
            own = [values[name] for name in anchor.holes]
            sums = [math.fsum(values[name] for name in names) for names in anchor.sums]
            below = math.prod(sums)
            numbers[index] = anchor.scale * math.prod(own) / below
            for place, name in enumerate(anchor.holes):
                if name in column:
                    rest = math.prod(own[:place] + own[place + 1 :])
                    slopes[index, column[name]] += anchor.scale * rest / below
            for names, total in zip(anchor.sums, sums, strict=True):
                for name in names:
                    if name in column:
                        slopes[index, column[name]] -= numbers[index] / total
        logs = np.array([values[hole.name] if hole.log else 1.0 for hole in free])
        missed: Array = self._parts @ numbers - self.wanted
        return missed, (self._parts @ slopes) * logs


def _flat(sums: Sequence[Sequence[str]]) -> list[str]:
    return [name for names in sums for name in names]


def number_terms(
    branch: Branch, declared: Parameter, model: int | None, tensors: Sequence[str]
) -> list[Terms]:
    """Return what a branch gives a parameter at every tensor; `model` None is the recipe's own.

    It follows `evomerge.recipe.resolve`: a model's own setting first, then the recipe's, then the
    default. Raises RecipeError where a tensor has no value.
    """
    own = None if model is None else branch.models[model].parameters.get(declared.name)
    levels = [one for one in (own, branch.parameters.get(declared.name)) if one is not None]
    found: list[Terms] = []
    for name, depth in zip(tensors, depths(tensors), strict=True):
        options = (_setting(level, name, float(depth)) for level in levels)
        terms = next((one for one in options if one is not None), None)
        if terms is None:
            terms = ((1.0, Anchor(default_of(declared, name))),)
        found.append(terms)
    return found


def _setting(setting: OpenSetting, name: str, depth: float) -> Terms | None:
    if isinstance(setting, Filtered):
        for text, case in setting.cases:
            if text in (None, "*") or str(text) in name:
                return _setting(case, name, depth)
        return None
    if isinstance(setting, OpenGradient):
        anchors = [_anchor(one) for one in setting.anchors]
        return _between(anchors, depth)
    curve = curve_of(setting)
    if curve is None:
        return ((1.0, _anchor(setting)),)
    item = next(one for one in curve.filters if one.text is None or one.text in name)
    count = curve.shape[item.group]
    if item.end is not None:
        return ((1.0, _anchor(setting, item.group, item.end % count)),)
    return _between([_anchor(setting, item.group, index) for index in range(count)], depth)


def _between(anchors: Sequence[Anchor], depth: float) -> Terms:
    scaled = depth * (len(anchors) - 1)
    left = int(scaled)
    part = scaled - left
    if part == 0:
        return ((1.0, anchors[left]),)
    return ((1 - part, anchors[left]), (part, anchors[left + 1]))


def _anchor(expression: Expression, group: str = "", index: int = 0) -> Anchor:
    factors = expression.factors if isinstance(expression, Product) else (expression,)
    parts = [_factor(one, group, index) for one in factors]
    return Anchor(
        math.prod(one.scale for one in parts),
        tuple(name for one in parts for name in one.holes),
        tuple(names for one in parts for names in one.sums),
    )


def _factor(factor: Factor, group: str, index: int) -> Anchor:
    if isinstance(factor, Constant):
        return Anchor(float(factor.value))
    if isinstance(factor, Share):
        names = tuple(_name(one, group, index) for one in factor.members)
        return Anchor(1.0, (_name(factor.own, group, index),), (names,))
    return Anchor(1.0, (_name(factor, group, index),))


def _name(one: Reference | Curve, group: str, index: int) -> str:
    return one.knots[group][index] if isinstance(one, Curve) else one.name
