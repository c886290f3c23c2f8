"""How far experts are from their base and from each other: what can be said before any merging."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evomerge.checkpoints import Checkpoint
from evomerge.compatibility import check_alike
from evomerge.errors import CheckpointError
from evomerge.merge_methods import Array
from evomerge.merger import Progress
from evomerge.merger.measures import Source, threshold
from evomerge.module_groups import GROUPS, OTHER, group_of, tensor_names_by_layer

Integers = npt.NDArray[np.int64]
DENSITY = 0.2  # of a task vector that counts as large: what TIES keeps (Yadav et al. 2023, §6)


@dataclass(frozen=True)
class Sums:
    """Sums over the entries of some tensors, of a base θ and the task vectors δ of M experts.

    `base` is Σ θ², `gram` Σ δᵢ δⱼ, float64 [M, M]. The others are counts, int64: of `tensors` and
    `entries`; per expert of those with δ ≠ 0, [M]; and per pair [M, M] of entries where both are
    not 0, and of those among them whose signs are unlike. An entry is large where its magnitude is
    among the largest fifth of its tensor's task vector.
    """

    tensors: int
    entries: int
    base: float
    gram: Array
    changed_tensors: Integers
    changed: Integers
    both: Integers
    opposite: Integers
    both_large: Integers
    opposite_large: Integers

    def __add__(self, other: Sums) -> Sums:
        """Return the sums over the tensors of both."""
        return Sums(*(getattr(self, name) + getattr(other, name) for name in Sums.__annotations__))

    @property
    def relative_norms(self) -> Array:
        """‖δ‖ / ‖θ‖ of each expert, [M]; NaN where the base is 0."""
        return _ratio(np.sqrt(np.diag(self.gram)), np.sqrt(self.base))

    @property
    def cosines(self) -> Array:
        """The cosines of the task vectors, [M, M] (Ilharco et al. 2023); NaN where one is 0."""
        norms = np.sqrt(np.diag(self.gram))
        return _ratio(self.gram, np.outer(norms, norms))

    @property
    def conflicts(self) -> Array:
        """The part of the entries that both change whose signs are unlike, [M, M]."""
        return _ratio(self.opposite, self.both)

    @property
    def large_conflicts(self) -> Array:
        """The same of the entries that are large in both (Yadav et al. 2023), [M, M]."""
        return _ratio(self.opposite_large, self.both_large)

    def as_data(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the figures for experts of these names as plain data; None for what has none."""
        norms, tensors, entries = self.relative_norms, self.changed_tensors, self.changed
        figures = {
            "cosine": self.cosines,
            "opposite_signs": self.conflicts,
            "opposite_signs_large": self.large_conflicts,
        }
        return {
            "tensors": self.tensors,
            "entries": self.entries,
            "experts": {
                name: {
                    "relative_norm": _plain(norms[i]),
                    "changed_tensors": int(tensors[i]),
                    "changed_entries": int(entries[i]),
                }
                for i, name in enumerate(names)
            },
            "pairs": [
                {"experts": [names[i], names[j]]}
                | {key: _plain(table[i, j]) for key, table in figures.items()}
                | {"both_large": int(self.both_large[i, j])}
                for i, j in combinations(range(len(names)), 2)
            ],
        }


@dataclass(frozen=True)
class Mergeability:
    """What has been measured: a tensor's sums by its name, and the experts' names in order."""

    experts: tuple[str, ...]
    tensors: Mapping[str, Sums]

    @property
    def overall(self) -> Sums:
        """The sums over all tensors."""
        return _total(self.tensors.values())

    @property
    def groups(self) -> dict[str, Sums]:
        """The sums over each module group that has tensors."""
        found = {
            group: [one for name, one in self.tensors.items() if group_of(name) == group]
            for group in (*GROUPS, OTHER)
        }
        return {group: _total(parts) for group, parts in found.items() if parts}

    @property
    def layers(self) -> dict[str, list[Sums]]:
        """The sums over each layer of each stack of layers."""
        found: dict[str, dict[int, list[Sums]]] = {}
        for name, where in tensor_names_by_layer(self.tensors).items():
            if where:
                stack = found.setdefault(where[0], {})
                stack.setdefault(where[1], []).append(self.tensors[name])
        return {
            stack: [_total(parts) for _, parts in sorted(by_layer.items())]
            for stack, by_layer in found.items()
        }

    def as_data(self) -> dict[str, Any]:
        """Return all figures as plain data."""
        return {
            "large": DENSITY,
            "overall": self.overall.as_data(self.experts),
            "groups": {name: one.as_data(self.experts) for name, one in self.groups.items()},
            "layers": {
                stack: [one.as_data(self.experts) for one in sums]
                for stack, sums in self.layers.items()
            },
        }


def measure(
    checkpoints: Mapping[str, Checkpoint],
    progress: Progress = lambda text, done, total: None,
) -> Mergeability:
    """Measure models by name, the base first, tensor by tensor, each read where it lies.

    Tensors that one of the experts lacks are left out. Raises CheckpointError where the models do
    not fit each other or hold NaN or infinity.
    """
    opened = list(checkpoints.values())
    names = [
        name
        for name in check_alike(opened)
        if all(name in one.tensors and one.tensors[name].floating for one in opened)
    ]
    maps = [one.map(names) for one in opened]
    found = {}
    for done, name in enumerate(names):
        progress(f"measuring: {name}", done, len(names))
        found[name] = sums([one[name] for one in maps])
        wrong = np.flatnonzero(~np.isfinite([found[name].base, *np.diag(found[name].gram)]))
        if len(wrong):
            raise CheckpointError(
                f"expected finite numbers, got NaN or infinity in {name} of "
                f"{opened[wrong[0]].ref}; leave that model out, or download it again"
            )
    progress("measuring", len(names), len(names))
    return Mergeability(tuple(checkpoints)[1:], found)


def sums(tensors: Sequence[torch.Tensor]) -> Sums:
    """Return the sums over one tensor, the base's first, in a bounded workspace.

    Task vectors are float32 differences, as in a merge; they are summed up in float64.
    """
    flat = [one.reshape(-1) for one in tensors]
    count, size = len(flat) - 1, len(flat[0])
    source = Source(
        lambda number, _: flat[number], ["x"], [(size,)], [range(len(flat))], torch.device("cpu")
    )
    pairs = np.zeros((5, count, count))
    changed = np.zeros(count, dtype=np.int64)
    bounds = [threshold(source, 0, model, 0, DENSITY) for model in range(1, len(flat))]
    least = torch.tensor(bounds, dtype=torch.float32)[:, None]
    base = sum(float((part @ part).item()) for part in source.chunks(0, 0, torch.float64))
    for parts in zip(*(source.deltas(0, model, 0) for model in range(1, len(flat))), strict=True):
        deltas = torch.stack(parts)
        signs = deltas.sign()
        large = signs * (deltas.abs() >= least)
        changed += torch.count_nonzero(signs, dim=1).numpy()
        wide = deltas.double()
        # Whole numbers below 2^24 are exact in float32, and a part has fewer entries than that.
        for place, one in enumerate((wide, signs, signs.abs(), large, large.abs())):
            pairs[place] += (one @ one.T).numpy()
    gram, agreed, both, agreed_large, both_large = pairs
    return Sums(
        1,
        size,
        base,
        gram,
        (changed > 0).astype(np.int64),
        changed,
        both.astype(np.int64),
        ((both - agreed) / 2).astype(np.int64),  # products of signs sum to alike less unlike
        both_large.astype(np.int64),
        ((both_large - agreed_large) / 2).astype(np.int64),
    )


def _total(parts: Iterable[Sums]) -> Sums:
    return reduce(Sums.__add__, parts)


def _ratio(above: Any, below: Any) -> Array:
    below = np.asarray(below, dtype=np.float64)
    found: Array = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return found


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
