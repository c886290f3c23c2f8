"""Tensors that lie end to end in memory, which a model may have as one parameter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import torch


def whole(tensors: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor | None:
    """Return the tensor of a shape that contiguous ones are, in their order, without a copy.

    None where they do not lie end to end, or do not fill it.
    """
    if sum(one.numel() for one in tensors) != math.prod(shape) or not _adjacent(tensors):
        return None
    strides = torch.empty(tuple(shape), device="meta").stride()
    return tensors[0].as_strided(tuple(shape), strides)


def packed(
    tensors: Mapping[str, torch.Tensor], runs: Iterable[Sequence[str]]
) -> dict[str, torch.Tensor]:
    """Return copies, end to end, of the tensors of each run of names that do not lie so."""
    found: dict[str, torch.Tensor] = {}
    for run in runs:
        members = [tensors[name] for name in run]
        if not _adjacent(members):
            flat = torch.cat([one.reshape(-1) for one in members])
            parts = torch.split(flat, [one.numel() for one in members])
            each = zip(run, members, parts, strict=True)
            found |= {name: part.view(member.shape) for name, member, part in each}
    return found


def _adjacent(tensors: Sequence[torch.Tensor]) -> bool:
    """Return whether contiguous tensors lie end to end in one storage."""
    return all(one.is_contiguous() and one.dtype == tensors[0].dtype for one in tensors) and all(
        after.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
        and after.storage_offset() == before.storage_offset() + before.numel()
        for before, after in itertools.pairwise(tensors)
    )
