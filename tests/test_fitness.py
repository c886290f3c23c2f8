"""Fitness by hand; confidence intervals against theory and simulation."""

from statistics import NormalDist

import numpy as np
import pytest

from evomerge.errors import CandidateError
from evomerge.fitness import (
    Fitness,
    best_of,
    gain,
    mean_correct,
    mean_scores,
    normalized_accuracy,
    optimism,
)
from evomerge.proxy_tasks import ItemScores


def items(correct: object) -> ItemScores:
    right = np.array(correct, dtype=np.float64)
    return ItemScores(0.25 + right / 2, right)


def test_means() -> None:
    scores = {"a": items([1, 0, 1, 1]), "b": items([0, 0])}
    assert mean_scores(scores) == {"a": 0.625, "b": 0.25}
    assert mean_correct(scores) == {"a": 0.75, "b": 0.0}


def test_fitness_by_hand() -> None:
    reference = {"a": 0.8, "b": 0.5}
    means = {"a": 0.4, "b": 0.45, "more": 1.0}  # ratios 0.5 and 0.9
    assert Fitness(reference).of(means) == pytest.approx(0.7)
    assert Fitness(reference, worst=1.0).of(means) == pytest.approx(0.5)
    assert Fitness(reference, worst=0.25).of(means) == pytest.approx(0.75 * 0.7 + 0.25 * 0.5)
    assert Fitness(reference).of(reference) == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("worst", [0.0, 0.5, 1.0])
def test_a_score_that_is_no_number_fails_the_trial(value: float, worst: float) -> None:
    for means in ({"a": value, "b": 0.5}, {"a": 0.5, "b": value}):
        with pytest.raises(CandidateError, match="not finite numbers"):
            Fitness({"a": 0.5, "b": 0.5}, worst).of(means)


def test_the_reference_is_the_best_expert_of_each_task() -> None:
    experts = [{"a": 0.1, "b": 0.9, "c": 0.0}, {"a": 0.3, "b": 0.2, "c": 0.0}]
    assert best_of(experts) == {"a": 0.3, "b": 0.9, "c": 1.0}


def test_normalized_accuracy_by_hand() -> None:
    experts = [
        {"a": items([1, 1, 1, 0]), "b": items([0, 0, 0, 1])},
        {"a": items([0, 1, 0, 0]), "b": items([1, 1, 0, 1])},
    ]
    scores = {"a": items([1, 0, 1, 0]), "b": items([1, 1, 1, 1])}
    found = normalized_accuracy(scores, experts)
    assert found.value == pytest.approx(((2 / 4) / (3 / 4) + 1 / (3 / 4)) / 2)
    assert found.low < found.value < found.high


def test_the_best_expert_s_own_interval_is_a_point() -> None:
    expert = {"a": items([1, 0, 1, 1, 0, 1] * 5), "b": items([0, 1, 1, 0, 1, 1] * 5)}
    weaker = {"a": items([0, 0, 1, 1, 0, 1] * 5), "b": items([0, 0, 1, 0, 0, 1] * 5)}
    found = normalized_accuracy(expert, [weaker, expert])
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert normalized_accuracy(weaker, [weaker, expert]).high < 1


def test_tasks_that_nobody_solves_count_as_they_are() -> None:
    nobody = {"a": items([0] * 8)}
    assert normalized_accuracy(nobody, [nobody]).value == 0.0
    found = normalized_accuracy({"a": items([1, 0] * 4)}, [nobody])
    assert found.value == 0.5
    assert 0 < found.low < 0.5 < found.high < 1


def test_the_order_of_items_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    mine, its = generator.random((2, 60)) < [[0.6], [0.8]]
    order = generator.permutation(60)
    first = normalized_accuracy({"a": items(mine)}, [{"a": items(its)}])
    second = normalized_accuracy({"a": items(mine[order])}, [{"a": items(its[order])}])
    assert first == second


def test_partly_right_items() -> None:
    """Perplexity counts parts of an item, so nearly every pair of numbers is another."""
    generator = np.random.default_rng(0)
    its = generator.uniform(0.5, 0.9, 400)
    mine = its * generator.uniform(0.7, 1.0, 400)
    found = normalized_accuracy({"a": items(mine)}, [{"a": items(its)}])
    ratio = mine.sum() / its.sum()
    sd = np.std(mine - ratio * its) / its.mean() / 20  # of a ratio of means, by linearization
    assert found.value == pytest.approx(ratio)
    assert found.high - found.low == pytest.approx(2 * 1.96 * sd, rel=0.1)


def draw(generator: np.random.Generator, size: int, both: float, mine: float, its: float) -> tuple:
    """Items right for both, for the candidate alone, for the expert alone, with these chances."""
    kind = generator.random(size)
    only_mine = (kind >= both) & (kind < both + mine)
    only_its = (kind >= both + mine) & (kind < both + mine + its)
    return items((kind < both) | only_mine), items((kind < both) | only_its)


def test_the_interval_is_that_of_linearization() -> None:
    """By the delta method: sd of the ratio ≈ sd(x − r·y) / (mean(y)·√n), with items paired."""
    mine, its = draw(np.random.default_rng(1), 2000, both=0.6, mine=0.05, its=0.15)
    found = normalized_accuracy({"a": mine}, [{"a": its}])
    ratio = mine.correct.mean() / its.correct.mean()
    sd = np.std(mine.correct - ratio * its.correct) / its.correct.mean() / np.sqrt(2000)
    z = NormalDist().inv_cdf(0.975)
    assert found.low == pytest.approx(ratio - z * sd, abs=0.15 * sd)
    assert found.high == pytest.approx(ratio + z * sd, abs=0.15 * sd)
    unpaired = np.hypot(
        np.std(mine.correct) / its.correct.mean(),
        ratio * np.std(its.correct) / its.correct.mean(),
    ) / np.sqrt(2000)
    assert found.high - found.low < 0.75 * 2 * z * unpaired


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    """Two tasks, resampled item by item, as Efron's paper has it."""
    generator = np.random.default_rng(2)
    pairs = {
        "a": draw(generator, 150, both=0.5, mine=0.1, its=0.2),
        "b": draw(generator, 80, both=0.2, mine=0.2, its=0.1),
    }
    found = normalized_accuracy(
        {name: pair[0] for name, pair in pairs.items()},
        [{name: pair[1] for name, pair in pairs.items()}],
    )
    total = np.zeros(20_000)
    for mine, its in pairs.values():
        chosen = generator.integers(0, len(mine.correct), size=(20_000, len(mine.correct)))
        total += mine.correct[chosen].mean(1) / its.correct[chosen].mean(1)
    low, high = np.percentile(total / 2, [2.5, 97.5])
    width = high - low
    assert found.low == pytest.approx(low, abs=0.05 * width)
    assert found.high == pytest.approx(high, abs=0.05 * width)


@pytest.mark.parametrize("size", [64, 256])
def test_about_95_of_100_intervals_hold_the_truth(size: int) -> None:
    generator = np.random.default_rng(3)
    truth = (0.6 + 0.05) / (0.6 + 0.15)
    inside = 0
    for _ in range(400):
        mine, its = draw(generator, size, both=0.6, mine=0.05, its=0.15)
        found = normalized_accuracy({"a": mine}, [{"a": its}])
        inside += found.low <= truth <= found.high
    # binomial(400, 0.95): sd 1.1 points; the percentile bootstrap falls a little short
    assert 0.91 <= inside / 400 <= 0.985


def test_a_gain_is_paired_with_the_other_and_with_the_expert() -> None:
    """Against a plain bootstrap that draws the same items for all three."""
    generator = np.random.default_rng(4)
    its = generator.random(200) < 0.8
    other = np.where(generator.random(200) < 0.2, generator.random(200) < 0.4, its)
    mine = np.where(generator.random(200) < 0.1, generator.random(200) < 0.9, other)
    found = gain({"a": items(mine)}, {"a": items(other)}, [{"a": items(its)}])
    assert found.value == pytest.approx((mine.sum() - other.sum()) / its.sum())
    chosen = generator.integers(0, 200, size=(20_000, 200))
    differences = (mine[chosen].sum(1) - other[chosen].sum(1)) / its[chosen].sum(1)
    low, high = np.percentile(differences, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.08 * (high - low))
    assert found.high == pytest.approx(high, abs=0.08 * (high - low))
    alone = [normalized_accuracy({"a": items(one)}, [{"a": items(its)}]) for one in (mine, other)]
    assert high - low < 0.8 * np.hypot(*(one.high - one.low for one in alone))


def test_a_candidate_gains_nothing_on_itself() -> None:
    scores = {"a": items([1, 0, 1, 1]), "b": items([0, 1, 1, 0])}
    found = gain(scores, scores, [scores])
    assert found.to_mapping() == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_optimism_is_a_difference_of_unlike_items() -> None:
    generator = np.random.default_rng(5)
    its, fresh_its = generator.random(100) < 0.8, generator.random(400) < 0.8
    mine, fresh = generator.random(100) < 0.7, generator.random(400) < 0.6
    scores, experts = {"a": items(mine)}, [{"a": items(its)}]
    others, other_experts = {"a": items(fresh)}, [{"a": items(fresh_its)}]
    found = optimism(scores, experts, others, other_experts)
    seen, true = normalized_accuracy(scores, experts), normalized_accuracy(others, other_experts)
    assert found.value == pytest.approx(seen.value - true.value)
    width = np.hypot(seen.high - seen.low, true.high - true.low)  # of two that are independent
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    same = optimism(others, other_experts, others, other_experts)
    assert same.value == 0
    assert same.low < -0.02 < 0.02 < same.high
