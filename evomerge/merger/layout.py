"""How the tensors of a model lie in memory: rows of a fixed width, one flat buffer per dtype.

Every tensor starts on a row of its own, so one kernel over rows serves the whole model and a row
needs to know only the number of its tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from evomerge.checkpoints import FLOATING, Checkpoint
from evomerge.errors import CheckpointError

WIDTH = 1024
MAX_ELEMENTS = 2**31 - WIDTH  # an element's index is an int32


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in its block: `rows` rows from `start`, its first `elements` used."""

    tensor: int
    start: int
    rows: int
    elements: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Tensors whose inputs have the same dtypes; buffers are [rows, WIDTH]."""

    input_dtypes: tuple[torch.dtype, ...]
    output_dtype: torch.dtype
    slots: tuple[Slot, ...]
    row_tensor: torch.Tensor  # int64 [rows]: number of the row's tensor in the layout
    row_index: torch.Tensor  # int32 [rows]: index of the row's first element in its tensor

    @property
    def rows(self) -> int:
        """Number of rows of the block's buffers."""
        return len(self.row_tensor)

    def view(self, buffer: torch.Tensor, slot: Slot) -> torch.Tensor:
        """Return a tensor of the block as a view of a buffer [rows, WIDTH]."""
        flat = buffer[slot.start : slot.start + slot.rows].view(-1)
        return flat[: slot.elements].view(slot.shape)


@dataclass(frozen=True)
class Layout:
    """The tensors to merge, in blocks, and the names of those that are copied as they are."""

    tensors: tuple[str, ...]
    blocks: tuple[Block, ...]
    copied: tuple[str, ...]


def plan_layout(
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    result_dtype: str | None,
    device: torch.device,
) -> Layout:
    """Lay out the tensors of checkpoints that hold the same names and shapes.

    `result_dtype` None keeps the first checkpoint's dtype for each tensor. Tensors that are not
    floating-point are copied from the first checkpoint. Raises CheckpointError for a tensor of
    2^31 elements or more.
    """
    merged = tuple(name for name in names if checkpoints[0].tensors[name].floating)
    groups: dict[tuple[tuple[torch.dtype, ...], torch.dtype], list[int]] = {}
    for number, name in enumerate(merged):
        inputs = tuple(_dtype(checkpoint, name) for checkpoint in checkpoints)
        output = getattr(torch, result_dtype) if result_dtype else inputs[0]
        groups.setdefault((inputs, output), []).append(number)
    blocks = [
        _block(inputs, output, members, merged, checkpoints[0], device)
        for (inputs, output), members in groups.items()
    ]
    copied = tuple(name for name in names if not checkpoints[0].tensors[name].floating)
    return Layout(merged, tuple(blocks), copied)


def _dtype(checkpoint: Checkpoint, name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, FLOATING[checkpoint.tensors[name].dtype])
    return dtype


def _block(
    inputs: tuple[torch.dtype, ...],
    output: torch.dtype,
    members: Sequence[int],
    names: Sequence[str],
    checkpoint: Checkpoint,
    device: torch.device,
) -> Block:
    slots: list[Slot] = []
    start = 0
    for number in members:
        shape = checkpoint.tensors[names[number]].shape
        elements = int(torch.Size(shape).numel())
        if elements > MAX_ELEMENTS:
            raise CheckpointError(
                f"expected fewer than 2^31 elements, got {elements} in {names[number]} "
                f"of {checkpoint.ref}"
            )
        rows = max(1, -(-elements // WIDTH))
        slots.append(Slot(number, start, rows, elements, shape))
        start += rows
    row_tensor = torch.cat([torch.full((slot.rows,), slot.tensor) for slot in slots])
    row_index = torch.cat([torch.arange(slot.rows, dtype=torch.int32) * WIDTH for slot in slots])
    return Block(inputs, output, tuple(slots), row_tensor.to(device), row_index.to(device))


def allocate(
    layout: Layout, device: torch.device, which: int | None = None
) -> tuple[torch.Tensor, ...]:
    """Return zeroed buffers, one per block: for input `which`, or for the output where None."""
    return tuple(
        torch.zeros(
            (block.rows, WIDTH),
            dtype=block.output_dtype if which is None else block.input_dtypes[which],
            device=device,
        )
        for block in layout.blocks
    )


def views(layout: Layout, buffers: Sequence[torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return every merged tensor, by name, as a view of the buffers."""
    return {
        layout.tensors[slot.tensor]: block.view(buffer, slot)
        for block, buffer in zip(layout.blocks, buffers, strict=True)
        for slot in block.slots
    }
