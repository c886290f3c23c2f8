"""Recipes read once more, from their YAML alone: which tensors make each tensor, by what numbers.

Only for recipes that are right, of models alike that have one stack of layers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge import merge_methods
from evomerge.merge_methods import MergeMethod
from tests import reference
from tests.reference import Expected, Tensor
from tests.tiny_models import PLACE, Tensors

Data = Mapping[str, Any]
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_FIRST = "model.embed_tokens.weight"  # what precedes the layers


@dataclass(frozen=True)
class Made:
    """One tensor of the result: model → the name there; levels of settings, the nearest first."""

    sources: Mapping[str, str]
    base: str | None
    own: Mapping[str, Data]
    shared: Sequence[Data]
    depth: float


def donor_of(data: Data) -> str:
    """Return the model whose configuration the result has."""
    if data.get("base_model") is not None:
        return text_of(data["base_model"])
    return text_of(next(_slices(data))["sources"][0]["model"])


def result_dtype(data: Data) -> str | None:
    return data.get("out_dtype") or data.get("dtype")


def text_of(ref: Any) -> str:
    """Return a reference, a text or a mapping, as `path@revision+lora`."""
    if isinstance(ref, str):
        return ref.strip()
    if "path" in ref:
        return ref["path"] + (f"@{ref['revision']}" if ref.get("revision") else "")
    return text_of(ref["model"]) + (f"+{text_of(ref['lora'])}" if ref.get("lora") else "")


def second_merge(data: Data, inputs: Mapping[str, Tensors]) -> dict[str, Expected]:
    """Return the float64 merge of plain data; `inputs` by the text of their references."""
    method = merge_methods.get(data["merge_method"], PLACE)
    found: dict[str, Expected] = {}
    for group in _groups(data, method, inputs):
        tensors = [_tensor(name, made, method, inputs) for name, made in sorted(group.items())]
        for one in tensors:
            if one.models:
                found[one.name] = reference._merge(data["merge_method"], one, tensors)
            else:  # the base alone has it
                assert one.base is not None
                value = one.base.reshape(-1).astype(np.float64)
                never = np.zeros(value.shape, dtype=bool)
                found[one.name] = Expected(value, np.abs(value), never, never)
    return found


def names_of(data: Data, inputs: Mapping[str, Tensors]) -> set[str]:
    method = merge_methods.get(data["merge_method"], PLACE)
    return {name for group in _groups(data, method, inputs) for name in group}


def _groups(
    data: Data, method: MergeMethod, inputs: Mapping[str, Tensors]
) -> Iterator[dict[str, Made]]:
    modules = data.get("modules") or {"default": data}
    every = sorted(inputs[donor_of(data)])
    for name, module in modules.items():
        mine = [one for one in every if _owner(one, modules) == name]
        levels = [module.get("parameters")] if data.get("modules") else []
        yield _module(data, module, [*levels, data.get("parameters")], mine, method)


def _owner(name: str, modules: Mapping[str, Any]) -> str:
    fitting = [one for one in modules if f"{name}.".startswith(f"{one}.")]
    return max(fitting, key=len, default="default")


def _slices(data: Data) -> Iterator[Data]:
    for module in (data.get("modules") or {"": data}).values():
        if module.get("slices") is not None:
            yield from module["slices"]
        else:
            yield {"sources": module["models"]}


def _module(
    data: Data, module: Data, levels: Sequence[Data | None], names: Sequence[str], method: Any
) -> dict[str, Made]:
    found: dict[str, Made] = {}
    if module.get("slices") is None:
        layers = {_layer(name)[0] for name in names} - {None}
        for name in names:
            at, depth = _layer(name)[0], 0.0
            if at is not None:
                depth = at / (len(layers) - 1) if len(layers) > 1 else 1.0
            pairs = [(source, name) for source in module["models"]]
            found[name] = _made(data, {}, pairs, levels, depth, method, name)
        return found
    start, slices = 0, module["slices"]
    for index, one in enumerate(slices):
        wanted = [(_FIRST, 0), *((name, len(slices) - 1) for name in names if name != _FIRST)]
        for name, where in wanted:
            if name in names and _layer(name)[0] is None and where == index:
                pairs = [(source, name) for source in one["sources"]]
                found[name] = _made(data, one, pairs, levels, 0.0, method, None)
        first, end = one["sources"][0]["layer_range"]
        for at in range(end - first):
            depth = at / (end - first - 1) if end - first > 1 else 1.0
            for tail in {_layer(name)[1] for name in names if _layer(name)[0] == 0}:
                pairs = [
                    (source, f"model.layers.{source['layer_range'][0] + at}.{tail}")
                    for source in one["sources"]
                ]
                made = _made(data, one, pairs, levels, depth, method, None)
                found[f"model.layers.{start + at}.{tail}"] = made
        start += end - first
    return found


def _made(
    data: Data,
    one: Data,
    pairs: Sequence[tuple[Data, str]],
    levels: Sequence[Data | None],
    depth: float,
    method: MergeMethod,
    whole: str | None,
) -> Made:
    base = one.get("base_model") or data.get("base_model")
    base = None if base is None or method.base == "unused" else text_of(base)
    sources = {text_of(source["model"]): name for source, name in pairs}
    if base is not None and whole is not None:  # it need not be listed
        sources.setdefault(base, whole)
    own = {text_of(source["model"]): source.get("parameters") or {} for source, _ in pairs}
    shared = [level or {} for level in (one.get("parameters"), *levels)]
    return Made(sources, base, own, shared, depth)


def _layer(name: str) -> tuple[int | None, str]:
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def _tensor(name: str, made: Made, method: MergeMethod, inputs: Mapping[str, Tensors]) -> Tensor:
    holders = [model for model, its in made.sources.items() if its in inputs[model]]
    merged = [model for model in holders if model != made.base]  # outside the layers some may lack
    own: dict[str, Any] = {}
    for one in method.parameters:
        levels = [(level, name) for level in made.shared]
        if one.scope == "global":
            own[one.name] = _value(one.name, levels, made.depth, one.default)
        else:
            values = []
            for model in merged:
                its = made.sources[model]
                nearest = [(level, its) for level in (made.own[model], *made.shared)]
                values.append(_value(one.name, nearest, made.depth, one.default))
            own[one.name] = np.array(values)
    arrays = {model: inputs[model][made.sources[model]].float().numpy() for model in holders}
    base = None if made.base is None else arrays[made.base]
    return Tensor(name, base, [arrays[model] for model in merged], own)


def _value(
    parameter: str, levels: Sequence[tuple[Data, str]], depth: float, default: Any
) -> np.float64:
    for level, name in levels:
        found = _chosen(level.get(parameter), name)
        if found is not None:
            return np.float64(_at(found, depth))
    assert default is not None
    return np.float64(default)


def _chosen(setting: Any, name: str) -> Any:
    """Return a number or a gradient, or None where no filter fits."""
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list) or not any(isinstance(one, dict) for one in setting):
        return setting
    for one in setting:
        if one.get("filter") in (None, "*") or one["filter"] in name:
            return one["value"]
    return None


def _at(value: Any, depth: float) -> float:
    if not isinstance(value, list):
        return float(value)
    if isinstance(value[0], bool):
        return float(value[int(depth * (len(value) - 1))])
    return (
        float(np.interp(depth, np.linspace(0, 1, len(value)), value))
        if len(value) > 1
        else (float(value[0]))
    )
