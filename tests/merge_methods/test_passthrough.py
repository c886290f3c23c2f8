from pathlib import Path

import pytest

from evomerge.errors import RecipeError
from tests.tiny_models import merge_vectors, parsed, recipe_of

MODEL = [1.5, -2.0, 0.0]


def test_the_model_as_it_is(tmp_path: Path) -> None:
    assert merge_vectors(tmp_path, "passthrough", {"a": (MODEL, {})}) == MODEL


def test_scaled(tmp_path: Path) -> None:
    found = merge_vectors(tmp_path, "passthrough", {"a": (MODEL, {"scale": -0.5})})
    assert found == [-0.75, 1.0, 0.0]


def test_one_model_alone(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at most 1"):
        parsed(recipe_of(tmp_path, "passthrough", models={"a": {}, "b": {}}))
