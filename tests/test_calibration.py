"""Calibration by hand, against a loop over bins, and of models that are calibrated by design."""

import numpy as np
import pytest

from evomerge.calibration import calibration, expected_error


def by_loops(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Guo et al., equation 3, bins of as many items each, no two items alike."""
    order = sorted(range(len(confidence)), key=lambda one: confidence[one])
    size, extra = divmod(len(order), bins)
    total, start = 0.0, 0
    for one in range(bins):
        mine = order[start : start + size + (one < extra)]
        start += len(mine)
        accuracy = sum(correct[item] for item in mine) / len(mine)
        mean = sum(confidence[item] for item in mine) / len(mine)
        total += len(mine) / len(order) * abs(accuracy - mean)
    return total


def test_by_hand() -> None:
    found = calibration(np.array([0.5, 0.25]), np.array([0.5, 0.75]), np.array([1.0, 0.0]))
    assert found.error == pytest.approx((0.5 + 0.75) / 2)  # two items, a bin each
    assert found.brier == pytest.approx((0.25 + 0.5625) / 2)
    assert found.likelihood == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert found.to_mapping() == {
        "error": found.error,
        "brier": found.brier,
        "likelihood": found.likelihood,
    }


@pytest.mark.parametrize("size", [15, 16, 100, 301])
def test_the_error_is_that_of_loops(size: int) -> None:
    draw = np.random.default_rng(size)
    confidence = draw.random(size)
    correct = (draw.random(size) < confidence**2) * 1.0
    assert expected_error(confidence, correct) == pytest.approx(by_loops(confidence, correct))


def test_a_calibrated_model_has_nearly_none_and_a_bold_one_what_it_is_bold_by() -> None:
    draw = np.random.default_rng(0)
    truth = draw.uniform(0.2, 0.9, 200_000)
    correct = (draw.random(len(truth)) < truth) * 1.0
    assert expected_error(truth, correct) < 0.005
    assert expected_error(truth + 0.1, correct) == pytest.approx(0.1, abs=0.005)
    found = calibration(truth, truth, correct)
    assert found.brier == pytest.approx(np.mean(truth * (1 - truth)), abs=0.005)


def test_items_of_one_confidence_are_alike_in_every_bin() -> None:
    """The order of the items, which is no property of a model, must not matter."""
    confidence, correct = np.full(30, 0.7), np.repeat([1.0, 0.0], [21, 9])
    assert expected_error(confidence, correct) == pytest.approx(0)
    assert expected_error(confidence, correct[::-1]) == pytest.approx(0)


def test_a_probability_of_none_is_not_infinite() -> None:
    found = calibration(np.array([0.0]), np.array([1.0]), np.array([0.0]))
    assert found.likelihood == pytest.approx(-np.log(1e-12))
    assert (found.error, found.brier) == (1.0, 1.0)
