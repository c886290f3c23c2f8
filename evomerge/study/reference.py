"""What a study file may say, read from the declarations: as lines, and as a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from evomerge import merge_methods, optimizers, plugins, proxy_tasks
from evomerge.errors import InputError, Place
from evomerge.space_reader import space_names
from evomerge.study.file import FitnessSettings, Models, Splits
from evomerge.study.schema import describe
from evomerge.study.search_settings import Search

Schema = dict[str, Any]

_PLACE = Place("the registry", InputError)
_NAME = r"^[A-Za-z][\w-]*$"
_RECIPE = ("merge_method", "base_model", "models", "parameters")


@dataclass(frozen=True)
class Line:
    """A field as people read it; `default` is None where the field must be given."""

    name: str
    kind: str
    default: str | None
    meaning: str


def lines(settings: type[BaseModel], left_out: tuple[str, ...] = ()) -> Iterator[Line]:
    """Yield the fields of a pydantic model, but for some."""
    for name, field in settings.model_fields.items():
        if name not in left_out:
            words = describe(field.annotation, field.metadata)
            yield Line(name, words, _default(field), field.description or "")


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default()
    if isinstance(value, BaseModel):
        value = value.model_dump()
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def kinds() -> dict[str, type[BaseModel]]:
    """Return the settings of every kind of proxy task."""
    names = plugins.names(proxy_tasks)
    return {name: proxy_tasks.get(name, _PLACE).Settings for name in names}


def searchers() -> dict[str, type[BaseModel]]:
    """Return the settings of every optimizer but auto, which has none."""
    return {name: optimizers.get(name, _PLACE).Settings for name in plugins.names(optimizers)}


def json_schema() -> Schema:
    """Return the JSON schema (draft 7) of study files, for editors.

    It knows keys, types, ranges and the settings of each kind of task and optimizer; what depends
    on models and data is left to `evomerge check`.
    """
    defs: Schema = {}
    parts = {
        "models": _part(Models, defs),
        "space": _space(),
        "tasks": _tasks(defs),
        "splits": _part(Splits, defs),
        "search": _search(defs),
        "fitness": _part(FitnessSettings, defs),
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A study file of evomerge",
        **_closed(parts, ["models", "space", "tasks"]),
        "$defs": defs,
    }


def _closed(properties: Schema, required: list[str]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _part(settings: type[BaseModel], defs: Schema) -> Schema:
    """Return the schema of a pydantic model; what it refers to goes to `defs`."""
    found = settings.model_json_schema()
    defs |= found.pop("$defs", {})
    return found


def _space() -> Schema:
    """Return the schema of a space: a name, a path, a recipe with holes, or several."""
    methods = {"enum": plugins.names(merge_methods)}
    recipe = dict.fromkeys(_RECIPE, True) | {"merge_method": methods}
    several = {"type": "object", "minProperties": 2,
               "additionalProperties": _closed(recipe, ["merge_method"])}  # fmt: skip
    holes = {"holes": {"type": "object"}}
    return {
        "description": "what is searched: the name of a search space, its file, or itself",
        "anyOf": [
            {"enum": space_names()},
            {"type": "string", "pattern": r"\.ya?ml$"},
            _closed(recipe | holes, ["merge_method"]),
            _closed(holes | {"either": several, "init": {"type": "string"}}, ["either"]),
        ],
    }


def _tasks(defs: Schema) -> Schema:
    known = kinds()
    defs |= {f"task {name}": _part(settings, defs) for name, settings in known.items()}
    task = {
        "type": "object",
        "properties": {"kind": {"enum": list(known), "description": "kind of proxy task"}},
        "required": ["kind"],
        "allOf": [
            {"if": _says("kind", name), "then": {"$ref": f"#/$defs/task {name}"}} for name in known
        ],
    }
    return {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": _NAME},
        "additionalProperties": task,
    }


def _search(defs: Schema) -> Schema:
    """Return the schema of the search, whose further keys are those of its optimizer."""
    whole = _part(Search, defs)
    own = list(whole["properties"])
    known = {name: _part(settings, defs) for name, settings in searchers().items()}
    whole["properties"]["optimizer"]["enum"] = [optimizers.AUTO, *known]
    keys = dict.fromkeys(key for one in known.values() for key in one["properties"])
    whole["properties"] |= dict.fromkeys(keys, True)
    whole["additionalProperties"] = False
    whole["allOf"] = [
        {
            "if": _says("optimizer", name),
            "then": {
                "properties": one["properties"],
                "propertyNames": {"enum": [*own, *one["properties"]]},
            },
        }
        for name, one in known.items()
    ]
    automatic = {"properties": {"optimizer": {"const": optimizers.AUTO}}}
    whole["allOf"].append({"if": automatic, "then": {"propertyNames": {"enum": own}}})
    return whole


def _says(key: str, value: str) -> Schema:
    return {"properties": {key: {"const": value}}, "required": [key]}
