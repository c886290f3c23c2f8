"""The genome: the ordered list of a space's holes, as values by name or as a vector in [0, 1]^d."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.expressions import Hole, Values, snap

Vector = npt.NDArray[np.float64]
_ROUNDING = 1e-12  # of a number on its way to [0, 1] and back


@dataclass(frozen=True)
class Genome:
    """The holes of a search space in the order in which they stand in it."""

    holes: tuple[Hole, ...]

    def __len__(self) -> int:
        return len(self.holes)

    @property
    def numeric(self) -> bool:
        """Whether every hole is a number, none a choice."""
        return all(hole.kind != "categorical" for hole in self.holes)

    def from_unit(self, vector: Sequence[float] | Vector) -> dict[str, Any]:
        """Return the values at a point of [0, 1]^d: steps rounded, logarithms undone."""
        return {
            hole.name: _from_unit(hole, float(unit))
            for hole, unit in zip(self.holes, vector, strict=True)
        }

    def to_unit(self, values: Values) -> Vector:
        """Return the point of [0, 1]^d that `from_unit` maps to these values."""
        return np.array([_to_unit(hole, values[hole.name]) for hole in self.holes])

    def near(self, vector: Vector, values: Values, tolerance: float) -> bool:
        """Return whether values are what `from_unit` makes of a point at most `tolerance` away."""
        return all(
            _near(hole, float(unit), values[hole.name], tolerance)
            for hole, unit in zip(self.holes, vector, strict=True)
        )


def _from_unit(hole: Hole, unit: float) -> Any:
    if hole.kind == "categorical":
        index = min(int(unit * len(hole.choices)), len(hole.choices) - 1)
        return hole.choices[index]
    if hole.log:
        value = math.exp(math.log(hole.low) + unit * (math.log(hole.high) - math.log(hole.low)))
    else:
        value = hole.low + unit * (hole.high - hole.low)
    value = snap(value, hole.low, hole.high, hole.step)
    return int(value) if hole.kind == "int" else value


def _to_unit(hole: Hole, value: Any) -> float:
    if hole.kind == "categorical":
        return (hole.choices.index(value) + 0.5) / len(hole.choices)
    if hole.log:
        return math.log(value / hole.low) / math.log(hole.high / hole.low)
    return float((value - hole.low) / (hole.high - hole.low))


def _near(hole: Hole, unit: float, value: Any, tolerance: float) -> bool:
    ends = (min(max(unit + way * tolerance, 0.0), 1.0) for way in (-1, 1))
    low, high = (_to_unit(hole, _from_unit(hole, end)) for end in ends)
    return low - _ROUNDING <= _to_unit(hole, value) <= high + _ROUNDING


def describe(holes: Sequence[Hole]) -> list[Mapping[str, object]]:
    """Return holes as plain data, to be stored with a study and compared on resume."""
    return [
        {
            "name": hole.name,
            "kind": hole.kind,
            "low": hole.low,
            "high": hole.high,
            "step": hole.step,
            "log": hole.log,
            "choices": list(hole.choices),
        }
        for hole in holes
    ]
