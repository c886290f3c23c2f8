"""Merge methods: one file each, found by its name.

A file holds one `METHOD`: what the method is called with, its plan (settings and statistics of all
tensors to a small table) and its kernel (the elementwise function that writes a candidate).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from evomerge import plugins
from evomerge.errors import Place

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]
Columns = Mapping[str, Sequence["torch.Tensor"]]


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a finite number that a float can hold, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


@dataclass(frozen=True)
class Parameter:
    """One parameter of a merge method: validation, search range and documentation in one.

    `default` None means that a recipe must give it. `low` and `high` bound what a recipe may say;
    `search` is the range that a search space takes where it names none. Bounds of a truth value
    single out the one that is supported.
    """

    name: str
    scope: Literal["global", "model"]
    kind: Literal["float", "int", "bool"]
    default: float | bool | None
    help: str
    low: float = -np.inf
    high: float = np.inf
    low_open: bool = False
    search: tuple[float, float] | None = None
    own: bool = False  # mergekit has no such key and ignores it

    @property
    def bounds(self) -> str:
        """The allowed values in words: `(0, 1]`, `a number`, `true or false`."""
        if self.kind == "bool":
            return "false" if self.high < 1 else "true" if self.low > 0 else "true or false"
        noun = "a whole number" if self.kind == "int" else "a number"
        if np.isinf(self.low) and np.isinf(self.high):
            return noun
        left = "(" if self.low_open or np.isinf(self.low) else "["
        right = ")" if np.isinf(self.high) else "]"
        low, high = (
            f"{end:.0f}" if self.kind == "int" else f"{end:g}" for end in (self.low, self.high)
        )
        return f"{noun} in {left}{low}, {high}{right}"

    def accepts(self, value: object) -> bool:
        """Return whether one scalar of a recipe is a legal value."""
        if self.kind == "bool":
            return isinstance(value, bool) and self.low <= value <= self.high
        if not is_number(value) or (self.kind == "int" and not isinstance(value, int)):
            return False
        low_ok = value > self.low if self.low_open else value >= self.low
        return low_ok and value <= self.high


class Statistics(Protocol):
    """What prepare knows of the inputs of one merge, for all T tensors at once.

    Index 0 of a Gram matrix is the base model where the method has one; task vectors are numbered
    as the recipe's models without the base.
    """

    def gram(self) -> Array:
        """Return the inner products of the flattened inputs, float64 [T, N, N]."""
        ...

    def task_gram(self) -> Array:
        """Return the inner products of the flattened task vectors, float64 [T, M, M].

        Where a recipe has no base, those of the models.
        """
        ...

    def thresholds(
        self, density: Array, whole_model: bool = False, gains: bool = True
    ) -> tuple[Array, Array]:
        """Return the k-th largest magnitude and Σ|δ| / Σ|δ of the k largest|, for each [M, T].

        k = max(1, int(density·n)), with n the size of the tensor, or of the whole model. Without
        `gains` the second may be anything.
        """
        ...

    def bands(self, density: Array, gamma: Array) -> tuple[Array, Array, Array]:
        """Return least magnitude, largest magnitude and Σ|δ| / Σ|kept δ| for each [M, T].

        What is kept are int(density·n) entries, the largest but for int(gamma·n) larger ones. Where
        that is nothing, the least magnitude is above the largest.
        """
        ...

    def selected(self, share: Array) -> tuple[Array, Array]:
        """Return the variance [T] from which entries are selected, and mean δ² of what is [M, T].

        The int(share·nonzero) entries of largest variance over the task vectors are selected, as
        _task_vectors.variance gives it, and all others equal to the last of them.
        """
        ...

    def mask_rescale(self, density: Array, seed: int, epsilon: Array | None = None) -> Array:
        """Return Σ|δ| / Σ|kept δ| under the random masks of `seed`, for each [M, T].

        With `epsilon` [T], the masks of DELLA, else those of DARE.
        """
        ...

    def importance(self) -> tuple[Array, Array]:
        """Return KL(softmax(x) | softmax(base)) of each row, and the threshold of |δ|·KL, [T] each.

        For the rows of a tensor alone; see arcee_fusion.
        """
        ...


@dataclass(frozen=True)
class Settings:
    """The resolved parameters of all T tensors of a merge with M models besides the base.

    A global parameter is an array [T], a model's parameter an array [M, T].
    """

    values: Mapping[str, Array]
    statistics: Statistics
    tensors: Sequence[str]
    seed: int = 0

    def __getitem__(self, name: str) -> Array:
        return self.values[name]


Plan = Callable[[Settings], Mapping[str, Array]]
Kernel = Callable[
    ["torch.Tensor | None", "Sequence[torch.Tensor]", Columns, "Callable[[int], torch.Tensor]"],
    "torch.Tensor",
]
WHOLE, ROWS, COLUMNS = 0, 1, 2


@dataclass(frozen=True)
class MergeMethod:
    """A merge method: declaration, plan and kernel.

    With `base` "optional", a recipe without a base model merges the models themselves.
    `plan` turns settings into columns, each an array [T] or [M, T].
    `kernel(base, models, columns, kept)` gets float32 tensors [rows, width], each column as a
    sequence of [rows, 1] tensors (one for a column [T], M for a column [M, T]) and `kept(i)`, the
    random mask of model i, float32 zeros and ones; it returns the merged float32 [rows, width]. It
    must be elementwise, so that any split into rows gives the same bits.
    `probabilities` names the columns [M, T] of the probability with which the mask is one: none for
    a method without masks; one as DARE has it; two as DELLA has it, of the smallest and of the
    largest entry in a row of the task vector, and between them by rank.
    `along(settings)` says for each tensor [T] whether one plan serves it WHOLE or whether each of
    its ROWS (of its last dimension; a vector is one row) or COLUMNS is planned as if it were a
    tensor. Rows and columns are merged eagerly.
    """

    paper: str
    equation: str
    parameters: tuple[Parameter, ...]
    base: Literal["required", "optional", "unused"]
    plan: Plan
    kernel: Kernel
    minimum: int = 1  # number of models, the base not counted
    maximum: int | None = None
    probabilities: tuple[str, ...] = ()
    along: Callable[[Settings], Array] | None = None

    @property
    def stochastic(self) -> bool:
        """Whether the method draws random masks."""
        return bool(self.probabilities)

    def parameter(self, name: str) -> Parameter | None:
        """Return the declaration of a parameter, or None where the method has none so called."""
        return next((found for found in self.parameters if found.name == name), None)


def get(name: object, place: Place) -> MergeMethod:
    """Return the merge method of a name; raises the place's error, with the nearest right name."""
    module = plugins.load(__name__, name, "merge method", place)
    method: MergeMethod = module.METHOD
    return method
