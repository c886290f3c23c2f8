"""Merging a tensor line by line: a plan for each of its rows or columns, as if it were a tensor.

Few methods ask for it (NuSLERP without flattening, Model Stock by filter, Arcee Fusion). What their
plans need to know of the models is measured once per tensor and kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merge_methods import Array, MergeMethod, Settings, Statistics
from evomerge.merger.measures import CHUNK
from evomerge.merger.order_statistics import ranked
from evomerge.merger.plan import checked

_EPS = 1e-8  # of a probability


@dataclass(frozen=True)
class Lines:
    """The inputs of one tensor, flat and where they lie, and how it falls into L lines."""

    base: torch.Tensor | None
    models: tuple[torch.Tensor, ...]
    shape: tuple[int, ...]
    by_column: bool
    device: torch.device

    @property
    def matrix(self) -> tuple[int, int]:
        """The tensor's shape as a matrix: of rows of the last dimension, or columns of the first.

        A vector is one line.
        """
        size = int(np.prod(self.shape, dtype=np.int64))
        if self.by_column:
            height = self.shape[0] if self.shape else 1
            return (height, size // max(height, 1)) if len(self.shape) > 1 else (size, 1)
        width = self.shape[-1] if self.shape else 1
        return size // max(width, 1), width

    @property
    def count(self) -> int:
        """The number of lines, L."""
        return self.matrix[1 if self.by_column else 0]

    def gram(self) -> Array:
        """Return the Gram matrices of the lines of the base, where there is one, and the models."""
        return self._gram_matrices

    def task_gram(self) -> Array:
        """Return the Gram matrices of the lines of the task vectors, or of the models."""
        return self._task_gram_matrices

    def importance(self) -> tuple[Array, Array]:
        """See merge_methods.Statistics."""
        return self._importance

    @cached_property
    def _gram_matrices(self) -> Array:
        return self._products(([] if self.base is None else [self.base]) + list(self.models), None)

    @cached_property
    def _task_gram_matrices(self) -> Array:
        return self._products(self.models, self.base)

    def _products(self, chosen: Sequence[torch.Tensor], base: torch.Tensor | None) -> Array:
        """Return inner products [L, N, N] of lines, or of their differences from the base's."""
        found = np.zeros((self.count, len(chosen), len(chosen)))
        for rows in self._steps():
            parts = [self._part(one, rows, torch.float64) for one in chosen]
            if base is not None:
                origin = self._part(base, rows, torch.float64)
                parts = [part - origin for part in parts]
            place = slice(None) if self.by_column else rows
            for i, one in enumerate(parts):
                for j, other in enumerate(parts):
                    products = (one * other).sum(dim=0 if self.by_column else 1)
                    found[place, i, j] += products.cpu().numpy()
        return found

    @cached_property
    def _importance(self) -> tuple[Array, Array]:
        assert self.base is not None
        base, model = self.base, self.models[0]
        divergence = np.zeros(self.count)
        for rows in self._steps():
            p = torch.softmax(self._part(model, rows, torch.float64), dim=1) + _EPS
            q = torch.softmax(self._part(base, rows, torch.float64), dim=1) + _EPS
            divergence[rows] = (p * torch.log(p / q)).sum(dim=1).clamp_(min=0.0).cpu().numpy()
        if not model.numel():
            return divergence, divergence
        factor = torch.from_numpy(divergence.astype(np.float32)).to(self.device)

        def products() -> Iterator[torch.Tensor]:
            for rows in self._steps():
                x, b = (self._part(one, rows, torch.float32) for one in (model, base))
                yield ((x - b).abs_() * factor[rows].unsqueeze(1)).reshape(-1)

        ranks = (np.array([0.25, 0.5, 0.75]) * (model.numel() - 1)).astype(np.int64)
        low, middle, high = ranked(products, model.numel(), ranks).values.astype(np.float64)
        return divergence, np.full(self.count, middle + 1.5 * (high - low))

    def plan(
        self, method: MergeMethod, values: Mapping[str, Array], name: str
    ) -> Mapping[str, Array]:
        """Return a method's columns, [L] or [M, L], for a tensor's settings, () or [M]."""
        repeated = {
            key: np.repeat(np.asarray(one)[..., None], self.count, axis=-1)
            for key, one in values.items()
        }
        statistics = cast(Statistics, self)  # of what such methods ask for
        return checked(method, Settings(repeated, statistics, [name] * self.count))

    def write(
        self, method: MergeMethod, planned: Mapping[str, Array], output: torch.Tensor
    ) -> bool:
        """Write the merged tensor into `output`, contiguous; returns whether it is finite."""
        columns = {
            name: [self._column(one) for one in np.atleast_2d(column)]
            for name, column in planned.items()
        }
        target = output.view(self.matrix)
        finite = True
        for rows in self._steps():
            merged = method.kernel(
                None if self.base is None else self._part(self.base, rows, torch.float32),
                [self._part(model, rows, torch.float32) for model in self.models],
                {
                    name: parts if self.by_column else [part[rows] for part in parts]
                    for name, parts in columns.items()
                },
                _no_masks,
            )
            target[rows] = merged.to(output.dtype)
            finite &= bool(torch.isfinite(target[rows]).all())
        return finite

    def _column(self, values: npt.NDArray[Any]) -> torch.Tensor:
        column = torch.from_numpy(np.float32(values)).to(self.device)
        return column.unsqueeze(0 if self.by_column else 1)

    def _steps(self) -> list[slice]:
        """Return the rows of the matrix, a bounded number of elements at a time."""
        rows, width = self.matrix
        step = max(1, CHUNK // max(width, 1))
        return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]

    def _part(self, flat: torch.Tensor, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        return flat.view(self.matrix)[rows].to(self.device).to(dtype)


def _no_masks(model: int) -> torch.Tensor:
    raise AssertionError("a method that merges line by line has no random masks")
