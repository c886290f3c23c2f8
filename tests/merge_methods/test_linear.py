from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import CandidateError
from tests.tiny_models import merge_vectors

A, B = [1.0, -2.0, 4.0], [3.0, 2.0, 0.0]


def test_weighted_mean(tmp_path: Path) -> None:
    models = {"a": (A, {"weight": 3}), "b": (B, {"weight": 1})}
    assert merge_vectors(tmp_path, "linear", models) == [1.5, -1.0, 3.0]


def test_weighted_sum_without_normalize(tmp_path: Path) -> None:
    models = {"a": (A, {"weight": 3}), "b": (B, {"weight": -1})}
    assert merge_vectors(tmp_path, "linear", models, normalize=False) == [0.0, -8.0, 12.0]


def test_one_model_is_itself(tmp_path: Path) -> None:
    assert merge_vectors(tmp_path, "linear", {"a": (A, {"weight": 0.3})}) == A


def test_weights_whose_sum_is_zero_are_refused_with_the_tensor(tmp_path: Path) -> None:
    models = {"a": (A, {"weight": 0.5}), "b": (B, {"weight": -0.5})}
    with pytest.raises(CandidateError, match=r"sum of 0 for x; .* normalize: false"):
        merge_vectors(tmp_path, "linear", models)
    rounded = {"a": (A, {"weight": 0.7}), "b": (B, {"weight": -0.4}), "c": (B, {"weight": -0.3})}
    with pytest.raises(CandidateError, match="sum of 0"):
        merge_vectors(tmp_path, "linear", rounded)


def test_weights_that_overflow_are_refused(tmp_path: Path) -> None:
    models: dict[str, Any] = {"a": (A, {"weight": 1e300}), "b": (B, {"weight": 1})}
    with pytest.raises(CandidateError, match="overflow float32"):
        merge_vectors(tmp_path, "linear", models, normalize=False)
    nearly: dict[str, Any] = {"a": (A, {"weight": 1e-320}), "b": (B, {"weight": 1e300})}
    assert merge_vectors(tmp_path, "linear", nearly) == B
