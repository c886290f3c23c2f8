"""The merge methods once more, in float64 and straight from their formulas."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merger import random
from evomerge.recipe import Recipe, resolve
from tests.reference_sphere import WEIGHTED_SUMS
from tests.tiny_models import Tensors

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Expected:
    """What a merge must give, [elements] each.

    `scale` is what rounding errors are measured by: the largest input, or the sum of the terms'
    magnitudes where that is more. `open` marks entries that two right merges may decide
    differently: equal magnitudes at the threshold, and opposite terms that cancel but for rounding.
    """

    value: Array
    scale: Array
    open: Mask


def expected(recipe: Recipe, inputs: Mapping[str, Tensors]) -> dict[str, Expected]:
    """Return the float64 merge of a recipe; `inputs` by the text of their reference."""
    names = sorted(next(iter(inputs.values())))
    settings = resolve(recipe, names)
    found = {}
    for index, name in enumerate(names):
        own = {key: column[..., index] for key, column in settings.items()}
        base = _flat(inputs[str(recipe.base)][name]) if recipe.base else None
        models = [_flat(inputs[str(entry.model)][name]) for entry in recipe.entries]
        found[name] = _merge(recipe.merge_method, base, models, own, name)
    return found


def _flat(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return tensor.float().reshape(-1).numpy()


def _merge(
    method: str,
    base: npt.NDArray[np.float32] | None,
    models: Sequence[npt.NDArray[np.float32]],
    own: Mapping[str, Array],
    name: str,
) -> Expected:
    inputs = np.stack([*([] if base is None else [base]), *models])
    exact = [model.astype(float) for model in models]
    if method in WEIGHTED_SUMS:
        origin = None if base is None else base.astype(float)
        vectors = exact if origin is None else [one - origin for one in exact]
        terms = list(WEIGHTED_SUMS[method](vectors, own))
        return _sum(np.stack(terms if origin is None else [origin, *terms]), inputs)
    if method == "linear":
        terms = [model * w for model, w in zip(exact, own["weight"], strict=True)]
        divisor = own["weight"].sum() if own["normalize"] else 1.0
        return _sum(np.stack(terms) / divisor, inputs)
    assert base is not None
    if method == "slerp":
        return _slerp(base.astype(float), exact[0], float(own["t"]), inputs)
    if method == "nearswap":
        share = np.clip(own["t"] / np.maximum(np.abs(exact[0] - base), 1e-6), 0, 1)
        return _sum(np.stack([share * exact[0], (1 - share) * base]), inputs)
    deltas = [model - base for model in models]  # float32: thresholds are exact in it
    if method == "sce":
        return _sce(base, deltas, float(own["select_topk"]), inputs)
    kept, equal, mass = _sparsify(method, deltas, own, name)
    consensus = method.endswith("ties")
    return _task_vectors(base, deltas, kept, equal, mass, own, inputs, consensus)


def _sparsify(
    method: str, deltas: Sequence[npt.NDArray[np.float32]], own: Mapping[str, Array], name: str
) -> tuple[Mask, Mask, Array]:
    """Return what is kept, entries equal to a bound that not all of them pass, the mass kept."""
    found = []
    for position, delta in enumerate(deltas):
        density = float(own["density"][position]) if "density" in own else 1.0
        if method.startswith("breadcrumbs"):
            gamma = float(own["gamma"][position])
            found.append(band(delta, density, gamma))
        elif method.startswith("dare"):
            drawn = uniform(int(own["seed"]), position, len(deltas), name, len(delta))
            kept = drawn < np.float32(density)
            mass = float(np.abs(delta[kept]).sum(dtype=float))
            found.append((kept, np.zeros_like(kept), mass))
        else:
            found.append(trim(delta, density))
    kept, equal, mass = zip(*found, strict=True)
    return np.stack(kept), np.stack(equal), np.array(mass)


def uniform(
    seed: int, model: int, models: int, name: str, elements: int
) -> npt.NDArray[np.float32]:
    """Return the numbers in [0, 1) that decide on a tensor's mask."""
    key = torch.from_numpy(random.keys(seed, models, [name])[0, model])
    index = torch.arange(elements, dtype=torch.int32)
    drawn: npt.NDArray[np.float32] = random.uniform(key[0], key[1], index).numpy()
    return drawn


def trim(delta: npt.NDArray[np.float32], density: float) -> tuple[Mask, Mask, float]:
    """Keep the largest magnitudes, at least one."""
    if density >= 1:
        return _between(delta, 0, len(delta))
    count = max(1, int(density * len(delta)))
    return _between(delta, len(delta) - count, len(delta))


def band(delta: npt.NDArray[np.float32], density: float, gamma: float) -> tuple[Mask, Mask, float]:
    """Keep the largest magnitudes but for the very largest."""
    if density >= 1:
        return _between(delta, 0, len(delta))
    count = int(density * len(delta))
    first = max(0, len(delta) - count - int(gamma * len(delta)))
    return _between(delta, first, first + count)


def _between(delta: npt.NDArray[np.float32], first: int, end: int) -> tuple[Mask, Mask, float]:
    magnitude = np.abs(delta)
    if end <= first:
        nothing = np.zeros(len(delta), dtype=bool)
        return nothing, nothing, 0.0
    ordered = np.sort(magnitude)
    bounds = (ordered[first], ordered[end - 1])
    kept = (magnitude >= bounds[0]) & (magnitude <= bounds[1])
    equal = np.isin(magnitude, bounds) & (int(kept.sum()) > end - first)
    return kept, equal, float(ordered[first:end].sum(dtype=float))


def _task_vectors(
    base: npt.NDArray[np.float32],
    deltas: Sequence[npt.NDArray[np.float32]],
    kept: Mask,
    equal: Mask,
    mass: Array,
    own: Mapping[str, Array],
    inputs: npt.NDArray[np.float32],
    consensus: bool,
) -> Expected:
    weight = own["weight"][:, None]
    exact = np.stack(deltas).astype(float)
    sparse = np.where(kept, exact, 0.0)
    if own.get("rescale"):
        total = np.abs(exact).sum(axis=1)
        usable = (total >= 1e-7) & (mass >= 1e-7)
        sparse = sparse * np.where(usable, total / np.where(usable, mass, 1), 1)[:, None]
    terms = sparse * weight
    undecided: Mask = np.asarray(equal.any(axis=0))
    if consensus:
        total = terms.sum(axis=0)
        undecided |= np.abs(total) < 1e-5 * np.abs(terms).sum(axis=0)
        agrees = np.where(total >= 0, terms > 0, terms < 0)
        terms = np.where(agrees, terms, 0.0)
        shares = np.where(agrees, weight, 0.0)
        divisor = shares.sum(axis=0)
        divisor = np.where(divisor == 0, 1.0, divisor)
    else:
        shares = np.broadcast_to(weight, terms.shape)
        divisor = shares.sum(axis=0)
        divisor = np.where(np.abs(divisor) < 1e-8, 1.0, divisor)
    terms = own["lambda"] * terms
    condition = np.ones(len(base))
    if own["normalize"]:  # weights of both signs cancel in the divisor
        terms = terms / divisor
        condition = np.maximum(1.0, np.abs(shares).sum(axis=0) / np.abs(divisor))
        undecided |= condition > 1e5
    found = _sum(np.concatenate([base[None].astype(float), terms]), inputs)
    return replace(
        found, open=undecided, scale=np.maximum(found.scale, np.abs(terms).sum(axis=0) * condition)
    )


def _sce(
    base: npt.NDArray[np.float32],
    deltas: Sequence[npt.NDArray[np.float32]],
    share: float,
    inputs: npt.NDArray[np.float32],
) -> Expected:
    count = np.float32(len(deltas))
    mean = sum(deltas[1:], start=deltas[0]) / count  # float32, as the variances that decide
    squares = [(delta - mean) * (delta - mean) for delta in deltas]
    variance = sum(squares[1:], start=squares[0]) / count
    selected = np.ones(len(base), dtype=bool)
    if share < 1:
        wanted = int(share * np.count_nonzero(variance))
        least = np.sort(variance)[::-1][wanted - 1] if wanted else np.inf
        selected = variance >= least
    exact = np.where(selected, np.stack(deltas).astype(float), 0.0)
    energy = (exact**2).mean(axis=1)
    weight = energy / energy.sum() if energy.sum() >= 1e-6 else np.full(len(deltas), 1 / count)
    total = exact.sum(axis=0)
    shares = np.where(np.where(total >= 0, exact > 0, exact < 0), weight[:, None], 0.0)
    terms = exact * shares / np.maximum(shares.sum(axis=0), 1e-6)
    found = _sum(np.concatenate([base[None].astype(float), terms]), inputs)
    return replace(found, open=np.abs(total) < 1e-5 * np.abs(exact).sum(axis=0))


def _slerp(base: Array, model: Array, t: float, inputs: npt.NDArray[np.float32]) -> Expected:
    cosine = float(base @ model / (np.linalg.norm(base) * np.linalg.norm(model)))
    start, end = 1 - t, t
    if abs(cosine) <= 0.9995:
        theta = math.acos(cosine)
        start, end = (math.sin(part * theta) / math.sin(theta) for part in (1 - t, t))
    return _sum(np.stack([start * base, end * model]), inputs)


def _sum(terms: Array, inputs: npt.NDArray[np.float32]) -> Expected:
    scale = np.maximum(np.abs(terms).sum(axis=0), np.abs(inputs).max(axis=0))
    return Expected(terms.sum(axis=0), scale, np.zeros(terms.shape[1], dtype=bool))
