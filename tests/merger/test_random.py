"""The numbers behind random masks: fixed, exact, the same in any chunking; keys.

How random they are is in test_randomness.py.
"""

import numpy as np
import pytest
import torch

from evomerge.merger import random
from evomerge.merger.materialize import fused_available
from tests.reference_masks import drawn, uniform

KEYS = [
    [[-1027730835, 356621070], [-135261678, 1842734076]],
    [[-1732621208, -546789413], [2006093038, 2010596913]],
]
DRAWN = [-1340116269, 370981390, 1144772572, -604706437, -820191212, -1586072583]
OF_A_PURPOSE = [-419237802, -170452206]


def key_of(seed: int, position: int, name: str) -> torch.Tensor:
    return torch.tensor(random.keys(seed, [position], [name])[0, 0])


def test_the_numbers_never_change() -> None:
    """Recipes in the world name a seed: these values are part of their meaning."""
    keys = random.keys(7, [0, 1], ["model.norm.weight", "lm_head.weight"])
    assert keys.dtype == np.int32
    assert keys.tolist() == KEYS
    assert drawn(7, 1, "lm_head.weight", 6).tolist() == DRAWN
    assert random.keys(7, [1], ["lm_head.weight"], "/ranks")[0, 0].tolist() == OF_A_PURPOSE


def test_keys_depend_on_seed_position_name_and_purpose_alone() -> None:
    one = random.keys(3, [0, 1], ["x", "y"])
    other = random.keys(3, [4, 1, 0], ["y"])
    assert np.array_equal(one[1], other[0, [2, 1]])
    different = [
        tuple(key)
        for seed in (0, 1, 2**32 - 1)
        for purpose in ("", "/ties", "/ranks")
        for key in random.keys(seed, range(4), list("abcdefgh"), purpose).reshape(-1, 2)
    ]
    assert len(set(different)) == 3 * 3 * 32
    assert len({part for key in different for part in key}) == 2 * 3 * 3 * 32


@pytest.mark.parametrize("name", ["x", "model.layers.11.mlp.up_proj.weight", "ü"])
def test_int32_arithmetic_is_that_of_whole_numbers_modulo_2_to_the_32(name: str) -> None:
    def exact(first: int, second: int, index: int) -> int:
        x = (index * 0x9E3779B1 + first) % 2**32
        x ^= x >> 16
        x = (x * 0x7FEB352D + second) % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x - 2**32 if x >= 2**31 else x

    key = key_of(5, 1, name)
    first, second = (int(part) % 2**32 for part in key)
    chosen = [*range(2000), *range(2**31 - 2000, 2**31), *(37**n % 2**31 for n in range(500))]
    index = torch.tensor(chosen, dtype=torch.int32)
    wanted = [exact(first, second, one) for one in chosen]
    assert random.draw(key[0], key[1], index).tolist() == wanted
    levels = random.fraction(random.draw(key[0], key[1], index))
    assert levels.dtype == torch.float64
    assert levels.tolist() == [(one + 2**31) / 2**32 for one in wanted]


def test_the_same_in_chunks_shapes_and_at_high_indices() -> None:
    key = key_of(0, 0, "x")
    index = torch.arange(2**31 - 3000, 2**31 - 1, dtype=torch.int64).to(torch.int32)
    whole = random.draw(key[0], key[1], index)
    assert whole.dtype == torch.int32
    for size in (1, 7, 1024):
        parts = [random.draw(key[0], key[1], part) for part in torch.split(index, size)]
        assert torch.equal(torch.cat(parts), whole)
    columns = random.draw(key[:1], key[1:], index[:2900].view(29, 100))
    assert torch.equal(columns.reshape(-1), whole[:2900])
    many = torch.tensor(random.keys(0, [0, 1, 2], ["x"])[0]).unsqueeze(-1)
    together = random.draw(many[:, 0], many[:, 1], index)
    assert torch.equal(together[0], whole)
    assert index[0] == 2**31 - 3000  # arguments are not written to
    assert key.tolist() == key_of(0, 0, "x").tolist()


@pytest.mark.skipif(not fused_available(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_same_compiled() -> None:
    key = key_of(1, 2, "x")
    index = torch.arange(2**31 - 40_000, 2**31 - 1, dtype=torch.int64).to(torch.int32)
    eager = random.draw(key[:1], key[1:], index)
    assert torch.equal(torch.compile(random.draw)(key[:1], key[1:], index), eager)


def test_the_limit_keeps_what_is_below_the_probability() -> None:
    probability = np.array([1.0, 0.5, 0.25, 0.1, 0.3, 2.0**-32, 1e-12, 1 - 2.0**-32, 1 / 3])
    limits = random.limits(probability)
    assert limits.dtype == np.int32
    for share, limit in zip(probability.tolist(), limits.astype(int).tolist(), strict=True):
        last, after = ((number + 2**31) / 2**32 for number in (limit, limit + 1))
        assert last < share
        assert after >= share
    assert limits[0] == 2**31 - 1  # keeps every number
    numbers = drawn(3, 0, "x", 10_000)
    for share in probability:
        kept = numbers <= random.limits(np.array([share]))[0]
        assert np.array_equal(kept, uniform(3, 0, "x", 10_000) < share)


def test_no_two_elements_of_a_tensor_draw_the_same_number() -> None:
    """Every step is a bijection, so that DELLA's order of equal magnitudes is strict."""
    assert len(np.unique(drawn(11, 0, "x", 1 << 20))) == 1 << 20
