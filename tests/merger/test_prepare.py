"""Statistics against brute force: thresholds, kept mass, Gram matrices."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from evomerge.merger.layout import WIDTH
from evomerge.merger.prepare import GRID, InputStatistics, Selected
from tests.reference import uniform

NAMES = ["x", "y", "z", "one"]
SIZES = [1000, 37, 4 * WIDTH + 5, 1]


def made(dtype: torch.dtype, inputs: int = 3) -> tuple[list[list[torch.Tensor]], InputStatistics]:
    """Inputs as lists of flat tensors, and their statistics."""
    generator = torch.Generator().manual_seed(0)
    data = [
        [torch.randn(size, generator=generator).to(dtype) for size in SIZES] for _ in range(inputs)
    ]
    return data, statistics_of(data)


def statistics_of(data: Sequence[Sequence[torch.Tensor]]) -> InputStatistics:
    return InputStatistics(lambda number, tensor: data[number][tensor], NAMES)


def magnitudes(data: Sequence[Sequence[torch.Tensor]], model: int, tensor: int) -> np.ndarray:
    return (data[model][tensor].float() - data[0][tensor].float()).abs().numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("densities", [GRID[:-1], np.array([0.001, 0.1234, 1 / 3, 0.9999])])
def test_the_threshold_is_the_kth_largest_magnitude(
    dtype: torch.dtype, densities: np.ndarray
) -> None:
    data, statistics = made(dtype)
    chosen = Selected(statistics, 0, (2, 1))
    for density in densities:
        asked = np.full((2, len(NAMES)), density)
        thresholds = chosen.thresholds(asked)
        gains = chosen.magnitude_rescale(asked)
        for row, model in enumerate((2, 1)):
            for tensor in range(len(NAMES)):
                ordered = np.sort(magnitudes(data, model, tensor))[::-1]
                k = max(1, int(density * len(ordered)))
                assert thresholds[row, tensor] == ordered[k - 1]
                gain = ordered.sum(dtype=float) / ordered[:k].sum(dtype=float)
                assert gains[row, tensor] == pytest.approx(gain, rel=1e-12)


def test_density_1_keeps_everything() -> None:
    _, statistics = made(torch.float32)
    chosen = Selected(statistics, 0, (1,))
    asked = np.ones((1, len(NAMES)))
    assert (chosen.thresholds(asked) == 0).all()
    assert (chosen.magnitude_rescale(asked) == 1).all()
    assert (chosen.mask_rescale(asked, 0) == 1).all()


def test_a_task_vector_is_sorted_once_for_the_whole_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    _, statistics = made(torch.float32)
    reads: list[tuple[int, int]] = []
    inner = statistics.read

    def counting(number: int, tensor: int) -> torch.Tensor:
        reads.append((number, tensor))
        return inner(number, tensor)

    statistics.read = counting
    chosen = Selected(statistics, 0, (1,))
    for density in GRID:
        chosen.thresholds(np.full((1, len(NAMES)), density))
    assert len(reads) == 2 * len(NAMES)
    chosen.thresholds(np.full((1, len(NAMES)), 0.123))
    chosen.thresholds(np.full((1, len(NAMES)), 0.123))
    assert len(reads) == 4 * len(NAMES)


@pytest.mark.parametrize("density", [0.01, 0.29, 0.5, 0.123, 0.99])
def test_mask_rescale_by_brute_force(density: float) -> None:
    data, statistics = made(torch.bfloat16)
    chosen = Selected(statistics, 0, (2, 1))
    found = chosen.mask_rescale(np.full((2, len(NAMES)), density), 9)
    for position, model in enumerate((2, 1)):
        for tensor, name in enumerate(NAMES):
            delta = magnitudes(data, model, tensor).astype(float)
            kept = uniform(9, position, 2, name, len(delta)) < np.float32(density)
            mass = delta[kept].sum()
            wanted = delta.sum() / mass if mass >= 1e-7 else 1.0
            assert found[position, tensor] == pytest.approx(wanted, rel=1e-12)


def test_no_rescaling_of_what_is_almost_nothing() -> None:
    tiny = [[torch.zeros(size) for size in SIZES], [torch.full((size,), 1e-12) for size in SIZES]]
    zero = [[torch.zeros(size) for size in SIZES], [torch.zeros(size) for size in SIZES]]
    for data in (tiny, zero):
        chosen = Selected(statistics_of(data), 0, (1,))
        asked = np.full((1, len(NAMES)), 0.5)
        assert (chosen.magnitude_rescale(asked) == 1).all()
        assert (chosen.mask_rescale(asked, 0) == 1).all()
        assert (chosen.thresholds(asked) == np.float32(data[1][0][0])).all()


def test_empty_tensors() -> None:
    data = [[torch.zeros(0) for _ in NAMES] for _ in range(2)]
    chosen = Selected(statistics_of(data), 0, (1,))
    asked = np.full((1, len(NAMES)), 0.5)
    for measure in every_statistic(chosen):
        assert np.isfinite(measure(asked)).all()
    assert (chosen.gram() == 0).all()


def every_statistic(chosen: Selected) -> list[Callable[[np.ndarray], np.ndarray]]:
    return [
        chosen.thresholds,
        chosen.magnitude_rescale,
        lambda density: chosen.mask_rescale(density, 0),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_matrices(dtype: torch.dtype) -> None:
    data, statistics = made(dtype)
    with_base = Selected(statistics, 0, (2, 1)).gram()
    without = Selected(statistics, None, (1, 2)).gram()
    assert with_base.shape == (len(NAMES), 3, 3)
    for tensor in range(len(NAMES)):
        stack = torch.stack([one[tensor].double() for one in data]).numpy()
        wanted = stack @ stack.T
        assert with_base[tensor] == pytest.approx(wanted[np.ix_([0, 2, 1], [0, 2, 1])], rel=1e-12)
        assert without[tensor] == pytest.approx(wanted[1:, 1:], rel=1e-12)


def test_statistics_depend_on_the_tensors_alone() -> None:
    """Not on other inputs, their order, the history of questions, or the number of threads."""
    generator = torch.Generator().manual_seed(1)
    large = 300 * WIDTH + 77
    data = [[torch.randn(large, generator=generator) for _ in NAMES] for _ in range(4)]
    threads = torch.get_num_threads()
    grams, others = [], []
    try:
        for count, order in ((1, (0, 1)), (2, (0, 3, 1)), (3, (1, 2, 3, 0))):
            torch.set_num_threads(count)
            statistics = statistics_of([data[index] for index in order])
            chosen = Selected(statistics, order.index(0), (order.index(1),))
            if count == 2:
                chosen.thresholds(np.full((1, len(NAMES)), 0.3))
            asked = np.full((1, len(NAMES)), 0.4)
            grams.append(chosen.gram())
            others.append(np.stack([measure(asked) for measure in every_statistic(chosen)]))
    finally:
        torch.set_num_threads(threads)
    assert all(np.array_equal(grams[0], gram) for gram in grams)
    assert all(np.array_equal(others[0], other) for other in others)


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.123, 0.9])
@pytest.mark.parametrize("densities", [GRID[:-1:7], np.array([0.0001, 0.1234, 0.9999])])
def test_the_band_is_what_sorting_leaves(densities: np.ndarray, gamma: float) -> None:
    data, statistics = made(torch.bfloat16)
    chosen = Selected(statistics, 0, (2, 1))
    for density in densities:
        asked = np.full((2, len(NAMES)), density)
        least, largest, gains = chosen.bands(asked, np.full_like(asked, gamma))
        for row, model in enumerate((2, 1)):
            for tensor in range(len(NAMES)):
                ordered = np.sort(magnitudes(data, model, tensor))
                count = int(density * len(ordered))
                first = max(0, len(ordered) - count - int(gamma * len(ordered)))
                kept = ordered[first : first + count]
                if not count:
                    assert least[row, tensor] > largest[row, tensor]
                    assert gains[row, tensor] == 1
                    continue
                assert (least[row, tensor], largest[row, tensor]) == (kept[0], kept[-1])
                gain = ordered.sum(dtype=float) / kept.sum(dtype=float)
                assert gains[row, tensor] == pytest.approx(gain, rel=1e-9)


def test_the_gram_matrices_of_task_vectors_do_not_suffer_from_cancellation() -> None:
    generator = torch.Generator().manual_seed(0)
    base = [torch.randn(size, generator=generator) for size in SIZES]
    data = [base] + [
        [one + 1e-6 * torch.randn(one.shape, generator=generator) for one in base] for _ in range(2)
    ]
    found = Selected(statistics_of(data), 0, (1, 2)).task_gram()
    for tensor in range(len(NAMES)):
        deltas = [
            (data[model][tensor].double() - base[tensor].double()).numpy() for model in (1, 2)
        ]
        exact = [[one @ other for other in deltas] for one in deltas]
        assert found[tensor] == pytest.approx(np.array(exact), rel=1e-12, abs=1e-25)


def test_selecting_by_variance_sorts_once_for_the_whole_grid() -> None:
    data, statistics = made(torch.bfloat16)
    chosen = Selected(statistics, 0, (2, 1))
    for share in (0.0, 0.01, 0.3, 0.77, 1.0, 0.1234):
        least, energy = chosen.selected(np.full(len(NAMES), share))
        for tensor in range(len(NAMES)):
            deltas = [(data[m][tensor].float() - data[0][tensor].float()).numpy() for m in (2, 1)]
            mean = (deltas[0] + deltas[1]) / 2
            spread = sum((delta - mean) ** 2 for delta in deltas) / 2
            count = int(share * np.count_nonzero(spread)) if share < 1 else len(spread)
            bound = np.sort(spread)[::-1][count - 1] if count else np.inf
            kept = spread >= bound
            assert np.array_equal(spread >= least[tensor], kept)
            squares = [float((delta[kept].astype(float) ** 2).sum()) for delta in deltas]
            assert energy[:, tensor] == pytest.approx(np.array(squares) / len(spread), rel=1e-9)
