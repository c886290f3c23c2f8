"""NSGA-II beyond the contract of every optimizer: objectives, populations, kinds of holes."""

from typing import Any

import numpy as np
import pytest

from evomerge import pareto
from evomerge.errors import StudyError
from evomerge.expressions import Hole
from evomerge.genome import Genome
from evomerge.optimizers import Evaluated, nsga2, random_search

PLANE = Genome(tuple(Hole(f"h{i}", "float", 0.0, 1.0, 0.5) for i in range(6)))
MIXED = Genome(
    (
        Hole("method", "categorical", "a", "d", "a", choices=("a", "b", "c", "d")),
        Hole("count", "int", 0, 8, 4, step=1.0),
        *PLANE.holes,
    )
)
Goals = tuple[float, ...]


def worth(genome: Genome, values: Any) -> Goals:
    """Two tasks whose best points are apart; the front lies between them."""
    point = genome.to_unit(values)
    return tuple(1 - float(((point - best) ** 2).mean()) for best in (0.25, 0.75))


def make(genome: Genome = PLANE, seed: int = 0, start: Any = None, **settings: Any) -> Any:
    values = {hole.name: hole.init for hole in genome.holes}
    first = Evaluated(values, sum(worth(genome, values)), worth(genome, values))
    return nsga2.create(nsga2.Settings(**settings), genome, seed, start or (first,))


def play(optimizer: Any, genome: Genome, slots: int) -> list[tuple[dict[str, Any], Goals]]:
    found = []
    for slot in range(slots):
        values = optimizer.ask(slot)
        found.append((values, worth(genome, values)))
        optimizer.tell(slot, values, sum(found[-1][1]), found[-1][1])
    return found


def area(found: list[tuple[dict[str, Any], Goals]]) -> float:
    """What points of two objectives dominate above 0, as a sum of rectangles."""
    points = sorted((goals for _, goals in found), reverse=True)
    total, height = 0.0, 0.0
    for first, second in points:
        total += first * max(0.0, second - height)
        height = max(height, second)
    return total


def test_area_by_hand() -> None:
    assert area([({}, (3.0, 1.0)), ({}, (1.0, 2.0)), ({}, (0.5, 0.5))]) == 4.0


@pytest.mark.parametrize("genome", [PLANE, MIXED], ids=["numbers", "choices"])
def test_the_front_is_wider_than_that_of_random_search(genome: Genome) -> None:
    ours, drawn = [], []
    for seed in range(4):
        ours.append(area(play(make(genome, seed), genome, 400)))
        search = random_search.create(random_search.Settings(), genome, seed, ())
        drawn.append(area(play(search, genome, 400)))
    assert np.mean(ours) > np.mean(drawn) + 0.01


def test_several_objectives_spread_where_one_gathers() -> None:
    def spread(several: bool) -> float:
        start = None if several else [Evaluated(PLANE.from_unit([0.5] * 6), 1.875)]
        optimizer, found = make(start=start), []
        for slot in range(320):
            values = optimizer.ask(slot)
            goals = worth(PLANE, values)
            found.append(goals)
            optimizer.tell(slot, values, sum(goals), goals if several else ())
        last = np.array(found[-32:])
        return float(np.ptp(last[:, 0]))

    assert spread(several=True) > 2 * spread(several=False)


def test_survivors_are_the_best_of_the_population_and_its_children() -> None:
    optimizer = make(population=6)
    found = play(optimizer, PLANE, 12)
    start = {hole.name: hole.init for hole in PLANE.holes}
    everything = [(start, worth(PLANE, start)), *found[:6]]
    optimizer.ask(12)
    known = optimizer._worth
    second = [goals for _, goals in everything]
    best = [second[at] for at in pareto.order(np.array(second))[:6]]
    union = best + [goals for _, goals in found[6:]]
    assert known == [union[at] for at in pareto.order(np.array(union))[:6]]


def test_a_generation_asks_for_all_before_it_and_no_more() -> None:
    optimizer = make(population=5)
    assert [optimizer.horizon(slot) for slot in (0, 4, 5, 9, 10)] == [0, 0, 5, 5, 10]


def test_a_failed_trial_has_no_children() -> None:
    """What would be the best point by far is told as failed: nothing goes there."""
    seen = []
    for failed in (False, True):
        optimizer = make(population=4, mutation=0.01)
        for slot in range(4):
            values = optimizer.ask(slot)
            best = slot == 2
            goals = (9.0, 9.0) if best else (-float(slot), -float(slot))
            fitness = None if failed and best else 1.0
            optimizer.tell(slot, values, fitness, () if fitness is None else goals)
        optimizer.ask(4)
        seen.append((9.0, 9.0) in optimizer._worth)
        assert len(optimizer._worth) == 4
    assert seen == [True, False]


def test_starting_points_are_parents() -> None:
    genome = PLANE
    start = [
        Evaluated(genome.from_unit([unit] * 6), goals[0], goals)
        for unit, goals in ((0.1, (9.0, 0.0)), (0.9, (0.0, 9.0)), (0.5, (0.1, 0.1)))
    ]
    start.append(Evaluated(genome.from_unit([0.3] * 6), None))
    optimizer = make(start=start, population=4, mutation=0.01)
    play(optimizer, genome, 4)
    assert {(9.0, 0.0), (0.0, 9.0)} <= set(optimizer._worth)
    optimizer.ask(4)
    assert {(9.0, 0.0), (0.0, 9.0)} <= set(optimizer._worth)


def test_children_are_not_copies_while_there_is_something_else() -> None:
    choices = Genome((Hole("a", "int", 0, 99, 4, step=1.0), MIXED.holes[0]))
    optimizer = make(choices, population=8, mutation=0.05)
    asked = [tuple(values.values()) for values, _ in play(optimizer, choices, 40)]
    for first in range(0, 40, 8):
        assert len(set(asked[first : first + 8])) == 8


def test_a_coarse_grid_is_left_by_a_step_at_least() -> None:
    """With steps of a quarter, moves by a few hundredths would be rounded away."""
    genome = Genome((Hole("a", "float", 0.0, 1.0, 0.5, step=0.25),))
    optimizer = make(genome, mutation=1.0, crossover=0.0)
    draw = np.random.default_rng(0)
    moved = {genome.from_unit(optimizer._mutated(np.array([0.5]), draw))["a"] for _ in range(60)}
    assert 0.5 not in moved
    assert {0.25, 0.75} <= moved


def test_crossover_keeps_the_mean_of_the_parents() -> None:
    optimizer = make()
    first, second = np.full(6, 0.4), np.full(6, 0.6)
    draw = np.random.default_rng(1)
    children = np.array([optimizer._crossed(first, second, draw) for _ in range(4000)])
    # Half of the values are the first parent's, the others lie around the mean of both.
    assert children.mean() == pytest.approx((0.4 + 0.5) / 2, abs=0.005)
    assert (children == 0.4).mean() == pytest.approx(0.5, abs=0.02)
    others = children[children != 0.4]
    assert np.abs(others - 0.5).mean() == pytest.approx(0.1, abs=0.02)


def test_a_foreign_replay_is_refused() -> None:
    asked = make().ask(0)
    with pytest.raises(StudyError, match="recorded trial at slot 0"):
        make(seed=1).tell(0, asked, 0.0, (0.0, 0.0))
    make().tell(0, {name: value + 1e-8 for name, value in asked.items()}, 0.0, (0.0, 0.0))
    with pytest.raises(StudyError, match="recorded trial at slot 0"):
        make().tell(0, {name: value + 1e-5 for name, value in asked.items()}, 0.0, (0.0, 0.0))
