"""Plain data to settings: the first mistake becomes one sentence that names its place."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from evomerge.errors import Found, InputError, Place, nearest

Schema = TypeVar("Schema", bound=BaseModel)
Loc = tuple[int | str, ...]

_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_PLURALS = {str: "texts", int: "whole numbers", float: "numbers", bool: "truth values"}


def read_settings(schema: type[Schema], data: object, place: Place) -> Schema:
    """Check plain data against a pydantic model.

    Raises the place's error for its first mistake, misspelt keys before all others: a key that is
    missing under its right name often stands there under a wrong one.
    """
    place.mapping(data)
    try:
        return schema.model_validate(data)
    except ValidationError as problem:
        errors = problem.errors(include_url=False)
    found = [(_path(schema, error["loc"]), error) for error in errors]
    misspelt = [one for one in found if one[1]["type"] == "extra_forbidden"]
    first = (misspelt or found)[0][0][0]
    of_field = [one for one in misspelt or found if one[0][0] == first]
    path, error = max(of_field, key=lambda one: len(one[0]))  # of a union, the branch that got on
    raise _sentence(schema, path, error, place)


def _path(schema: type[BaseModel], loc: Loc) -> Loc:
    """Return where an error is, without the name of the branch that pydantic adds in a union."""
    field = schema.model_fields.get(str(loc[0]))
    union = field is not None and len(_members(field.annotation)) > 1
    return (loc[0], *loc[2:]) if union else loc


def _sentence(schema: type[BaseModel], path: Loc, error: Any, place: Place) -> InputError:
    field = schema.model_fields.get(str(path[0]))
    kind = None if field is None else field.annotation
    inner = next((one for one in _members(kind) if _is_model(one)), None)
    if len(path) > 1 and inner is not None:
        return _sentence(inner, _path(inner, path[1:]), error, place / str(path[0]))
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return place.unknown(path[0], "key", schema.model_fields)
    note = f" ({field.description})" if field is not None and field.description else ""
    if error["type"] == "missing":
        return place.fail(f"the key {path[0]}{note}", Found("none"))
    if path[-1] == "[key]":
        return _at(place, path[:-2]).fail("texts as the keys", path[-2])
    assert field is not None
    if error["type"] == "value_error":
        raised = error["msg"].removeprefix("Value error, ")
        return _at(place, path).fail(raised, error["input"])
    if len(path) > 1:  # an entry of a list or of a mapping
        wanted = describe(next(get_args(one)[-1] for one in _members(kind) if get_args(one)))
    else:
        wanted = describe(kind, field.metadata)
    near = nearest(str(error["input"]), _choices(kind))
    hint = f"did you mean {near!r}?" if near else ""
    return _at(place, path).fail(wanted + note, error["input"], hint)


def _at(place: Place, path: Sequence[int | str]) -> Place:
    for part in path:
        place = place[part] if isinstance(part, int) else place / part
    return place


def describe(kind: Any, bounds: Sequence[Any] = ()) -> str:
    """Return the words for a type of a field and its bounds: `a whole number ≥ 1`."""
    if get_origin(kind) is Annotated:
        bounds = [one for given in kind.__metadata__ for one in given.metadata]
    words = [_KINDS.get(one) or _compound(one) for one in _members(_plain(kind))]
    text = " or ".join(words)
    limits = {
        name: getattr(one, name)
        for one in bounds
        for name in ("ge", "gt", "le", "lt", "min_length")
        if hasattr(one, name)
    }
    if limits.pop("min_length", 0):
        text += " that is not empty"
    if limits.keys() == {"ge", "le"}:
        return f"{text} from {limits['ge']} to {limits['le']}"
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    parts = [f"{signs[name]} {limit}" for name, limit in limits.items()]
    return f"{text} {' and '.join(parts)}" if parts else text


def _plain(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _compound(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if get_origin(kind) is list:
        of = (_PLURALS.get(one, "mappings") for one in _members(_plain(inner[0])))
        return f"a list of {' or '.join(of)}"
    if get_origin(kind) is dict:
        return f"a mapping of names to {_PLURALS[_plain(inner[1])]}"
    return f"a mapping with {', '.join(kind.model_fields)}"


def _members(kind: Any) -> list[Any]:
    """Return the members of a union without None; of another type, itself."""
    if get_origin(kind) in (Union, types.UnionType):
        return [one for one in get_args(kind) if one is not type(None)]
    return [kind]


def _choices(kind: Any) -> list[str]:
    return [str(one) for one in get_args(kind)] if get_origin(kind) is Literal else []


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
