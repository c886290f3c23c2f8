"""The counter-based generator of the masks of DARE and DELLA.

The random number of an element is a function of (seed, position of the model, tensor's name, index
of the element) alone, in 32-bit integer arithmetic: the same bits on every device, in any chunking.
The index times the golden ratio (Knuth, TAOCP 3, 6.4) goes through the rounds of the `lowbias32`
integer hash (C. Wellons, Prospecting for hash functions, 2018), with one half of a 64-bit key per
tensor and model added before each round.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from evomerge.merge_methods import Array

Integers = npt.NDArray[np.int32]
_GOLDEN = 0x9E3779B1 - 2**32
_FIRST = 0x7FEB352D
_SECOND = 0x846CA68B - 2**32


def keys(
    seed: int, positions: Sequence[int], tensors: Sequence[str], purpose: str = ""
) -> Integers:
    """Return the key of each tensor for each model, int32 [T, M, 2].

    `seed` is in [0, 2**32); `positions` number the models as the recipe lists them, without the
    base. Other purposes have other keys.
    """
    return _keys(seed, tuple(positions), tuple(tensors), purpose)


@functools.lru_cache(maxsize=64)  # a study asks for the same ones with every candidate
def _keys(
    seed: int, positions: tuple[int, ...], tensors: tuple[str, ...], purpose: str
) -> Integers:
    found = np.empty((len(tensors), len(positions), 2), dtype=np.uint32)
    for row, name in enumerate(tensors):
        for column, position in enumerate(positions):
            digest = xxhash.xxh3_64_intdigest(f"{seed}/{position}/{name}{purpose}".encode())
            found[row, column] = digest >> 32, digest & 0xFFFFFFFF
    found.flags.writeable = False
    return found.view(np.int32)


def draw(first: torch.Tensor, second: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return random numbers, uniform over int32, for int32 keys and int32 element indices."""
    mixed = _fold(index * _GOLDEN + first, 16)
    mixed = _fold(mixed.mul_(_FIRST).add_(second), 15)
    return mixed.mul_(_SECOND)  # products and sums wrap modulo 2^32


def _fold(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Mix the high bits into the low ones, in place; torch shifts in the sign, which is masked."""
    return x.bitwise_xor_((x >> bits).bitwise_and_(2 ** (32 - bits) - 1))


def limits(probability: Array) -> Integers:
    """Return the largest random number that is kept, int32, where each is kept with `probability`.

    Probabilities in (0, 1] count to the next multiple of 2^-32 above.
    """
    steps = np.ceil(np.clip(probability, 2.0**-32, 1.0) * 2.0**32).astype(np.int64)
    return (steps - 1 - 2**31).astype(np.int32)


def fraction(drawn: torch.Tensor) -> torch.Tensor:
    """Return random numbers as float64 in [0, 1), multiples of 2^-32."""
    return (drawn.to(torch.float64) + 2.0**31) * 2.0**-32
