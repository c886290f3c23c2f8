"""Holes to vectors and back."""

import json
import random
from typing import Any

import numpy as np
import pytest

from evomerge.expressions import Hole, snap
from evomerge.genome import Genome, describe
from evomerge.merger.prepare import GRID

HOLES = (
    Hole("plain", "float", -1.0, 3.0, 0.5),
    Hole("stepped", "float", 0.05, 1.0, 0.3, step=0.01),
    Hole("coarse", "float", 0.0, 0.9, 0.3, step=0.3),
    Hole("log", "float", 1e-4, 1.0, 0.01, log=True),
    Hole("int", "int", 3, 9, 5, step=1.0),
    Hole("choice", "categorical", "low", True, 2, choices=(False, 2, True)),
)
GENOME = Genome(HOLES)


def test_ends_and_middle() -> None:
    low = GENOME.from_unit([0.0] * 6)
    high = GENOME.from_unit([1.0] * 6)
    middle = GENOME.from_unit([0.5] * 6)
    assert low == {"plain": -1.0, "stepped": 0.05, "coarse": 0.0, "log": pytest.approx(1e-4),
                   "int": 3, "choice": False}  # fmt: skip
    assert high == {"plain": 3.0, "stepped": 1.0, "coarse": 0.9, "log": 1.0, "int": 9,
                    "choice": True}  # fmt: skip
    assert middle["log"] == pytest.approx(0.01)
    assert middle["int"] == 6
    assert type(middle["int"]) is int
    assert middle["choice"] == 2
    assert low["log"] >= 1e-4
    assert high["log"] <= 1.0


def test_round_trip() -> None:
    draw = random.Random(0)
    for _ in range(500):
        values = GENOME.from_unit([draw.random() for _ in HOLES])
        unit = GENOME.to_unit(values)
        assert ((unit >= 0) & (unit <= 1)).all()
        again = GENOME.from_unit(unit)
        assert again["log"] == pytest.approx(values["log"], rel=1e-12)
        assert again["plain"] == pytest.approx(values["plain"], abs=1e-12)
        for name in ("stepped", "coarse", "int", "choice"):
            assert again[name] == values[name]
            assert type(again[name]) is type(values[name])
        assert GENOME.near(unit, values, 1e-12)


def test_densities_fall_on_the_merger_s_grid() -> None:
    for low in (0.05, 0.1, 0.01, 0.33):
        hole = Hole("d", "float", low, 1.0, low, step=0.01)
        for unit in np.linspace(0, 1, 1001):
            assert Genome((hole,)).from_unit([float(unit)])["d"] in GRID


def test_steps_are_chosen_evenly() -> None:
    hole = Hole("d", "float", 0.0, 0.9, 0.3, step=0.3)
    found = [Genome((hole,)).from_unit([unit])["d"] for unit in np.linspace(0, 1, 3001)]
    assert sorted(set(found)) == [0.0, 0.3, 0.6, 0.9]
    assert abs(found.count(0.3) - 1000) <= 2
    assert abs(found.count(0.0) - 500) <= 2


@pytest.mark.parametrize(
    ("value", "low", "high", "step", "nearest"),
    [
        (0.2949, 0.05, 1.0, 0.01, 0.29),
        (2.0, 0.0, 1.0, None, 1.0),
        (-2.0, 0.0, 1.0, 0.3, 0.0),
        (1.0, 0.0, 1.0, 0.3, 0.9),  # the last step that fits
        (0.5, 0.0, 0.5, 0.3, 0.3),
        (1e-11, 0.0, 1e-10, 1e-11, 1e-11),
        (0.7, 0.1234567890123456, 1.0, 0.9, 0.1234567890123456),
    ],
)
def test_snap(value: float, low: float, high: float, step: float | None, nearest: float) -> None:
    assert snap(value, low, high, step) == nearest


def test_numeric() -> None:
    assert not GENOME.numeric
    assert Genome(HOLES[:-1]).numeric
    assert len(GENOME) == 6


def test_descriptions_survive_json() -> None:
    data: Any = describe(HOLES)
    assert json.loads(json.dumps(data)) == data
    assert describe(HOLES[:1]) != describe((Hole("plain", "float", -1.0, 3.5, 0.5),))
    assert describe(HOLES[:1]) == describe(
        (Hole("plain", "float", -1.0, 3.0, 0.7),)
    )  # init is free


def test_near_is_along_every_axis() -> None:
    unit = np.full(6, 0.2)
    values = GENOME.from_unit(unit)
    assert GENOME.near(unit, values, 0)
    assert GENOME.near(unit, values | {"plain": values["plain"] + 0.39}, 0.1)
    assert not GENOME.near(unit, values | {"plain": values["plain"] + 0.41}, 0.1)
    assert GENOME.near(unit, values | {"log": values["log"] * 10**0.39}, 0.1)
    assert not GENOME.near(unit, values | {"log": values["log"] * 10**0.41}, 0.1)
    assert not GENOME.near(unit, values | {"choice": 2}, 0.1)


def test_near_allows_what_rounding_makes_of_a_small_difference() -> None:
    hole = Hole("d", "float", 0.0, 1.0, 0.5, step=0.1)
    between = [0.45 - 1e-9]
    for value, same in ((0.4, True), (0.5, True), (0.6, False)):
        assert Genome((hole,)).near(between, {"d": value}, 1e-6) == same
    assert not Genome((hole,)).near([0.44], {"d": 0.5}, 1e-6)
