"""How the statistics of the inputs are measured, tensor by tensor, in a bounded workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evomerge.merge_methods import Array
from evomerge.merge_methods._task_vectors import variance
from evomerge.merger.layout import WIDTH
from evomerge.merger.order_statistics import at_rank, ranked

CHUNK = 1 << 18  # elements per step of a reduction: what a core keeps in its cache
_NO_MASS = 1e-7  # below this, a task vector is not rescaled


@dataclass(frozen=True)
class Source:
    """The inputs, as statistics read them.

    `flat(input, tensor)` gives a tensor's elements where they lie; `held[tensor]` are the inputs
    that have it.
    """

    flat: Callable[[int, int], torch.Tensor]
    tensors: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    held: Sequence[Sequence[int]]
    device: torch.device

    def common(self, inputs: Sequence[int]) -> list[int]:
        """Return the tensors that all of some inputs have."""
        return [t for t in range(len(self.tensors)) if set(inputs) <= set(self.held[t])]

    def size(self, tensor: int) -> int:
        """Return the number of a tensor's elements."""
        return int(np.prod(self.shapes[tensor], dtype=np.int64))

    def chunks(self, number: int, tensor: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield the elements of a tensor in flat parts, on the device."""
        whole = self.flat(number, tensor)
        for start in range(0, len(whole), CHUNK):
            yield whole[start : start + CHUNK].to(self.device).to(dtype)

    def deltas(self, base: int, model: int, tensor: int) -> Iterator[torch.Tensor]:
        """Yield the elements of a task vector in flat float32 parts, on the device."""
        parts = [self.chunks(number, tensor, torch.float32) for number in (model, base)]
        return (one - other for one, other in zip(*parts, strict=True))

    def magnitudes(self, base: int, model: int, tensor: int) -> Iterator[torch.Tensor]:
        """Yield the magnitudes of a task vector's elements in flat float32 parts."""
        return (delta.abs_() for delta in self.deltas(base, model, tensor))


def ratio(total: float, kept: Array) -> Array:
    """Return total / kept, 1 where either is nothing."""
    usable = (total >= _NO_MASS) & (kept >= _NO_MASS)
    return np.where(usable, total / np.where(usable, kept, 1.0), 1.0)


def inner(source: Source, one: int, other: int, base: int | None, tensor: int) -> float:
    """Return the inner product of two tensors, or of their task vectors, in float64."""
    total = 0.0
    numbers = (one, other) if base is None else (one, other, base)
    for left, right, *origin in zip(
        *(source.chunks(number, tensor, torch.float64) for number in numbers), strict=True
    ):
        product = (left - origin[0]) * (right - origin[0]) if origin else left * right
        # Sums of rows come out alike under any number of threads, a sum of everything does not.
        rows = torch.nn.functional.pad(product, (0, -len(product) % WIDTH)).view(-1, WIDTH)
        total += float(rows.sum(dim=1).cpu().numpy().sum())
    return total


def by_magnitude(
    source: Source, base: int, model: int, tensors: Sequence[int], densities: Array
) -> Array:
    """Return threshold and rescale, [K, 2], of trimming some tensors together."""

    def chunks() -> Iterator[torch.Tensor]:
        for tensor in tensors:
            yield from source.magnitudes(base, model, tensor)

    size = sum(map(source.size, tensors))
    if not size:
        return np.stack([densities * 0, densities * 0 + 1], axis=1)
    first = size - np.clip((densities * size).astype(np.int64), 1, size)
    found = ranked(chunks, size, first)
    return np.stack([found.values, ratio(found.total, found.total - found.below)], axis=1)


def threshold(source: Source, base: int, model: int, tensor: int, density: float) -> float:
    """Return the threshold of trimming a tensor, as `by_magnitude` does."""
    size = source.size(tensor)
    if not size:
        return 0.0
    rank = size - min(max(int(density * size), 1), size)
    return at_rank(lambda: source.magnitudes(base, model, tensor), size, rank)


def by_band(
    source: Source, base: int, model: int, tensor: int, densities: Array, gamma: float
) -> Array:
    """Return least, largest and rescale, [K, 3], of trimming a tensor at both ends."""
    size = source.size(tensor)
    if not size:
        return np.stack([densities * 0, densities * 0 - 1, densities * 0 + 1], axis=1)
    target = (densities * size).astype(np.int64)
    first = np.clip(size - target - int(gamma * size), 0, size - 1)
    end = np.maximum(first + 1, first + target)
    found = ranked(
        lambda: source.magnitudes(base, model, tensor), size, np.concatenate([first, end - 1, end])
    )
    least, largest, _ = np.split(found.values, 3)
    low, _, high = np.split(found.below, 3)
    nothing = target < 1
    gain = np.where(nothing, 1.0, ratio(found.total, high - low))
    return np.stack([least, np.where(nothing, -1.0, largest), gain], axis=1)


def by_variance(
    source: Source, base: int, models: tuple[int, ...], tensor: int, shares: Array
) -> Array:
    """Return the least variance that is selected and each model's mean δ² there, [K, 1 + M]."""

    def together() -> Iterator[tuple[torch.Tensor, ...]]:
        return zip(*(source.deltas(base, model, tensor) for model in models), strict=True)

    def spreads() -> Iterator[torch.Tensor]:
        return (variance(deltas) for deltas in together())

    size = source.size(tensor)
    unreached = float(np.finfo(np.float32).max)
    if not size:
        return np.stack([shares * 0 + unreached, *[shares * 0 for _ in models]], axis=1)
    nonzero = sum(int(torch.count_nonzero(spread)) for spread in spreads())
    count = np.where(shares >= 1, size, (shares * nonzero).astype(np.int64))
    last = ranked(spreads, size, size - np.maximum(count, 1))
    before = ranked(spreads, size, np.maximum(last.smaller - 1, 0)).values
    before = np.where(last.smaller > 0, before, np.float32(0))
    # Half way to the next, so that a device that rounds otherwise selects the same entries.
    middle = (last.values + before) / 2
    least = np.where(middle > before, middle, last.values)
    edges = np.unique(least)
    energy = np.zeros((len(models), len(edges) + 1))
    for deltas in together():
        bins = np.searchsorted(edges, variance(deltas).cpu().numpy(), side="right")
        for row, delta in enumerate(deltas):
            squares = delta.cpu().numpy().astype(np.float64) ** 2
            energy[row] += np.bincount(bins, weights=squares, minlength=len(edges) + 1)
    from_edge = energy[:, :0:-1].cumsum(axis=1)[:, ::-1] / size
    chosen = np.where(count < 1, 0.0, from_edge[:, np.searchsorted(edges, least)])
    return np.stack([np.where(count < 1, unreached, least), *chosen], axis=1)
