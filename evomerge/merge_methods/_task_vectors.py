"""What the methods on task vectors share: parameters, sign consensus, normalization.

With δ_i the task vector of model i, sparsified, D_i = w_i δ_i and the divisor d, all of them write
base + λ Σ D_i / d; they differ in the sparsification and in whether signs are elected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.errors import CandidateError
from evomerge.merge_methods import Array, Columns, Parameter, Settings

if TYPE_CHECKING:
    import torch

TINY = 2.0**-126  # adds nothing to any weight that float32 can tell from zero

WEIGHT = Parameter(
    "weight", "model", "float", None, "factor of the model's task vector", search=(0.0, 1.5)
)
DENSITY = Parameter(
    "density", "model", "float", 1.0, "fraction of the task vector that is kept",
    low=0.0, high=1.0, low_open=True, search=(0.05, 1.0),
)  # fmt: skip
LAMBDA = Parameter(
    "lambda", "global", "float", 1.0, "factor of the merged task vector", search=(0.5, 1.5)
)
INT8_MASK = Parameter(
    "int8_mask", "global", "bool", False, "accepted for compatibility; has no effect"
)
GAMMA = Parameter(
    "gamma", "model", "float", 0.01, "fraction of the task vector's largest entries to drop",
    low=0.0, high=1.0,
)  # fmt: skip
EPSILON = Parameter(
    "epsilon", "model", "float", 0.15, "by how much the density varies with an entry's rank",
    low=0.0, high=0.5,
)  # fmt: skip
SEED = Parameter(
    "seed", "global", "int", 0, "seed of the random masks", low=0, high=2**32 - 1, own=True
)
RESCALE_BY_DENSITY = Parameter(
    "rescale_by_density", "global", "bool", False,
    "rescale by 1/density, as the paper does, instead of by the L1 norm", own=True,
)  # fmt: skip  # fmt: skip


def normalize(default: bool) -> Parameter:
    """Declare `normalize` with the method's default."""
    return Parameter("normalize", "global", "bool", default, "divide by the sum of the weights")


def rescale(default: bool) -> Parameter:
    """Declare `rescale` with the method's default."""
    return Parameter(
        "rescale", "global", "bool", default, "restore each task vector's L1 norm after trimming"
    )


def weighted_columns(
    settings: Settings, gain: Array, unweighted: Array | None = None
) -> dict[str, Array]:
    """Return the columns of a method with sign consensus; `gain` [M, T] rescales task vectors.

    Where `unweighted` [T] is set, the weights come after the election. Columns that would change
    nothing are left out, and the kernel with them.
    """
    weight = settings["weight"]
    gain = np.where(settings["rescale"] > 0, gain, 1.0)
    columns = {"factor": weight * gain, "lambda": settings["lambda"]}
    if unweighted is not None and unweighted.any():
        columns["factor"] = np.where(unweighted > 0, gain, weight * gain)
        columns["after"] = np.where(unweighted > 0, weight, 1.0)
    normalized = settings["normalize"] > 0
    if normalized.any():
        columns["weight"] = weight
        if not normalized.all():
            columns["normalize"] = settings["normalize"]
        if ((weight < 0).any(axis=0) & (weight > 0).any(axis=0)).any():
            columns["cancelling"] = np.ones_like(settings["lambda"])
    return columns


def summed_columns(settings: Settings, gain: Array | float = 1.0) -> dict[str, Array]:
    """Return the column of a method without sign consensus: λ w / d, and `gain` [M, T] with it."""
    weight = settings["weight"]
    total = weight.sum(axis=0)
    divisor = np.where((settings["normalize"] == 0) | (np.abs(total) < 1e-8), 1.0, total)
    return {"factor": weight / divisor * settings["lambda"] * gain}


def bernoulli_gain(settings: Settings) -> Array:
    """Return what rescales each task vector under its mask of DARE, [M, T]."""
    density = settings["density"]
    rescaled = settings["rescale"] > 0
    by_density = settings["rescale_by_density"] > 0
    gain = np.ones_like(density)
    if (rescaled & ~by_density).any():
        gain = settings.statistics.mask_rescale(density, settings.seed)
    return np.where(rescaled, np.where(by_density, 1.0 / density, gain), 1.0)


def ranked_columns(settings: Settings) -> tuple[dict[str, Array], Array]:
    """Return the probabilities of DELLA's masks, and what restores the L1 norm under them, [M, T].

    Raises CandidateError where density ± epsilon leaves (0, 1) and the density is not 1.
    """
    density, epsilon = settings["density"], settings["epsilon"]
    low, high = density - epsilon, density + epsilon
    wrong = (density < 1) & ((low <= 0) | (high >= 1))
    if wrong.any():
        model, tensor = np.argwhere(wrong)[0]
        raise CandidateError(
            f"expected density ± epsilon in (0, 1), got {density[model, tensor]:g} ± "
            f"{epsilon[model, tensor]:g} of model {model} for {settings.tensors[tensor]}"
        )
    whole = density >= 1
    chances = {"small": np.where(whole, 1.0, low), "large": np.where(whole, 1.0, high)}
    gain = np.ones_like(density)
    if settings["rescale"].any():
        gain = settings.statistics.mask_rescale(density, settings.seed, epsilon)
    return chances, np.where(settings["rescale"] > 0, gain, 1.0)


def band_columns(settings: Settings) -> tuple[dict[str, Array], Array]:
    """Return the bounds of the magnitudes that stay, and what restores the L1 norm, [M, T]."""
    least, largest, gain = settings.statistics.bands(settings["density"], settings["gamma"])
    bounds = {"least": least, "largest": largest}
    return bounds, np.where(settings["rescale"] > 0, gain, 1.0)


def within_band(delta: torch.Tensor, columns: Columns, index: int) -> torch.Tensor:
    """Return the entries of a task vector whose magnitude is within its bounds, 0 elsewhere."""
    magnitude = delta.abs()
    large = magnitude.clone().ge_(columns["least"][index])
    return delta * large.mul_(magnitude.le_(columns["largest"][index]))


def drop_and_sum(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Keep entries by the random masks, and add up what is kept: a kernel."""
    assert base is not None
    return add_to(base, _dropped(base, models, columns, kept))


def drop_and_elect(
    base: torch.Tensor | None,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Keep entries by the random masks, then merge by sign consensus: a kernel."""
    assert base is not None
    return elect_and_merge(base, _dropped(base, models, columns, kept), columns)


def _dropped(
    base: torch.Tensor,
    models: Sequence[torch.Tensor],
    columns: Columns,
    kept: Callable[[int], torch.Tensor],
) -> list[torch.Tensor]:
    """Return the weighted task vectors, 0 where the random mask is."""
    factor = columns["factor"]
    return [(model - base).mul_(kept(i)).mul_(factor[i]) for i, model in enumerate(models)]


def add_to(base: torch.Tensor, weighted: Sequence[torch.Tensor]) -> torch.Tensor:
    """Add up weighted task vectors first and the base last, so that no large terms cancel."""
    return base + add_up(weighted)


def add_up(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of tensors, in their order."""
    if len(terms) == 1:
        return terms[0]
    total = terms[0] + terms[1]
    for one in terms[2:]:
        total.add_(one)
    return total


def variance(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the population variance of each entry over the task vectors, in float32."""
    mean = add_up(deltas) / len(deltas)
    squares = [(delta - mean) * (delta - mean) for delta in deltas]
    return add_up(squares) / len(deltas)


def elect_and_merge(
    base: torch.Tensor, weighted: Sequence[torch.Tensor], columns: Columns
) -> torch.Tensor:
    """Merge weighted task vectors by sign consensus (TIES, arXiv:2306.01708, section 3, steps 2-3).

    The elected sign is + where Σ D ≥ 0; only entries of that sign count, zeros never do. Inputs and
    result are float32 [rows, width]; `weighted` is overwritten.
    """
    elected = signs(add_up(weighted))
    agreeing = [one.mul_(elected).relu_() for one in weighted]
    weights = columns.get("weight", ())
    shares = [where_positive(agreeing[i], weight) for i, weight in enumerate(weights)]
    if "after" in columns:
        agreeing = [one.mul_(columns["after"][index]) for index, one in enumerate(agreeing)]
    merged = add_up(agreeing)
    if shares:
        merged = merged / _usable(add_up(shares), columns)
    return elected.mul_(merged).mul_(columns["lambda"][0]).add_(base)


# Kernels run compiled and eagerly. Eager PyTorch has vector instructions for comparing floats in
# place and none for torch.where, which takes ten times as long; compiled, torch.where is the
# fastest. Both give the same numbers. What is made here is overwritten here, since an allocation
# costs eager PyTorch as much as the arithmetic.


def signs(votes: torch.Tensor) -> torch.Tensor:
    """Return 1 where a number is at least 0, and −1 elsewhere."""
    import torch

    if torch.compiler.is_compiling():
        return torch.where(votes >= 0.0, 1.0, -1.0)
    return votes.clone().ge_(0.0).mul_(2.0).sub_(1.0)


def where_positive(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return a value where a number is positive, and 0 elsewhere."""
    import torch

    if torch.compiler.is_compiling():
        return torch.where(x > 0.0, value, 0.0)
    return x.clone().gt_(0.0).mul_(value)


def _usable(divisor: torch.Tensor, columns: Columns) -> torch.Tensor:
    """Return a sum of weights with which to divide a sum of task vectors: 1 where it is 0."""
    if "normalize" in columns:
        switch = columns["normalize"][0]
        divisor = divisor * switch + (1.0 - switch)
    if "cancelling" in columns:
        return divisor + (divisor == 0.0).to(divisor.dtype)
    return divisor.add_(TINY)  # weights of one sign: where nothing agrees, 0 / TINY is 0
