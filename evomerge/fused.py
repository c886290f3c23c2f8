"""Parameters that a live model has as one and checkpoints as several tensors, as of experts."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

Shapes = Mapping[str, tuple[int, ...]]


def fused_parameters(model: PreTrainedModel, shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """Return the tensors of each parameter that is several of them end to end, in their order.

    `model` may lie on the meta device; `shapes` are those of a checkpoint's tensors, by name. What
    the library does otherwise to tensors, as to transpose them, is left out.
    """
    transforms = get_model_conversion_mapping(model)
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    if not converters:
        return {}
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    own = model.state_dict()
    parts: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(shapes, key=dot_natural_key):
        prefix = model.base_model_prefix
        parameter, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if pattern is not None and parameter in own:
            parts.setdefault(parameter, []).append((pattern, name))
    by_pattern = {one: converter for converter in converters for one in converter.source_patterns}
    found = {}
    for parameter, members in parts.items():
        size = sum(math.prod(shapes[name]) for _, name in members)
        if len(members) > 1 and size == own[parameter].numel():
            converter = by_pattern[members[0][0]]
            order = _order(converter, parameter, members, shapes, model)
            if order is not None:
                found[parameter] = tuple(members[place][1] for place in order)
    return found


def _order(
    converter: WeightConverter,
    parameter: str,
    members: Sequence[tuple[str, str]],
    shapes: Shapes,
    model: PreTrainedModel,
) -> list[int] | None:
    """Return in which order a converter lays tensors, pattern and name each, end to end.

    It is seen on small ones, at most two numbers to a side, which are numbered through. None where
    they do not stay whole.
    """
    small = [[min(2, side) for side in shapes[name]] for _, name in members]
    count = math.prod(small[0])
    if any(math.prod(one) != count for one in small):
        return None
    converter = copy.deepcopy(converter)
    for number, ((pattern, name), shape) in enumerate(zip(members, small, strict=True)):
        numbers = torch.arange(number * count, (number + 1) * count).view(shape)
        converter.add_tensor(parameter, name, pattern, numbers)
    made = list(converter.convert(parameter, model=model, config=model.config).values())
    if len(made) != 1:
        return None
    laid = made[0][0] if isinstance(made[0], list) else made[0]
    rows = laid.reshape(-1, count)
    if not torch.equal(rows, rows[:, :1] + torch.arange(count)):
        return None
    return [int(first) // count for first in rows[:, 0]]
