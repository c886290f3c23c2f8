"""The methods on angles and norms once more, in float64, on the vectors themselves.

Each returns the terms of the sum that it is: of models, or of task vectors where there is a base.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Vectors = Sequence[Array]


def model_stock(vectors: Vectors, own: Mapping[str, Array]) -> Vectors:
    count = len(vectors)
    cosines = [
        one @ other / max(norm(one) * norm(other), 1e-6)
        for place, one in enumerate(vectors)
        for other in vectors[:place]
    ]
    cosine = sum(cosines) / len(cosines)
    denominator = 1 + (count - 1) * cosine
    ratio = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    return [ratio / count * one for one in vectors]


def nuslerp(vectors: Vectors, own: Mapping[str, Array]) -> Vectors:
    total = own["weight"].sum()
    t = 0.5 if abs(total) < 1e-6 else own["weight"][1] / total
    one, other = (vector / max(norm(vector), 1e-7) for vector in vectors)
    theta = math.atan2(norm(one - other * (one @ other)), one @ other)
    if theta < 1e-8:
        return [(1 - t) * vectors[0], t * vectors[1]]
    parts = [math.sin(part * theta) / math.sin(theta) for part in (1 - t, t)]
    return [part * vector for part, vector in zip(parts, vectors, strict=True)]


def multislerp(vectors: Vectors, own: Mapping[str, Array]) -> Vectors:
    weight = own["weight"] / (own["weight"].sum() if own["normalize_weights"] else 1)
    if not any(map(np.any, vectors)):
        return vectors
    norms = np.array([norm(vector) for vector in vectors])
    units = [vector / (size + own["eps"]) for vector, size in zip(vectors, norms, strict=True)]
    mean = sum(w * unit for w, unit in zip(weight, units, strict=True))
    assert isinstance(mean, np.ndarray)
    mean = mean / norm(mean)
    tangent = sum(w * (unit - (unit @ mean) * mean) for w, unit in zip(weight, units, strict=True))
    assert isinstance(tangent, np.ndarray)
    angle = norm(tangent) + 1e-12
    radius = float(weight @ norms)
    return [radius * math.cos(angle) * mean, radius * math.sin(angle) / angle * tangent]


def karcher(vectors: Vectors, own: Mapping[str, Array]) -> Vectors:
    units = [vector / norm(vector) for vector in vectors if norm(vector) > own["tol"]]
    mean = sum(units) / len(units)
    mean = mean / norm(mean)
    for _ in range(int(own["max_iter"])):
        tangent = np.zeros_like(mean)
        for unit in units:
            across = unit - (unit @ mean) * mean
            theta = math.atan2(norm(across), unit @ mean)
            if theta >= own["tol"]:
                tangent += theta / math.sin(theta) * across / len(units)
        angle = norm(tangent)
        if angle < own["tol"]:
            break
        mean = math.cos(angle) * mean + math.sin(angle) * tangent / angle
    return [mean * sum(map(norm, vectors)) / len(vectors)]


def passthrough(vectors: Vectors, own: Mapping[str, Array]) -> Vectors:
    return [vectors[0] * own["scale"][0]]


def by_line(
    function: Callable[[Vectors, Mapping[str, Array]], Vectors],
    tensors: Vectors,
    own: Mapping[str, Array],
) -> Vectors:
    """Return the terms of a function of whole tensors, or of each of their rows or columns."""
    shape = tensors[0].shape
    by_column = bool(own.get("nuslerp_row_wise")) and not own["nuslerp_flatten"]
    if not (by_column or own.get("filter_wise") or not own.get("nuslerp_flatten", True)):
        return function([one.reshape(-1) for one in tensors], own)
    along = 0 if by_column else -1
    lines = [np.moveaxis(np.atleast_1d(one), along, -1) for one in tensors]
    flat = [one.reshape(-1, one.shape[-1]) for one in lines]
    each = [function(vectors, own) for vectors in zip(*flat, strict=True)]
    found = [np.stack(terms).reshape(lines[0].shape) for terms in zip(*each, strict=True)]
    return [np.moveaxis(one, -1, along).reshape(shape) for one in found]


def norm(vector: Array) -> float:
    return float(np.linalg.norm(vector))


WEIGHTED_SUMS: dict[str, Callable[[Vectors, Mapping[str, Array]], Vectors]] = {
    "model_stock": model_stock,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "passthrough": passthrough,
}
