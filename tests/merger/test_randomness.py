"""Random masks are as good as independent: uniform, uncorrelated, without clumps.

Everything is fixed, so that a test passes always or never; what is asked for is a statistic within
five standard deviations of its mean, or a p-value that a normal variable has there.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import chi2

from evomerge.merger import random
from tests.reference_masks import dare_mask, drawn

MANY = 1 << 22
SOME = 1 << 18
SIGMAS = 5.0
RARE = 5.7e-7  # of a normal variable to be further from its mean, on either side
UP = "model.layers.0.mlp.up_proj.weight"
STREAMS = [(0, 0, UP), (1, 0, UP), (0, 1, UP), (2**32 - 1, 0, "lm_head.weight"), (42, 7, "x")]
LAGS = (1, 2, 3, 16, 32, 1024, 4096, 65536)
DENSITIES = (0.01, 0.1, 0.5, 0.9)

Numbers = npt.NDArray[np.uint32]


@cache
def numbers(seed: int, position: int, name: str, purpose: str = "") -> Numbers:
    return drawn(seed, position, name, MANY, purpose).view(np.uint32) ^ np.uint32(1 << 31)


def fits(counts: npt.NDArray[np.int64], wanted: npt.NDArray[np.float64] | float) -> bool:
    """A chi-square test of counts, neither too uneven nor too even."""
    statistic = ((counts - wanted) ** 2 / wanted).sum()
    below = chi2.cdf(statistic, counts.size - 1)
    return bool(RARE / 2 < below < 1 - RARE / 2)


def correlation(one: Numbers, other: Numbers) -> float:
    """The correlation coefficient in standard deviations of that of independent numbers."""
    left, right = (np.float32(x) / np.float32(2**32) - np.float32(0.5) for x in (one, other))
    return float(12 * np.mean(left * right, dtype=np.float64) * len(left) ** 0.5)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("bins", [2, 100, 1024, 65536])
def test_uniform(stream: tuple[int, int, str], bins: int) -> None:
    places = numbers(*stream).astype(np.uint64) * np.uint64(bins) >> np.uint64(32)
    assert fits(np.bincount(places.astype(np.int64), minlength=bins), MANY / bins)


@pytest.mark.parametrize("stream", STREAMS[:2])
def test_every_bit_is_as_often_set_as_not(stream: tuple[int, int, str]) -> None:
    for bit in range(32):
        mean = float((numbers(*stream) >> np.uint32(bit) & np.uint32(1)).mean())
        assert abs(mean - 0.5) < SIGMAS * 0.5 / MANY**0.5, bit


@pytest.mark.parametrize("stream", STREAMS[:3])
def test_neighbours_are_not_correlated(stream: tuple[int, int, str]) -> None:
    found = numbers(*stream)
    for lag in LAGS:
        assert abs(correlation(found[:-lag], found[lag:])) < SIGMAS, lag


@pytest.mark.parametrize("lag", LAGS)
def test_neighbouring_pairs_fill_the_square(lag: int) -> None:
    """Pairs that do not overlap, in 64 by 64 cells."""
    blocks = numbers(*STREAMS[0])[: MANY - MANY % (2 * lag)].reshape(-1, 2, lag)
    cells = (blocks >> np.uint32(26)).astype(np.int64)
    counts = np.bincount((cells[:, 0] * 64 + cells[:, 1]).reshape(-1), minlength=4096)
    assert fits(counts, blocks.size / 2 / 4096)


@pytest.mark.parametrize("density", DENSITIES)
def test_masks_have_runs_and_pairs_as_by_chance(density: float) -> None:
    mask = dare_mask(3, 1, UP, MANY, density)
    for lag in LAGS:
        pairs = mask[: MANY - MANY % (2 * lag)].reshape(-1, 2, lag).astype(np.int64)
        counts = np.bincount((pairs[:, 0] * 2 + pairs[:, 1]).reshape(-1), minlength=4)
        both = np.array([1 - density, density])
        assert fits(counts, np.outer(both, both).reshape(-1) * pairs.size / 2), lag
    ends = np.flatnonzero(np.diff(mask.astype(np.int8)))
    lengths = np.diff(ends)
    for runs, share in (
        (lengths[0 if mask[ends[0] + 1] else 1 :: 2], density),
        (lengths[1 if mask[ends[0] + 1] else 0 :: 2], 1 - density),
    ):
        longest = max(2, int(np.log(100 / len(runs)) / np.log(share)))
        counts = np.bincount(np.minimum(runs, longest), minlength=longest + 1)[1:]
        wanted = share ** np.arange(longest) * (1 - share)
        wanted[-1] = share ** (longest - 1)
        assert fits(counts, wanted * len(runs))


@pytest.mark.parametrize("width", [64, 1024])
@pytest.mark.parametrize("density", DENSITIES)
def test_windows_have_the_variance_of_a_binomial(density: float, width: int) -> None:
    for seed in (0, 1):
        kept = dare_mask(seed, 0, UP, MANY, density).reshape(-1, width).sum(axis=1)
        one = density * (1 - density)
        squares = (kept - width * density) ** 2 / (width * one)
        deviation = (2 + (1 - 6 * one) / (width * one)) ** 0.5 / len(kept) ** 0.5
        assert abs(squares.mean() - 1) < SIGMAS * deviation


def test_streams_are_independent() -> None:
    """Of other seeds, adjacent ones too, models, tensors and purposes."""
    names = (UP, UP.replace("0", "1"), "lm_head.weight")
    streams = [
        numbers_of(seed, position, name, purpose)
        for seed in (0, 1, 2, 3, 2**32 - 1)
        for position in (0, 1, 2)
        for name in names
        for purpose in ("", "/ties", "/ranks")
    ]
    centred = np.stack(streams) / np.float32(2**32) - np.float32(0.5)
    found = 12 * (centred @ centred.T) / SOME**0.5
    np.fill_diagonal(found, 0)
    assert np.abs(found).max() < SIGMAS  # of 9,000 pairs
    for one, other in ((0, 1), (0, 3), (0, 9), (0, 27), (27, 54), (4, 5)):
        cells = (streams[one] >> np.uint32(28)) * np.uint32(16) + (streams[other] >> np.uint32(28))
        assert fits(np.bincount(cells.astype(np.int64), minlength=256), SOME / 256)


def numbers_of(seed: int, position: int, name: str, purpose: str) -> Numbers:
    return drawn(seed, position, name, SOME, purpose).view(np.uint32) ^ np.uint32(1 << 31)


def test_masks_of_models_overlap_as_by_chance() -> None:
    """The models of a merge, and models of the next seed, at a low density."""
    density = 0.1
    masks = [dare_mask(seed, at, UP, MANY, density) for seed in (0, 1) for at in (0, 1)]
    deviation = (density**2 * (1 - density**2) / MANY) ** 0.5
    for index, one in enumerate(masks):
        for other in masks[:index]:
            assert abs((one & other).mean() - density**2) < SIGMAS * deviation


def test_a_bit_of_the_seed_changes_half_of_the_bits_drawn() -> None:
    found = numbers_of(12345, 0, UP, "")
    for bit in range(32):
        changed = found ^ numbers_of(12345 ^ 1 << bit, 0, UP, "")
        flips = np.unpackbits(changed.view(np.uint8)).reshape(SOME, 32).mean(axis=0)
        assert np.abs(flips - 0.5).max() < SIGMAS * 0.5 / SOME**0.5


def test_a_bit_of_the_index_changes_half_of_the_high_bits_drawn() -> None:
    """Those that a density of a few digits reads."""
    first, second = torch.tensor(random.keys(9, [0], [UP])[0, 0])
    index = torch.arange(SOME, dtype=torch.int32) * 8191
    found = random.draw(first, second, index).numpy().view(np.uint32)
    for bit in range(31):
        other = random.draw(first, second, index ^ (1 << bit)).numpy().view(np.uint32)
        flips = [((found ^ other) >> np.uint32(high) & 1).mean() for high in range(16, 32)]
        assert np.abs(np.array(flips) - 0.5).max() < 0.05, bit
