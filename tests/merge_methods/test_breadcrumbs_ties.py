from pathlib import Path

from tests.tiny_models import merge_vectors

MODELS = {
    "a": ([4.0, 1.0, -3.0, 9.0], {"weight": 1, "density": 0.5, "gamma": 0.25}),
    "b": ([-2.0, 5.0, -4.0, 8.0], {"weight": 3, "density": 0.5, "gamma": 0.25}),
}


def test_masked_at_both_ends_and_signs_elected(tmp_path: Path) -> None:
    # a keeps 4 and −3, b keeps 5 and −4: 9, 1 and 8, −2 go.
    found = merge_vectors(tmp_path, "breadcrumbs_ties", MODELS, [0.0] * 4)
    assert found == [4.0, 15.0, -15.0, 0.0]


def test_only_agreeing_weights_divide(tmp_path: Path) -> None:
    found = merge_vectors(tmp_path, "breadcrumbs_ties", MODELS, [0.0] * 4, normalize=True)
    assert found == [4.0, 5.0, -3.75, 0.0]


def test_the_losing_sign_is_left_out(tmp_path: Path) -> None:
    models = {"a": ([4.0], {"weight": 1}), "b": ([-2.0], {"weight": 3})}
    assert merge_vectors(tmp_path, "breadcrumbs_ties", models, [0.0]) == [-6.0]
