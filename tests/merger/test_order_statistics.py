"""Order statistics by sorting, by counting and by brute force are the same to the last bit."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from evomerge.merger import order_statistics
from evomerge.merger.order_statistics import Ranked, by_counting, by_sorting, ranked
from tests.tiny_models import merged, recipe_of, write_family

Floats = npt.NDArray[np.float32]
Ranking = Callable[[Callable[[], Iterator[torch.Tensor]], int, npt.NDArray[np.int64]], Ranked]
DRAW = np.random.default_rng(0)
SMALLEST = np.float32(2.0**-149)
LARGEST = np.finfo(np.float32).max
DATA: dict[str, Floats] = {
    "normal": np.abs(DRAW.normal(size=100_003)).astype(np.float32),
    "bfloat16": (np.abs(DRAW.normal(size=30_000)).astype(np.float32).view(np.uint32) >> 16 << 16)
    .astype(np.uint32)
    .view(np.float32),
    "tied": DRAW.integers(0, 4, size=5000).astype(np.float32) / 128,
    "all equal": np.full(1500, 0.3, dtype=np.float32),
    "zeros": np.zeros(777, dtype=np.float32),
    "mostly zeros": np.float32([0.0] * 900 + [1e-3, 2.0, 2.0]),
    "denormal": DRAW.integers(0, 2**23, size=4000).astype(np.uint32).view(np.float32),
    "smallest and largest": np.float32([0.0, SMALLEST, 2 * SMALLEST, 2.0**-126, LARGEST, LARGEST]),
    "huge": np.float32(DRAW.uniform(1e30, 3e38, size=3000)),
    "every size": np.abs(
        DRAW.integers(0, 255 << 23, size=50_000).astype(np.uint32).view(np.float32)
    ),
    "one": np.float32([0.25]),
    "one zero": np.float32([0.0]),
}


def chunks_of(numbers: Floats, size: int) -> Callable[[], Iterator[torch.Tensor]]:
    return lambda: iter(torch.split(torch.from_numpy(numbers), size))


@pytest.mark.parametrize("by", [by_sorting, by_counting, ranked])
@pytest.mark.parametrize("name", DATA)
def test_against_brute_force(name: str, by: Ranking) -> None:
    numbers = DATA[name]
    size = len(numbers)
    ordered = np.sort(numbers)
    cumulative = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.longdouble)])
    some = DRAW.integers(0, size + 1, size=40)
    ranks = np.concatenate([[0, size, size - 1, size // 2, 0, size], some])
    for chunk in (size, 997):
        found = by(chunks_of(numbers, chunk), size, ranks)
        values = ordered[np.minimum(ranks, size - 1)]
        assert found.values.dtype == np.float32
        assert found.values.tobytes() == values.tobytes()
        assert np.array_equal(found.smaller, np.searchsorted(ordered, values, side="left"))
        assert found.below == pytest.approx(cumulative[ranks].astype(float), rel=1e-12)
        assert found.total == pytest.approx(float(cumulative[-1]), rel=1e-12)
        assert (found.below[ranks == 0] == 0).all()
        assert (found.below[ranks == size] == found.total).all()


@pytest.mark.parametrize("name", DATA)
def test_counts_do_not_depend_on_the_chunks(name: str) -> None:
    numbers = DATA[name]
    ranks = np.arange(0, len(numbers) + 1, max(1, len(numbers) // 50))
    whole = by_counting(chunks_of(numbers, len(numbers)), len(numbers), ranks)
    parts = by_counting(chunks_of(numbers, 101), len(numbers), ranks)
    assert np.array_equal(whole.below, parts.below)
    assert whole.total == parts.total


def test_one_rank_more_or_less_changes_no_other(tmp_path: Path) -> None:
    """A density off the grid is found by itself."""
    numbers = DATA["every size"]
    ranks = np.arange(0, len(numbers), 499)
    for by in (by_sorting, by_counting):
        together = by(chunks_of(numbers, 5000), len(numbers), ranks)
        for place in (0, 1, 50, 100):
            alone = by(chunks_of(numbers, 5000), len(numbers), ranks[place : place + 1])
            assert alone.values[0] == together.values[place]
            assert alone.smaller[0] == together.smaller[place]
            assert alone.below[0] == pytest.approx(together.below[place], rel=1e-12)


OWN = {"weight": 0.7, "density": 0.31}
RECIPES = {
    "ties": {"models": dict.fromkeys("abc", OWN), "parameters": {"rescale": True}},
    "ties of the model": {
        "models": dict.fromkeys("abc", OWN),
        "parameters": {"rescale": True, "trim_whole_model": True},
    },
    "breadcrumbs": {
        "models": dict.fromkeys("abc", OWN | {"gamma": 0.1}),
        "parameters": {"rescale": True},
    },
    "sce": {"models": {"a": {}, "b": {}, "c": {}}, "parameters": {"select_topk": 0.31}},
}


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RECIPES)
def test_large_tensors_are_counted_with_the_same_bits(
    tmp_path: Path, name: str, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_family(tmp_path, getattr(torch, stored))
    fields = RECIPES[name]
    data = recipe_of(folder, name.partition(" ")[0], base_model="base", **fields)
    by_sort = merged(data, keep=False)
    counted: list[int] = []

    def counting(
        chunks: Callable[[], Iterator[torch.Tensor]], size: int, ranks: npt.NDArray[np.int64]
    ) -> Ranked:
        counted.append(size)
        return by_counting(chunks, size, ranks)

    monkeypatch.setattr(order_statistics, "SORTED", 500)
    monkeypatch.setattr(order_statistics, "by_counting", counting)
    found = merged(data, keep=False)
    assert counted
    assert min(counted) > 500
    for tensor, result in found.items():
        assert torch.equal(result, by_sort[tensor]), tensor
