"""Statistics of the inputs that no candidate computes again, on demand and by content.

Each is computed when a plan first asks for it, kept for the life of the merger, and on disk by the
content of the models. Thresholds and kept masses are known for every density on a grid of 0.01; a
density off the grid costs one more pass over the tensors that use it. A statistic depends on the
tensors that it is of and on nothing else: not on the other inputs, the order of loading or the
threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merge_methods import Array
from evomerge.merger import masks, measures
from evomerge.merger.cache import Arrays, Cache
from evomerge.merger.measures import Source

STEP = 100  # densities per unit on the grid
GRID: Array = np.arange(1, STEP + 1) / STEP

Integers = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
Measure = Callable[[int, Array], Array]  # (tensor, densities [K]) → [K, width]


@dataclass
class InputStatistics:
    """Statistics of inputs with T tensors.

    `digest(input, tensor)` is a hash of a tensor's content, by which `cache` keeps the statistics.
    With `once`, what one recipe needs is not measured for others too, where that takes less time.
    """

    source: Source
    digest: Callable[[int, int], str]
    cache: Cache
    progress: Progress
    once: bool = False
    _known: dict[str, Arrays] = field(default_factory=dict)
    _single: dict[tuple[str, int, float], Array] = field(default_factory=dict)

    def _kept(
        self,
        kind: str,
        inputs: Sequence[int],
        compute: Callable[[Sequence[int]], Arrays],
        in_memory: bool = True,
    ) -> Arrays:
        """Return what `compute(tensors)` gives for all tensors that the inputs have.

        `kind` says in words all that the numbers depend on beside the inputs.
        """
        key = f"{kind} of {inputs}"
        if key in self._known:
            return self._known[key]
        tensors = self.source.common(inputs)
        lines = [f"{len(self.source.tensors)} tensors"]
        for t in tensors:
            digests = [self.digest(one, t) for one in inputs]
            lines.append(" ".join([str(t), self.source.tensors[t], *digests]))
        content = "\n".join(lines)
        found = self.cache.load(kind, content)
        if found is None:
            found = compute(tensors)
            self.cache.save(kind, content, found)
        if in_memory:
            self._known[key] = found
        return found

    def _table(
        self, kind: str, inputs: Sequence[int], measure: Callable[[int], Array], width: int
    ) -> Array:
        """Return `measure(tensor)` [width] for every tensor, as [T, width]."""

        def compute(tensors: Sequence[int]) -> Arrays:
            table = np.full((len(self.source.tensors), width), np.nan)
            for done, tensor in enumerate(tensors):
                self.progress(f"preparing: {kind}", done, len(tensors))
                table[tensor] = measure(tensor)
            self.progress(f"preparing: {kind}", len(tensors), len(tensors))
            return {"table": table}

        return self._kept(kind, inputs, compute)["table"]

    def _by_density(
        self, kind: str, inputs: Sequence[int], measure: Measure, tensors: Integers,
        densities: Array, width: int,
    ) -> Array:  # fmt: skip
        """Return what `measure` says of tensors at densities [K] of their own, as [K, width].

        From the grid where they are on it.
        """
        found = np.empty((len(tensors), width))
        place = np.clip(np.rint(densities * STEP).astype(np.int64) - 1, 0, STEP - 1)
        on_grid = GRID[place] == densities
        if on_grid.any():
            flat = self._table(
                kind, inputs, lambda one: measure(one, GRID).reshape(-1), STEP * width
            )
            table = flat.reshape(-1, STEP, width)
            found[on_grid] = table[tensors[on_grid], place[on_grid]]
        for index in np.flatnonzero(~on_grid):
            key = (f"{kind} of {inputs}", int(tensors[index]), float(densities[index]))
            if key not in self._single:
                self._single[key] = measure(key[1], densities[index : index + 1])[0]
            found[index] = self._single[key]
        return found

    def inner(self, one: int, other: int, base: int | None = None) -> Array:
        """Return the inner products of two inputs' flattened tensors, float64 [T].

        With `base` those of their task vectors, which no difference of inner products gives as
        exactly.
        """
        first, second = min(one, other), max(one, other)
        inputs = (first, second) if base is None else (first, second, base)
        what = "inner products" if base is None else "inner products of task vectors"

        def measure(tensor: int) -> Array:
            return np.array([measures.inner(self.source, first, second, base, tensor)])

        return self._table(what, inputs, measure, 1)[:, 0]

    def magnitude(self, base: int, model: int, tensors: Integers, densities: Array) -> Array:
        """Return (threshold, rescale) of keeping the int(density·n) largest magnitudes, [K, 2]."""

        def measure(one: int, densities: Array) -> Array:
            return measures.by_magnitude(self.source, base, model, [one], densities)

        return self._by_density("thresholds", (base, model), measure, tensors, densities, 2)

    def threshold(self, base: int, model: int, tensors: Integers, densities: Array) -> Array:
        """Return the threshold alone, of one density each, [K]; nothing of it is kept."""
        found = np.empty(len(tensors))
        what = f"preparing: thresholds of model {model}"
        for index, (tensor, density) in enumerate(zip(tensors, densities, strict=True)):
            self.progress(what, index, len(tensors))
            found[index] = measures.threshold(self.source, base, model, int(tensor), float(density))
        self.progress(what, len(tensors), len(tensors))
        return found

    def magnitude_of_model(self, base: int, model: int, densities: Array) -> Array:
        """Return (threshold, rescale) of keeping the largest magnitudes of the whole model."""
        kind = "model thresholds"
        found = np.empty((len(densities), 2))
        for density in np.unique(densities):
            place = round(density * STEP) - 1
            grid = GRID if 0 <= place < STEP and GRID[place] == density else np.array([density])

            def compute(tensors: Sequence[int], grid: Array = grid) -> Arrays:
                self.progress(f"preparing: {kind}", 0, 1)
                table = measures.by_magnitude(self.source, base, model, tensors, grid)
                self.progress(f"preparing: {kind}", 1, 1)
                return {"table": table}

            own = kind if len(grid) > 1 else f"{kind} at {density!r}"
            table = self._kept(own, (base, model), compute)["table"]
            found[densities == density] = table[place if len(grid) > 1 else 0]
        return found

    def band(
        self, base: int, model: int, tensors: Integers, densities: Array, gamma: float
    ) -> Array:
        """Return (least, largest, rescale) of keeping int(density·n) below the int(gamma·n) top."""

        def measure(one: int, densities: Array) -> Array:
            return measures.by_band(self.source, base, model, one, densities, gamma)

        kind = f"bands {gamma!r}"
        return self._by_density(kind, (base, model), measure, tensors, densities, 3)

    def selected(
        self, base: int, models: tuple[int, ...], tensors: Integers, shares: Array
    ) -> Array:
        """Return the variance over the models to select from, and each model's mean δ²."""

        def measure(one: int, shares: Array) -> Array:
            return measures.by_variance(self.source, base, models, one, shares)

        width = 1 + len(models)
        return self._by_density("variances", (base, *models), measure, tensors, shares, width)

    def mask(
        self, base: int, model: int, tensors: Integers, densities: Array, seed: int,
        position: int, epsilon: float | None,
    ) -> Array:  # fmt: skip
        """Return what restores the L1 norm under the random mask of the model at `position`, [K].

        The mask is DARE's, or DELLA's where there is an `epsilon`.
        """
        bits = functools.cache(lambda: self.ranks(base, model, seed, position))

        def measure(one: int, densities: Array) -> Array:
            words = None if epsilon is None else torch.from_numpy(bits()[str(one)])
            stream = masks.Stream(seed, position, self.source.tensors[one])
            return masks.rescale(self.source, base, model, one, stream, densities, words, epsilon)

        what = "" if epsilon is None else f" by rank {epsilon!r}"
        kind = f"masks {seed} {position}{what}"
        return self._by_density(kind, (base, model), measure, tensors, densities, 1)[:, 0]

    def ranks(self, base: int, model: int, seed: int, position: int) -> Arrays:
        """Return a random bit of each element, one with its rank in its row as probability.

        By the tensor's number in words: int32 [rows, WORDS] for the rows of its layout.
        """
        kind = f"ranks {seed} {position}"

        def compute(tensors: Sequence[int]) -> Arrays:
            found = {}
            for done, tensor in enumerate(tensors):
                self.progress(f"preparing: {kind}", done, len(tensors))
                stream = masks.Stream(seed, position, self.source.tensors[tensor])
                found[str(tensor)] = masks.rank_bits(self.source, base, model, tensor, stream)
            self.progress(f"preparing: {kind}", len(tensors), len(tensors))
            return found

        return self._kept(kind, (base, model), compute, in_memory=False)
