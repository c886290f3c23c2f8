"""The inverse of decoding: the point of a search space whose recipe is a given one.

What a space makes of every tensor is solved for its holes: numbers that stand alone at once, the
factors of products, shares and curves by Gauss–Newton steps that keep their ranges. The point
counts only where its recipe gives every tensor the same parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear

from evomerge.equations import Equations, Terms, number_terms
from evomerge.errors import Found, InputError, Place
from evomerge.expressions import Hole, snap
from evomerge.merge_methods import Array
from evomerge.recipe import Recipe, resolve
from evomerge.search_space import EITHER, Branch, SearchSpace

TOLERANCE = 1e-9  # of every parameter of every tensor
_STEPS = 80  # of Gauss–Newton
_STARTS = 6  # the init and random points
_TRIES = 300  # of values of holes on a grid, where a product leaves them open
_DAMPING = 1e-7
_ROOM = 1e-13  # around a range, for rounding


def encode(
    space: SearchSpace, recipe: Recipe, tensors: Sequence[str], place: Place
) -> dict[str, Any]:
    """Return the values at which the space gives all `tensors` what the recipe gives them.

    `tensors` are those that are merged; dtypes do not count, and where a recipe names no seed of
    random masks, the space's counts. What a recipe leaves open is as near to its init as may be.
    Raises the place's error, which says where it differs most, if the space holds no such point.
    """
    if recipe.text.tokenizer is not None:
        raise place.fail("a recipe without a tokenizer", Found("one with"))
    methods = list(dict.fromkeys(branch.merge_method for branch in space.branches))
    if recipe.merge_method not in methods:
        what = f"a recipe of the search space's {' or '.join(methods)}"
        hint = "change its method, or search a space that holds it"
        raise place.fail(what, Found(recipe.merge_method), hint)
    problem: InputError | None = None
    for branch in space.branches:
        if branch.merge_method == recipe.merge_method:
            try:
                return _Search(space, branch, recipe, tensors, place).values()
            except InputError as found:
                problem = problem or found
    assert problem is not None
    raise problem


class _Search:
    """The search for a recipe in one branch of a space."""

    def __init__(
        self,
        space: SearchSpace,
        branch: Branch,
        recipe: Recipe,
        tensors: Sequence[str],
        place: Place,
    ) -> None:
        self._space = space
        self._tensors = tensors
        self._place = place
        self._initial = space.initial | ({EITHER: branch.name} if branch.name else {})
        own = space.decode(self._initial)
        self._wanted = self._table(recipe, self._aligned(own, recipe))
        if recipe.method.stochastic and "seed" not in recipe.parameters:
            del self._wanted["seed"]
        terms: list[Terms] = []
        numbers: list[float] = []
        for declared in recipe.method.parameters:
            table = self._wanted.get(declared.name)
            if table is None:
                continue
            merged = [index for index, one in enumerate(own.models) if one in own.entries]
            models = merged if declared.scope == "model" else [None]
            for row, model in zip(np.atleast_2d(table), models, strict=True):
                terms += number_terms(branch, declared, model, tensors)
                numbers += row.tolist()
        self._equations = Equations(terms, numbers)
        by_name = {hole.name: hole for hole in space.holes}
        self._holes = [by_name[name] for name in self._equations.names]

    def _aligned(self, own: Recipe, recipe: Recipe) -> list[int]:
        """Return where the recipe has each model of the space's; the place's error if it lacks one.

        The order counts where random masks depend on it.
        """
        if own.base != recipe.base:
            raise self._place.fail(f"the base model {own.base}", str(recipe.base))
        ours = [entry.model for entry in own.entries]
        theirs = [entry.model for entry in recipe.entries]
        if set(ours) != set(theirs) or (own.method.stochastic and ours != theirs):
            order = " in this order" if set(ours) == set(theirs) else ""
            what = f"the models {', '.join(map(str, ours))}{order}"
            raise self._place.fail(what, Found(", ".join(map(str, theirs))))
        return [theirs.index(one) for one in ours]

    def _table(self, recipe: Recipe, order: Sequence[int]) -> dict[str, Array]:
        found = resolve(recipe, self._tensors)
        return {name: one if one.ndim == 1 else one[list(order)] for name, one in found.items()}

    def values(self) -> dict[str, Any]:
        """Return the values, or raise the place's error."""
        best: tuple[float, InputError] | None = None
        for point in itertools.islice(self._points(), _TRIES):
            values = self._initial | point
            missed, problem = self._difference(values)
            if problem is None:
                return values
            if best is None or missed < best[0]:
                best = missed, problem
        assert best is not None
        raise best[1]

    def _difference(self, values: Mapping[str, Any]) -> tuple[float, InputError | None]:
        """Return the largest difference, and the error that names it where it is one."""
        own = self._space.decode(values)
        there = self._table(own, range(len(own.entries)))
        most, problem = 0.0, None
        for name, wanted in self._wanted.items():
            missed = np.abs(there[name] - wanted) / np.maximum(1.0, np.abs(wanted))
            if not missed.size or missed.max() <= max(TOLERANCE, most):
                continue
            at = [int(one) for one in np.unravel_index(int(missed.argmax()), missed.shape)]
            everywhere = missed[*at[:-1]].min() > TOLERANCE and np.ptp(wanted[*at[:-1]]) == 0
            where = "" if everywhere else f" for {self._tensors[at[-1]]}"
            model = f" of {own.entries[at[0]].model}" if len(at) > 1 else ""
            most = float(missed.max())
            found = Found(
                f"{name} {wanted[*at]:.10g}{model}{where}, "
                f"where the nearest of the space has {there[name][*at]:.10g}"
            )
            problem = self._place.fail("a recipe that the search space holds", found)
        return most, problem

    def _points(self) -> Iterator[dict[str, Any]]:
        """Yield points that may be it, the likeliest first."""
        known = _at_once(self._equations, self._holes)
        rest = [hole for hole in self._holes if hole.name not in known]
        start = {hole.name: float(self._initial[hole.name]) for hole in self._holes} | known
        draw = np.random.default_rng(0)
        for attempt in range(_STARTS if rest else 1):
            point = dict(start)
            if attempt:
                point |= {hole.name: _drawn(hole, draw.random()) for hole in rest}
            for found in self._rounded(point, rest):
                yield {hole.name: _typed(hole, found[hole.name]) for hole in self._holes}

    def _rounded(self, point: dict[str, float], free: list[Hole]) -> Iterator[dict[str, float]]:
        """Yield solutions whose holes on a grid are on it, one after the other."""
        solved = _solve(self._equations, point, free)
        grids = [hole for hole in free if _grid(hole) is not None]
        if not grids:
            yield solved
            return
        hole = grids[0]
        others = [one for one in free if one is not hole]
        grid = sorted(_grid(hole) or [], key=lambda one: abs(one - solved[hole.name]))
        for value in grid:
            yield from itertools.islice(self._rounded(solved | {hole.name: value}, others), 8)


def _grid(hole: Hole) -> list[float] | None:
    """Return all values of a hole that has not a continuum of them."""
    if hole.kind == "categorical":
        return [float(one) for one in hole.choices]
    if hole.step is None:
        return None
    count = math.floor((hole.high - hole.low) / hole.step + 1e-9)
    return [
        snap(hole.low + number * hole.step, hole.low, hole.high, hole.step)
        for number in range(min(count, _TRIES) + 1)
    ]


def _drawn(hole: Hole, unit: float) -> float:
    low, high = _ends(hole)
    return _out(hole, low + unit * (high - low))


def _ends(hole: Hole) -> tuple[float, float]:
    """Return the range of a hole's coordinate."""
    low, high = float(min(hole.reach)), float(max(hole.reach))
    return (math.log(low), math.log(high)) if hole.log else (low, high)


def _out(hole: Hole, coordinate: float) -> float:
    return math.exp(coordinate) if hole.log else coordinate


def _typed(hole: Hole, number: float) -> Any:
    """Return a number as the value of a hole, in its range and on its grid."""
    if hole.kind == "categorical":
        return min(hole.choices, key=lambda one: abs(float(one) - number))
    value = snap(number, hole.low, hole.high, hole.step)
    return int(value) if hole.kind == "int" else float(value)


def _at_once(equations: Equations, holes: Sequence[Hole]) -> dict[str, float]:
    """Return the holes that an equation gives alone, or together with others so given."""
    by_name = {hole.name: hole for hole in holes}
    known: dict[str, float] = {}
    rows = [
        (row[0][1], float(number))
        for row, number in zip(equations.terms, equations.wanted, strict=True)
        if len(row) == 1 and not row[0][1].sums
    ]
    while True:
        before = len(known)
        for anchor, number in rows:
            free = [name for name in anchor.holes if name not in known]
            factors = [known[name] for name in anchor.holes if name in known]
            scale = anchor.scale * math.prod(factors)
            if len(free) == 1 and scale != 0:
                known[free[0]] = float(_typed(by_name[free[0]], number / scale))
        if len(known) == before:
            return known


def _solve(
    equations: Equations, point: Mapping[str, float], free: Sequence[Hole]
) -> dict[str, float]:
    """Return where the equations are best met near a point, by damped Gauss–Newton steps."""
    found = dict(point)
    if not free:
        return found
    ends = np.array([_ends(hole) for hole in free])
    room = _ROOM * (ends[:, 1] - ends[:, 0])
    low, high = ends[:, 0] - room, ends[:, 1] + room
    at = np.array([math.log(found[one.name]) if one.log else found[one.name] for one in free])
    missed, slopes = equations.at(found, free)
    for _ in range(_STEPS):
        if np.abs(missed).max() <= TOLERANCE / 1e5:
            break
        step = _step(slopes, missed, low - at, high - at)
        for _ in range(30):
            tried = np.clip(at + step, low, high)
            there = found | {
                hole.name: _out(hole, float(one)) for hole, one in zip(free, tried, strict=True)
            }
            next_missed, next_slopes = equations.at(there, free)
            if next_missed @ next_missed < missed @ missed:
                break
            step = step / 2
        else:
            break
        at, found, missed, slopes = tried, there, next_missed, next_slopes
    return found


def _step(slopes: Array, missed: Array, low: Array, high: Array) -> Array:
    """Return the smallest of the steps that meet the equations best, as if they were linear."""
    plain: Array = np.asarray(np.linalg.lstsq(slopes, -missed, rcond=1e-10)[0], np.float64)
    if (plain >= low).all() and (plain <= high).all():
        return plain
    size = slopes.shape[1]
    damped = np.vstack([slopes, _DAMPING * np.eye(size)])
    wanted = np.concatenate([-missed, np.zeros(size)])
    # Both ends differ by the room around them, as bounds must.
    found: Array = lsq_linear(damped, wanted, bounds=(low, high), method="bvls").x
    return found
