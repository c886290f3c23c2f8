"""The merge methods once more, in float64 and straight from their formulas."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from evomerge.recipe import Recipe, resolve
from tests.reference_masks import dare_mask, della_mask
from tests.reference_sphere import WEIGHTED_SUMS, by_line
from tests.tiny_models import Tensors

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Own = Mapping[str, Array]
CONSENSUS = ("ties", "dare_ties", "breadcrumbs_ties", "della")


@dataclass(frozen=True)
class Expected:
    """What a merge must give, [elements] each.

    `scale` is what rounding errors are measured by: the largest input, or the sum of the terms'
    magnitudes where that is more. `uncertain` marks entries that rounding decides: opposite terms
    that cancel but for it. `arbitrary` marks those that depend on which of several equal numbers at
    a bound stay: here all of them do, in mergekit some.
    """

    value: Array
    scale: Array
    uncertain: Mask
    arbitrary: Mask

    @property
    def open(self) -> Mask:
        """What two right merges may decide differently."""
        return self.uncertain | self.arbitrary


@dataclass(frozen=True)
class Sparse:
    """What is kept of a task vector, entries equal to a bound that not all of them pass, and what
    restores its L1 norm.
    """

    kept: Mask
    equal: Mask
    gain: float


@dataclass(frozen=True)
class Tensor:
    """A tensor of the inputs of a recipe, with the recipe's parameters for it."""

    name: str
    base: Floats | None
    models: Sequence[Floats]
    own: Own

    @property
    def inputs(self) -> Floats:
        every = [*([] if self.base is None else [self.base]), *self.models]
        return np.stack([one.reshape(-1) for one in every])

    @property
    def deltas(self) -> list[Floats]:
        """Float32: thresholds are exact in it."""
        assert self.base is not None
        return [model - self.base for model in self.models]


def expected(recipe: Recipe, inputs: Mapping[str, Tensors]) -> dict[str, Expected]:
    """Return the float64 merge of a recipe; `inputs` by the text of their reference."""
    names = sorted(next(iter(inputs.values())))
    settings = resolve(recipe, names)
    tensors = [
        Tensor(
            name,
            inputs[str(recipe.base)][name].float().numpy() if recipe.base else None,
            [inputs[str(entry.model)][name].float().numpy() for entry in recipe.entries],
            {key: column[..., index] for key, column in settings.items()},
        )
        for index, name in enumerate(names)
    ]
    return {one.name: _merge(recipe.merge_method, one, tensors) for one in tensors}


def _merge(  # noqa: PLR0911
    method: str, tensor: Tensor, every: Sequence[Tensor]
) -> Expected:
    base, own = tensor.base, tensor.own
    exact = [model.astype(float) for model in tensor.models]
    if method in WEIGHTED_SUMS:
        origin = None if base is None else base.astype(float)
        vectors = exact if origin is None else [one - origin for one in exact]
        terms = by_line(WEIGHTED_SUMS[method], vectors, own)
        return _sum(terms if origin is None else [origin, *terms], tensor)
    if method == "linear":
        divisor = own["weight"].sum() if own["normalize"] else 1.0
        return _sum([x * w / divisor for x, w in zip(exact, own["weight"], strict=True)], tensor)
    assert base is not None
    if method == "slerp":
        return _slerp(base.astype(float), exact[0], tensor)
    if method == "nearswap":
        share = np.clip(own["t"] / np.maximum(np.abs(exact[0] - base), 1e-6), 0, 1)
        return _sum([share * exact[0], (1 - share) * base], tensor)
    if method == "sce":
        return _sce(tensor)
    if method == "arcee_fusion":
        return _arcee_fusion(base.astype(float), exact[0], tensor)
    sparse = [_sparsify(method, tensor, position, every) for position in range(len(exact))]
    return _task_vectors(tensor, sparse, method in CONSENSUS)


def _sparsify(method: str, tensor: Tensor, position: int, every: Sequence[Tensor]) -> Sparse:
    own, delta = tensor.own, tensor.deltas[position]
    density = float(own["density"][position]) if "density" in own else 1.0
    if method.startswith("breadcrumbs"):
        return band(delta, density, float(own["gamma"][position]))
    if own.get("trim_whole_model"):
        together = np.concatenate([one.deltas[position].reshape(-1) for one in every])
        found = trim(together, density)
        start = sum(one.deltas[position].size for one in every[: every.index(tensor)])
        here = slice(start, start + delta.size)
        return Sparse(found.kept[here], found.equal[here], found.gain)
    if not method.startswith(("dare", "della")):
        return trim(delta, density)
    seed = int(own["seed"])
    if method.startswith("dare"):
        kept = dare_mask(seed, position, tensor.name, delta.size, density)
    else:
        epsilon = float(own["epsilon"][position])
        kept = della_mask(seed, position, tensor.name, delta, density, epsilon).reshape(-1)
    found = _sparse(delta, kept)
    return replace(found, gain=1 / density) if own.get("rescale_by_density") else found


def _sparse(delta: Floats, kept: Mask, mass: float | None = None) -> Sparse:
    magnitude = np.abs(delta.reshape(-1)).astype(float)
    total, left = float(magnitude.sum()), float(magnitude[kept].sum()) if mass is None else mass
    gain = total / left if min(total, left) >= 1e-7 else 1.0
    return Sparse(kept, np.zeros_like(kept), gain)


def trim(delta: Floats, density: float) -> Sparse:
    """Keep the largest magnitudes, at least one."""
    count = delta.size if density >= 1 else max(1, int(density * delta.size))
    return _between(delta, delta.size - count, delta.size)


def band(delta: Floats, density: float, gamma: float) -> Sparse:
    """Keep the largest magnitudes but for the very largest."""
    if density >= 1:
        return _between(delta, 0, delta.size)
    count = int(density * delta.size)
    first = max(0, delta.size - count - int(gamma * delta.size))
    return _between(delta, first, first + count)


def _between(delta: Floats, first: int, end: int) -> Sparse:
    magnitude = np.abs(delta.reshape(-1))
    if end <= first:
        return _sparse(delta, np.zeros(delta.size, dtype=bool))
    ordered = np.sort(magnitude)
    bounds = (ordered[first], ordered[end - 1])
    kept = (magnitude >= bounds[0]) & (magnitude <= bounds[1])
    found = _sparse(delta, kept, float(ordered[first:end].sum(dtype=float)))
    return replace(found, equal=np.isin(magnitude, bounds) & (int(kept.sum()) > end - first))


def _task_vectors(tensor: Tensor, sparse: Sequence[Sparse], consensus: bool) -> Expected:
    own, base = tensor.own, tensor.base
    assert base is not None
    weight = own["weight"][:, None]
    exact = np.stack([delta.reshape(-1) for delta in tensor.deltas]).astype(float)
    left = np.where(np.stack([one.kept for one in sparse]), exact, 0.0)
    if own.get("rescale"):
        left = left * np.array([[one.gain] for one in sparse])
    terms = left * weight
    undecided: Mask = np.zeros(base.size, dtype=bool)
    if consensus:
        votes = left if own.get("elect_unweighted") else terms
        total = votes.sum(axis=0)
        undecided |= np.abs(total) < 1e-5 * np.abs(votes).sum(axis=0)
        agrees = np.where(total >= 0, votes > 0, votes < 0)
        terms = np.where(agrees, terms, 0.0)
        shares = np.where(agrees, weight, 0.0)
        divisor = shares.sum(axis=0)
        divisor = np.where(divisor == 0, 1.0, divisor)
    else:
        shares = np.broadcast_to(weight, terms.shape)
        divisor = shares.sum(axis=0)
        divisor = np.where(np.abs(divisor) < 1e-8, 1.0, divisor)
    terms = own["lambda"] * terms
    condition = np.ones(base.size)
    if own["normalize"]:  # weights of both signs cancel in the divisor
        terms = terms / divisor
        condition = np.maximum(1.0, np.abs(shares).sum(axis=0) / np.abs(divisor))
        undecided |= condition > 1e5
    found = _sum([base.astype(float), *terms], tensor)
    return replace(
        found,
        uncertain=undecided,
        arbitrary=np.stack([one.equal for one in sparse]).any(axis=0),
        scale=np.maximum(found.scale, np.abs(terms).sum(axis=0) * condition),
    )


def _sce(tensor: Tensor) -> Expected:
    assert tensor.base is not None
    deltas = [delta.reshape(-1) for delta in tensor.deltas]
    share = float(tensor.own["select_topk"])
    count = np.float32(len(deltas))
    mean = sum(deltas[1:], start=deltas[0]) / count  # float32, as the variances that decide
    squares = [(delta - mean) * (delta - mean) for delta in deltas]
    variance = sum(squares[1:], start=squares[0]) / count
    selected, tied = np.ones(len(variance), dtype=bool), False
    if share < 1:
        wanted = int(share * np.count_nonzero(variance))
        least = np.sort(variance)[::-1][wanted - 1] if wanted else np.inf
        selected = variance >= least
        tied = int(selected.sum()) > wanted  # all weights depend on what is selected
    exact = np.where(selected, np.stack(deltas).astype(float), 0.0)
    energy = (exact**2).mean(axis=1)
    weight = energy / energy.sum() if energy.sum() >= 1e-6 else np.full(len(deltas), 1 / count)
    total = exact.sum(axis=0)
    shares = np.where(np.where(total >= 0, exact > 0, exact < 0), weight[:, None], 0.0)
    terms = exact * shares / np.maximum(shares.sum(axis=0), 1e-6)
    found = _sum([tensor.base.astype(float), *terms], tensor)
    undecided = np.abs(total) < 1e-5 * np.abs(exact).sum(axis=0)
    return replace(found, uncertain=undecided, arbitrary=np.full(len(variance), tied))


def _arcee_fusion(base: Array, model: Array, tensor: Tensor) -> Expected:
    p, q = (_softmax(np.atleast_1d(one)) + 1e-8 for one in (model, base))
    divergence = (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    importance = (np.abs(np.atleast_1d(tensor.deltas[0])) * divergence).reshape(-1)
    ordered = np.sort(importance)
    low, middle, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    threshold = middle + 1.5 * (high - low)
    terms = [base, np.where(importance >= threshold, (model - base).reshape(-1), 0.0)]
    return replace(
        _sum(terms, tensor), uncertain=np.abs(importance - threshold) <= 1e-4 * threshold
    )


def _softmax(rows: Array) -> Array:
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    found: Array = powers / powers.sum(axis=-1, keepdims=True)
    return found


def _slerp(base: Array, model: Array, tensor: Tensor) -> Expected:
    t = float(tensor.own["t"])
    one, other = base.reshape(-1), model.reshape(-1)
    norms = [float(np.linalg.norm(vector)) for vector in (one, other)]
    cosine = float(one @ other) / math.prod(norm if norm > 1e-8 else 1.0 for norm in norms)
    start, end = 1 - t, t
    if abs(cosine) <= 0.9995:
        theta = math.acos(cosine)
        start, end = (math.sin(part * theta) / math.sin(theta) for part in (1 - t, t))
    return _sum([start * base, end * model], tensor)


def _sum(terms: Sequence[Array], tensor: Tensor) -> Expected:
    flat = np.stack([term.reshape(-1) for term in terms])
    scale = np.maximum(np.abs(flat).sum(axis=0), np.abs(tensor.inputs).max(axis=0))
    nothing = np.zeros(flat.shape[1], dtype=bool)
    return Expected(flat.sum(axis=0), scale, nothing, nothing)
