"""Every field of a study file: misspelt, missing, of another type, out of range.

The cases are read from the schemas themselves, so that a new field is tested from its first day.
"""

from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from evomerge import optimizers, plugins, proxy_tasks
from evomerge.errors import InputError, Place
from evomerge.racing import Racing
from evomerge.study import file
from tests.study.small_study import (
    KINDS,
    folder,
    no_weights,
    parse,
    put,
    refusal,
    study,
)

__all__ = ["folder", "no_weights"]  # fixtures
ANYWHERE = Place("nowhere", InputError)
OPTIMIZERS = plugins.names(optimizers)


def fields() -> Iterator[tuple[str, FieldInfo, dict[str, Any], tuple[str, ...]]]:
    """Yield (name, declaration, a right study, path of the mapping that it stands in)."""

    def of(schema: type[BaseModel], data: dict[str, Any], *path: str) -> Iterator[Any]:
        for name, declared in schema.model_fields.items():
            yield name, declared, data, path

    yield from of(file.Models, study(), "models")
    yield from of(file.Splits, study(), "splits")
    yield from of(file.Search, study(), "search")
    yield from of(file.FitnessSettings, study(), "fitness")
    for kind in KINDS:
        for one in of(proxy_tasks.get(kind, ANYWHERE).Settings, study(), "tasks", kind):
            if one[0] != "kind":
                yield one
    yield from of(proxy_tasks.Dataset, study(), "tasks", "table", "data")
    shots = put(study(), ("tasks", "generation"), "shots", {"count": 1})
    yield from of(proxy_tasks.Shots, shots, "tasks", "generation", "shots")
    yield from of(Racing, put(study(), ("search",), "racing", {}), "search", "racing")
    for name in OPTIMIZERS:
        yield from of(optimizers.get(name, ANYWHERE).Settings, study(name), "search")


FIELDS = list(fields())
NAMES = [
    f"{'.'.join(path)}.{name} ({data['search']['optimizer']})" for name, _, data, path in FIELDS
]


def members(declared: FieldInfo) -> list[Any]:
    """The types of a field, without None."""
    kind = declared.annotation
    union = get_origin(kind) in (Union, type(int | str))
    return [one for one in (get_args(kind) if union else [kind]) if one is not type(None)]


def limits(declared: FieldInfo) -> dict[str, Any]:
    names = ("ge", "gt", "le", "lt", "min_length")
    return {
        name: getattr(one, name)
        for one in declared.metadata
        for name in names
        if hasattr(one, name)
    }


SAMPLES: tuple[Any, ...] = (
    None,
    True,
    3,
    0.5,
    "x",
    [],
    [3],
    {},
    {"x": 3},
    {3: "x"},
    float("nan"),
    b"x",
)


def is_of(value: Any, kind: Any) -> bool:
    """Whether a sample may be of a type; what must be said otherwise is that it may not."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return value in get_args(kind)
    if origin is float:
        return type(value) in (int, float) and not isnan(value)
    if origin is list:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if origin is Racing and value is True:
        return True
    if origin in (dict, Racing):
        return isinstance(value, dict) and value == {}
    return type(value) is origin


@pytest.mark.parametrize(("name", "declared", "data", "path"), FIELDS, ids=NAMES)
def test_every_field(
    name: str, declared: FieldInfo, data: dict[str, Any], path: tuple[str, ...], folder: Path
) -> None:
    where, what = ".".join(path), declared.description
    assert what, f"{name} has no description"

    misspelt = f"{name[:-1]}_"
    wrong = put(data, path, misspelt, 1)
    inner = wrong
    for part in path:
        inner = inner[part]
    inner.pop(name, None)
    text = refusal(wrong, folder)
    assert text == f"unknown key '{misspelt}' at {where} in study.yaml; did you mean '{name}'?"

    if declared.is_required():
        del inner[misspelt]
        expected = f"expected the key {name} ({what}), got none at {where} in study.yaml"
        assert refusal(wrong, folder) == expected

    for value in SAMPLES:
        if any(is_of(value, kind) for kind in members(declared)):
            continue
        if value is None and type(None) in get_args(declared.annotation):
            continue
        text = refusal(put(data, path, name, value), folder)
        assert text.startswith(("expected ", "unknown key "))
        assert f" at {where}.{name}" in text
        if not isinstance(value, (list, dict)):
            assert f"({what}), got {'nothing' if value is None else repr(value)} at" in text

    bounds = limits(declared)
    below = {"ge": -1, "gt": 0}
    above = {"le": 1, "lt": 0}
    for key, step in (below | above).items():
        if key in bounds:
            text = refusal(put(data, path, name, bounds[key] + step), folder)
            assert f"({what}), got {bounds[key] + step} at {where}.{name} in study.yaml" in text
            assert str(bounds[key]) in text
            if key in ("ge", "le"):
                parse(put(data, path, name, bounds[key]), folder)
    if "min_length" in bounds:
        empty: Any = members(declared)[0]()
        assert "that is not empty" in refusal(put(data, path, name, empty), folder)
