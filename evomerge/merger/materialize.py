"""One streaming pass that writes a candidate: a method's kernel over rows, fused or eager.

Both paths give the same bits on a CPU: the kernels are elementwise, float32 inside, and the
compiler neither contracts nor reorders their operations.
"""

from __future__ import annotations

import functools
import shutil
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch.compiler import is_compiling

from evomerge.merge_methods import Array, Kernel
from evomerge.merger import random
from evomerge.merger.layout import WIDTH

KernelChoice = Literal["auto", "fused", "eager"]
_EAGER_ROWS = 64  # rows a time for each thread: temporaries of 256 KiB stay in cache
_FUSED_ROWS = 1 << 18  # bounds what a kernel of many models keeps between loops, 1 GiB each
_EAGER_ROWS_CUDA = 1 << 14  # fewer, larger launches
_WORTH_COMPILING = 10_000_000  # elements of a model for which compiling pays at once
_EAGER_ELEMENTS = 400_000_000  # merged eagerly, they have cost about as much as compiling
WORDS = WIDTH // 32  # of a row of bits
_OPTIONS: dict[str, Any] = {
    "assert_indirect_indexing": False  # the table is ours: its rows are where they should be
}

Spans = tuple[tuple[str, int, int], ...]  # name, first column, number of columns
Run = Callable[..., None]


def fused_available(device: torch.device) -> bool:
    """Return whether torch.compile can be expected to work: a C++ compiler, or Triton on CUDA."""
    if device.type == "cuda":
        return torch.utils._triton.has_triton()
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))


class ChosenKernel:
    """Whether the kernels are fused for a model of `elements` elements: as said, or once it pays.

    `auto` compiles for large models at once. On a CPU, where both kernels give the same bits, small
    ones are merged eagerly until that has cost as much as compiling.
    """

    def __init__(self, choice: KernelChoice, elements: int, device: torch.device) -> None:
        free = choice == "auto" and fused_available(device)
        self.must_fuse = choice == "fused"
        self.fused = self.must_fuse or (free and elements >= _WORTH_COMPILING)
        self._elements = elements
        waiting = free and not self.fused and device.type == "cpu"
        self._left = _EAGER_ELEMENTS if waiting else None

    def merged(self) -> None:
        """Note that a candidate has been written."""
        if self._left is not None:
            self._left -= self._elements
            if self._left < 0:
                self.fused, self._left = True, None

    def failed(self, problem: Exception) -> bool:
        """Return whether an error is the compiler's; if so, kernels are eager from now on."""
        if not self.fused or self.must_fuse or not compiler_failed(problem):
            return False
        self.fused = False
        return True


def compiler_failed(problem: Exception) -> bool:
    """Return whether an error is the compiler's: one without headers is found and does not work."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(problem, TorchDynamoException)


def rows_at_once(fused: bool, device: torch.device) -> int | None:
    """Return how many rows to give a kernel at a time, None for all."""
    if device.type == "cuda":
        return None if fused else _EAGER_ROWS_CUDA
    return _FUSED_ROWS if fused else _EAGER_ROWS * torch.get_num_threads()


@dataclass(frozen=True)
class Table:
    """A plan for T tensors and M models: what the kernel reads, row by row.

    `numbers` is float32 [T, C], its columns named by `spans`. `draws` int32 [T, D] has the keys of
    the random masks and the largest numbers that each keeps (`limits` names those columns).
    """

    kernel: Kernel
    numbers: torch.Tensor
    spans: Spans
    draws: torch.Tensor | None = None
    draw_spans: Spans = ()
    limits: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Table:
        """Return the table on a device."""
        draws = None if self.draws is None else self.draws.to(device)
        return replace(self, numbers=self.numbers.to(device), draws=draws)


def tabulate(
    kernel: Kernel,
    columns: Mapping[str, Array],
    probabilities: tuple[str, ...] = (),
    keys: random.Integers | None = None,
) -> Table:
    """Return the table of a plan's columns [T] or [M, T], with the masks' `keys` [T, M, 2]."""
    plain = {name: column for name, column in columns.items() if name not in probabilities}
    spans, numbers = _stacked({name: column.astype(np.float32) for name, column in plain.items()})
    table = torch.from_numpy(numbers)
    if keys is None:
        return Table(kernel, table, spans)
    drawn = {"first": keys[:, :, 0].T, "second": keys[:, :, 1].T}
    drawn |= {name: random.limits(columns[name]) for name in probabilities}
    draw_spans, integers = _stacked(drawn)
    draws = torch.from_numpy(integers)
    return Table(kernel, table, spans, draws, draw_spans, probabilities)


def _stacked(columns: Mapping[str, np.ndarray]) -> tuple[Spans, np.ndarray]:
    spans: list[tuple[str, int, int]] = []
    parts = []
    first = 0
    for name, column in columns.items():
        part = np.atleast_2d(column).T
        spans.append((name, first, part.shape[1]))
        parts.append(part)
        first += part.shape[1]
    return tuple(spans), np.ascontiguousarray(np.concatenate(parts, axis=1))


def write_rows(
    table: Table,
    output: torch.Tensor,
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    ranks: Sequence[torch.Tensor],
    row_tensor: torch.Tensor,
    row_index: torch.Tensor,
    finite: torch.Tensor,
    fused: bool,
) -> None:
    """Write rows of a candidate into `output` [rows, WIDTH], and into `finite` [rows] 0 or NaN.

    `ranks` are int32 [rows, WORDS], bits of the rows' elements for each model, where the masks
    depend on them; `row_tensor` and `row_index` are those of the rows.
    """
    rows = (output, base, list(models), list(ranks), row_tensor, row_index, finite)
    if not fused:
        _run(table.kernel, table.spans, table.draw_spans, table.limits, table.numbers,
             table.draws, *rows)  # fmt: skip
        return
    dtypes = tuple(one.dtype for one in (output, *([] if base is None else [base]), *models))
    parts = table.kernel, table.spans, table.draw_spans, table.limits
    run = _compiled(*parts, dtypes, output.device)
    for one in (table.numbers, table.draws, output, base, *models, *ranks, row_tensor, row_index,
                finite):  # fmt: skip
        if one is not None:
            torch._dynamo.maybe_mark_dynamic(one, 0)  # one compilation for any number of rows
    run(table.numbers, table.draws, *rows)


@functools.cache
def _compiled(
    kernel: Kernel,
    spans: Spans,
    draw_spans: Spans,
    limits: tuple[str, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
) -> Run:
    # The compiler gives up on a function after eight variants, so each has code of its own.
    run = _bound(kernel, spans, draw_spans, limits)
    method = kernel.__module__.rpartition(".")[2]
    name = f"{method}_of_{len(dtypes) - 1}_on_{device.type}{device.index or 0}"
    code = run.__code__.replace(co_name=name)
    own = types.FunctionType(code, run.__globals__, closure=run.__closure__)
    compiled: Run = torch.compile(own, options=_OPTIONS)
    return compiled


def _bound(
    kernel: Kernel, spans: Spans, draw_spans: Spans, limits: tuple[str, ...]
) -> types.FunctionType:
    """Return `_run` without its first arguments, as a function of its own."""

    def run(*rows: Any) -> None:
        _run(kernel, spans, draw_spans, limits, *rows)

    assert isinstance(run, types.FunctionType)
    return run


def _run(
    kernel: Kernel,
    spans: Spans,
    draw_spans: Spans,
    limits: tuple[str, ...],
    numbers: torch.Tensor,
    draws: torch.Tensor | None,
    output: torch.Tensor,
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    ranks: Sequence[torch.Tensor],
    row_tensor: torch.Tensor,
    row_index: torch.Tensor,
    finite: torch.Tensor,
) -> None:
    columns = _columns(numbers, spans, row_tensor)
    drawn = {} if draws is None else _columns(draws, draw_spans, row_tensor)

    def kept(model: int) -> torch.Tensor:
        lane = torch.arange(WIDTH, dtype=torch.int32, device=output.device)
        index = row_index.unsqueeze(1) + lane
        number = random.draw(drawn["first"][model], drawn["second"][model], index)
        limit = drawn[limits[0]][model]
        if len(limits) > 1:
            other = drawn[limits[1]][model]
            limit = limit ^ ((limit ^ other) & spread(ranks[model]))
        # In place, eager PyTorch compares with vector instructions.
        mask = number <= limit if is_compiling() else number.le_(limit)
        return mask.to(torch.float32)

    merged = kernel(
        None if base is None else base.to(torch.float32),
        [model.to(torch.float32) for model in models],
        columns,
        kept,
    )
    rounded = merged.to(output.dtype)
    output.copy_(rounded)
    finite.copy_(_overflowing(rounded).mul(0.0).sum(dim=1))


def _overflowing(rounded: torch.Tensor) -> torch.Tensor:
    """Return numbers that are infinite in float32 exactly where the rounded ones are.

    The compiler leaves out the step to fewer bits and back, so that the numbers before rounding
    must overflow: from 65520 on in float16, from (2 − 2^-8)·2^127 on in bfloat16.
    """
    wide = rounded.to(torch.float32)
    if rounded.dtype == torch.float16:
        return wide.abs().mul_(2.0**112).add_(2.0**116)
    if rounded.dtype == torch.bfloat16:
        return wide * (1 + 2.0**-9 + 2.0**-18)
    return wide


def _columns(
    table: torch.Tensor, spans: Spans, row_tensor: torch.Tensor
) -> Mapping[str, list[torch.Tensor]]:
    settings = table[row_tensor]
    return {
        name: [settings[:, first + offset].unsqueeze(1) for offset in range(count)]
        for name, first, count in spans
    }


def spread(words: torch.Tensor) -> torch.Tensor:
    """Return the bits of int32 [rows, WORDS] as int32 [rows, WIDTH], 0 or −1.

    Bit k of word j belongs to element k·WORDS + j.
    """
    shift = 31 - torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(1) << shift.unsqueeze(1)) >> 31).reshape(-1, WIDTH)


def packed(bits: torch.Tensor) -> torch.Tensor:
    """Return booleans [rows, WIDTH] as int32 [rows, WORDS]; the inverse of `spread`."""
    shift = torch.arange(32, dtype=torch.int32, device=bits.device)
    planes = bits.view(-1, 32, WORDS).to(torch.int32) << shift.unsqueeze(1)
    return planes.sum(dim=1, dtype=torch.int32)
