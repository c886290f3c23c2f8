"""Settings of a recipe: a scalar, a gradient, or a list of `{filter, value}`.

A gradient is a list of numbers, piecewise linear over depth. Of a list of `{filter, value}` the
first counts whose filter is part of the tensor's name; its value is a scalar or a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import Place
from evomerge.merge_methods import Parameter

Scalar = float | int | bool
Gradient = tuple[Scalar, ...]


@dataclass(frozen=True)
class Conditional:
    """A value for the tensors whose name contains `filter` (None and "*": for all)."""

    filter: str | None
    value: Scalar | Gradient


@dataclass(frozen=True)
class ByName:
    """Values that are resolved already, by the tensor's name; no file has them."""

    values: Mapping[str, float]


Setting = Scalar | Gradient | tuple[Conditional, ...] | ByName


def parse_setting(value: object, declared: Parameter, place: Place) -> Setting:
    """Check plain data to be a setting of a parameter; raises the place's error.

    A whole-number parameter is a single number, for all tensors.
    """
    if declared.kind == "int":
        return _scalar(value, declared, place)
    if isinstance(value, dict):
        return (_conditional(value, declared, place),)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return tuple(_conditional(item, declared, place[index]) for index, item in enumerate(value))
    return _value(value, declared, place)


def _conditional(item: object, declared: Parameter, place: Place) -> Conditional:
    fields = place.mapping(item, ("filter", "value"))
    text = fields.get("filter")
    if text is not None and (not isinstance(text, str) or not text):
        raise (place / "filter").fail("a part of a tensor's name, or '*'", text)
    if "value" not in fields:
        raise place.fail("a value", None)
    return Conditional(text, _value(fields["value"], declared, place / "value"))


def _value(value: object, declared: Parameter, place: Place) -> Scalar | Gradient:
    if not isinstance(value, list):
        return _scalar(value, declared, place)
    if not value:
        raise place.fail("a value, a gradient or a list of {filter, value}", value)
    return tuple(_scalar(item, declared, place[index]) for index, item in enumerate(value))


def _scalar(value: object, declared: Parameter, place: Place) -> Scalar:
    if not declared.accepts(value):
        hint = ""
        if isinstance(value, str) and _reads_as_number(value):
            hint = "write it without quotes, and 1.0e-5 rather than 1e-5"
        raise place.fail(f"{declared.name} as {declared.bounds}", value, hint)
    assert isinstance(value, (bool, int, float))
    return value


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def plain(parameters: Mapping[str, Setting]) -> dict[str, Any]:
    """Return settings by name as plain data, ready for YAML."""
    return {name: _plain(setting) for name, setting in parameters.items()}


def _plain(setting: Setting) -> Any:
    if isinstance(setting, ByName):
        return dict(setting.values)
    if not isinstance(setting, tuple):
        return setting
    return [
        ({} if item.filter is None else {"filter": item.filter}) | {"value": _plain(item.value)}
        if isinstance(item, Conditional)
        else item
        for item in setting
    ]


def value_at(setting: Setting, name: str, depth: float) -> float | None:
    """Return a setting's value for the tensor `name` at `depth` in [0, 1].

    None where no filter is part of the name. Truth values are not interpolated.
    """
    if isinstance(setting, ByName):
        return setting.values[name]
    if not isinstance(setting, tuple):
        return float(setting)
    found: list[Scalar] = []
    for item in setting:
        if not isinstance(item, Conditional):
            found.append(item)
        elif _selects(item, name):
            return value_at(item.value, name, depth)
    if not found:
        return None
    scaled = depth * (len(found) - 1)
    left = int(scaled)
    if isinstance(found[left], bool):
        return float(found[left])
    right = min(len(found) - 1, left + 1)
    return (1 - (scaled - left)) * found[left] + (scaled - left) * found[right]


def line_at(setting: Setting, name: str, depth: float) -> str:
    """Return in words which line of a setting gives the tensor `name` its value.

    `[1] (filter mlp)` is its second entry, nothing is a single value; a gradient adds where on it
    the tensor is.
    """
    where, notes, value = "", [], setting
    for index, item in enumerate(setting if isinstance(setting, tuple) else ()):
        if isinstance(item, Conditional) and _selects(item, name):
            where, value = f"[{index}]", item.value
            notes = [] if item.filter in (None, "*") else [f"filter {item.filter}"]
            break
    if isinstance(value, tuple) and len(value) > 1:
        notes.append(f"gradient at {depth:.3g}")
    return f"{where} ({', '.join(notes)})" if notes else where


def _selects(item: Conditional, name: str) -> bool:
    return item.filter in (None, "*") or str(item.filter) in name
