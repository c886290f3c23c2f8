"""Where the input models lie: on the device, in host memory, or on disk.

What the kernel reads are rows [n, WIDTH] on the device. Inputs that lie elsewhere come in pieces of
a bounded size: on a GPU while the kernel works on the piece before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import psutil
import torch

from evomerge.merger.layout import WIDTH, Layout, allocate, views

Memory = Literal["auto", "device", "host", "disk"]
Residence = Literal["device", "host", "disk"]
_PIECE_ROWS = 2048  # of a piece: 4 MiB of bfloat16 for each input
_PIECE_ROWS_CUDA = 1 << 14  # 32 MiB, enough for a copy at the full speed of the link
_RESERVE = 1 << 30  # bytes left to activations and whatever else runs
_SHARE = 0.9  # of the free memory that may be taken

T = TypeVar("T")
Piece = tuple[slice, list[torch.Tensor]]


def choose_memory(
    wanted: Memory, inputs: Mapping[torch.device, int], outputs: Mapping[torch.device, int]
) -> Residence:
    """Return where inputs should lie, beside outputs of so many bytes on each device.

    `auto` takes the devices where all fits, else host memory that streams to GPUs, else the disk.
    """
    if wanted != "auto":
        return wanted
    total = sum(inputs.values())
    if next(iter(inputs)).type != "cuda":
        needed = total + sum(outputs.values()) + _RESERVE
        return "device" if needed <= _free_memory() * _SHARE else "disk"
    if all(
        inputs[device] + outputs[device] + _RESERVE <= torch.cuda.mem_get_info(device)[0] * _SHARE
        for device in inputs
    ):
        return "device"
    return "host" if total + _RESERVE <= _free_memory() * _SHARE else "disk"


def _free_memory() -> int:
    """Return the bytes of memory that are free, also by the limit of a container."""
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(free, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return free


class Inputs:
    """The tensors of some models, laid out alike, at one of three places."""

    def __init__(self, layout: Layout, residence: Residence) -> None:
        self._layout = layout
        self.residence: Residence = residence
        self._buffers: list[tuple[torch.Tensor | None, ...]] = []
        self._flat: list[Mapping[str, torch.Tensor]] = []
        self._stages: dict[tuple[object, ...], torch.Tensor] = {}

    def add(self, tensors: Mapping[str, torch.Tensor] | None) -> Mapping[str, torch.Tensor]:
        """Add the next input and return its tensors, to be filled where it is resident.

        `tensors` are those of a model that stays on disk, memory-mapped.
        """
        if tensors is not None:
            self._flat.append(tensors)
            return tensors
        on_gpu = any(block.device.type == "cuda" for block in self._layout.blocks)
        pinned = self.residence == "host" and on_gpu
        place = torch.device("cpu") if self.residence == "host" else None
        self._buffers.append(allocate(self._layout, len(self._buffers), place, pinned))
        self._flat.append(views(self._layout, self._buffers[-1]))
        return self._flat[-1]

    def tensors(self, number: int) -> Mapping[str, torch.Tensor]:
        """Return the tensors of an input, where they lie."""
        return self._flat[number]

    def flat(self, number: int, tensor: int) -> torch.Tensor:
        """Return the elements of a tensor, flat, where they lie."""
        return self._flat[number][self._layout.tensors[tensor]].reshape(-1)

    def pieces(
        self, block: int, inputs: Sequence[int], rows: slice, step: int | None = None
    ) -> Iterator[Piece]:
        """Yield rows of a block, on its device, of some inputs: all that there are, or `step`.

        What is yielded is overwritten when the iteration goes on.
        """
        near = self._layout.blocks[block].device.type == "cpu"
        if self.residence == "device" or (self.residence == "host" and near):
            size = step or max(1, rows.stop - rows.start)
            for part in _parts(rows, size):
                yield part, [_held(self._buffers[number][block])[part] for number in inputs]
        elif near:
            for part in _parts(rows, min(step or _PIECE_ROWS, _PIECE_ROWS)):
                stages = [self._stage(block, number, index) for index, number in enumerate(inputs)]
                for number, stage in zip(inputs, stages, strict=True):
                    self._gather(block, number, part, stage)
                yield part, [stage[: part.stop - part.start] for stage in stages]
        else:
            yield from self._overlapped(block, inputs, rows)

    def _overlapped(self, block: int, inputs: Sequence[int], rows: slice) -> Iterator[Piece]:
        """Copy the next piece to the GPU on a stream of its own while the kernel works."""
        device = self._layout.blocks[block].device
        copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        kernels = torch.cuda.current_stream(device)
        copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        used = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        halves = [
            [self._stage(block, number, (index, half)) for index, number in enumerate(inputs)]
            for half in range(2)
        ]
        copies.wait_stream(kernels)  # which new stages are zeroed on
        for turn, part in enumerate(_parts(rows, _PIECE_ROWS_CUDA)):
            half, size = turn % 2, part.stop - part.start
            stages = halves[half]
            sources = [self._source(block, number, part, (index, half), copied[half], turn > 1)
                       for index, number in enumerate(inputs)]  # fmt: skip
            with torch.cuda.stream(copies):
                copies.wait_event(used[half])
                for stage, source in zip(stages, sources, strict=True):
                    stage[:size].copy_(source, non_blocking=True)
                copied[half].record(copies)
            kernels.wait_event(copied[half])
            yield part, [stage[:size] for stage in stages]
            used[half].record(kernels)
        torch.cuda.synchronize(device)  # the stages are free for the next block

    def _source(
        self, block: int, number: int, part: slice, turn: object, copied: torch.cuda.Event,
        again: bool,
    ) -> torch.Tensor:  # fmt: skip
        """Return some rows of an input in pinned memory."""
        if self.residence == "host":
            return _held(self._buffers[number][block])[part]
        if again:
            copied.synchronize()  # what was gathered here last is on its way no more
        stage = self._stage(block, number, ("pinned", turn), pinned=True)
        self._gather(block, number, part, stage)
        return stage[: part.stop - part.start]

    def _stage(self, block: int, number: int, turn: object, pinned: bool = False) -> torch.Tensor:
        own = self._layout.blocks[block].device
        device = torch.device("cpu") if pinned else own
        dtype = _held(self._layout.blocks[block].input_dtypes[number])
        key = (dtype, device, turn, pinned)
        if key not in self._stages:
            rows = _PIECE_ROWS_CUDA if own.type == "cuda" else _PIECE_ROWS
            self._stages[key] = torch.zeros(
                (rows, WIDTH), dtype=dtype, device=device, pin_memory=pinned
            )
        return self._stages[key]

    def _gather(self, block: int, number: int, part: slice, stage: torch.Tensor) -> None:
        flat = stage.view(-1)
        names = self._layout.tensors
        for slot, first, end in self._layout.blocks[block].within(part):
            start = (slot.start - part.start) * WIDTH
            source = self._flat[number][names[slot.tensor]].reshape(-1)
            flat[start + first : start + end].copy_(source[first:end])
            if end == slot.elements:
                flat[start + end : start + slot.rows * WIDTH] = 0


def _held(thing: T | None) -> T:
    assert thing is not None, "an input is asked for tensors that it lacks"
    return thing


def _parts(rows: slice, size: int) -> Iterator[slice]:
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))
