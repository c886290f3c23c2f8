"""What single optimizers do beyond the contract, and which of them `auto` stands for."""

from typing import Any

import numpy as np
import pytest
from optuna.samplers._gp import sampler

from evomerge import optimizers
from evomerge.errors import InputError, Place, StudyError
from evomerge.expressions import Hole
from evomerge.genome import Genome
from evomerge.optimizers import Evaluated, Optimizer, cma_es, cma_mixed, gp, tpe

PLACE = Place("test", InputError)


def plane(dimensions: int, **kind: Any) -> Genome:
    return Genome(tuple(Hole(f"h{i}", "float", 0.0, 1.0, 0.5, **kind) for i in range(dimensions)))


def at(genome: Genome, unit: float, fitness: float | None) -> Evaluated:
    return Evaluated(genome.from_unit([unit] * len(genome)), fitness)


def play(optimizer: Optimizer, slots: int, fitness: Any) -> list[dict[str, Any]]:
    asked = []
    for slot in range(slots):
        asked.append(optimizer.ask(slot))
        optimizer.tell(slot, asked[-1], fitness(asked[-1]))
    return asked


def sphere(values: Any, target: float = 0.6) -> float:
    return -sum((value - target) ** 2 for value in values.values())


def test_auto() -> None:
    choice = Genome((Hole("x", "categorical", 0, 1, 0, choices=(0, 1)), *plane(4).holes))
    assert optimizers.choose(choice, 100) == "cma_mixed"
    assert optimizers.choose(plane(15), 300) == "gp"
    assert optimizers.choose(plane(15), 301) == "cma_es"
    assert optimizers.choose(plane(33), 100) == "cma_es"
    assert optimizers.choose(plane(1), 300) == "gp"
    assert optimizers.choose(plane(1), 301) == "cma_mixed"
    with pytest.raises(InputError, match=r"did you mean 'cma_es'\?"):
        optimizers.get("cma", PLACE)


@pytest.mark.parametrize("module", [cma_es, cma_mixed])
def test_a_foreign_replay_is_refused(module: Any) -> None:
    genome = plane(3)
    start = [at(genome, 0.5, 0.0)]
    recorded = play(module.create(module.Settings(), genome, 0, start), 1, sphere)
    with pytest.raises(StudyError, match="recorded trial at slot 0"):
        module.create(module.Settings(), genome, 1, start).tell(0, recorded[0], 0.0)
    nudged = {name: value + 1e-8 for name, value in recorded[0].items()}
    module.create(module.Settings(), genome, 0, start).tell(0, nudged, 0.0)
    moved = {name: value + 1e-5 for name, value in recorded[0].items()}
    with pytest.raises(StudyError, match="recorded trial at slot 0"):
        module.create(module.Settings(), genome, 0, start).tell(0, moved, 0.0)


@pytest.mark.parametrize("module", [cma_es, cma_mixed])
def test_the_best_start_is_the_first_mean(module: Any) -> None:
    genome = plane(12)
    start = [at(genome, 0.2, 1.0), at(genome, 0.8, 2.0), at(genome, 0.4, None)]
    settings = module.Settings(population=50, sigma=0.05)
    asked = play(module.create(settings, genome, 0, start), 50, sphere)
    points = np.array([genome.to_unit(values) for values in asked])
    np.testing.assert_allclose(points.mean(axis=0), 0.8, atol=0.03)
    np.testing.assert_allclose(points.std(axis=0), 0.05, rtol=0.4)


@pytest.mark.parametrize("module", [cma_es, cma_mixed])
def test_the_center_is_evaluated_before_each_generation_and_recommended(module: Any) -> None:
    genome, size = plane(4), 6
    optimizer = module.create(
        module.Settings(population=size), genome, 0, [at(genome, 0.3, sphere({}))]
    )
    asked = []
    for slot in range(31 * (size + 1)):
        assert optimizer.horizon(slot) == max(0, (slot + 1) // (size + 1) * (size + 1) - 1)
        asked.append(optimizer.ask(slot))
        center = slot % (size + 1) == size
        failed = slot == 2 * (size + 1) + size
        optimizer.tell(slot, asked[-1], None if failed else sphere(asked[-1]))
        if slot < size:
            assert optimizer.recommend() is None
        elif center:
            assert optimizer.recommend() == (slot - size - 1 if failed else slot)
    last = optimizer.recommend()
    members = asked[last - size : last]
    assert sphere(asked[last]) > np.mean([sphere(values) for values in members])
    assert sphere(asked[last]) > -1e-2


def test_cma_es_learns_the_other_starting_points_without_a_trial() -> None:
    genome = plane(12)
    best = at(genome, 0.5, 0.0)
    settings = cma_es.Settings(population=10)

    def second_center(start: list[Evaluated]) -> Any:
        optimizer = cma_es.create(settings, genome, 0, start)
        play(optimizer, 10, lambda values: -1.0)
        return genome.to_unit(optimizer.ask(10))

    alone = second_center([best])
    pulled = second_center([best, at(genome, 0.6, -0.1)])
    assert pulled.mean() > alone.mean() + 0.02
    np.testing.assert_array_equal(alone, second_center([best, at(genome, 0.6, None)]))


def test_cma_es_adapts_correlations_unless_it_is_diagonal() -> None:
    """A narrow diagonal valley is followed by the full matrix alone."""
    genome = plane(4)

    def valley(values: Any) -> float:
        x = np.array(list(values.values())) - 0.6
        return -float(1e4 * (x**2).sum() - (1e4 - 1) * x.sum() ** 2 / 4)

    def reached(**settings: Any) -> float:
        optimizer = cma_es.create(cma_es.Settings(**settings), genome, 0, [at(genome, 0.3, -1.0)])
        return max(valley(values) for values in play(optimizer, 700, valley))

    assert reached(diagonal=False) > -1e-5
    assert reached(diagonal=False) == reached()  # below 10 dimensions
    assert reached(diagonal=True) < -1e-4


def test_eigenvectors_have_signs_that_no_library_chooses() -> None:
    matrix = np.cov(np.random.default_rng(0).normal(size=(6, 20)))
    values, vectors = cma_es._signed_eigh(matrix)
    np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=1e-12)
    for column in vectors.T:
        assert column[np.abs(column).argmax()] > 0


def test_cma_mixed_starts_at_the_best_choice_and_finds_a_better_one() -> None:
    methods = Hole("method", "categorical", 1, 4, 2, choices=(1, 2, 3, 4))
    genome = Genome((methods, Hole("count", "int", 0, 8, 1, step=1.0), *plane(3).holes))
    numbers = {"count": 1, "h0": 0.3, "h1": 0.3, "h2": 0.3}
    start = [Evaluated({"method": 2, **numbers}, -1.0), Evaluated({"method": 3, **numbers}, -2.0)]

    def fitness(values: Any) -> float:
        rest = {name: values[name] for name in ("h0", "h1", "h2")}
        return sphere(rest) - 0.3 * (values["method"] != 4) - 0.05 * abs(values["count"] - 7)

    settings = cma_mixed.Settings(population=60, prior=0.7)
    first = play(cma_mixed.create(settings, genome, 0, start), 60, fitness)
    share = np.mean([values["method"] == 2 for values in first])
    assert share == pytest.approx(0.7, abs=0.15)
    assert {values["method"] for values in first} == {1, 2, 3, 4}

    optimizer = cma_mixed.create(cma_mixed.Settings(), genome, 0, start)
    asked = play(optimizer, 400, fitness)
    last = optimizer.recommend()
    assert last is not None
    assert asked[last]["method"] == 4
    assert asked[last]["count"] == 7
    assert fitness(asked[last]) > -1e-2


def test_cma_mixed_searches_a_fine_grid_as_an_interval_and_a_coarse_one_as_such() -> None:
    """On the coarse grid, however sure it is, neighbours of the best value stay within reach."""
    for step, others in ((0.25, True), (0.01, False)):
        genome = Genome((*plane(1, step=step).holes, Hole("x", "float", 0.0, 1.0, 0.5)))
        optimizer = cma_mixed.create(cma_mixed.Settings(), genome, 0, [at(genome, 0.5, -1.0)])
        late = play(optimizer, 600, lambda values: sphere(values, 0.5))[500:]
        assert any(values["h0"] != 0.5 for values in late) == others


@pytest.mark.parametrize(("lag", "points"), [(1, 2048), (2, 512)])
def test_with_a_lag_fewer_points_are_looked_at(
    lag: int, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    real = sampler.optim_mixed.optimize_acqf_mixed

    def optimize(*given: Any, n_preliminary_samples: int, **others: Any) -> Any:
        looked.append(n_preliminary_samples)
        return real(*given, n_preliminary_samples=n_preliminary_samples, **others)

    monkeypatch.setattr(sampler.optim_mixed, "optimize_acqf_mixed", optimize)
    genome = plane(2)
    start = [at(genome, value, sphere({"h0": value, "h1": value})) for value in (0.2, 0.8)]
    gp.create(gp.Settings(startup_trials=1, lag=lag), genome, 0, start).ask(0)
    assert looked == [points]


@pytest.mark.parametrize("module", [gp, tpe])
def test_with_a_lag_what_is_under_way_is_kept_away_from_and_replays(module: Any) -> None:
    genome, lag, slots = plane(3), 4, 14
    settings = module.Settings(startup_trials=3, lag=lag)
    start = [at(genome, 0.3, sphere({f"h{i}": 0.3 for i in range(3)}))]

    def goes(told: int, under_way: list[Any], slot: int) -> Any:
        optimizer = module.create(settings, genome, 0, start)
        for one in range(told):
            fitness = None if one % 5 == 2 else sphere(done[one])
            optimizer.tell(one, done[one], fitness)
        return optimizer.ask(slot, under_way)

    optimizer, done, told = module.create(settings, genome, 0, start), [], 0
    for slot in range(slots):
        assert optimizer.horizon(slot) == max(0, slot - 3)
        while told < optimizer.horizon(slot):
            fitness = None if told % 5 == 2 else sphere(done[told])
            optimizer.tell(told, done[told], fitness)
            told += 1
        done.append(optimizer.ask(slot, done[told:]))
        assert goes(told, done[told:slot], slot) == done[slot]  # rebuilt at any slot
    assert goes(told, [], slots - 1) != done[-1]  # what is under way matters
    points = np.array([genome.to_unit(values) for values in done[-lag:]])
    apart = np.abs(points[:, None] - points[None]).max(axis=2)[np.triu_indices(lag, 1)]
    assert apart.min() > 1e-3


@pytest.mark.parametrize("module", [gp, tpe])
def test_with_a_lag_the_number_of_objectives_may_be_learnt_late(module: Any) -> None:
    genome, lag = plane(2), 3
    settings = module.Settings(startup_trials=2, lag=lag)
    start = [at(genome, 0.3, None)]

    def worth(slot: int) -> tuple[Any, ...]:
        return (None, ()) if slot < 2 else (0.1 * slot, (0.1 * slot, 1.0 - 0.1 * slot))

    live, done, told = module.create(settings, genome, 0, start), [], 0
    for slot in range(10):
        while told < live.horizon(slot):
            live.tell(told, done[told], *worth(told))
            told += 1
        done.append(live.ask(slot, done[told:]))
        replayed = module.create(settings, genome, 0, start)
        for one in range(told):
            replayed.tell(one, done[one], *worth(one))
        assert replayed.ask(slot, done[told:slot]) == done[slot]


def test_what_keeps_workers_busy() -> None:
    assert optimizers.advice("cma_es", 16, 8) is None
    assert optimizers.advice("gp", 1, 1) is None
    found = optimizers.advice("gp", 1, 8)
    assert found == (
        "gp begins one trial at a time, so that 8 workers are busy 12% of it; "
        "a study file with search: {optimizer: gp, lag: 8} would keep them all busy"
    )
    found = optimizers.advice("cma_es", 12, 8)
    assert found is not None
    assert "begins 12 trials at a time, so that 8 workers are busy 75% of it" in found
    assert "{optimizer: cma_es, population: 15}" in found
    assert "would" not in (optimizers.advice("random_search", 16, 32) or "")


@pytest.mark.parametrize("name", ["cma_es", "cma_mixed", "nsga2", "gp", "tpe"])
def test_with_the_settings_advised_so_many_are_under_way(name: str) -> None:
    module = optimizers.get(name, PLACE)
    genome = plane(3)
    settings = module.Settings(**module.settings_for(24))
    optimizer = module.create(settings, genome, 0, [at(genome, 0.5, 0.0)])
    known = optimizer.horizon(10**6)
    assert optimizer.horizon(known + 23) <= known < optimizer.horizon(known + 24)
