from pathlib import Path

from tests.tiny_models import merge_vectors

BASE = [1.0, 1.0, 1.0]
A, B = [2.0, 1.0, 0.0], [1.0, 3.0, 5.0]


def test_weighted_task_vectors_are_added(tmp_path: Path) -> None:
    models = {"a": (A, {"weight": 0.5}), "b": (B, {"weight": 0.25})}
    assert merge_vectors(tmp_path, "task_arithmetic", models, BASE) == [1.5, 1.5, 1.5]


def test_lambda_and_normalize(tmp_path: Path) -> None:
    models = {"a": (A, {"weight": 1}), "b": (B, {"weight": 3})}
    shared = {"normalize": True, "lambda": 2}
    assert merge_vectors(tmp_path, "task_arithmetic", models, BASE, **shared) == [1.5, 4.0, 6.5]


def test_a_sum_of_zero_is_not_divided_by(tmp_path: Path) -> None:
    models = {"a": (A, {"weight": 1}), "b": (B, {"weight": -1})}
    found = merge_vectors(tmp_path, "task_arithmetic", models, BASE, normalize=True)
    assert found == [2.0, -1.0, -4.0]


def test_a_weight_of_one_gives_the_model_back_to_the_last_bit(tmp_path: Path) -> None:
    vector = [0.1, -0.30000001, 7.7]
    models = {"a": (vector, {"weight": 1})}
    found = merge_vectors(tmp_path, "task_arithmetic", models, [0.1, -0.3, 7.0])
    assert abs(found[2] - 7.7) <= 2**-21
    assert found[0] == merge_vectors(tmp_path, "linear", models)[0]
