"""What may stand for a number in a search space: constants, holes, curves and products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.errors import Place
from evomerge.merge_methods import Parameter
from evomerge.module_groups import Architecture, Filter, filters

DENSITY_STEP = 0.01  # the merger knows thresholds for every density on this grid

Value = float | int | bool | str
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Hole:
    """One dimension of a search: a number in [low, high], or a choice.

    A `step` makes a grid from `low`; `log` searches the logarithm. Of a choice, `choices` holds the
    values, `low` and `high` the first and the last of them.
    """

    name: str
    kind: Literal["float", "int", "categorical"]
    low: Any
    high: Any
    init: Any
    step: float | None = None
    log: bool = False
    choices: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Constant:
    """A number, truth value or text that is not searched."""

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
    """Knots over depth for each module group; a group that has no layers has one knot."""

    knots: Mapping[str, tuple[str, ...]]  # group → names of holes
    filters: tuple[Filter, ...]

    def number(self, values: Values) -> dict[str, list[float]]:
        """Return the knots of each group."""
        return {group: [values[name] for name in names] for group, names in self.knots.items()}


@dataclass(frozen=True)
class Product:
    """The product of factors, at most one of them, or several of the same shape, curves."""

    factors: tuple[Scalar, ...]

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

    @property
    def curve(self) -> Curve | None:
        """The first curve among the factors."""
        for factor in self.factors:
            found = curve_of(factor)
            if found:
                return found
        return None


Scalar = Constant | Reference | Curve | Product
Expression = Scalar


@dataclass(frozen=True)
class Gradient:
    """Expressions as the anchors of a gradient."""

    anchors: tuple[Scalar, ...]


@dataclass(frozen=True)
class Filtered:
    """Settings under filters, tried in order."""

    cases: tuple[tuple[str | None, Setting], ...]


Setting = Constant | Reference | Curve | Product | Gradient | Filtered


def curve_of(expression: Scalar) -> Curve | None:
    """Return the curve in an expression, which says how its knots become filters."""
    if isinstance(expression, Curve):
        return expression
    return expression.curve if isinstance(expression, Product) else None


def to_plain(setting: Setting, values: Values) -> Any:
    """Return a setting with its holes filled, as plain data of a recipe."""
    if isinstance(setting, Gradient):
        return [anchor.number(values) for anchor in setting.anchors]
    if isinstance(setting, Filtered):
        return [
            ({} if text is None else {"filter": text}) | {"value": to_plain(case, values)}
            for text, case in setting.cases
        ]
    number = setting.number(values)
    curve = curve_of(setting)
    if curve is None:
        return number
    entries = []
    for item in curve.filters:
        knots = number[item.group]
        value = knots[item.end] if item.end is not None else knots
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        entries.append(({} if item.text is None else {"filter": item.text}) | {"value": value})
    return entries[0]["value"] if len(entries) == 1 else entries


def scaled(
    setting: Setting, factor: float, holes: tuple[Hole, ...], values: dict[str, Any]
) -> bool:
    """Set holes in `values` so that the setting is `factor` times its other factors' init.

    Returns False, with `values` in any state, where a hole cannot take the number.
    """
    if isinstance(setting, Product):
        return scaled(setting.factors[0], factor, holes, values)
    if isinstance(setting, Reference):
        names = [setting.name]
    elif isinstance(setting, Curve):
        names = [name for group in setting.knots.values() for name in group]
    else:
        return False
    by_name = {hole.name: hole for hole in holes}
    for name in names:
        hole = by_name[name]
        if hole.kind != "float" or not hole.low <= factor <= hole.high:
            return False
        values[name] = factor
    return True


class Reader:
    """Reads settings with holes, collecting the holes in the order in which they stand."""

    def __init__(self, architecture: Architecture, named: object, place: Place) -> None:
        self.holes: dict[str, Hole] = {}
        self._architecture = architecture
        self._place = place
        self._named = {} if named is None else place.mapping(named)
        self._read: dict[str, Scalar] = {}

    def unused(self) -> list[str]:
        """Return the named holes that nothing has asked for."""
        return [name for name in self._named if name not in self._read]

    def setting(self, value: object, declared: Parameter, name: str, place: Place) -> Setting:
        """Read what stands for a parameter; raises the place's error at the first mistake."""
        if isinstance(value, dict) and "value" in value:
            value = [value]
        if not isinstance(value, list):
            return self._scalar(value, declared, name, place)
        if not value:
            raise place.fail("a value, a gradient or a list of {filter, value}", value)
        if any(isinstance(item, dict) and "value" in item for item in value):
            cases = []
            for index, item in enumerate(value):
                fields = place[index].mapping(item, ("filter", "value"))
                text = fields.get("filter")
                if text is not None and not isinstance(text, str):
                    raise (place[index] / "filter").fail("a part of a tensor's name", text)
                inner = f"{name}[{text or '*'}]"
                here = place[index] / "value"
                cases.append((text, self.setting(fields.get("value"), declared, inner, here)))
            return Filtered(tuple(cases))
        anchors = []
        for index, item in enumerate(value):
            anchor = self._scalar(item, declared, f"{name}.{index}", place[index])
            if curve_of(anchor):
                raise place[index].fail("a number or a hole as an anchor", item)
            anchors.append(anchor)
        return Gradient(tuple(anchors))

    def _scalar(
        self, value: object, declared: Parameter | None, name: str, place: Place
    ) -> Scalar:
        if isinstance(value, str):
            return self._reference(value, place)
        if isinstance(value, dict):
            if "product" in value:
                return self._product(value, name, place)
            if "curve" in value:
                return self._curve(value, declared, name, place)
            if "choice" in value:
                return self._choice(value, declared, name, place)
            return self._hole(value, declared, name, place)
        if isinstance(value, bool) or (isinstance(value, (int, float)) and math.isfinite(value)):
            if declared is not None and not declared.accepts(value):
                raise place.fail(f"{declared.name} as {declared.bounds}", value)
            return Constant(value)
        raise place.fail("a number, a hole such as {range: [0, 1]}, or a hole's name", value)

    def _reference(self, name: str, place: Place) -> Scalar:
        if name not in self._named:
            raise place.unknown(name, "hole", self._named)
        if name not in self._read:
            found = self._scalar(self._named[name], None, name, self._place / name)
            if isinstance(found, Constant):
                raise (self._place / name).fail("a hole", self._named[name])
            self._read[name] = found
        return self._read[name]

    def _product(self, value: dict[str, object], name: str, place: Place) -> Scalar:
        items = place.mapping(value, ("product",))["product"]
        here = place / "product"
        if not isinstance(items, list) or len(items) < 2:
            raise here.fail("a list of at least two factors", items)
        inline = sum(isinstance(item, dict) for item in items)
        factors: list[Scalar] = []
        for index, item in enumerate(items):
            inner = f"{name}.{index}" if inline > 1 else name
            factor = self._scalar(item, None, inner, here[index])
            shape = curve_of(factor)
            earlier = next(filter(None, map(curve_of, factors)), None)
            if shape and earlier and _shape(shape) != _shape(earlier):
                raise here[index].fail("curves of one shape in a product", item)
            factors.append(factor)
        return Product(tuple(factors))

    def _curve(
        self, value: dict[str, object], declared: Parameter | None, name: str, place: Place
    ) -> Curve:
        fields = place.mapping(value, ("curve", "over", "range", "init", "step", "log"))
        count = fields["curve"]
        knots = self._architecture.layers if count == "layers" else count
        if isinstance(knots, bool) or not isinstance(knots, int) or knots < 1:
            raise (place / "curve").fail("a number of knots, or `layers`", count)
        over = fields.get("over", ["other"])
        if not isinstance(over, list) or not over:
            raise (place / "over").fail("a list of module groups", over)
        groups = self._architecture.groups(over, place / "over")
        chosen = filters(groups)
        layered = {item.group for item in chosen if item.end is None}
        hole = {key: item for key, item in fields.items() if key not in ("curve", "over")}
        names: dict[str, tuple[str, ...]] = {}
        for group in groups:
            many = knots if group in layered else 1
            parts = [f"{name}.{group}.{knot}" if many > 1 else f"{name}.{group}" for knot in range(many)]
            for part in parts:
                self._hole(hole, declared, part, place)
            names[group] = tuple(parts)
        return Curve(names, tuple(chosen))

    def _choice(
        self, value: dict[str, object], declared: Parameter | None, name: str, place: Place
    ) -> Reference:
        fields = place.mapping(value, ("choice", "init"))
        items = fields["choice"]
        here = place / "choice"
        if not isinstance(items, list) or len(items) < 2:
            raise here.fail("a list of at least two values", items)
        for index, item in enumerate(items):
            legal = isinstance(item, (bool, int, float)) if declared is None else None
            if not (declared.accepts(item) if declared is not None else legal):
                what = f"{declared.name} as {declared.bounds}" if declared else "a value"
                raise here[index].fail(what, item)
        init = fields.get("init", items[0])
        if init not in items:
            raise (place / "init").fail(f"one of {items}", init)
        self._add(Hole(name, "categorical", items[0], items[-1], init, choices=tuple(items)), place)
        return Reference(name)

    def _hole(
        self, value: dict[str, object], declared: Parameter | None, name: str, place: Place
    ) -> Reference:
        fields = place.mapping(value, ("range", "init", "step", "log"))
        low, high = self._range(fields, declared, place)
        density = declared is not None and declared.name == "density"
        integer = declared is not None and declared.kind == "int"
        default_step = DENSITY_STEP if density else (1 if integer else None)
        step = fields.get("step", default_step)
        if step is not None and not (_is_number(step) and 0 < float(str(step)) <= high - low):
            raise (place / "step").fail(f"a step in (0, {high - low:g}]", step)
        log = fields.get("log", False)
        if not isinstance(log, bool):
            raise (place / "log").fail("true or false", log)
        if log and (low <= 0 or step is not None):
            raise (place / "log").fail("a range above 0 without a step for log", value)
        middle = math.sqrt(low * high) if log else (low + high) / 2
        init = fields.get("init", middle)
        if not _is_number(init) or not low <= float(str(init)) <= high:
            raise (place / "init").fail(f"a number in [{low:g}, {high:g}]", init)
        kind: Literal["float", "int"] = "int" if integer else "float"
        number = on_grid(float(str(init)), low, step if step is None else float(str(step)))
        self._add(
            Hole(name, kind, low, high, number, None if step is None else float(str(step)), log),
            place,
        )
        return Reference(name)

    def _range(
        self, fields: dict[str, object], declared: Parameter | None, place: Place
    ) -> tuple[float, float]:
        found = fields.get("range")
        if found is None and declared is not None:
            found = None if declared.search is None else list(declared.search)
        if (
            not isinstance(found, list)
            or len(found) != 2
            or not all(map(_is_number, found))
            or not found[0] < found[1]
        ):
            raise (place / "range").fail("a range [low, high] with low < high", fields.get("range"))
        low, high = float(found[0]), float(found[1])
        if declared is not None:
            cast = int if declared.kind == "int" else float
            for index, end in enumerate((low, high)):
                if not declared.accepts(cast(end)):
                    raise (place / "range")[index].fail(
                        f"{declared.name} as {declared.bounds}", found[index]
                    )
        return low, high

    def _add(self, hole: Hole, place: Place) -> None:
        if hole.name in self.holes:
            raise place.fail("holes with different names", hole.name)
        self.holes[hole.name] = hole


def on_grid(value: float, low: float, step: float | None) -> float:
    """Return the value on the grid of `step` from `low` nearest to `value`."""
    if step is None:
        return value
    return round(low + round((value - low) / step) * step, 10)


def _shape(curve: Curve) -> dict[str, int]:
    return {group: len(names) for group, names in curve.knots.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
