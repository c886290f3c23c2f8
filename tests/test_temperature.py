"""The temperature of smoothed margins, by hand and on margins whose truth is known."""

import math

import numpy as np
import pytest

from evomerge.proxy_tasks import ItemScores, sigmoid_of_margin
from evomerge.temperature import temperature


def expert(margins: list[float] | np.ndarray) -> ItemScores:
    found = np.array(margins, dtype=np.float64)
    return ItemScores(np.zeros(len(found)), (found > 0).astype(np.float64), None, found)


def test_by_hand() -> None:
    four = temperature([expert([1.0, -2.0, 3.0, 4.0])])
    assert four == pytest.approx(2.5 * math.sqrt(3) / math.pi)
    many = temperature([expert([1.0, -2.0, 3.0, 4.0] * 8)])
    assert many == pytest.approx(four / 2)  # eight times the items


def test_the_expert_that_answers_most_counts() -> None:
    poor, good = expert([-50.0, -60.0, 70.0]), expert([1.0, 2.0, -3.0])
    assert temperature([poor, good]) == temperature([good, poor]) == temperature([good])


def test_it_scales_with_the_logits() -> None:
    margins = np.random.default_rng(0).normal(1, 2, 50)
    assert temperature([expert(10 * margins)]) == pytest.approx(10 * temperature([expert(margins)]))


@pytest.mark.parametrize("margins", [[0.0, 0.0], [math.inf, math.inf, 1.0], [math.nan, 1.0]])
def test_margins_that_tell_nothing_give_none(margins: list[float]) -> None:
    assert temperature([expert(margins)]) is None


def test_scores_without_margins_have_none() -> None:
    assert temperature([ItemScores(np.zeros(3), np.zeros(3))]) is None


def test_it_measures_accuracy_more_exactly_than_counting() -> None:
    draw = np.random.default_rng(1)
    truth = 0.5 * (1 + math.erf(0.8 / math.sqrt(2)))  # of margins with mean 0.8 and deviation 1
    counted, smoothed = [], []
    for _ in range(400):
        margins = draw.normal(0.8, 1, 32)
        tau = temperature([expert(margins)])
        assert tau is not None
        counted.append((margins > 0).mean() - truth)
        smoothed.append(sigmoid_of_margin(margins, tau).mean() - truth)
    assert np.mean(np.square(smoothed)) < 0.8 * np.mean(np.square(counted))
