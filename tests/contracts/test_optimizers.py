"""Contracts of every optimizer in the folder: replay, seeds, bounds, learning, failures."""

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from evomerge import optimizers, plugins
from evomerge.errors import InputError, Place, StudyError
from evomerge.expressions import Hole
from evomerge.genome import Genome
from evomerge.optimizers import Evaluated, Optimizer, OptimizerSettings

PLACE = Place("test", InputError)
NAMES = plugins.names(optimizers)
NUMBERS = Genome(
    (
        Hole("a", "float", 0.0, 1.5, 0.4),
        Hole("b", "float", 0.05, 1.0, 0.3, step=0.01),
        Hole("c", "float", 1e-3, 1.0, 0.1, log=True),
        Hole("d", "int", 1, 9, 4, step=1.0),
    )
)
CHOICES = Genome(
    (
        Hole("e", "categorical", 0.1, 2, 0.5, choices=(0.1, 0.5, 1, 2)),
        *NUMBERS.holes,
        Hole("f", "categorical", True, False, True, choices=(True, False)),
    )
)
ONLY_CHOICES = Genome((CHOICES.holes[0], CHOICES.holes[-1]))
ONE = Genome(NUMBERS.holes[:1])
MANY = Genome(tuple(Hole(f"h{index}", "float", 0.0, 1.0, 0.5) for index in range(200)))
GENOMES = {"numbers": NUMBERS, "choices": CHOICES, "only choices": ONLY_CHOICES, "one": ONE}
REFUSED = {("cma_es", "choices"), ("cma_es", "only choices"), ("cma_es", "one")}
CASES = [(name, kind) for name in NAMES for kind in GENOMES if (name, kind) not in REFUSED]
STARTUP = 10  # trials before a model is used, which then takes a moment for each

Done = list[tuple[dict[str, Any], float | None]]


def initial(genome: Genome) -> dict[str, Any]:
    return {hole.name: hole.init for hole in genome.holes}


def make(name: str, seed: int = 0, genome: Genome = NUMBERS, start: Any = None) -> Optimizer:
    start = start or (Evaluated(initial(genome), 0.1),)
    return optimizers.create(name, OptimizerSettings(), genome, seed, start, PLACE)


def fitness(genome: Genome, values: Any) -> float:
    targets = np.linspace(0.8, 0.3, len(genome))
    return -float(((genome.to_unit(values) - targets) ** 2).sum())


def run(optimizer: Optimizer, genome: Genome, slots: int, fail: int = 0) -> Done:
    """Tell exactly what each horizon asks for, as late as allowed."""
    done: Done = []
    told = 0
    for slot in range(slots):
        while told < optimizer.horizon(slot):
            optimizer.tell(told, *done[told])
            told += 1
        values = optimizer.ask(slot)
        failed = fail and slot % fail == 0
        done.append((values, None if failed else fitness(genome, values)))
    return done


def slots_for(name: str) -> int:
    return STARTUP + 5 if name == "gp" else 40


@functools.cache
def trace(name: str, kind: str, fail: int = 0) -> Done:
    """One uninterrupted run, shared by the tests."""
    return run(make(name, genome=GENOMES[kind]), GENOMES[kind], slots_for(name), fail)


def test_refusals_are_the_known_ones() -> None:
    for name in NAMES:
        for kind, genome in GENOMES.items():
            if (name, kind) in REFUSED:
                with pytest.raises(StudyError, match="use the optimizer cma_mixed"):
                    make(name, genome=genome)
            else:
                make(name, genome=genome)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_same_seed_same_proposals_another_seed_others(name: str, kind: str) -> None:
    genome, whole = GENOMES[kind], trace(name, kind)
    assert run(make(name, genome=genome), genome, 12) == whole[:12]
    assert run(make(name, 1, genome), genome, 12) != whole[:12]


@pytest.mark.parametrize("fail", [0, 3])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_rebuilt_at_any_slot_it_goes_on_as_if_never_stopped(
    name: str, kind: str, fail: int
) -> None:
    whole = trace(name, kind, fail)
    for cut in range(len(whole)):
        replayed = make(name, genome=GENOMES[kind])
        for slot in range(replayed.horizon(cut)):
            replayed.tell(slot, *whole[slot])
        assert replayed.ask(cut) == whole[cut][0]


def goals(genome: Genome, values: Any) -> tuple[float, ...]:
    """Two objectives whose best points are apart."""
    point = genome.to_unit(values)
    return tuple(-float(((point - target) ** 2).sum()) for target in (0.2, 0.8))


@pytest.mark.parametrize("failed_start", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_several_objectives_are_replayed_too(name: str, failed_start: bool) -> None:
    values = initial(NUMBERS)
    known = Evaluated(values, -0.5, goals(NUMBERS, values))
    start = (Evaluated(values, None) if failed_start else known,)
    first, done = make(name, start=start), []
    told = 0
    for slot in range(slots_for(name) + 3):
        while told < first.horizon(slot):
            first.tell(told, *done[told])
            told += 1
        values = first.ask(slot)
        worth = goals(NUMBERS, values)
        done.append((values, None, ()) if slot % 5 == 1 else (values, sum(worth), worth))
    for cut in range(0, len(done), 3):
        replayed = make(name, start=start)
        for slot in range(replayed.horizon(cut)):
            replayed.tell(slot, *done[slot])
        assert replayed.ask(cut) == done[cut][0]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_order_in_which_workers_finish_cannot_matter(name: str, kind: str) -> None:
    whole = trace(name, kind)
    for seed in range(3):
        assert by_workers(make(name, genome=GENOMES[kind]), whole, 4, random.Random(seed)) > 0


def by_workers(optimizer: Optimizer, whole: Done, workers: int, draw: random.Random) -> int:
    """Ask as soon as the horizon allows, finish at random; returns how many slots were asked."""
    finished: set[int] = set()
    running: list[int] = []
    asked = told = 0
    while asked < len(whole):
        ready = all(slot in finished for slot in range(optimizer.horizon(asked)))
        if len(running) < workers and ready:
            while told < optimizer.horizon(asked):
                optimizer.tell(told, *whole[told])
                told += 1
            assert 0 <= optimizer.horizon(asked) <= asked
            assert optimizer.ask(asked) == whole[asked][0]
            running.append(asked)
            asked += 1
        else:
            finished.add(running.pop(draw.randrange(len(running))))
    return asked


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_proposals_are_legal(name: str, kind: str) -> None:
    genome = GENOMES[kind]
    for values, _ in trace(name, kind):
        assert list(values) == [hole.name for hole in genome.holes]
        for hole in genome.holes:
            value = values[hole.name]
            if hole.choices:
                assert any(value is one or value == one for one in hole.choices)
                assert type(value) in {type(one) for one in hole.choices if one == value}
                continue
            assert hole.low <= value <= hole.high
            assert type(value) is (int if hole.kind == "int" else float)
            if hole.name == "b":
                assert value == round(value, 2)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random_search"])
@pytest.mark.parametrize("kind", ["numbers", "choices"])
def test_learns(name: str, kind: str) -> None:
    if (name, kind) in REFUSED or (name, kind) == ("gp", "choices"):
        pytest.skip("refused, or slow")
    genome, slots = GENOMES[kind], 24 if name == "gp" else 120

    def reached(name: str) -> float:
        runs = [run(make(name, seed, genome), genome, slots) for seed in range(3)]
        return float(np.median([max(value or -9 for _, value in done) for done in runs]))

    assert reached(name) > reached("random_search")


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_trials_that_all_fail_and_a_failed_start_are_survived(name: str, kind: str) -> None:
    genome = GENOMES[kind]
    failed = (Evaluated(initial(genome), None),)
    assert len(run(make(name, genome=genome, start=failed), genome, 40, fail=1)) == 40


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_flat_fitness_is_survived(name: str, kind: str) -> None:
    genome = GENOMES[kind]
    optimizer = make(name, genome=genome)
    for slot in range(slots_for(name) - 3):
        optimizer.tell(slot, optimizer.ask(slot), 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_two_hundred_dimensions(name: str) -> None:
    optimizer = make(name, genome=MANY)
    done = run(optimizer, MANY, STARTUP + 1 if name in ("gp", "tpe") else 50)
    assert all(0 <= value <= 1 for values, _ in done for value in values.values())
    assert all(len(values) == 200 for values, _ in done)


@pytest.mark.parametrize("name", NAMES)
def test_no_global_generator_is_touched(name: str) -> None:
    draws: list[Callable[[], Any]] = [
        lambda: np.random.rand(3).tolist(),
        lambda: torch.rand(3).tolist(),
        lambda: [random.random() for _ in range(3)],
    ]

    def seed_all() -> None:
        np.random.seed(11)
        torch.manual_seed(11)
        random.seed(11)

    seed_all()
    expected = [draw() for draw in draws]
    seed_all()
    run(make(name), NUMBERS, STARTUP + 2)
    assert [draw() for draw in draws] == expected
    seed_all()
    first = run(make(name), NUMBERS, STARTUP + 2)
    np.random.seed(12)
    torch.manual_seed(12)
    random.seed(12)
    assert run(make(name), NUMBERS, STARTUP + 2) == first


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_documented(name: str) -> None:
    module = optimizers.get(name, PLACE)
    assert plugins.summary(module)
    for field in module.Settings.model_fields.values():
        assert field.description
    module.Settings()  # everything has a default
