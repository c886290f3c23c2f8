"""How the tensors of a model lie in memory: rows of a fixed width, one flat buffer per dtype.

Every tensor starts on a row of its own, so one kernel over rows serves the whole model and a row
needs to know only the number of its tensor.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from evomerge.checkpoints import FLOATING, Checkpoint
from evomerge.errors import CheckpointError
from evomerge.spread import spread

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
class Group:
    """Tensors, by number, that the same inputs hold."""

    tensors: tuple[int, ...]
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Tensors of a group on one device, with inputs of the same dtypes; buffers [rows, WIDTH]."""

    group: int
    input_dtypes: tuple[torch.dtype | None, ...]  # None for an input that lacks the tensors
    output_dtype: torch.dtype
    slots: tuple[Slot, ...]
    row_tensor: torch.Tensor  # int64 [rows]: number of the row's tensor in the group
    row_index: torch.Tensor  # int32 [rows]: index of the row's first element in its tensor
    device: torch.device

    @property
    def rows(self) -> int:
        """Number of rows of the block's buffers."""
        return len(self.row_tensor)

    @cached_property
    def _starts(self) -> list[int]:
        return [slot.start for slot in self.slots]

    def view(self, buffer: torch.Tensor, slot: Slot, first: int = 0) -> torch.Tensor:
        """Return a tensor of the block as a view of a buffer that begins with row `first`."""
        flat = buffer[slot.start - first : slot.start - first + slot.rows].view(-1)
        return flat[: slot.elements].view(slot.shape)

    def within(self, rows: slice) -> Iterator[tuple[Slot, int, int]]:
        """Yield what lies in some rows: tensors, and the first and the end of their elements."""
        for slot in self.slots[bisect_right(self._starts, rows.start) - 1 :]:
            if slot.start >= rows.stop:
                return
            first = max(0, rows.start - slot.start) * WIDTH
            end = min(slot.elements, (rows.stop - slot.start) * WIDTH)
            yield slot, first, end


@dataclass(frozen=True)
class Layout:
    """The tensors to merge, in groups and blocks, and the names of those that are copied.

    `devices` are those of all of them, by name.
    """

    tensors: tuple[str, ...]
    groups: tuple[Group, ...]
    blocks: tuple[Block, ...]
    copied: tuple[str, ...]
    devices: Mapping[str, torch.device]

    @cached_property
    def places(self) -> Mapping[str, tuple[int, Slot]]:
        """The block, by number, and the slot of each tensor that is merged."""
        return {
            self.tensors[slot.tensor]: (number, slot)
            for number, block in enumerate(self.blocks)
            for slot in block.slots
        }

    def joinable(self, runs: Sequence[Sequence[str]]) -> list[Sequence[str]]:
        """Return those runs of names all of which are merged, and to one dtype."""
        dtypes = {name: self.blocks[one].output_dtype for name, (one, _) in self.places.items()}
        known = [run for run in runs if all(name in dtypes for name in run)]
        return [run for run in known if len({dtypes[name] for name in run}) == 1]

    def nbytes(self, which: int | None, device: torch.device) -> int:
        """Return the size of the buffers on a device of input `which`, of the output where None."""
        total = 0
        for block in self.blocks:
            dtype = block.output_dtype if which is None else block.input_dtypes[which]
            if dtype is not None and block.device == device:
                total += block.rows * WIDTH * dtype.itemsize
        return total


def plan_layout(
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    result_dtype: str | None,
    devices: Sequence[torch.device],
    runs: Sequence[Sequence[str]] = (),
) -> Layout:
    """Lay out the tensors of checkpoints; `names` are tensors of the first.

    `result_dtype` None keeps the first checkpoint's dtype for each tensor. Tensors that are not
    floating-point are copied from the first checkpoint. Over several devices they are spread by
    layers. The tensors of each of `runs` follow one another, where they go into one block. Raises
    CheckpointError for a tensor of 2^31 elements or more, and for more devices than layers.
    """
    sizes = {name: torch.Size(checkpoints[0].tensors[name].shape).numel() for name in names}
    places = spread(sizes, devices)
    merged = tuple(name for name in names if checkpoints[0].tensors[name].floating)
    alike: dict[tuple[tuple[torch.dtype | None, ...], torch.dtype, torch.device], list[int]] = {}
    held: dict[tuple[int, ...], list[int]] = {}
    inputs_of = {
        name: tuple(_dtype(checkpoint, name) for checkpoint in checkpoints) for name in merged
    }
    for number, name in enumerate(merged):
        held.setdefault(_present(inputs_of[name]), []).append(number)
    for number in _in_runs(merged, runs):
        name = merged[number]
        own = FLOATING[checkpoints[0].tensors[name].dtype]
        output: torch.dtype = getattr(torch, result_dtype or own)
        alike.setdefault((inputs_of[name], output, places[name]), []).append(number)
    groups = tuple(Group(tuple(members), inputs) for inputs, members in held.items())
    numbers = {inputs: number for number, inputs in enumerate(held)}
    blocks = tuple(
        _block(numbers[_present(inputs)], groups, inputs, output, members, merged, checkpoints[0],
               device)
        for (inputs, output, device), members in alike.items()
    )  # fmt: skip
    copied = tuple(name for name in names if not checkpoints[0].tensors[name].floating)
    return Layout(merged, groups, blocks, copied, places)


def _in_runs(names: Sequence[str], runs: Sequence[Sequence[str]]) -> list[int]:
    """Return the numbers of names, those of a run from where its first one stands."""
    numbers = {name: number for number, name in enumerate(names)}
    runs_of = {name: run for run in runs for name in run}
    order = (one for name in names for one in runs_of.get(name, (name,)))
    return [numbers[name] for name in dict.fromkeys(order) if name in numbers]


def _present(dtypes: Sequence[torch.dtype | None]) -> tuple[int, ...]:
    return tuple(number for number, dtype in enumerate(dtypes) if dtype is not None)


def _dtype(checkpoint: Checkpoint, name: str) -> torch.dtype | None:
    if name not in checkpoint.tensors:
        return None
    dtype: torch.dtype = getattr(torch, FLOATING[checkpoint.tensors[name].dtype])
    return dtype


def _block(
    group: int,
    groups: Sequence[Group],
    inputs: tuple[torch.dtype | None, ...],
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
    place = {number: index for index, number in enumerate(groups[group].tensors)}
    row_tensor = torch.cat([torch.full((slot.rows,), place[slot.tensor]) for slot in slots])
    row_index = torch.cat([torch.arange(slot.rows, dtype=torch.int32) * WIDTH for slot in slots])
    numbers, indices = row_tensor.to(device), row_index.to(device)
    return Block(group, inputs, output, tuple(slots), numbers, indices, device)


def allocate(
    layout: Layout,
    which: int | None = None,
    device: torch.device | None = None,
    pinned: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """Return zeroed buffers, one per block: for input `which`, or for the output where None.

    They lie where the blocks do, or on `device`. There is None for a block whose tensors the input
    lacks.
    """
    dtypes = [
        block.output_dtype if which is None else block.input_dtypes[which]
        for block in layout.blocks
    ]
    return tuple(
        None
        if dtype is None
        else torch.zeros(
            (block.rows, WIDTH), dtype=dtype, device=device or block.device, pin_memory=pinned
        )
        for block, dtype in zip(layout.blocks, dtypes, strict=True)
    )


def views(layout: Layout, buffers: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """Return every merged tensor that there is, by name, as a view of the buffers."""
    found: dict[str, torch.Tensor] = {}
    for block, buffer in zip(layout.blocks, buffers, strict=True):
        if buffer is not None:
            for slot in block.slots:
                found[layout.tensors[slot.tensor]] = block.view(buffer, slot)
    return found
