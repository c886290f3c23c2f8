"""What recipes of every form have in common: method, models, settings and dtypes, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge import merge_methods
from evomerge.checkpoints import ModelRef
from evomerge.errors import Found, Place
from evomerge.files import dump_yaml
from evomerge.merge_methods import MergeMethod
from evomerge.settings import Setting, parse_setting

# What mergekit-evolve writes for every method: mergekit ignores it where the method has no such
# parameter. A method without `normalize` does not normalize.
_WITHOUT_EFFECT = {"int8_mask": (False, True), "normalize": (False,)}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelEntry:
    """One input model of a recipe with the parameters of its own."""

    model: ModelRef
    parameters: Mapping[str, Setting]


@dataclass(frozen=True)
class Head:
    """What all recipes say, whatever their form; `fields` has what is at the top of the file."""

    fields: Mapping[str, object]
    merge_method: str
    method: MergeMethod
    base_model: ModelRef | None
    parameters: Mapping[str, Setting]
    dtype: str | None
    out_dtype: str | None


def parse_head(data: object, keys: Sequence[str], place: Place) -> Head:
    """Check what all recipes have in common; raises the place's error at the first mistake."""
    if isinstance(data, dict) and "space" in data:
        raise place.fail("a recipe", Found("a study"), "`evomerge search` runs it")
    top = place.mapping(data, keys)
    if "merge_method" not in top:
        raise place.fail("a merge_method", None, "`evomerge list` has their names")
    method = merge_methods.get(top["merge_method"], place / "merge_method")
    return Head(
        top,
        str(top["merge_method"]),
        method,
        parse_base(top.get("base_model"), place / "base_model"),
        parse_parameters(top.get("parameters"), method, "global", place / "parameters"),
        _dtype(top, "dtype", place),
        _dtype(top, "out_dtype", place),
    )


def parse_base(value: object, place: Place) -> ModelRef | None:
    """Read a base model, which may be missing; raises the place's error."""
    return None if value is None else parse_ref(value, place)


def parse_ref(value: object, place: Place) -> ModelRef:
    """Read a reference to a model: a text, or mergekit's mapping; raises the place's error.

    The mapping is {model: …, lora: …}, each of them a text or {path: …, revision: …}.
    """
    if not isinstance(value, dict):
        return ModelRef.parse(value, place)
    fields = place.mapping(value, ("model", "lora"))
    model = _path(fields.get("model"), place / "model")
    if fields.get("lora") is None:
        return model
    return ModelRef(model.path, model.revision, _path(fields["lora"], place / "lora"))


def _path(value: object, place: Place) -> ModelRef:
    if not isinstance(value, dict):
        found = ModelRef.parse(value, place)
        if found.adapter:
            raise place.fail("a model without an adapter", value)
        return found
    fields = place.mapping(value, ("path", "revision"))
    for key in ("path", "revision"):
        text = fields.get(key)
        if not (text is None and key == "revision") and (not isinstance(text, str) or not text):
            raise (place / key).fail("a text", text)
    revision = fields.get("revision")
    return ModelRef(str(fields["path"]), None if revision is None else str(revision))


def parse_models(data: object, method: MergeMethod, place: Place) -> tuple[ModelEntry, ...]:
    """Check a list of {model, parameters}; raises the place's error at the first mistake."""
    if not isinstance(data, list) or not data:
        raise place.fail("a list of models", data)
    entries: list[ModelEntry] = []
    for index, item in enumerate(data):
        here = place[index]
        fields = here.mapping(item, ("model", "parameters"))
        ref = parse_ref(fields.get("model"), here / "model")
        if any(ref == earlier.model for earlier in entries):
            raise (here / "model").fail("each model once", str(ref), "take one of them out")
        parameters = parse_parameters(
            fields.get("parameters"), method, "model", here / "parameters"
        )
        entries.append(ModelEntry(ref, parameters))
    return tuple(entries)


def parse_parameters(
    data: object, method: MergeMethod, scope: str, place: Place
) -> dict[str, Setting]:
    """Check settings by name, of a model or global; raises the place's error."""
    if data is None:
        return {}
    known = [
        declared.name
        for declared in method.parameters
        if scope in (declared.scope, "global")  # a global value serves every model
    ]
    found: dict[str, Setting] = {}
    for name, value in place.mapping(data).items():
        if name not in known:
            if scope == "global" and any(value is one for one in _WITHOUT_EFFECT.get(name, ())):
                continue
            raise place.unknown(name, "parameter", known)
        declared = method.parameter(name)
        assert declared is not None
        found[name] = parse_setting(value, declared, place / name)
    return found


def _dtype(top: Mapping[str, object], key: str, place: Place) -> str | None:
    value = top.get(key)
    if value is None:
        return None
    if value not in DTYPES:
        raise (place / key).fail(f"one of {', '.join(DTYPES)}", value)
    return str(value)


def check_count(method: MergeMethod, name: str, count: int, place: Place) -> None:
    """Raise the place's error where a method cannot merge so many models beside the base."""
    if count < method.minimum:
        what = f"at least {method.minimum} model(s) beside the base for {name}"
        raise place.fail(what, Found(str(count)), "add one, or choose another method")
    if method.maximum is not None and count > method.maximum:
        what = f"at most {method.maximum} model(s) beside the base for {name}"
        raise place.fail(what, Found(str(count)), "take one out, or choose another method")


def as_yaml(data: Mapping[str, object], comment: str) -> str:
    """Return a recipe's plain data as YAML text under a comment."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + dump_yaml(data)
