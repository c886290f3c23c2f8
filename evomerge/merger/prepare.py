"""Statistics of the inputs that no candidate computes again: Gram matrices, order statistics.

Each is computed when a plan first asks for it and kept for the life of the merger. Thresholds and
kept masses are known for every density on a grid of 0.01 after one sort of a task vector; a density
off the grid costs one selection in the tensors that use it. A statistic depends on the tensors that
it is of and on nothing else: not on the other inputs, the order of loading or the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merge_methods import Array
from evomerge.merge_methods._task_vectors import variance
from evomerge.merger.layout import WIDTH
from evomerge.merger.random import keys, uniform

STEP = 100  # densities per unit on the grid
GRID: Array = np.arange(1, STEP + 1) / STEP
_CHUNK = 1 << 22  # elements per step of a reduction: bounds the workspace
_NO_MASS = 1e-7  # below this, a task vector is not rescaled

Vector = npt.NDArray[np.float32]
Read = Callable[[int, int], torch.Tensor]  # (input, tensor) → its elements, flat, storage dtype


@dataclass
class InputStatistics:
    """Statistics of inputs with T tensors, computed on demand."""

    read: Read
    tensors: Sequence[str]
    _inner: dict[tuple[int, int, int | None], Array] = field(default_factory=dict)
    _lookup: dict[tuple[object, ...], tuple[float, ...]] = field(default_factory=dict)
    _sorted: set[tuple[object, ...]] = field(default_factory=set)

    def inner(self, one: int, other: int, base: int | None = None) -> Array:
        """Return the inner products of two inputs' flattened tensors, float64 [T].

        With `base` those of their task vectors, which no difference of inner products gives as
        exactly.
        """
        key = (min(one, other), max(one, other), base)
        if key not in self._inner:
            self._inner[key] = np.array([self._product(*key, t) for t in range(len(self.tensors))])
        return self._inner[key]

    def _product(self, one: int, other: int, base: int | None, tensor: int) -> float:
        origin = None if base is None else self.read(base, tensor)
        return _inner(self.read(one, tensor), self.read(other, tensor), origin)

    def magnitude(self, base: int, model: int, tensor: int, density: float) -> tuple[float, ...]:
        """Return (threshold, rescale) of keeping the int(density·n) largest magnitudes."""
        return self._find("magnitude", (base, model, tensor), density, self._by_magnitude)

    def band(
        self, base: int, model: int, tensor: int, density: float, gamma: float
    ) -> tuple[float, ...]:
        """Return (least, largest, rescale) of keeping int(density·n) below the int(gamma·n) top."""

        def measure(where: tuple[int, int, int], densities: Array) -> Array:
            return self._by_band(where, densities, gamma)

        return self._find(("band", gamma), (base, model, tensor), density, measure)

    def selected(
        self, base: int, models: tuple[int, ...], tensor: int, share: float
    ) -> tuple[float, ...]:
        """Return the variance over the models to select from, and each model's mean δ²."""

        def measure(where: tuple[int, int, int], shares: Array) -> Array:
            return self._by_variance(where[0], models, where[2], shares)

        return self._find(("variance", models), (base, models[0], tensor), share, measure)

    def mask(
        self, base: int, model: int, tensor: int, density: float, seed: int, position: int
    ) -> tuple[float, ...]:
        """Return (density, rescale) of the Bernoulli mask of the model at `position`."""

        def measure(where: tuple[int, int, int], densities: Array) -> Array:
            return self._by_mask(where, densities, seed, position)

        return self._find(("mask", seed, position), (base, model, tensor), density, measure)

    def _find(
        self,
        kind: object,
        where: tuple[int, int, int],
        density: float,
        measure: Callable[[tuple[int, int, int], Array], Array],
    ) -> tuple[float, ...]:
        found = self._lookup.get((kind, where, density))
        if found is None:
            on_grid = density in GRID and (kind, where) not in self._sorted
            densities = GRID if on_grid else np.array([density])
            if on_grid:
                self._sorted.add((kind, where))
            for one, values in zip(densities, measure(where, densities), strict=True):
                self._lookup[kind, where, float(one)] = tuple(map(float, values))
            found = self._lookup[kind, where, density]
        return found

    def _magnitudes(self, where: tuple[int, int, int]) -> Vector:
        base, model, tensor = where
        delta = self.read(model, tensor).float() - self.read(base, tensor).float()
        return delta.abs_().cpu().numpy()

    def _by_magnitude(self, where: tuple[int, int, int], densities: Array) -> Array:
        magnitudes = self._magnitudes(where)
        size = len(magnitudes)
        if not size:
            return np.stack([densities * 0, densities * 0 + 1], axis=1)
        first = size - np.clip((densities * size).astype(np.int64), 1, size)
        if len(densities) > 1:
            magnitudes.sort()
        else:
            magnitudes.partition(first)
        below = np.concatenate([[0.0], np.cumsum(magnitudes, dtype=np.float64)])
        return np.stack([magnitudes[first], _ratio(below[-1], below[-1] - below[first])], axis=1)

    def _by_band(self, where: tuple[int, int, int], densities: Array, gamma: float) -> Array:
        magnitudes = self._magnitudes(where)
        size = len(magnitudes)
        if not size:
            return np.stack([densities * 0, densities * 0 - 1, densities * 0 + 1], axis=1)
        target = (densities * size).astype(np.int64)
        nothing = target < 1
        first = np.clip(size - target - int(gamma * size), 0, size - 1)
        last = np.maximum(first, first + target - 1)
        if len(densities) > 1:
            magnitudes.sort()
        else:
            magnitudes.partition([first[0], last[0]])
        below = np.concatenate([[0.0], np.cumsum(magnitudes, dtype=np.float64)])
        gain = np.where(nothing, 1.0, _ratio(below[-1], below[last + 1] - below[first]))
        largest = np.where(nothing, -1.0, magnitudes[last])
        return np.stack([magnitudes[first], largest, gain], axis=1)

    def _by_variance(self, base: int, models: tuple[int, ...], tensor: int, shares: Array) -> Array:
        origin = self.read(base, tensor).float()
        deltas = [self.read(model, tensor).float() - origin for model in models]
        spread = variance(deltas).cpu().numpy()
        size = len(spread)
        order = np.argsort(-spread, kind="stable")
        falling = -spread[order]
        count = (shares * np.count_nonzero(spread)).astype(np.int64)
        count = np.where(shares >= 1, size, count)
        none = count < 1
        last = falling[np.maximum(count, 1) - 1] if size else np.zeros(len(shares), np.float32)
        end = np.where(none, 0, np.searchsorted(falling, last, side="right"))
        # Half way to the next, so that a device that rounds otherwise selects the same entries.
        following = np.append(falling, np.float32(0))[end]
        middle = (last + following) / 2
        least = np.where(middle < following, middle, last)
        columns = [np.where(none, float(np.finfo(np.float32).max), np.abs(least))]
        for delta in deltas:
            squares = delta.cpu().numpy()[order].astype(np.float64) ** 2
            columns.append(np.concatenate([[0.0], np.cumsum(squares)])[end] / max(size, 1))
        return np.stack(columns, axis=1)

    def _by_mask(
        self, where: tuple[int, int, int], densities: Array, seed: int, position: int
    ) -> Array:
        base, model, tensor = where
        x, b = self.read(model, tensor), self.read(base, tensor)
        key = torch.from_numpy(keys(seed, position + 1, [self.tensors[tensor]])[0, position])
        first, second = key.to(x.device)
        edges = densities.astype(np.float32)
        mass = np.zeros(len(edges) + 1)
        for start in range(0, len(x), _CHUNK):
            delta = x[start : start + _CHUNK].float() - b[start : start + _CHUNK].float()
            index = torch.arange(start, start + len(delta), dtype=torch.int32, device=x.device)
            drawn = uniform(first, second, index).cpu().numpy()
            bins = np.searchsorted(edges, drawn, side="right")
            weights = delta.abs_().cpu().numpy().astype(np.float64)
            mass += np.bincount(bins, weights=weights, minlength=len(mass))
        return np.stack([densities, _ratio(mass.sum(), np.cumsum(mass)[:-1])], axis=1)


def _inner(one: torch.Tensor, other: torch.Tensor, base: torch.Tensor | None) -> float:
    total = 0.0
    for start in range(0, len(one), _CHUNK):
        part = slice(start, start + _CHUNK)
        left, right = one[part].double(), other[part].double()
        if base is not None:
            left, right = left - base[part].double(), right - base[part].double()
        products = left * right
        # Sums of rows come out alike under any number of threads, a sum of everything does not.
        rows = torch.nn.functional.pad(products, (0, -len(products) % WIDTH)).view(-1, WIDTH)
        total += float(rows.sum(dim=1).cpu().numpy().sum())
    return total


def _ratio(total: float, kept: Array) -> Array:
    usable = (total >= _NO_MASS) & (kept >= _NO_MASS)
    return np.where(usable, total / np.where(usable, kept, 1.0), 1.0)


@dataclass(frozen=True)
class Selected:
    """The statistics of some inputs in the order of a recipe; see merge_methods.Statistics."""

    source: InputStatistics
    base: int | None
    models: tuple[int, ...]

    def gram(self) -> Array:
        """Return the Gram matrices of the base, where there is one, and the models."""
        return self._gram(([] if self.base is None else [self.base]) + list(self.models), None)

    def task_gram(self) -> Array:
        """Return the Gram matrices of the task vectors, or of the models where there is no base."""
        return self._gram(self.models, self.base)

    def _gram(self, chosen: Sequence[int], base: int | None) -> Array:
        found = np.empty((len(self.source.tensors), len(chosen), len(chosen)))
        for row, one in enumerate(chosen):
            for column, other in enumerate(chosen):
                found[:, row, column] = self.source.inner(one, other, base)
        return found

    def thresholds(self, density: Array) -> Array:
        """Look up the thresholds of trimming by magnitude."""
        return self._magnitude(density)[..., 0]

    def magnitude_rescale(self, density: Array) -> Array:
        """Look up the rescaling of trimming by magnitude."""
        return self._magnitude(density)[..., 1]

    def _magnitude(self, density: Array) -> Array:
        def find(model: int, tensor: int, value: float) -> tuple[float, ...]:
            assert self.base is not None
            return self.source.magnitude(self.base, self.models[model], tensor, value)

        return self._each(density, find, (0.0, 1.0))

    def bands(self, density: Array, gamma: Array) -> tuple[Array, Array, Array]:
        """Look up the bounds and the rescaling of trimming at both ends."""

        def find(model: int, tensor: int, value: float) -> tuple[float, ...]:
            assert self.base is not None
            chosen, top = self.models[model], float(gamma[model, tensor])
            return self.source.band(self.base, chosen, tensor, value, top)

        found = self._each(density, find, (0.0, float(np.finfo(np.float32).max), 1.0))
        return found[..., 0], found[..., 1], found[..., 2]

    def selected(self, share: Array) -> tuple[Array, Array]:
        """Look up the threshold of selecting by variance, and the energy that it leaves."""
        assert self.base is not None
        found = np.array(
            [
                self.source.selected(self.base, self.models, tensor, float(value))
                for tensor, value in enumerate(share)
            ]
        )
        return found[:, 0], found[:, 1:].T

    def mask_rescale(self, density: Array, seed: int) -> Array:
        """Look up the rescaling of dropping at random."""

        def find(model: int, tensor: int, value: float) -> tuple[float, ...]:
            assert self.base is not None
            chosen = self.models[model]
            return self.source.mask(self.base, chosen, tensor, value, seed, model)

        return self._each(density, find, (0.0, 1.0))[..., 1]

    def _each(
        self,
        density: Array,
        find: Callable[[int, int, float], tuple[float, ...]],
        everything: tuple[float, ...],
    ) -> Array:
        found = np.empty((*density.shape, len(everything)))
        for (model, tensor), value in np.ndenumerate(density):
            # Everything is kept at density 1, which needs no statistics.
            found[model, tensor] = everything if value >= 1 else find(model, tensor, float(value))
        return found
