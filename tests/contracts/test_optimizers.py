"""Contracts of every optimizer in the folder: replay, seeds, bounds, learning, failures."""

from typing import Any

import numpy as np
import pytest

from evomerge import optimizers, plugins
from evomerge.errors import InputError, Place, StudyError
from evomerge.expressions import Hole
from evomerge.genome import Genome
from evomerge.optimizers import Evaluated, Optimizer, OptimizerSettings

PLACE = Place("test", InputError)
NAMES = plugins.names(optimizers)
GENOME = Genome(
    (
        Hole("a", "float", 0.0, 1.5, 0.4),
        Hole("b", "float", 0.05, 1.0, 0.3, step=0.01),
        Hole("c", "float", 1e-3, 1.0, 0.1, log=True),
        Hole("d", "int", 1, 9, 4, step=1.0),
    )
)
START = (Evaluated({"a": 0.4, "b": 0.3, "c": 0.1, "d": 4}, 0.1),)


def make(name: str, seed: int = 0, genome: Genome = GENOME, start: Any = START) -> Optimizer:
    return optimizers.create(name, OptimizerSettings(), genome, seed, start, PLACE)


def fitness(values: Any) -> float:
    return -float(((GENOME.to_unit(values) - np.array([0.8, 0.6, 0.3, 0.5])) ** 2).sum())


def run(optimizer: Optimizer, slots: int, fail: int = 0) -> list[tuple[dict[str, Any], Any]]:
    """Tell exactly what each horizon asks for, as late as allowed."""
    done: list[tuple[dict[str, Any], Any]] = []
    told = 0
    for slot in range(slots):
        while told < optimizer.horizon(slot):
            optimizer.tell(told, *done[told])
            told += 1
        values = optimizer.ask(slot)
        value = None if fail and slot % fail == 0 else fitness(values)
        done.append((values, value))
    return done


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_proposals_another_seed_others(name: str) -> None:
    assert run(make(name), 16) == run(make(name), 16)
    assert run(make(name), 16) != run(make(name, seed=1), 16)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fail", [0, 3])
def test_replay_goes_on_as_if_never_stopped(name: str, fail: int) -> None:
    whole = run(make(name), 18, fail)
    for cut in (1, 8, 17):
        replayed = make(name)
        for slot in range(replayed.horizon(cut)):
            replayed.tell(slot, *whole[slot])
        assert replayed.ask(cut) == whole[cut][0]


@pytest.mark.parametrize("name", NAMES)
def test_results_beyond_the_horizon_cannot_matter(name: str) -> None:
    whole = run(make(name), 14)
    slot = 11
    optimizer = make(name)
    horizon = optimizer.horizon(slot)
    assert 0 <= horizon <= slot
    for told in range(horizon):
        optimizer.tell(told, *whole[told])
    assert optimizer.ask(slot) == whole[slot][0]


@pytest.mark.parametrize("name", NAMES)
def test_proposals_are_legal(name: str) -> None:
    for values, _ in run(make(name), 20 if name == "gp" else 60):
        assert list(values) == ["a", "b", "c", "d"]
        assert 0.0 <= values["a"] <= 1.5
        assert 0.05 <= values["b"] <= 1.0
        assert values["b"] == round(values["b"], 2)
        assert 1e-3 <= values["c"] <= 1.0
        assert values["d"] in range(1, 10)
        assert isinstance(values["d"], int)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random_search"])
def test_learns(name: str) -> None:
    slots = 34 if name == "gp" else 120

    def reached(name: str) -> float:
        runs = [run(make(name, seed), slots) for seed in range(3)]
        return float(np.median([max(value for _, value in done) for done in runs]))

    assert reached(name) > reached("random_search")


@pytest.mark.parametrize("name", NAMES)
def test_all_failed_is_survived(name: str) -> None:
    failed = (Evaluated(START[0].values, None),)
    assert len(run(make(name, start=failed), 13, fail=1)) == 13


@pytest.mark.parametrize("name", NAMES)
def test_the_callers_random_stream_is_left_alone(name: str) -> None:
    np.random.seed(11)
    expected = np.random.rand(3)
    np.random.seed(11)
    run(make(name), 12)
    np.testing.assert_array_equal(np.random.rand(3), expected)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_documented(name: str) -> None:
    module = optimizers.get(name, PLACE)
    assert plugins.summary(module)
    for field in module.Settings.model_fields.values():
        assert field.description
    module.Settings()  # everything has a default


@pytest.mark.parametrize("name", ["tpe", "random_search"])
def test_choices(name: str) -> None:
    genome = Genome((Hole("x", "categorical", True, False, True, choices=(True, False)),))
    start = (Evaluated({"x": True}, 0.0),)
    optimizer = make(name, genome=genome, start=start)
    seen = set()
    for slot in range(12):
        values = optimizer.ask(slot)
        optimizer.tell(slot, values, float(values["x"]))
        seen.add(values["x"])
    assert seen == {True, False}


def test_cma_es_refuses_what_it_cannot_search() -> None:
    genome = Genome((Hole("x", "categorical", 1, 2, 1, choices=(1, 2)), *GENOME.holes))
    start = (Evaluated({"x": 1, **START[0].values}, 0.0),)
    with pytest.raises(StudyError, match="a choice among its holes; use the optimizer tpe"):
        make("cma_es", genome=genome, start=start)


def test_cma_es_refuses_a_foreign_replay() -> None:
    whole = run(make("cma_es"), 10)
    other = make("cma_es", seed=1)
    with pytest.raises(StudyError, match="recorded trial at slot 0"):
        other.tell(0, *whole[0])


def test_cma_es_starts_at_the_best_and_evaluates_its_mean() -> None:
    points = [Evaluated({"a": a, "b": 0.3, "c": 0.1, "d": 4}, f) for a, f in ((0.3, 1), (0.9, 2))]
    done = run(make("cma_es", start=points), 208)
    size = 4 + int(3 * np.log(len(GENOME)))
    first = np.mean([values["a"] for values, _ in done[:size]])
    assert first == pytest.approx(0.9, abs=0.2)
    optimizer = make("cma_es", start=points)
    for slot, (values, value) in enumerate(done):
        optimizer.tell(slot, values, value)
        means = [told for told in range(slot + 1) if (told + 1) % (size + 1) == 0]
        assert optimizer.recommend() == (means[-1] if means else None)
    last = optimizer.recommend()
    assert last is not None
    members = [value for _, value in done[last + 1 : last + 1 + size]]
    assert done[last][1] > np.mean(members)
    assert done[last][1] > -1e-3


def test_auto() -> None:
    def genome(dimensions: int, kind: Any = "float") -> Genome:
        return Genome(
            tuple(Hole(f"h{i}", kind, 0.0, 1.0, 0.5, choices=(0, 1)) for i in range(dimensions))
        )

    assert optimizers.choose(genome(5, "categorical"), 300) == "tpe"
    assert optimizers.choose(genome(15), 150) == "gp"
    assert optimizers.choose(genome(15), 151) == "cma_es"
    assert optimizers.choose(genome(33), 100) == "cma_es"
    assert optimizers.choose(genome(1), 1000) == "gp"
    with pytest.raises(InputError, match=r"did you mean 'cma_es'\?"):
        optimizers.get("cma", PLACE)
