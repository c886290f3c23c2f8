"""A model over several devices: which of its layers lie where, and what goes from one to the next.

It is split by layers, as with transformers' `device_map`: one device works after the other. What
lies outside the layers (embeddings, last norm, head) is on the first device, so that logits, which
are many, need not be moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from evomerge.errors import CheckpointError
from evomerge.module_groups import tensor_names_by_layer

_SMALL = 8  # a stack with less than one in so many parts of the largest is a head, say


def spread(sizes: Mapping[str, int], devices: Sequence[torch.device]) -> dict[str, torch.device]:
    """Return the device of each tensor by its name; `sizes` are in bytes, or in anything else.

    Layers follow each other over the devices, each of which gets about as much as the others. All
    of a layer is on one device, and a small stack of them, as of a head, on the first. Raises
    CheckpointError where there are fewer layers than devices.
    """
    by_name = tensor_names_by_layer(sizes)
    own: Counter[tuple[str, int]] = Counter()
    stacks: Counter[str] = Counter()
    for name, layer in by_name.items():
        if layer is not None:
            own[layer] += sizes[name]
            stacks[layer[0]] += sizes[name]
    least = max(stacks.values(), default=0) / _SMALL
    layers = sorted(layer for layer in own if stacks[layer[0]] >= least)
    if len(devices) > max(1, len(layers)):
        raise CheckpointError(
            f"expected at most {max(1, len(layers))} devices, one for each layer of the model, got "
            f"{len(devices)}; name fewer"
        )
    total = sum(sizes.values())
    done = held = total - sum(own[layer] for layer in layers)
    which, places = 0, {}
    for number, layer in enumerate(layers):
        empty = len(devices) - 1 - which
        full = held and done + own[layer] / 2 > total / len(devices) * (which + 1)
        if empty and (full or len(layers) - number == empty):  # no device is left empty
            which, held = which + 1, 0
        places[layer] = devices[which]
        done, held = done + own[layer], held + own[layer]
    return {
        name: devices[0] if layer is None else places.get(layer, devices[0])
        for name, layer in by_name.items()
    }


def connect(model: torch.nn.Module, first: torch.device) -> None:
    """Let a model run whose layers lie on several devices, and all else on the first.

    Whatever a layer is given comes to its device, and what the last layer of a stack returns goes
    to the first. Buffers that are not stored come to where their layer is.
    """
    inside: tuple[str, ...] = ()  # of stacks within layers, as experts are, nothing moves
    for name, stack in model.named_modules():
        if isinstance(stack, torch.nn.ModuleList) and not name.startswith(inside):
            inside += (f"{name}.",)
            for layer in stack:
                own = (*layer.parameters(), *layer.buffers())
                place = next((one.device for one in own), first)
                for part in layer.modules():
                    _settle(part, place)
                layer.register_forward_pre_hook(_brought(place), with_kwargs=True)
            if len(stack):
                stack[-1].register_forward_hook(lambda layer, given, found: moved(found, first))
    for name, part in model.named_modules():
        if not name.startswith(inside):
            _settle(part, first)


def _settle(part: torch.nn.Module, place: torch.device) -> None:
    """Move a module's own buffers; those that are there already stay the tensors that they are."""
    for name, buffer in part.named_buffers(recurse=False):
        setattr(part, name, buffer.to(place))


def _brought(place: torch.device) -> Callable[..., Any]:
    return lambda layer, given, named: (moved(given, place), moved(named, place))


def moved(thing: Any, place: torch.device) -> Any:
    """Return tensors, alone or in tuples, lists and dicts, on a device; all else is as it was."""
    if isinstance(thing, torch.Tensor):
        return thing.to(place)
    if isinstance(thing, (tuple, list)) and not hasattr(thing, "_fields"):
        return type(thing)(moved(one, place) for one in thing)
    if type(thing) is dict:
        return {key: moved(one, place) for key, one in thing.items()}
    return thing
