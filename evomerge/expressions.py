"""What may stand for a number in a search space: constants, holes, curves, shares and products."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.module_groups import Filter

Value = float | int | bool
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Hole:
    """One dimension of a search: a number in [low, high], or a choice.

    A `step` makes a grid from `low` to `high`; `log` searches the logarithm. Of a choice, `choices`
    holds the values, `low` and `high` the first and the last of them.
    """

    name: str
    kind: Literal["float", "int", "categorical"]
    low: Any
    high: Any
    init: Any
    step: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def reach(self) -> tuple[Any, ...]:
        """The ends of the range, or all choices."""
        return self.choices or (self.low, self.high)


def snap(value: float, low: float, high: float, step: float | None) -> float:
    """Return the number nearest to `value` in [low, high], on the grid of `step` from `low`."""
    if step is None:
        return min(max(value, low), high)
    last = math.floor((high - low) / step + 1e-9)
    index = min(max(round((value - low) / step), 0), last)
    number = float(f"{low + index * step:.12g}")  # 0.29 and not 0.29000000000000004
    return min(max(number, low), high)


@dataclass(frozen=True)
class Constant:
    """A number or truth value that is not searched."""

    value: Value

    def number(self, values: Values) -> Any:
        """Return the value."""
        return self.value


@dataclass(frozen=True)
class Reference:
    """A hole, by its name."""

    name: str

    def number(self, values: Values) -> Any:
        """Return the value of the hole."""
        return values[self.name]


@dataclass(frozen=True)
class Curve:
    """Anchors over depth for each module group; a group that has no layers has one.

    Of a curve in blocks, there is an anchor for every layer, and those of a block are one hole.
    """

    knots: Mapping[str, tuple[str, ...]]  # group → names of holes, anchor by anchor
    filters: tuple[Filter, ...]
    blocks: bool = False

    def number(self, values: Values) -> dict[str, list[float]]:
        """Return the anchors of each group."""
        return {group: [values[name] for name in names] for group, names in self.knots.items()}

    @property
    def shape(self) -> dict[str, int]:
        """The number of anchors of each group."""
        return {group: len(names) for group, names in self.knots.items()}


@dataclass(frozen=True)
class Share:
    """A hole or curve over the sum of all that share with it, which are above 0.

    The shares of a space sum to one: of curves, anchor by anchor and so at every depth.
    """

    own: Reference | Curve
    members: list[Reference | Curve]  # filled while the space is read

    def number(self, values: Values) -> Any:
        """Return the share: a number, or the anchors of each group."""
        own: Any = self.own.number(values)
        others: list[Any] = [one.number(values) for one in self.members]
        if not isinstance(own, dict):
            return own / math.fsum(others)
        return {
            group: [
                anchor / math.fsum(other[group][index] for other in others)
                for index, anchor in enumerate(anchors)
            ]
            for group, anchors in own.items()
        }


@dataclass(frozen=True)
class Product:
    """The product of numbers and curves; all its curves have one shape."""

    factors: tuple[Factor, ...]

    def number(self, values: Values) -> Any:
        """Return the product: a number, or knots of each group."""
        scale = 1.0
        curve: dict[str, list[float]] | None = None
        for factor in self.factors:
            part = factor.number(values)
            if not isinstance(part, dict):
                scale *= part
            elif curve is None:
                curve = part
            else:
                curve = {
                    group: [a * b for a, b in zip(curve[group], part[group], strict=True)]
                    for group in curve
                }
        if curve is None:
            return scale
        return {group: [scale * knot for knot in knots] for group, knots in curve.items()}


Factor = Constant | Reference | Curve | Share
Expression = Factor | Product


@dataclass(frozen=True)
class OpenGradient:
    """Numbers and holes as the anchors of a gradient."""

    anchors: tuple[Expression, ...]


@dataclass(frozen=True)
class Filtered:
    """Values under filters, tried in order."""

    cases: tuple[tuple[str | None, Expression | OpenGradient], ...]


OpenSetting = Expression | OpenGradient | Filtered


def curve_of(expression: Expression) -> Curve | None:
    """Return the first curve in an expression, which says how its knots become filters."""
    parts = expression.factors if isinstance(expression, Product) else (expression,)
    plain = (part.own if isinstance(part, Share) else part for part in parts)
    return next((part for part in plain if isinstance(part, Curve)), None)


def shape_of(expression: Expression) -> dict[str, int] | None:
    """Return the number of anchors of each group; None where an expression has no curve."""
    curve = curve_of(expression)
    return None if curve is None else curve.shape


def names_in(expression: Expression) -> list[str]:
    """Return the names of the holes in an expression, each once."""
    if isinstance(expression, Share):
        return names_in(expression.own)
    if isinstance(expression, Product):
        return [name for factor in expression.factors for name in names_in(factor)]
    if isinstance(expression, Curve):
        return list(dict.fromkeys(one for names in expression.knots.values() for one in names))
    return [expression.name] if isinstance(expression, Reference) else []


def reach(expression: Expression, holes: Mapping[str, Hole]) -> Sequence[Value]:
    """Return the extreme values of an expression; all values where it is a single choice."""
    if isinstance(expression, Constant):
        return [expression.value]
    if isinstance(expression, Share):
        return [0.0, 1.0]
    if not isinstance(expression, Product):
        return [value for name in names_in(expression) for value in holes[name].reach]
    ends: Sequence[Value] = [1.0]
    for factor in expression.factors:
        products = [one * other for one in ends for other in reach(factor, holes)]
        ends = [min(products), max(products)]
    return ends


def to_plain(setting: OpenSetting, values: Values) -> Any:
    """Return a setting with its holes filled, as plain data of a recipe."""
    if isinstance(setting, OpenGradient):
        return [anchor.number(values) for anchor in setting.anchors]
    if isinstance(setting, Filtered):
        return [_case(text, to_plain(case, values)) for text, case in setting.cases]
    number = setting.number(values)
    curve = curve_of(setting)
    if curve is None:
        return number
    entries = []
    for item in curve.filters:
        knots = number[item.group]
        if item.end is not None:
            entries.append(_case(item.text, knots[item.end]))
        else:
            entries.append(_case(item.text, knots[0] if len(knots) == 1 else knots))
    return entries[0]["value"] if len(entries) == 1 else entries


def _case(text: str | None, value: Any) -> dict[str, Any]:
    return ({} if text is None else {"filter": text}) | {"value": value}
