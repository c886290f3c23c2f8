"""Makes of a search space and one of its points a finer or narrower space that starts there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evomerge.errors import Found, Place
from evomerge.expressions import Constant, Curve, Hole, Share, Values, names_in
from evomerge.module_groups import GROUPS, OTHER, Architecture, filters, group_of, stacks
from evomerge.search_space import EITHER, SearchSpace
from evomerge.space_parts import Replacement, expressions, factors, key_of, pools


@dataclass(frozen=True)
class Refinement:
    """What changes in a space; by default nothing."""

    knots: int = 1  # parts that each interval of a curve, and each block, falls into
    narrow: float = 1.0  # width of a new range over that of the old one
    split_groups: bool = False  # what `other` lumps together gets curves of its own
    fix_choices: bool = False  # every choice stays as it is at the point


def refine(
    space: SearchSpace,
    values: Values,
    change: Refinement,
    architecture: Architecture,
    place: Place,
) -> SearchSpace:
    """Return a space whose initial point makes the recipe that `values` make in this one.

    It is a function of its arguments alone. Raises the place's error where a change changes
    nothing, or leaves nothing to search.
    """
    if change.fix_choices:
        space = _fixed(space, values, place / "choices")
    space = _started(space, values)
    if change.split_groups:
        space = _Curves(space, architecture, place / "groups").with_groups()
    if change.knots > 1:
        space = _Curves(space, architecture, place / "knots").with_knots(change.knots)
    return replace(space, holes=tuple(_narrowed(hole, change.narrow) for hole in space.holes))


def _started(space: SearchSpace, values: Values) -> SearchSpace:
    return replace(
        space, holes=tuple(replace(hole, init=values[hole.name]) for hole in space.holes)
    )


def _narrowed(hole: Hole, share: float) -> Hole:
    """Return a hole of a share of the range around its init, within the range and on its grid."""
    if hole.choices or share == 1:
        return hole
    if hole.step is not None:
        count = int((hole.high - hole.low) / hole.step + 1e-9)
        kept = max(1, round(share * count))
        at = round((hole.init - hole.low) / hole.step)
        first = min(max(at - kept // 2, 0), count - kept)
        cast = int if hole.kind == "int" else float
        low, high = (
            cast(float(f"{hole.low + index * hole.step:.12g}")) for index in (first, first + kept)
        )
        return replace(hole, low=low, high=high)
    to, back = (math.log, math.exp) if hole.log else (float, float)
    low, high, init = to(hole.low), to(hole.high), to(hole.init)
    width = share * (high - low)
    start = min(max(init - width / 2, low), high - width)
    # Rounding must not put the point, or a bound, outside.
    new_low = min(max(back(start), hole.low), hole.init)
    new_high = max(min(back(start + width), hole.high), hole.init)
    return replace(hole, low=new_low, high=new_high)


def _fixed(space: SearchSpace, values: Values, place: Place) -> SearchSpace:
    """Return the space without its choices, which are what they are at the point."""
    fixed = {hole.name: Constant(values[hole.name]) for hole in space.holes if hole.choices}
    if not fixed:
        raise place.fail("a choice to fix", Found("none"))
    branches = (space.branch(values),) if EITHER in fixed else space.branches
    replacement = Replacement({}, fixed)
    branches = tuple(replacement.branch(one) for one in branches)
    used = {name for one in expressions(branches) for name in names_in(one)}
    used |= {name for pool in pools(branches) for one in pool for name in names_in(one)}
    holes = tuple(hole for hole in space.holes if hole.name in used)
    if not holes:
        raise place.fail("something to search beside the choices", Found("nothing"))
    return replace(space, branches=branches, holes=holes)


class _Curves:
    """The curves of a space, to be replaced by others that are the same at its initial point."""

    def __init__(self, space: SearchSpace, architecture: Architecture, place: Place) -> None:
        self._space = space
        self._place = place
        self._architecture = architecture
        self._layers = architecture.layers
        self._holes = {hole.name: hole for hole in space.holes}
        self._curves: dict[str, Curve] = {}
        self._multiplied: set[str] = set()  # with other curves
        for expression in expressions(space.branches):
            parts = [one.own if isinstance(one, Share) else one for one in factors(expression)]
            found = [one for one in parts if isinstance(one, Curve)]
            self._curves |= {key_of(one): one for one in found}
            self._multiplied |= {key_of(one) for one in found if len(found) > 1}
        self._pools = [
            [one for one in pool if isinstance(one, Curve)] for pool in pools(space.branches)
        ]
        self._curves |= {key_of(one): one for pool in self._pools for one in pool}

    def _replaced(self, new: Mapping[str, tuple[Curve, Sequence[Hole]]]) -> SearchSpace:
        """Return the space with other curves, whose holes take the place of the old ones."""
        old = {name for key in new for name in names_in(self._curves[key])}
        holes: list[Hole] = []
        for name, hole in self._holes.items():
            holes += new[name][1] if name in new else [] if name in old else [hole]
        names = [hole.name for hole in holes]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise self._place.fail("holes with different names", twice)
        replacement = Replacement({key: curve for key, (curve, _) in new.items()}, {})
        branches = tuple(replacement.branch(one) for one in self._space.branches)
        return replace(self._space, branches=branches, holes=tuple(holes))

    def with_groups(self) -> SearchSpace:
        """Return the space in which `other` falls into the groups that it contains."""
        new: dict[str, tuple[Curve, Sequence[Hole]]] = {}
        for key, curve in self._curves.items():
            over = [one for one in curve.knots if one != OTHER]
            over += [one for one in GROUPS if one not in over]
            groups = self._architecture.groups([*over, OTHER], self._place)
            if OTHER in curve.knots and [*groups] != [OTHER]:
                new[key] = self._over(curve, groups)
        if not new:
            raise self._place.fail("a curve over other that can be split", Found("none"))
        return self._replaced(new)

    def _over(
        self, curve: Curve, groups: Mapping[str, Sequence[str]]
    ) -> tuple[Curve, Sequence[Hole]]:
        """Return a curve over more groups, the new ones of which go on as `other` went."""
        chosen = filters(groups)
        layered = {item.group for item in chosen if item.end is None}
        knots: dict[str, tuple[str, ...]] = {}
        holes: dict[str, Hole] = {}
        for group, tensors in groups.items():
            like = curve.knots.get(group) or curve.knots[OTHER]
            prefix = _prefix(like)
            called = prefix if group in curve.knots else prefix[: -len(OTHER)] + group
            if group not in layered and len(like) > 1:  # outside the layers: one end of the curve
                like = like[:1] if group_of(tensors[0]) == "embeddings" else like[-1:]
                knots[group] = (called,)
            else:
                knots[group] = tuple(called + name[len(prefix) :] for name in like)
            for name, old in zip(knots[group], like, strict=True):
                holes[name] = replace(self._holes[old], name=name)
        return Curve(knots, tuple(chosen), curve.blocks), tuple(holes.values())

    def with_knots(self, parts: int) -> SearchSpace:
        """Return the space in which intervals of curves, and blocks, fall into so many parts.

        Curves that are multiplied with each other, and those with a step, stay as they are: what
        lies between their knots could not be had exactly.
        """
        stay = set(self._multiplied)
        stay |= {
            key
            for key, curve in self._curves.items()
            if not curve.blocks and any(self._holes[one].step for one in names_in(curve))
        }
        for pool in self._pools:
            keys = {key_of(one) for one in pool}
            if keys & stay or len({one.blocks for one in pool}) > 1:
                stay |= keys
        new = {
            key: found
            for key, curve in self._curves.items()
            if key not in stay and (found := self._finer(curve, parts)) is not None
        }
        if not new:
            what = "a curve or blocks, fewer than layers, with no step and no curve as a factor"
            raise self._place.fail(what, Found("none"))
        return self._replaced(new)

    def _finer(self, curve: Curve, parts: int) -> tuple[Curve, Sequence[Hole]] | None:
        """Return a finer curve that is the same; None where it has as much as there are layers."""
        layered = {item.group for item in curve.filters if item.end is None}
        count = max(len(set(curve.knots[group])) for group in layered or curve.knots)
        if not layered or count >= self._layers:
            return None
        knots: dict[str, tuple[str, ...]] = {}
        holes: dict[str, Hole] = {}
        for group, names in curve.knots.items():
            if group not in layered:
                found = [self._holes[names[0]]]
            elif curve.blocks:
                found = self._blocks(names, count, parts)
            else:
                found = self._anchors(curve, group, parts)
            knots[group] = tuple(hole.name for hole in found)
            holes |= {hole.name: hole for hole in found}
        return replace(curve, knots=knots), tuple(holes.values())

    def _anchors(self, curve: Curve, group: str, parts: int) -> list[Hole]:
        """Return the holes of a group's new knots; an old knot keeps its name."""
        names, prefix, layers = curve.knots[group], _prefix(curve.knots[group]), self._layers
        if len(names) == 1:
            only = self._holes[names[0]]
            return [replace(only, name=f"{prefix}.{one}") for one in range(min(parts, layers))]
        last = len(names) - 1
        places = [index / parts for index in range(last * parts + 1)]
        if len(places) > layers and len(set(stacks(self._architecture.tensors).values())) == 1:
            places = [layer * last / (layers - 1) for layer in range(layers)]
        found: list[Hole] = []
        for place in places:
            left = min(int(place), last - 1)
            share = place - left
            if share in (0, 1):
                found.append(self._holes[names[left + int(share)]])
                continue
            start, end = (float(one[len(prefix) + 1 :]) for one in names[left : left + 2])
            name = f"{prefix}.{_mean(start, end, share):g}"
            found.append(replace(self._between(curve, group, left, share), name=name))
        return found

    def _between(self, curve: Curve, group: str, left: int, share: float) -> Hole:
        """Return the hole of a knot between two: it reaches as far as both, and changes nothing.

        Where curves share a sum it is their shares that are linear between knots.
        """
        pool = next((one for one in self._pools if curve in one), [curve])
        pairs = [[self._holes[one.knots[group][left + end]] for end in (0, 1)] for one in pool]
        lows = [min(one.low for one in pair) for pair in pairs]
        highs = [max(one.high for one in pair) for pair in pairs]
        index = pool.index(curve)
        if len(pool) == 1:
            value = _mean(pairs[0][0].init, pairs[0][1].init, share)
        else:
            sums = [math.fsum(pair[end].init for pair in pairs) for end in (0, 1)]
            parts = [_mean(a.init / sums[0], b.init / sums[1], share) for a, b in pairs]
            # Any sum will do for which all are in their ranges, and there is one.
            least = max(low / part for low, part in zip(lows, parts, strict=True))
            most = min(high / part for high, part in zip(highs, parts, strict=True))
            value = parts[index] * min(max(_mean(sums[0], sums[1], share), least), most)
        low, high = lows[index], highs[index]
        return replace(pairs[index][0], low=low, high=high, init=min(max(value, low), high))

    def _blocks(self, names: Sequence[str], count: int, parts: int) -> list[Hole]:
        """Return the holes of all layers in smaller blocks; the first of a block keeps its name."""
        layers, prefix = self._layers, _prefix(names)
        finer = min(count * parts, layers)
        if len(names) == 1:
            only = self._holes[names[0]]
            return [
                replace(only, name=f"{prefix}.{layer * finer // layers}") for layer in range(layers)
            ]
        new = [layer * finer // layers for layer in range(layers)]
        starts = {one: float(one[len(prefix) + 1 :]) for one in dict.fromkeys(names)}
        ends = dict(zip(starts, [*list(starts.values())[1:], count], strict=True))
        found: list[Hole] = []
        for name, block in zip(names, new, strict=True):
            inside = sorted({one for one, other in zip(new, names, strict=True) if other == name})
            share = inside.index(block) / len(inside)
            called = f"{prefix}.{_mean(starts[name], ends[name], share):g}"
            found.append(replace(self._holes[name], name=called if share else name))
        return found


def _prefix(names: Sequence[str]) -> str:
    """Return what the names of a group's knots begin with: all of it where there is one knot."""
    return names[0] if len(names) == 1 else names[0].removesuffix(".0")


def _mean(one: float, other: float, share: float) -> float:
    return (1 - share) * one + share * other
