"""The counter-based generator of DARE's masks.

The uniform number of an element is a function of (seed, position of the model, tensor's name,
index of the element) alone, in 32-bit integer arithmetic: the same bits on every device, in any
chunking. Two rounds of the `lowbias32` integer hash (C. Wellons, Prospecting for hash functions,
2018), with a 64-bit key per tensor, half of it added to the counter and half mixed in between the
rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import xxhash


def keys(seed: int, models: int, tensors: Sequence[str]) -> npt.NDArray[np.int32]:
    """Return the key of each tensor of each model, int32 [T, M, 2].

    `seed` is in [0, 2**32); models are numbered as the recipe lists them, without the base.
    """
    found = np.empty((len(tensors), models, 2), dtype=np.uint32)
    for row, name in enumerate(tensors):
        for model in range(models):
            digest = xxhash.xxh3_64_intdigest(f"{seed}/{model}/{name}".encode())
            found[row, model] = digest >> 32, digest & 0xFFFFFFFF
    return found.view(np.int32)


def uniform(first: torch.Tensor, second: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers in [0, 1), multiples of 2^-24, for int32 keys and element indices."""
    mixed = _lowbias32(_lowbias32(index + first).bitwise_xor_(second))
    return _shifted(mixed, 8).to(torch.float32).mul_(2.0**-24)


def _lowbias32(x: torch.Tensor) -> torch.Tensor:
    """Mix the bits of int32 numbers, overwriting them; products wrap modulo 2^32."""
    x.bitwise_xor_(_shifted(x, 16)).mul_(0x7FEB352D)
    x.bitwise_xor_(_shifted(x, 15)).mul_(0x846CA68B - 2**32)
    return x.bitwise_xor_(_shifted(x, 16))


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right, filling with zeros; torch fills with the sign."""
    return (x >> bits).bitwise_and_(2 ** (32 - bits) - 1)
