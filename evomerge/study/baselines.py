"""The baselines that every report sets beside the winner, scored on the search split first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints import ModelRef
from evomerge.errors import CandidateError, Place, RecipeError
from evomerge.evaluator import Split
from evomerge.expressions import Hole, Values, snap
from evomerge.fitness import Fitness, TaskScores, best_of, mean_scores
from evomerge.merger import Progress
from evomerge.recipe import Recipe, parse_recipe
from evomerge.study.item_scores import pack, unpack
from evomerge.study.scorer import Call, Scoring
from evomerge.study.store import Store

LINE = tuple(round(0.1 * step, 1) for step in range(1, 16))  # task-arithmetic scales tried
_TIES_DENSITY = 0.2  # of the TIES paper
_DARE_DENSITY = 0.5
_PLACE = Place("a baseline", RecipeError)


@dataclass(frozen=True)
class Row:
    """One row of a report: how to score it, and what it is.

    `what` is plain data: {"model": ref}, {"ensemble": [refs]} or {"recipe": mapping}.
    """

    name: str
    kind: str  # winner, baseline or reference
    what: Mapping[str, Any]
    detail: str = ""

    def call(self, split: Split) -> Call:
        """Return what scores the row exactly, as a report shows it."""
        if "model" in self.what:
            return "model", (_ref(self.what["model"]), split, True)
        if "ensemble" in self.what:
            return "ensemble", ([_ref(one) for one in self.what["ensemble"]], split, True)
        return "recipe", (parse_recipe(self.what["recipe"], _PLACE), split, True)

    def score(self, scorer: Scoring, split: Split) -> TaskScores:
        """Score the row exactly, as a report shows it."""
        method, arguments = self.call(split)
        found: TaskScores = getattr(scorer, method)(*arguments)
        return found


def _ref(text: str) -> ModelRef:
    return ModelRef.parse(text, _PLACE)


def row_scores(store: Store, scorer: Scoring, row: Row, split: Split) -> TaskScores:
    """Return a row's scores on a split from the database, scoring and storing them if absent."""
    found = _stored(store, row, split)
    if found is not None:
        return found
    scores = row.score(scorer, split)
    store.set(_key(row, split), {"what": row.what, "items": pack(scores)})
    return scores


def ahead(store: Store, scorer: Scoring, rows: Sequence[Row], splits: Sequence[Split]) -> None:
    """Say which rows will be scored next, which several workers may do at once.

    The database is asked for them only where somebody wants to know.
    """
    scorer.ahead(
        row.call(split) for row in rows for split in splits if _stored(store, row, split) is None
    )


def _key(row: Row, split: Split) -> str:
    return f"row:{row.name}:{split}"


def _stored(store: Store, row: Row, split: Split) -> TaskScores | None:
    found = store.get(_key(row, split))
    return unpack(found["items"]) if found is not None and found["what"] == row.what else None


@dataclass(frozen=True)
class Baselines:
    """All baseline rows, the experts' reference and the starting points' weights."""

    rows: tuple[Row, ...]
    fitness: Fitness
    starts: tuple[Mapping[str, float], ...]  # weights of the experts, by name
    unsolved: tuple[str, ...]  # tasks of which no input answers a single item right
    scores: Mapping[str, TaskScores]  # on the search split, of every row that could be scored
    scored: Mapping[str, Row]  # these rows, more than the report's


def baselines(
    store: Store,
    scorer: Scoring,
    refs: Mapping[str, ModelRef],
    result_dtype: str,
    seed: int,
    worst: float,
    progress: Progress,
) -> Baselines:
    """Score every baseline on the search split, or read what the database has of it."""
    experts = [name for name in refs if name != "base"]
    make = _Recipes(refs, result_dtype, seed)
    total = 1 + len(experts) + max(0, len(experts) - 1) + len(LINE) + 4
    done = 0
    found: dict[str, TaskScores] = {}
    made: dict[str, Row] = {}

    def scored(row: Row) -> TaskScores:
        nonlocal done
        progress(f"baselines: {row.name}", min(done, total), total)
        done += 1
        made[row.name] = row
        found[row.name] = row_scores(store, scorer, row, "search")
        return found[row.name]

    rows = [Row("base", "baseline", {"model": str(refs["base"])})]
    rows += [Row(name, "baseline", {"model": str(refs[name])}) for name in experts]
    lines = [(scale, make.line(scale)) for scale in LINE]
    fixed = [make.soup("uniform soup", experts), make.ties(), make.dare_ties()]
    ahead(store, scorer, [*rows, *fixed, *(row for _, row in lines)], ["search"])
    inputs = {row.name: scored(row) for row in rows}
    means = {name: mean_scores(scores) for name, scores in inputs.items()}
    unsolved = tuple(
        task
        for task in means["base"]
        if not any(scores[task].correct.any() for scores in inputs.values())
    )
    fitness = Fitness(best_of([means[name] for name in experts]), worst)

    def fit(row: Row) -> float:
        try:
            return fitness.of(mean_scores(scored(row)))
        except CandidateError:
            return float("-inf")

    soup, *defaults = fixed
    rows.append(soup)
    greedy, greedy_members = _greedy_soup(make, experts, means, fitness, fit, soup)
    rows.append(greedy)
    scale, line = max(lines, key=lambda pair: fit(pair[1]))
    rows.append(Row("task arithmetic", "baseline", line.what, line.detail))
    rows += defaults
    if scorer.side_by_side:
        members = [str(refs[name]) for name in experts]
        rows.append(Row("ensemble", "reference", {"ensemble": members}))
    for row in rows[-4:]:
        scored(row)
    progress("baselines", total, total)
    share = 1 / len(experts)
    greedy_share = {
        name: 1 / len(greedy_members) if name in greedy_members else 0.0 for name in experts
    }
    starts = (dict.fromkeys(experts, scale), dict.fromkeys(experts, share), greedy_share)
    return Baselines(tuple(rows), fitness, starts, unsolved, found, made)


def _greedy_soup(
    make: _Recipes,
    experts: Sequence[str],
    means: Mapping[str, Mapping[str, float]],
    fitness: Fitness,
    fit: Callable[[Row], float],
    uniform: Row,
) -> tuple[Row, list[str]]:
    """Add experts, best first, while the soup gets no worse (arXiv:2203.05482, recipe 1)."""
    order = sorted(experts, key=lambda name: -fitness.of(means[name]))
    members, best = order[:1], fitness.of(means[order[0]])
    for name in order[1:]:
        trial = [*members, name]
        row = uniform if len(trial) == len(experts) else make.soup("soup " + "+".join(trial), trial)
        value = fit(row)
        if value >= best:
            members, best = trial, value
    row = make.soup("greedy soup", members)
    return Row(row.name, row.kind, row.what, "+".join(members)), members


class _Recipes:
    """Makes the baselines' recipes for given models."""

    def __init__(self, refs: Mapping[str, ModelRef], result_dtype: str, seed: int) -> None:
        self._refs = {name: str(ref) for name, ref in refs.items()}
        self._experts = [name for name in refs if name != "base"]
        self._dtypes = {"dtype": "float32", "out_dtype": result_dtype}
        self._seed = seed

    def _row(
        self,
        name: str,
        method: str,
        members: Sequence[str],
        each: Mapping[str, Any],
        parameters: Mapping[str, Any],
        detail: str,
    ) -> Row:
        recipe = {
            "merge_method": method,
            **({} if method == "linear" else {"base_model": self._refs["base"]}),
            "models": [
                {"model": self._refs[member], "parameters": dict(each)} for member in members
            ],
            "parameters": dict(parameters),
            **self._dtypes,
        }
        checked: Recipe = parse_recipe(recipe, _PLACE)
        return Row(name, "baseline", {"recipe": checked.to_mapping()}, detail)

    def soup(self, name: str, members: Sequence[str]) -> Row:
        """Equal weights of some experts."""
        return self._row(name, "linear", members, {"weight": 1.0}, {}, "")

    def line(self, scale: float) -> Row:
        """Task arithmetic with one scale for every expert."""
        return self._row(
            f"task arithmetic {scale}",
            "task_arithmetic",
            self._experts,
            {"weight": scale},
            {},
            f"scale {scale}",
        )

    def ties(self) -> Row:
        """TIES with the settings of its paper."""
        each = {"weight": 1.0, "density": _TIES_DENSITY}
        detail = f"density {_TIES_DENSITY}"
        return self._row("TIES", "ties", self._experts, each, {"normalize": True}, detail)

    def dare_ties(self) -> Row:
        """DARE before TIES: the disjoint mean of task vectors thinned at random."""
        each = {"weight": 1.0, "density": _DARE_DENSITY}
        parameters = {"normalize": True, "seed": self._seed}
        detail = f"density {_DARE_DENSITY}"
        return self._row("DARE-TIES", "dare_ties", self._experts, each, parameters, detail)


def starting_points(
    weighted: Callable[[Mapping[str, float]], dict[str, Any] | None],
    initial: dict[str, Any],
    starts: Sequence[Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Return the first slots' points: the space's init and the baselines that it contains."""
    points = [initial]
    for weights in starts:
        point = weighted(weights)
        if point is not None and point not in points:
            points.append(point)
    return points


def carried_over(
    recorded: Sequence[Values], holes: Sequence[Hole], points: Sequence[Values]
) -> list[dict[str, Any]]:
    """Return the points of another study in this space, less those that are among `points`.

    A hole that the other study did not have takes its init, a number outside its range the nearest
    one in it; a point that shares no hole with the space is left out.
    """
    found: list[dict[str, Any]] = []
    for values in recorded:
        point = {hole.name: _carried(hole, values.get(hole.name)) for hole in holes}
        shared = any(hole.name in values for hole in holes)
        if shared and point not in points and point not in found:
            found.append(point)
    return found


def _carried(hole: Hole, value: object) -> Any:
    if hole.kind == "categorical":
        same = [one for one in hole.choices if type(one) is type(value) and one == value]
        return same[0] if same else hole.init
    if isinstance(value, bool) or not isinstance(value, int | float):
        return hole.init
    number = snap(value, hole.low, hole.high, hole.step)
    return int(number) if hole.kind == "int" else float(number)
