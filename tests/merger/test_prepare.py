"""Statistics against brute force: thresholds, kept mass, Gram matrices."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.merger import measures, order_statistics
from evomerge.merger.cache import Cache
from evomerge.merger.layout import WIDTH
from evomerge.merger.measures import Source
from evomerge.merger.prepare import GRID, InputStatistics
from evomerge.merger.selected import Selected
from tests.reference_masks import dare_mask, della_mask

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
    source = Source(
        lambda number, tensor: data[number][tensor],
        NAMES,
        [(len(one),) for one in data[0]],
        [range(len(data))] * len(NAMES),
        torch.device("cpu"),
    )
    return InputStatistics(source, lambda number, tensor: "", Cache(None), lambda *step: None)


def selected(statistics: InputStatistics, base: int | None, *models: int) -> Selected:
    every = tuple(range(len(NAMES)))
    return Selected(statistics, base, models, tuple(range(len(models))), every)


def magnitudes(data: Sequence[Sequence[torch.Tensor]], model: int, tensor: int) -> np.ndarray:
    return (data[model][tensor].float() - data[0][tensor].float()).abs().numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("densities", [GRID[:-1], np.array([0.001, 0.1234, 1 / 3, 0.9999])])
def test_the_threshold_is_the_kth_largest_magnitude(
    dtype: torch.dtype, densities: np.ndarray
) -> None:
    data, statistics = made(dtype)
    chosen = selected(statistics, 0, 2, 1)
    for density in densities:
        asked = np.full((2, len(NAMES)), density)
        thresholds, gains = chosen.thresholds(asked)
        for row, model in enumerate((2, 1)):
            for tensor in range(len(NAMES)):
                ordered = np.sort(magnitudes(data, model, tensor))[::-1]
                k = max(1, int(density * len(ordered)))
                assert thresholds[row, tensor] == ordered[k - 1]
                gain = ordered.sum(dtype=float) / ordered[:k].sum(dtype=float)
                assert gains[row, tensor] == pytest.approx(gain, rel=1e-12)


@pytest.mark.parametrize("most", [10**6, 500])  # numbers that are sorted, not counted
def test_for_one_candidate_thresholds_are_the_same(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured but the threshold asked for, in less time and to the same bit."""
    monkeypatch.setattr(order_statistics, "SORTED", most)
    _, statistics = made(torch.bfloat16)
    once = replace(statistics, once=True)
    for density in (0.003, 0.25, 0.5, 0.9999):
        asked = np.full((2, len(NAMES)), density)
        wanted, _ = selected(statistics, 0, 2, 1).thresholds(asked)
        found, gains = selected(once, 0, 2, 1).thresholds(asked, gains=False)
        assert np.array_equal(found, wanted)
        assert (gains == 1).all()
        rescaled = selected(once, 0, 2, 1).thresholds(asked)[1]
        assert np.array_equal(rescaled, selected(statistics, 0, 2, 1).thresholds(asked)[1])


def test_a_sum_does_not_depend_on_other_densities() -> None:
    """So that a recipe is one model, whichever densities its statistics were measured for."""
    _, statistics = made(torch.float32)
    every = measures.by_magnitude(statistics.source, 0, 1, [2], GRID)
    for index, density in enumerate(GRID):
        alone = measures.by_magnitude(statistics.source, 0, 1, [2], np.array([density]))
        assert np.array_equal(alone[0], every[index])


def test_density_1_keeps_everything() -> None:
    _, statistics = made(torch.float32)
    chosen = selected(statistics, 0, 1)
    asked = np.ones((1, len(NAMES)))
    for whole_model in (False, True):
        least, gains = chosen.thresholds(asked, whole_model)
        assert (least == 0).all()
        assert (gains == 1).all()
    assert (chosen.mask_rescale(asked, 0) == 1).all()


def test_a_task_vector_is_sorted_once_for_the_whole_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    _, statistics = made(torch.float32)
    sorted_: list[tuple[int, ...]] = []
    inner = measures.by_magnitude

    def counting(
        source: Source, base: int, model: int, tensors: Sequence[int], densities: np.ndarray
    ) -> np.ndarray:
        sorted_.append((model, *tensors))
        return inner(source, base, model, tensors, densities)

    monkeypatch.setattr(measures, "by_magnitude", counting)
    chosen = selected(statistics, 0, 1)
    for density in GRID:
        chosen.thresholds(np.full((1, len(NAMES)), density))
    assert sorted_ == [(1, tensor) for tensor in range(len(NAMES))]
    chosen.thresholds(np.full((1, len(NAMES)), 0.123))
    chosen.thresholds(np.full((1, len(NAMES)), 0.123))
    assert len(sorted_) == 2 * len(NAMES)
    for density in (*GRID, 0.123, 0.123):
        chosen.thresholds(np.full((1, len(NAMES)), density), whole_model=True)
    assert sorted_[2 * len(NAMES) :] == [(1, *range(len(NAMES)))] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_thresholds_of_the_whole_model_by_brute_force(dtype: torch.dtype) -> None:
    data, statistics = made(dtype)
    chosen = selected(statistics, 0, 2, 1)
    for density in (*GRID[::9], 0.0001, 0.1234, 1 / 3):
        least, gains = chosen.thresholds(np.full((2, len(NAMES)), density), whole_model=True)
        for row, model in enumerate((2, 1)):
            parts = [magnitudes(data, model, tensor) for tensor in range(len(NAMES))]
            ordered = np.sort(np.concatenate(parts))[::-1]
            k = max(1, int(density * len(ordered)))
            assert (least[row] == ordered[k - 1]).all() or density >= 1
            gain = ordered.sum(dtype=float) / ordered[:k].sum(dtype=float)
            assert gains[row] == pytest.approx(np.full(len(NAMES), gain), rel=1e-12)


@pytest.mark.parametrize("epsilon", [None, 0.005, 0.2])
@pytest.mark.parametrize("density", [0.01, 0.29, 0.5, 0.123, 0.79])
def test_mask_rescale_by_brute_force(density: float, epsilon: float | None) -> None:
    data, statistics = made(torch.bfloat16)
    chosen = selected(statistics, 0, 2, 1)
    by_rank = None if epsilon is None else np.full((2, len(NAMES)), epsilon)
    found = chosen.mask_rescale(np.full((2, len(NAMES)), density), 9, by_rank)
    for position, model in enumerate((2, 1)):
        for tensor, name in enumerate(NAMES):
            delta = magnitudes(data, model, tensor)
            if epsilon is None:
                kept = dare_mask(9, position, name, len(delta), density)
            else:
                kept = della_mask(9, position, name, delta, density, epsilon)
            mass = delta[kept].sum(dtype=float)
            wanted = delta.sum(dtype=float) / mass if mass >= 1e-7 else 1.0
            assert found[position, tensor] == pytest.approx(wanted, rel=1e-12)


def test_no_rescaling_of_what_is_almost_nothing() -> None:
    tiny = [[torch.zeros(size) for size in SIZES], [torch.full((size,), 1e-12) for size in SIZES]]
    zero = [[torch.zeros(size) for size in SIZES], [torch.zeros(size) for size in SIZES]]
    for data in (tiny, zero):
        chosen = selected(statistics_of(data), 0, 1)
        asked = np.full((1, len(NAMES)), 0.5)
        for measure in every_statistic(chosen)[:2]:
            least, gains = measure(asked)
            assert (gains == 1).all()
            assert (least == np.float32(data[1][0][0])).all()
        assert (chosen.mask_rescale(asked, 0) == 1).all()


def test_empty_tensors() -> None:
    data = [[torch.zeros(0) for _ in NAMES] for _ in range(2)]
    chosen = selected(statistics_of(data), 0, 1)
    asked = np.full((1, len(NAMES)), 0.5)
    for measure in every_statistic(chosen):
        assert np.isfinite(measure(asked)).all()
    assert (chosen.gram() == 0).all()


def every_statistic(chosen: Selected) -> list[Callable[[np.ndarray], np.ndarray]]:
    return [
        lambda density: np.stack(chosen.thresholds(density)),
        lambda density: np.stack(chosen.thresholds(density, whole_model=True)),
        lambda density: np.stack(chosen.bands(density, np.full_like(density, 0.1))),
        lambda density: np.concatenate([np.atleast_2d(x) for x in chosen.selected(density[0])]),
        lambda density: chosen.mask_rescale(density, 0),
        lambda density: chosen.mask_rescale(density, 0, np.full_like(density, 0.1)),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_matrices(dtype: torch.dtype) -> None:
    data, statistics = made(dtype)
    with_base = selected(statistics, 0, 2, 1).gram()
    without = selected(statistics, None, 1, 2).gram()
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
            chosen = selected(statistics, order.index(0), order.index(1))
            if count == 2:
                chosen.thresholds(np.full((1, len(NAMES)), 0.3))
            asked = np.full((1, len(NAMES)), 0.4)
            grams.append(chosen.gram())
            others.append([measure(asked) for measure in every_statistic(chosen)])
    finally:
        torch.set_num_threads(threads)
    assert all(np.array_equal(grams[0], gram) for gram in grams)
    assert all(all(map(np.array_equal, others[0], other)) for other in others)


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.123, 0.9])
@pytest.mark.parametrize("densities", [GRID[:-1:7], np.array([0.0001, 0.1234, 0.9999])])
def test_the_band_is_what_sorting_leaves(densities: np.ndarray, gamma: float) -> None:
    data, statistics = made(torch.bfloat16)
    chosen = selected(statistics, 0, 2, 1)
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
    found = selected(statistics_of(data), 0, 1, 2).task_gram()
    for tensor in range(len(NAMES)):
        deltas = [
            (data[model][tensor].double() - base[tensor].double()).numpy() for model in (1, 2)
        ]
        exact = [[one @ other for other in deltas] for one in deltas]
        assert found[tensor] == pytest.approx(np.array(exact), rel=1e-12, abs=1e-25)


def test_selecting_by_variance_sorts_once_for_the_whole_grid() -> None:
    data, statistics = made(torch.bfloat16)
    chosen = selected(statistics, 0, 2, 1)
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
