"""Reads the settings of a search space, collecting the holes in the order in which they stand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from evomerge.errors import Found, Place
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
    names_in,
    reach,
    shape_of,
    snap,
)
from evomerge.merge_methods import Parameter, is_number
from evomerge.module_groups import Architecture, filters

DENSITY_STEP = 0.01  # the merger knows thresholds for every density on this grid


class Reader:
    """Reads settings with holes for one architecture; `named` are the space's named holes."""

    def __init__(self, architecture: Architecture, named: object, place: Place) -> None:
        self.holes: dict[str, Hole] = {}
        self._architecture = architecture
        self._place = place
        self._named = {} if named is None else place.mapping(named)
        self._read: dict[str, Expression | None] = {}  # None while it is being read
        self._shares: dict[str, tuple[list[Reference | Curve], Place]] = {}

    def finish(self) -> None:
        """Raise the place's error where a named hole is not used, or one has nothing to share."""
        for name in self._named:
            if name not in self._read:
                found = Found("one that nothing names")
                raise (self._place / name).fail("a hole that is used", found)
        for name, (members, place) in self._shares.items():
            if len(members) == 1:
                found = Found(f"one for {name}, which is always 1")
                raise place.fail("at least two shares", found, "leave the share out")

    def setting(self, value: object, declared: Parameter, name: str, place: Place) -> OpenSetting:
        """Read what stands for a parameter; raises the place's error at the first mistake.

        Holes without a name of their own are called by `name`.
        """
        if isinstance(value, dict) and "value" in value:
            return Filtered((self._case(value, declared, name, place),))
        if isinstance(value, list) and any(isinstance(i, dict) and "value" in i for i in value):
            cases = [
                self._case(item, declared, name, place[index]) for index, item in enumerate(value)
            ]
            return Filtered(tuple(cases))
        return self._value(value, declared, name, place, curves=True)

    def _case(
        self, item: object, declared: Parameter, name: str, place: Place
    ) -> tuple[str | None, Expression | OpenGradient]:
        fields = place.mapping(item, ("filter", "value"))
        text = fields.get("filter")
        if text is not None and (not isinstance(text, str) or not text):
            raise (place / "filter").fail("a part of a tensor's name, or '*'", text)
        inner = f"{name}[{text or '*'}]"
        here = place / "value"
        return text, self._value(fields.get("value"), declared, inner, here, curves=False)

    def _value(
        self, value: object, declared: Parameter, name: str, place: Place, curves: bool
    ) -> Expression | OpenGradient:
        if not isinstance(value, list):
            return self._checked(value, declared, name, place, curves)
        if not value:
            raise place.fail("a value, a gradient or a list of {filter, value}", value)
        anchors = [
            self._checked(item, declared, f"{name}.{index}", place[index], curves=False)
            for index, item in enumerate(value)
        ]
        return OpenGradient(tuple(anchors))

    def _checked(
        self, value: object, declared: Parameter, name: str, place: Place, curves: bool
    ) -> Expression:
        """Read an expression and prove that its parameter accepts whatever it can become."""
        found = self._expression(value, declared, name, place)
        if curve_of(found) and not curves:
            raise place.fail("a number or a hole inside a gradient or filter", value)
        for extreme in reach(found, self.holes):
            if not declared.accepts(extreme):
                shown = value if isinstance(found, Constant) else Found(f"what can be {extreme}")
                raise place.fail(f"{declared.name} as {declared.bounds}", shown)
        return found

    def _expression(
        self, value: object, declared: Parameter | None, name: str, place: Place
    ) -> Expression:
        if isinstance(value, str):
            return self._reference(value, place)
        if isinstance(value, bool) or is_number(value):
            return Constant(value)
        if not isinstance(value, dict):
            raise place.fail("a number, a hole such as {range: [0, 1]}, or a hole's name", value)
        if "product" in value:
            return self._product(value, name, place)
        read: Callable[..., Expression] = self._range
        if "share" in value:
            read = self._share
        elif "curve" in value or "blocks" in value:
            read = self._curve
        elif "choice" in value:
            read = self._choice
        return read(value, declared, name, place)

    def _reference(self, name: str, place: Place) -> Expression:
        if name not in self._named:
            if not self._named:
                hint = f"add one to the space, as in holes: {{{name}: {{range: [0, 1]}}}}"
                raise place.fail(f"a hole of the name {name}", Found("no named holes"), hint)
            raise place.unknown(name, "hole", self._named)
        here = self._place / name
        if name not in self._read:
            self._read[name] = None
            found = self._expression(self._named[name], None, name, here)
            if isinstance(found, Constant):
                raise here.fail("a hole", self._named[name])
            self._read[name] = found
        read = self._read[name]
        if read is None:
            raise here.fail("a hole that does not contain itself", self._named[name])
        return read

    def _product(self, value: dict[str, object], name: str, place: Place) -> Product:
        items = place.mapping(value, ("product",))["product"]
        place = place / "product"
        if not isinstance(items, list) or len(items) < 2:
            raise place.fail("a list of at least two factors", items)
        inline = sum(isinstance(item, dict) for item in items)
        factors: list[Factor] = []
        for index, item in enumerate(items):
            here = place[index]
            if isinstance(item, dict) and "product" in item:
                raise here.fail("a factor", item, "list the factors of both products together")
            factor = self._expression(item, None, f"{name}.{index}" if inline > 1 else name, here)
            if isinstance(factor, Product):
                raise here.fail("a factor that is no product itself", item)
            if any(isinstance(one, bool) for one in reach(factor, self.holes)):
                raise here.fail("a number as a factor", item)
            shapes = [shape for shape in map(shape_of, [*factors, factor]) if shape]
            if any(shape != shapes[0] for shape in shapes):
                raise here.fail("curves of one shape in a product", item)
            factors.append(factor)
        return Product(tuple(factors))

    def _curve(
        self, value: dict[str, object], declared: Parameter | None, name: str, place: Place
    ) -> Curve:
        fields = place.mapping(value, ("curve", "blocks", "over", "range", "init", "step", "log"))
        if "curve" in fields and "blocks" in fields:
            raise place.fail("either a curve or blocks", Found("both"))
        anchors = self._anchors(fields, place)
        over = fields.get("over", ["other"])
        if not isinstance(over, list) or not over:
            raise (place / "over").fail("a list of module groups", over)
        groups = self._architecture.groups(over, place / "over")
        chosen = filters(groups)
        layered = {item.group for item in chosen if item.end is None}
        own = ("range", "init", "step", "log")
        hole = {key: item for key, item in fields.items() if key in own}
        names: dict[str, tuple[str, ...]] = {}
        for group in groups:
            names[group] = (f"{name}.{group}",)
            if group in layered and anchors[-1] > 0:
                names[group] = tuple(f"{name}.{group}.{number}" for number in anchors)
            for one in dict.fromkeys(names[group]):
                self._range(hole, declared, one, place)
        return Curve(names, tuple(chosen), "blocks" in fields)

    def _anchors(self, fields: dict[str, object], place: Place) -> list[int]:
        """Return the number of the hole of each anchor: each its own, or a block's for all."""
        layers = self._architecture.layers
        if "blocks" in fields:
            count = fields["blocks"]
            if type(count) is not int or not 1 <= count <= layers:
                raise (place / "blocks").fail(f"1 to {layers} blocks of the layers", count)
            return [layer * count // layers for layer in range(layers)] if count > 1 else [0]
        count = fields["curve"]
        knots = layers if count == "layers" else count
        if type(knots) is not int or not 1 <= knots <= 1000:
            raise (place / "curve").fail("1 to 1000 knots, or `layers`", count)
        return list(range(knots))

    def _share(
        self, value: dict[str, object], declared: Parameter | None, name: str, place: Place
    ) -> Share:
        among = value["share"]
        if not isinstance(among, str) or not among:
            raise (place / "share").fail("a name that the shares have in common", among)
        rest = {key: item for key, item in value.items() if key != "share"}
        if not {"range", "curve", "blocks"} & set(rest):
            raise place.fail("the range of a share", None)
        curve = "curve" in rest or "blocks" in rest
        own = (self._curve if curve else self._range)(rest, None, name, place)
        for one in names_in(own):
            if self.holes[one].low <= 0:
                raise (place / "range").fail("a range above 0 for a share", rest.get("range"))
        members, _ = self._shares.setdefault(among, ([], place))
        if members and shape_of(members[0]) != shape_of(own):
            raise place.fail(f"shares of one shape for {among}", value)
        members.append(own)
        return Share(own, members)

    def _choice(
        self, value: dict[str, object], declared: Parameter | None, name: str, place: Place
    ) -> Reference:
        fields = place.mapping(value, ("choice", "init"))
        items = fields["choice"]
        here = place / "choice"
        if not isinstance(items, list) or len(items) < 2:
            raise here.fail("a list of at least two values", items)
        choices: list[float | int | bool] = []
        for index, item in enumerate(items):
            if not isinstance(item, bool) and not is_number(item):
                raise here[index].fail("a number or a truth value", item)
            if item in choices:
                raise here[index].fail("each value once", item)
            choices.append(item)
        init = fields.get("init", choices[0])
        if init not in choices:
            raise (place / "init").fail(f"one of {choices}", init)
        start = choices[choices.index(init)]
        hole = Hole(name, "categorical", choices[0], choices[-1], start, choices=tuple(choices))
        return self._add(hole, place)

    def _range(
        self, value: dict[str, object], declared: Parameter | None, name: str, place: Place
    ) -> Reference:
        fields = place.mapping(value, ("range", "init", "step", "log"))
        integer = declared is not None and declared.kind == "int"
        low, high = _ends(fields, declared, integer, place)
        log = fields.get("log", False)
        if not isinstance(log, bool):
            raise (place / "log").fail("true or false", log)
        step = fields.get("step", None if log else _default_step(declared, high - low))
        if step is not None and not (is_number(step) and 1e-12 <= step / (high - low) <= 1):
            raise (place / "step").fail(f"a step in (0, {high - low:g}]", step)
        if integer and not isinstance(step, int):
            raise (place / "step").fail("a whole number", step)
        if log and (low <= 0 or step is not None):
            raise (place / "log").fail("a range above 0 without a step for log", value)
        init = fields.get("init", math.sqrt(low) * math.sqrt(high) if log else (low + high) / 2)
        if not is_number(init) or not low <= init <= high:
            raise (place / "init").fail(f"a number in [{low:g}, {high:g}]", init)
        kind: Literal["float", "int"] = "int" if integer else "float"
        cast = int if integer else float
        grid = None if step is None else float(step)
        last, start = (cast(snap(end, low, high, grid)) for end in (high, init))
        return self._add(Hole(name, kind, cast(low), last, start, grid, log), place)

    def _add(self, hole: Hole, place: Place) -> Reference:
        if hole.name in self.holes:
            raise place.fail("holes with different names", hole.name)
        self.holes[hole.name] = hole
        return Reference(hole.name)


def _default_step(declared: Parameter | None, width: float) -> float | None:
    if declared is None or declared.name != "density":
        return 1 if declared is not None and declared.kind == "int" else None
    return DENSITY_STEP if width >= DENSITY_STEP else None


def _ends(
    fields: dict[str, object], declared: Parameter | None, integer: bool, place: Place
) -> tuple[float, float]:
    found = fields.get("range")
    if found is None and declared is not None and declared.search is not None:
        found = list(declared.search)
    if isinstance(found, list) and len(found) == 2:
        low, high = found
        if is_number(low) and is_number(high) and low < high and is_number(high - low):
            if integer and not (isinstance(low, int) and isinstance(high, int)):
                raise (place / "range").fail("a range of whole numbers", found)
            return low, high
    raise (place / "range").fail("a range [low, high] with low < high", fields.get("range"))
