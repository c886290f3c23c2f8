"""What the methods on task vectors share: parameters, sign consensus, normalization.

With δ_i the task vector of model i, sparsified, D_i = w_i δ_i and the divisor d, all of them write
base + λ Σ D_i / d; they differ in the sparsification and in whether signs are elected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from evomerge.merge_methods import Array, Columns, Parameter, Settings

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
SEED = Parameter("seed", "global", "int", 0, "seed of the random masks", low=0, high=2**32 - 1)


def normalize(default: bool) -> Parameter:
    """Declare `normalize` with the method's default."""
    return Parameter("normalize", "global", "bool", default, "divide by the sum of the weights")


def rescale(default: bool) -> Parameter:
    """Declare `rescale` with the method's default."""
    return Parameter(
        "rescale", "global", "bool", default, "restore each task vector's L1 norm after trimming"
    )


def weighted_columns(settings: Settings, gain: Array) -> dict[str, Array]:
    """Return the columns of a method with sign consensus; `gain` [M, T] rescales task vectors."""
    weight = settings["weight"]
    return {
        "weight": weight,
        "factor": weight * np.where(settings["rescale"] > 0, gain, 1.0),
        "lambda": settings["lambda"],
        "normalize": settings["normalize"],
    }


def summed_columns(settings: Settings, gain: Array | float = 1.0) -> dict[str, Array]:
    """Return the column of a method without sign consensus: λ w / d, and `gain` [M, T] with it."""
    weight = settings["weight"]
    total = weight.sum(axis=0)
    divisor = np.where((settings["normalize"] == 0) | (np.abs(total) < 1e-8), 1.0, total)
    return {"factor": weight / divisor * settings["lambda"] * gain}


def mask_gain(settings: Settings) -> Array:
    """Return what restores the L1 norm of each task vector under its random mask, [M, T]."""
    density = settings["density"]
    if not settings["rescale"].any():
        return np.ones_like(density)
    gain = settings.statistics.mask_rescale(density, settings.seed)
    return np.where(settings["rescale"] > 0, gain, 1.0)


def band_columns(settings: Settings) -> tuple[dict[str, Array], Array]:
    """Return the bounds of the magnitudes that stay, and what restores the L1 norm, [M, T]."""
    least, largest, gain = settings.statistics.bands(settings["density"], settings["gamma"])
    bounds = {"least": least, "largest": largest}
    return bounds, np.where(settings["rescale"] > 0, gain, 1.0)


def within_band(delta: torch.Tensor, columns: Columns, index: int) -> torch.Tensor:
    """Return the entries of a task vector whose magnitude is within its bounds, 0 elsewhere."""
    magnitude = delta.abs()
    kept = magnitude.clone().ge_(columns["least"][index]) * magnitude.le_(columns["largest"][index])
    return delta * kept


def dropped(
    base: torch.Tensor,
    models: Sequence[torch.Tensor],
    columns: Columns,
    uniform: Callable[[int], torch.Tensor],
) -> list[torch.Tensor]:
    """Return the weighted task vectors, 0 where an entry's random number reaches the density."""
    weighted = []
    for index, model in enumerate(models):
        kept = uniform(index).lt_(columns["density"][index])
        weighted.append((model - base) * kept * columns["factor"][index])
    return weighted


def add_to(base: torch.Tensor, weighted: Sequence[torch.Tensor]) -> torch.Tensor:
    """Add up weighted task vectors first and the base last, so that no large terms cancel."""
    return base + _sum(weighted)


def _sum(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    total = terms[0]
    for one in terms[1:]:
        total = total + one
    return total


def variance(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the population variance of each entry over the task vectors, in float32."""
    mean = _sum(deltas) / len(deltas)
    squares = [(delta - mean) * (delta - mean) for delta in deltas]
    return _sum(squares) / len(deltas)


def elect_and_merge(
    base: torch.Tensor, weighted: Sequence[torch.Tensor], columns: Columns
) -> torch.Tensor:
    """Merge weighted task vectors by sign consensus (TIES, arXiv:2306.01708, section 3, steps 2-3).

    The elected sign is + where Σ D ≥ 0; only entries of that sign count, zeros never do. Inputs and
    result are float32 [rows, width].
    """
    # Masks are factors 0.0 and 1.0, compared in place: eager PyTorch has vector instructions for
    # these and none for torch.where, which took ten times as long.
    total = _sum(weighted)
    elected = torch.copysign(torch.ones_like(total), total)  # a total of −0 has nothing to elect
    merged = torch.zeros_like(base)
    divisor = torch.zeros_like(base)
    for index, one in enumerate(weighted):
        agreeing = (one * elected).clamp_(min=0.0)
        merged = merged + agreeing
        divisor = divisor + agreeing.sign_() * columns["weight"][index]
    divisor = divisor * columns["normalize"][0]
    divisor = divisor + divisor.clone().eq_(0.0)
    return base + columns["lambda"][0] * (elected * merged / divisor)
