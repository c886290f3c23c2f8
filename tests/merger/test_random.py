"""The numbers behind DARE's masks: fixed, uniform, independent, the same in any chunking."""

import numpy as np
import pytest
import torch

from evomerge.merger import random
from tests.reference import uniform

MANY = 1 << 18
KEYS = [
    [[-1027730835, 356621070], [-135261678, 1842734076]],
    [[-1732621208, -546789413], [2006093038, 2010596913]],
]
DRAWN = [10798849.0, 3668546.0, 2036675.0, 6519547.0]


def test_the_numbers_never_change() -> None:
    """Recipes in the world name a seed: these values are part of their meaning."""
    keys = random.keys(7, 2, ["model.norm.weight", "lm_head.weight"])
    assert keys.dtype == np.int32
    assert keys.tolist() == KEYS
    drawn = uniform(7, 1, 2, "lm_head.weight", 4)
    assert (drawn * 2**24).tolist() == DRAWN


def test_keys_depend_on_seed_position_and_name_alone() -> None:
    one = random.keys(3, 2, ["x", "y"])
    other = random.keys(3, 5, ["y"])
    assert np.array_equal(one[1], other[0, :2])
    assert len({tuple(key) for key in random.keys(3, 4, list("abcdefgh")).reshape(-1, 2)}) == 32


def test_int32_arithmetic_is_the_hash_in_unsigned_integers() -> None:
    def lowbias32(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    first, second = (int(key) % 2**32 for key in random.keys(5, 1, ["x"])[0, 0])
    wanted = [lowbias32(lowbias32((index + first) % 2**32) ^ second) >> 8 for index in range(5000)]
    assert (uniform(5, 0, 1, "x", 5000) * 2**24).astype(int).tolist() == wanted


def test_chunks_and_high_indices() -> None:
    key = torch.from_numpy(random.keys(0, 1, ["x"])[0, 0])
    index = torch.arange(2**31 - 3000, 2**31 - 1, dtype=torch.int64).to(torch.int32)
    whole = random.uniform(key[0], key[1], index)
    assert whole.dtype == torch.float32
    for size in (1, 7, 1024):
        parts = [random.uniform(key[0], key[1], part) for part in torch.split(index, size)]
        assert torch.equal(torch.cat(parts), whole)
    columns = random.uniform(key[:1], key[1:], index[:2900].view(29, 100))
    assert torch.equal(columns.reshape(-1), whole[:2900])
    assert index[0] == 2**31 - 3000  # arguments are not written to


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_uniform(seed: int) -> None:
    drawn = uniform(seed, 0, 1, "model.layers.0.mlp.up_proj.weight", MANY)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for bins in (2, 100, 1024):
        counts = np.histogram(drawn, bins=bins, range=(0, 1))[0]
        chi_square = ((counts - MANY / bins) ** 2 / (MANY / bins)).sum()
        # Mean bins − 1, variance 2(bins − 1): five standard deviations.
        assert abs(chi_square - (bins - 1)) < 5 * (2 * (bins - 1)) ** 0.5
    lowest_bits = (drawn.astype(np.float64) * 2**24).astype(int) & 1
    assert abs(lowest_bits.mean() - 0.5) < 5 * 0.5 / MANY**0.5


def test_independent_of_tensor_model_seed_and_neighbour() -> None:
    streams = [
        uniform(seed, model, 3, name, MANY)
        for seed in (0, 1)
        for model in (0, 1, 2)
        for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")
    ]
    correlation = np.corrcoef(np.stack(streams)) - np.eye(len(streams))
    assert np.abs(correlation).max() < 5 / MANY**0.5
    for lag in (1, 2, 1024):
        neighbours = np.corrcoef(streams[0][:-lag], streams[0][lag:])[0, 1]
        assert abs(neighbours) < 5 / MANY**0.5
    pairs = np.histogram2d(streams[0], streams[1], bins=16, range=[[0, 1], [0, 1]])[0]
    chi_square = ((pairs - MANY / 256) ** 2 / (MANY / 256)).sum()
    assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5
