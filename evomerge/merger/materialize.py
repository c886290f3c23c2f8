"""One streaming pass that writes a candidate: a method's kernel over rows, fused or eager.

Both paths give the same bits on a CPU: the kernels are elementwise, float32 inside, and the
compiler neither contracts nor reorders their operations.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from evomerge.merge_methods import Kernel, MergeMethod
from evomerge.merger.layout import WIDTH, Block
from evomerge.merger.random import uniform

KernelChoice = Literal["auto", "fused", "eager"]
_EAGER_ROWS = 64  # rows a time for each thread: temporaries of 256 KiB stay in cache
_EAGER_ROWS_CUDA = 1 << 14  # fewer, larger launches
_WORTH_COMPILING = 50_000_000  # elements; below, compiling costs more than a whole study saves

Spans = tuple[tuple[str, int, int], ...]  # name, first column, number of columns
Run = Callable[..., None]


def fused_available(device: torch.device) -> bool:
    """Return whether torch.compile can be expected to work: a C++ compiler, or Triton on CUDA."""
    if device.type == "cuda":
        return torch.utils._triton.has_triton()
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))


def choose_kernel(choice: KernelChoice, elements: int, device: torch.device) -> bool:
    """Return whether to run the fused kernel for a model of `elements` elements."""
    if choice == "auto":
        return elements >= _WORTH_COMPILING and fused_available(device)
    return choice == "fused"


def compiler_failed(problem: Exception) -> bool:
    """Return whether an error is the compiler's: one without headers is found and does not work."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(problem, TorchDynamoException)


def write_block(
    method: MergeMethod,
    block: Block,
    output: torch.Tensor,
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    table: torch.Tensor,
    spans: Spans,
    keys: torch.Tensor | None,
    fused: bool,
) -> None:
    """Write one block of a candidate into `output` [rows, WIDTH].

    `table` is float32 [T, C], its columns named by `spans`; `keys` int32 [T, M, 2] seeds the masks
    of stochastic methods.
    """
    if fused:
        run = _compiled(method.kernel, spans, len(models))
        run(output, base, list(models), table, block.row_tensor, block.row_index, keys)
        return
    cuda = output.device.type == "cuda"
    step = _EAGER_ROWS_CUDA if cuda else _EAGER_ROWS * torch.get_num_threads()
    for start in range(0, block.rows, step):
        rows = slice(start, start + step)
        _run(
            method.kernel,
            spans,
            output[rows],
            None if base is None else base[rows],
            [model[rows] for model in models],
            table,
            block.row_tensor[rows],
            block.row_index[rows],
            keys,
        )


@functools.cache
def _compiled(kernel: Kernel, spans: Spans, models: int) -> Run:
    # One compilation per method and number of models; rows vary, so they are marked dynamic.
    compiled: Run = torch.compile(functools.partial(_run, kernel, spans), dynamic=True)
    return compiled


def _run(
    kernel: Kernel,
    spans: Spans,
    output: torch.Tensor,
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    table: torch.Tensor,
    row_tensor: torch.Tensor,
    row_index: torch.Tensor,
    keys: torch.Tensor | None,
) -> None:
    settings = table[row_tensor]
    columns: Mapping[str, list[torch.Tensor]] = {
        name: [settings[:, first + offset].unsqueeze(1) for offset in range(count)]
        for name, first, count in spans
    }
    lane = torch.arange(WIDTH, dtype=torch.int32, device=output.device)

    def numbers(model: int) -> torch.Tensor:
        assert keys is not None
        key = keys[row_tensor, model]
        return uniform(key[:, :1], key[:, 1:], row_index.unsqueeze(1) + lane)

    merged = kernel(
        None if base is None else base.to(torch.float32),
        [model.to(torch.float32) for model in models],
        columns,
        numbers,
    )
    output.copy_(merged)
