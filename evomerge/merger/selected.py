"""The statistics of some inputs in the order of a recipe, as plans ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.merge_methods import Array
from evomerge.merger.prepare import InputStatistics, Integers


@dataclass(frozen=True)
class Selected:
    """See merge_methods.Statistics.

    `positions` number the models in the recipe, which not all of its models need to share with the
    T `tensors`.
    """

    source: InputStatistics
    base: int | None
    models: tuple[int, ...]
    positions: tuple[int, ...]
    tensors: tuple[int, ...]

    def gram(self) -> Array:
        """Return the Gram matrices of the base, where there is one, and the models."""
        return self._gram(([] if self.base is None else [self.base]) + list(self.models), None)

    def task_gram(self) -> Array:
        """Return the Gram matrices of the task vectors, or of the models where there is no base."""
        return self._gram(self.models, self.base)

    def _gram(self, chosen: Sequence[int], base: int | None) -> Array:
        found = np.empty((len(self.tensors), len(chosen), len(chosen)))
        for row, one in enumerate(chosen):
            for column, other in enumerate(chosen):
                products = self.source.inner(one, other, base)
                found[:, row, column] = products[list(self.tensors)]
        return found

    def thresholds(
        self, density: Array, whole_model: bool = False, gains: bool = True
    ) -> tuple[Array, Array]:
        """Look up the thresholds and the rescaling of trimming by magnitude."""
        if self.source.once and not whole_model and not gains:
            return self._each(density, None, self._threshold, (0.0,))[0], np.ones_like(density)

        def find(base: int, at: int, tensors: Integers, values: Array) -> Array:
            if whole_model:
                return self.source.magnitude_of_model(base, self.models[at], values)
            return self.source.magnitude(base, self.models[at], tensors, values)

        least, gain = self._each(density, None, find, (0.0, 1.0))
        return least, gain

    def _threshold(self, base: int, at: int, tensors: Integers, values: Array) -> Array:
        return self.source.threshold(base, self.models[at], tensors, values)[:, None]

    def bands(self, density: Array, gamma: Array) -> tuple[Array, Array, Array]:
        """Look up the bounds and the rescaling of trimming at both ends."""

        def find(base: int, at: int, tensors: Integers, values: Array, top: float) -> Array:
            return self.source.band(base, self.models[at], tensors, values, top)

        everything = (0.0, float(np.finfo(np.float32).max), 1.0)
        least, largest, gain = self._each(density, gamma, find, everything)
        return least, largest, gain

    def selected(self, share: Array) -> tuple[Array, Array]:
        """Look up the threshold of selecting by variance, and the energy that it leaves."""
        assert self.base is not None
        found = self.source.selected(self.base, self.models, np.array(self.tensors), share)
        return found[:, 0], found[:, 1:].T

    def mask_rescale(self, density: Array, seed: int, epsilon: Array | None = None) -> Array:
        """Look up the rescaling of dropping at random."""

        def find(
            base: int, at: int, tensors: Integers, values: Array, by_rank: float | None = None
        ) -> Array:
            model, position = self.models[at], self.positions[at]
            found = self.source.mask(base, model, tensors, values, seed, position, by_rank)
            return found[:, None]

        return self._each(density, epsilon, find, (1.0,))[0]

    def importance(self) -> tuple[Array, Array]:
        """Is known of the rows of a tensor alone."""
        raise NotImplementedError

    def _each(
        self,
        density: Array,
        beside: Array | None,
        find: Callable[..., Array],
        everything: tuple[float, ...],
    ) -> list[Array]:
        """Look values up for each [M, T], and return each of them as [M, T].

        `find` gets one model, the tensors with a density below 1 and, where there is `beside`
        [M, T], one value of it.
        """
        assert self.base is not None
        found = np.empty((*density.shape, len(everything)))
        tensors = np.array(self.tensors)
        for at, values in enumerate(density):
            found[at] = everything  # all is kept at density 1, which needs no statistics
            parts = values < 1
            if beside is None:
                if parts.any():
                    found[at, parts] = find(self.base, at, tensors[parts], values[parts])
                continue
            for one in np.unique(beside[at, parts]):
                chosen = parts & (beside[at] == one)
                found[at, chosen] = find(self.base, at, tensors[chosen], values[chosen], float(one))
        return list(np.moveaxis(found, 2, 0))
