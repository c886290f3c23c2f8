"""The configuration of a model whose layers are others than its donor's: their number and kinds."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.checkpoints import Checkpoint, ModelRef
from evomerge.compatibility import CONSTANTS
from evomerge.errors import CheckpointError
from evomerge.placement import models_of, sliced_stack
from evomerge.slices import Module, SlicedRecipe

_COUNTS = re.compile(
    r"num_hidden_layers|n_layers?|num_layers|num_(en|de)coder_layers|(en|de)coder_layers|depth"
    r"|max_window_layers"
)
_LISTS = re.compile(r"layer|block|attention_types|pattern")
_FAMILIES = {  # parts of names, of tensors and of configurations, that speak of the same thing
    "vision": re.compile(r"vision|visual|image"),
    "audio": re.compile(r"audio|speech"),
    "text": re.compile(r"text|language|llm"),
    "encoder": re.compile(r"encoder"),
    "decoder": re.compile(r"decoder"),
}
_Path = tuple[str, ...]


def assembled_config(recipe: SlicedRecipe, opened: Sequence[Checkpoint]) -> dict[str, Any]:
    """Return the donor's configuration with the layers of the result; the donor is the first.

    The number of layers stands wherever the donor's stood, and lists with an entry per layer, such
    as `layer_types`, have those of the layers that the result is made of; so have lists of layers'
    numbers, such as `mlp_only_layers`. Raises CheckpointError where the number of layers is another
    and the configuration nowhere has the donor's, and where layers of several kinds are in another
    order and it has no list of them.
    """
    config = copy.deepcopy(opened[0].config)
    by_ref = {checkpoint.ref: checkpoint for checkpoint in opened}
    for module in recipe.modules:
        if not module.whole:
            _update(config, recipe, module, opened[0], by_ref)
    return config


def _update(
    config: dict[str, Any],
    recipe: SlicedRecipe,
    module: Module,
    donor: Checkpoint,
    by_ref: Mapping[ModelRef, Checkpoint],
) -> None:
    stack, count = sliced_stack(recipe, module, donor)
    origins = [
        (by_ref[pattern], layer)
        for one in module.slices
        for pattern in models_of(recipe, one)[:1]
        for source in [one.of(pattern)]
        if source and source.layers
        for layer in source.layers
    ]
    paths = _count_paths(donor.config, stack, count)
    if not paths and len(origins) != count:
        raise CheckpointError(
            f"expected the number of layers, {count}, as num_hidden_layers or the like in "
            f"{donor.folder}/config.json, got none; its layers cannot be sliced"
        )
    for path in paths:
        _inside(config, path[:-1])[path[-1]] = len(origins)
    lists = {
        (*parent, key): value
        for parent in dict.fromkeys(path[:-1] for path in paths)
        for key, value in _inside(donor.config, parent).items()
        if _LISTS.search(key) and isinstance(value, list)
        if len(value) == count or _are_numbers(value, count)
    }
    for path, value in lists.items():
        _inside(config, path[:-1])[path[-1]] = _of_layers(value, origins, path, stack, count)
    _check_kinds(origins, donor, stack, count, list(lists.values()))


def _of_layers(
    value: list[Any], origins: Sequence[tuple[Checkpoint, int]], path: _Path, stack: str, count: int
) -> list[Any]:
    """Return the donor's list as it is for the layers of the result."""
    if not _are_numbers(value, count):
        return [_entry(value, one, layer, path, stack) for one, layer in origins]
    found = []
    for at, (one, layer) in enumerate(origins):
        own = _own_list(one, path)
        if layer in (value if own is None else own):
            found.append(at)
    return found


def _are_numbers(value: Sequence[Any], count: int) -> bool:
    """Return whether a list has the numbers of some layers, rather than an entry per layer."""
    whole = all(type(one) is int and 0 <= one < count for one in value)
    ascending = whole and list(value) == sorted(set(value))
    return ascending and bool(value) and (len(value) != count or count > 2)  # [0, 1] are entries


def _check_kinds(
    origins: Sequence[tuple[Checkpoint, int]],
    donor: Checkpoint,
    stack: str,
    count: int,
    lists: Sequence[list[Any]],
) -> None:
    """Raise CheckpointError where a layer is not of the kind that the donor has at its place.

    Where the lists tell the kinds apart, layers may be anywhere. Else kinds that come in turns go
    on so after the donor's last layer, and others end with its kind.
    """
    kinds = [_kind(donor, stack, layer) for layer in range(count)]
    told = [
        repr([layer in one if _are_numbers(one, count) else one[layer] for one in lists])
        for layer in range(count)
    ]
    if len(set(zip(told, kinds, strict=True))) == len(set(told)):
        return
    turn = next((n for n in range(1, count // 2 + 1) if kinds[n:] == kinds[:-n]), 0)
    for at, (source, layer) in enumerate(origins):
        like = at if at < count else at % turn if turn else count - 1
        other = sorted(_kind(source, stack, layer) ^ kinds[like])
        if other:
            raise CheckpointError(
                f"expected a layer like {stack}.{like} of {donor.ref} as layer {at}, got layer "
                f"{layer} of {source.ref}, which differs in {other[0]}; the configuration has no "
                "list of the layers' kinds, so layers of each kind must stay at its places"
            )


def _kind(checkpoint: Checkpoint, stack: str, layer: int) -> frozenset[str]:
    """Return the names of a layer's tensors, without its beginning; constants are in any."""
    start = f"{stack}.{layer}."
    return frozenset(
        name.removeprefix(start)
        for name in checkpoint.tensors
        if name.startswith(start) and not name.endswith(CONSTANTS)
    )


def _entry(value: list[Any], source: Checkpoint, layer: int, path: _Path, stack: str) -> Any:
    """Return the entry of a source's layer; that of the donor's list where the source has none."""
    own = _own_list(source, path)
    entries = own if own is not None and layer < len(own) else value
    if layer >= len(entries):
        raise CheckpointError(
            f"expected an entry of {'.'.join(path)} for {stack}.{layer}, got {len(entries)} in "
            f"{source.folder}/config.json"
        )
    return entries[layer]


def _own_list(source: Checkpoint, path: _Path) -> list[Any] | None:
    own = _inside(source.config, path[:-1]).get(path[-1])
    return own if isinstance(own, list) else None


def _inside(config: Mapping[str, Any], path: _Path) -> dict[str, Any]:
    inner: Any = config
    for key in path:
        inner = inner.get(key, {}) if isinstance(inner, dict) else {}
    return inner if isinstance(inner, dict) else {}


def _count_paths(config: Mapping[str, Any], stack: str, count: int) -> list[_Path]:
    """Return where a configuration says the number of layers of a stack.

    Where several stacks have as many layers, the names tell which is meant.
    """
    found = [
        path
        for path, value in _items(config)
        if _COUNTS.fullmatch(path[-1]) and type(value) is int and value == count
    ]
    families = {path: _families(".".join(path)) for path in found}
    own = [path for path in found if families[path] & _families(stack)]
    return own or [path for path in found if families[path] <= {"text"}]


def _families(text: str) -> set[str]:
    return {name for name, pattern in _FAMILIES.items() if pattern.search(text)}


def _items(config: Mapping[str, Any], path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("config"):
            yield from _items(value, (*path, key))
        else:
            yield (*path, key), value
