"""Synthetic fitness landscapes of merges, whose best point and best scale are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from evomerge.errors import InputError, Place
from evomerge.expressions import Hole
from evomerge.genome import Genome
from evomerge.module_groups import Architecture
from evomerge.recipe import resolve
from evomerge.search_space import Inputs
from evomerge.space_reader import load_space, parse_space
from evomerge.study.baselines import LINE, starting_points

Array = npt.NDArray[np.float64]
GROUPS = ("attention", "mlp", "other")
_TENSORS = ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
_PLACE = Place("the benchmark", InputError)
_HIGH = 1.5  # end of the range of a weight


class Point(Protocol):
    """What one candidate is worth: as the search measures it, as finals do, and in truth."""

    @property
    def measured(self) -> float:
        """The fitness that the optimizer is told."""
        ...

    @property
    def select(self) -> float:
        """What the winner is picked by."""
        ...

    @property
    def true(self) -> float:
        """What it is worth."""
        ...

    @property
    def tasks(self) -> tuple[float, ...]:
        """The score of each task."""
        ...


class Layered(Protocol):
    """Something whose merges have a weight for each expert, layer and group of modules."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many experts, layers and groups."""
        ...

    def point(self, weights: Array, draw: int) -> Point:
        """Measure a candidate; `draw` numbers the draws of noise."""
        ...


@dataclass(frozen=True)
class Known:
    """A point of a landscape, whose worth is known."""

    measured: float
    select: float
    true: float
    tasks: tuple[float, ...] = ()  # the true score of each


def _curves(random: np.random.Generator, count: int, layers: int, reach: float) -> Array:
    """Return random functions of depth that vary over `reach` of it, each of variance 1."""
    depth = np.linspace(0, 1, layers)
    covariance = np.exp(-0.5 * ((depth[:, None] - depth) / reach) ** 2)
    roots, axes = np.linalg.eigh(covariance)
    return random.normal(size=(count, layers)) @ (axes * np.sqrt(np.maximum(roots, 0))).T


def _pattern(random: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Return relative weights (experts, layers, groups) of mean 0 and variance 1.

    The shares of the variance are those of the published coefficients of AdaMerging: most is a
    pattern over depth and kind that experts share, little is the expert's own scale.
    """
    experts, layers, groups = shape
    common = _curves(random, 1, layers, 0.3)
    shared = np.sqrt(0.6) * common + np.sqrt(0.4) * _curves(random, groups, layers, 0.3)
    own = _curves(random, experts * groups, layers, 0.3).reshape(experts, groups, layers)
    return (
        np.sqrt(0.80) * shared.T[None]
        + np.sqrt(0.05) * random.normal(size=(experts, 1, 1))
        + np.sqrt(0.10) * own.transpose(0, 2, 1)
        + np.sqrt(0.05) * random.normal(size=shape)
    )


def _root(random: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Return a square root of a loss's Hessian: neighbours and experts correlate."""
    experts, layers, groups = shape
    sensitivity = np.exp(0.7 * _curves(random, groups, layers, 0.4)).T.ravel()
    cares = np.exp(_curves(random, experts * groups, layers, 0.4))
    cares = cares.reshape(experts, groups, layers).transpose(0, 2, 1).ravel()
    depth = np.arange(layers)
    near = 0.5 * np.exp(-np.abs(depth[:, None] - depth) / 2) + 0.5 * np.eye(layers)
    kinds = 0.3 + 0.7 * np.eye(groups)
    between = np.kron(near, kinds) * np.sqrt(np.outer(sensitivity, sensitivity))
    inputs = 0.25 + 0.75 * np.eye(experts)
    return np.linalg.cholesky(np.kron(inputs, between)).T * np.sqrt(cares)


class Weights:
    """A landscape over the weights of experts, by layer and module group.

    A task's score is exp(−loss) with a quadratic loss around the task's own optimum; the fitness is
    the mean of the tasks. With `items`, the search sees the smoothed margins of so many items a
    task, which reward what those items happen to like; with `noise`, normal noise of so many gaps
    between the best point and the best scale. Unless `shared`, the best weights have no pattern:
    each layer of each expert has its own.
    """

    def __init__(
        self,
        seed: int,
        experts: int,
        layers: int,
        *,
        tasks: int = 1,
        noise: float = 0.0,
        items: int = 0,
        shared: bool = True,
    ) -> None:
        random = np.random.default_rng([seed, experts, layers, tasks])
        self.shape = (experts, layers, len(GROUPS))
        self._seed, self._items, self._noise = seed, items, 0.0
        self._optima, self._roots = [], []
        for task in range(tasks):
            mean = np.full((experts, 1, 1), 0.55)
            if tasks > 1:
                mean = np.where(np.arange(experts) == task, 0.9, 0.25)[:, None, None]
            if shared:
                pattern = _pattern(random, self.shape)
            else:
                pattern = random.normal(size=(experts, layers, 1)).repeat(len(GROUPS), axis=2)
            optimum = mean * (1 + 0.5 * pattern)
            self._optima.append(np.clip(optimum, 0, _HIGH).ravel())
            self._roots.append(_root(random, self.shape))
        grid = np.linspace(0, _HIGH, 151)
        losses = [min(self._loss(0, np.full(self.shape, one)) for one in grid)]
        scale = np.sqrt((0.15 if tasks == 1 else 0.5) / losses[0])
        self._roots = [scale * root for root in self._roots]
        if items:
            size = self._optima[0].size
            self._taste = random.normal(size=(tasks, 3 * items, size)) / np.sqrt(size)
            self._hard = random.normal(size=(tasks, 3 * items))
        self.line = max(self.true(np.full(self.shape, one)) for one in LINE)
        self.best = self._best()
        self._noise = noise * (self.best - self.line)

    def _loss(self, task: int, weights: Array) -> float:
        away = self._roots[task] @ (weights.ravel() - self._optima[task])
        return float(away @ away)

    def scores(self, weights: Array) -> Array:
        """Return the true score of each task."""
        tasks = range(len(self._optima))
        return np.exp([-self._loss(task, weights) for task in tasks])

    def true(self, weights: Array) -> float:
        """Return the true fitness."""
        return float(self.scores(weights).mean())

    def point(self, weights: Array, draw: int) -> Known:
        """Measure a candidate; `draw` numbers the draws of noise."""
        tasks = tuple(self.scores(weights).tolist())
        true = float(np.mean(tasks))
        if self._items:
            scores = np.mean([self._margins(task, weights) for task in range(len(self._optima))], 0)
            count = self._items  # finalists are scored on twice as many other items
            return Known(float(scores[:count].mean()), float(scores[count:].mean()), true, tasks)
        noise = np.random.default_rng([self._seed, 7, draw]).normal(size=2) * self._noise
        return Known(true + noise[0], true + noise[1] / np.sqrt(2), true, tasks)

    def _margins(self, task: int, weights: Array) -> Array:
        """Return the smoothed margins of a task's items, which are easier the better the score."""
        away = 4 * self._taste[task] @ (weights.ravel() - self._optima[task])
        skill = 4 * np.exp(-self._loss(task, weights)) - 2
        return np.asarray(1 / (1 + np.exp(-(skill + 0.3 * away - self._hard[task]) / 0.5)))

    def _best(self) -> float:
        def loss(flat: Array) -> tuple[float, Array]:
            value, slope = 0.0, np.zeros_like(flat)
            for optimum, root in zip(self._optima, self._roots, strict=True):
                away = root @ (flat - optimum)
                score = np.exp(-float(away @ away)) / len(self._optima)
                value -= score
                slope += 2 * score * (root.T @ away)
            return value, slope

        start = np.mean(self._optima, axis=0)
        found = minimize(loss, start, jac=True, bounds=[(0, _HIGH)] * start.size)
        return -float(found.fun)

    def regret(self, fitness: float) -> float:
        """Return the regret of a true fitness: 1 is the best scale, 0 the best point."""
        return (self.best - fitness) / (self.best - self.line)


@dataclass(frozen=True)
class Problem:
    """A landscape as a search sees it: holes, how they become a candidate, where it starts."""

    genome: Genome
    measure: Callable[[dict[str, Any], int], Point]  # values, number of the draw
    starts: tuple[dict[str, Any], ...]
    spent: int  # evaluations that finding the starting points took


def space_problem(landscape: Weights, name: str) -> Problem:
    """Search a landscape by one of evomerge's spaces, from the starting points of a study."""
    experts, layers, _ = landscape.shape
    tensors = [f"model.layers.{i}.{kind}.weight" for i in range(layers) for kind in _TENSORS]
    names = [f"e{index}" for index in range(experts)]
    data, place = load_space(name, Path(), _PLACE)
    inputs = Inputs("base", {expert: expert for expert in names})
    space = parse_space(data, inputs, Architecture(tuple(tensors)), "float32", 0, place)

    def measure(values: dict[str, Any], draw: int) -> Point:
        weights = resolve(space.decode(values), tensors)["weight"]
        return landscape.point(np.asarray(weights).reshape(landscape.shape), draw)

    line = [landscape.point(np.full(landscape.shape, one), 10**6 + i).measured
            for i, one in enumerate(LINE)]  # fmt: skip
    weights = (LINE[int(np.argmax(line))], 1 / experts)
    starts = starting_points(
        space.weighted, space.initial, [dict.fromkeys(names, one) for one in weights]
    )
    spent = len(LINE) + experts  # the line, the soups
    return Problem(Genome(space.holes), measure, tuple(starts), spent)


class Mixed:
    """A landscape of choices, grids and weights: method, experts left out, densities, depth.

    The method shifts the best scale and the best density; one expert in three does harm; without
    `rescale`, a small density asks for larger weights.
    """

    KNOTS = 4
    DENSITIES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)

    def __init__(self, seed: int, experts: int = 6) -> None:
        random = np.random.default_rng([seed, experts, 99])
        self._experts = experts
        self._scale = random.uniform(0.3, 0.9, experts)
        self._scale[: experts // 3] = 0  # these do harm
        self._curve = np.clip(1 + 0.4 * random.normal(size=self.KNOTS), 0.3, 2)
        self._density = random.uniform(0.15, 0.9, experts)
        self._quality = random.permutation([0.0, 0.04, 0.08, 0.12])
        self._stretch = random.uniform(0.8, 1.4, 4)
        self.holes = (
            Hole("method", "categorical", "a", "d", "a", choices=("a", "b", "c", "d")),
            Hole("rescale", "categorical", True, False, True, choices=(True, False)),
            *(Hole(f"use{i}", "categorical", 1, 0, 1, choices=(1, 0)) for i in range(experts)),
            *(Hole(f"scale{i}", "float", 0.0, 1.5, 0.4) for i in range(experts)),
            *(Hole(f"density{i}", "float", 0.05, 1.0, 0.3, step=0.01) for i in range(experts)),
            *(Hole(f"knot{i}", "float", 0.3, 2.0, 1.0) for i in range(self.KNOTS)),
            Hole("round", "int", 1, 8, 4, step=1.0),
        )
        self.best = self.true(self._optimum())
        self.line = max(self.true(self.start(one)) for one in LINE)

    def start(self, scale: float) -> dict[str, Any]:
        """Return the point of task arithmetic with one scale."""
        values = {hole.name: hole.init for hole in self.holes}
        return values | {f"scale{i}": scale for i in range(self._experts)}

    def _optimum(self) -> dict[str, Any]:
        method = int(np.argmin(self._quality))
        values: dict[str, Any] = {"method": "abcd"[method], "rescale": True, "round": 6}
        for i in range(self._experts):
            density = round(float(self._density[i]), 2)
            scale = float(self._scale[i]) * self._stretch[method]
            values |= {f"use{i}": int(scale > 0), f"scale{i}": scale, f"density{i}": density}
        return values | {f"knot{i}": float(one) for i, one in enumerate(self._curve)}

    def true(self, values: dict[str, Any]) -> float:
        """Return the true fitness."""
        method = "abcd".index(values["method"])
        curve = np.array([values[f"knot{i}"] for i in range(self.KNOTS)])
        loss = self._quality[method] + 0.01 * (values["round"] - 6) ** 2 / 4
        for i in range(self._experts):
            kept = 1.0 if values["rescale"] else 0.5 + 0.5 * values[f"density{i}"]
            weight = values[f"use{i}"] * values[f"scale{i}"] * kept / self._stretch[method]
            off = weight * curve - self._scale[i] * self._curve
            loss += 0.3 * float(np.mean(off**2))
            if values[f"use{i}"]:
                loss += 0.06 * (values[f"density{i}"] - self._density[i]) ** 2
                loss += 0.02 * (self._scale[i] == 0)
        return float(np.exp(-loss))

    def regret(self, fitness: float) -> float:
        """Return the regret of a true fitness: 1 is the best scale, 0 the best point."""
        return (self.best - fitness) / (self.best - self.line)

    def problem(self) -> Problem:
        """Return the landscape as a search sees it."""
        line = [self.true(self.start(one)) for one in LINE]
        starts = (self.start(0.4), self.start(LINE[int(np.argmax(line))]))

        def measure(values: dict[str, Any], draw: int) -> Point:
            true = self.true(values)
            return Known(true, true, true)

        return Problem(Genome(self.holes), measure, starts, len(LINE) + self._experts)
