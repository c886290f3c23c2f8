"""Exact order statistics of many numbers: the values at some ranks, and the sums below them.

Up to a bound the numbers are sorted; beyond it they are counted, in two passes by their upper and
lower bits, in a workspace that does not grow with them. Counts are whole numbers, so that neither
the chunks nor the device change the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merge_methods import Array

Chunks = Callable[[], Iterator[torch.Tensor]]
Integers = npt.NDArray[np.int64]
SORTED = 1 << 25  # numbers that are sorted at once: 128 MiB
_BLOCK = 1 << 8  # numbers that are summed up once for all ranks
_LOW = 15  # bits of the second pass
_BINS = 1 << 16  # of the first: sign (always 0), exponent, upper bits of the mantissa


@dataclass(frozen=True)
class Ranked:
    """The numbers at K ranks in ascending order, and what lies below those ranks.

    `values` float32 [K]; `below` float64 [K], the sum of all numbers of lower rank; `smaller` int64
    [K], how many numbers are less than the value; `total` the sum of all.
    """

    values: npt.NDArray[np.float32]
    below: Array
    smaller: Integers
    total: float


def ranked(chunks: Chunks, size: int, ranks: Integers) -> Ranked:
    """Return the numbers at `ranks` [K], each in [0, size], with rank `size` above all of them.

    `chunks()` yields `size` finite float32 numbers ≥ 0 in flat tensors, the same at every call.
    The value at rank `size` is that of the largest number.
    """
    if size <= SORTED:
        return by_sorting(chunks, size, ranks)
    return by_counting(chunks, size, ranks)


def at_rank(chunks: Chunks, size: int, rank: int) -> float:
    """Return the number at one rank, as `ranked` does, in less time."""
    if size > SORTED:
        return float(by_counting(chunks, size, np.array([rank])).values[0])
    numbers = _gathered(chunks, size)
    numbers.view(np.int32).partition(rank)  # of numbers ≥ 0 the bits have the same order
    return float(numbers[rank])


def by_sorting(chunks: Chunks, size: int, ranks: Integers) -> Ranked:
    """See `ranked`; takes 4 bytes a number."""
    numbers = _gathered(chunks, size)
    numbers.view(np.int32).sort()  # of numbers ≥ 0 the bits have the same order
    values = numbers[np.minimum(ranks, size - 1)]
    *below, total = _sums_below(numbers, np.concatenate([ranks, [size]]))
    smaller = np.searchsorted(numbers, values, side="left").astype(np.int64)
    return Ranked(values, np.array(below), smaller, float(total))


def _gathered(chunks: Chunks, size: int) -> npt.NDArray[np.float32]:
    numbers = np.empty(size, dtype=np.float32)
    start = 0
    for chunk in chunks():
        numbers[start : start + len(chunk)] = chunk.cpu().numpy()
        start += len(chunk)
    return numbers


def _sums_below(numbers: npt.NDArray[np.float32], ranks: Integers) -> Array:
    """Return the sum of all numbers of lower rank, for each rank whatever the others are."""
    whole = len(numbers) // _BLOCK * _BLOCK
    blocks = numbers[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    cumulative = np.concatenate([[0.0], np.cumsum(blocks)])
    rest = (ranks // _BLOCK * _BLOCK)[:, None] + np.arange(_BLOCK)
    rests = np.where(rest < ranks[:, None], numbers[np.minimum(rest, len(numbers) - 1)], 0)
    sums: Array = cumulative[ranks // _BLOCK] + rests.sum(axis=1, dtype=np.float64)
    return sums


def by_counting(chunks: Chunks, size: int, ranks: Integers) -> Ranked:
    """See `ranked`; takes 64 MiB for a hundred ranks, and two passes."""
    counts = np.zeros(_BINS, dtype=np.int64)
    low_sums = np.zeros(_BINS)
    for chunk in chunks():
        bits = chunk.view(torch.int32)
        upper = bits >> _LOW
        counts += torch.bincount(upper, minlength=_BINS).cpu().numpy()
        lower = (bits & (2**_LOW - 1)).to(torch.float64)  # whole numbers: no sum of them is rounded
        low_sums += torch.bincount(upper, weights=lower, minlength=_BINS).cpu().numpy()
    every = np.arange(_BINS)
    sums = np.concatenate([[0.0], np.cumsum(_sum_of(every, counts, low_sums))])
    before = np.concatenate([[0], np.cumsum(counts)])
    wanted = np.minimum(ranks, size - 1)
    bins = np.searchsorted(before, wanted, side="right") - 1
    chosen, slots = np.unique(bins, return_inverse=True)
    fine = _fine_counts(chunks, chosen)
    codes = np.arange(2**_LOW)
    values, below, smaller = np.empty(len(ranks), np.float32), np.empty(len(ranks)), before[bins]
    for index, (bin_, slot) in enumerate(zip(bins, slots, strict=True)):
        within = np.concatenate([[0], np.cumsum(fine[slot])])
        code = int(np.searchsorted(within, wanted[index] - before[bin_], side="right")) - 1
        values[index] = np.uint32(bin_ << _LOW | code).view(np.float32)
        smaller[index] += within[code]
        lighter = _sum_of(np.full(code, bin_), fine[slot, :code], codes[:code] * fine[slot, :code])
        equal = (ranks[index] - before[bin_] - within[code]) * float(values[index])
        below[index] = sums[bin_] + lighter.sum() + equal
    return Ranked(values, below, smaller, float(sums[-1]))


def _fine_counts(chunks: Chunks, chosen: Integers) -> Integers:
    """Count the numbers of some bins by their lower bits, as [bins, 2^15]."""
    fine = np.zeros(len(chosen) << _LOW, dtype=np.int64)
    slot_of = torch.full((_BINS,), -1, dtype=torch.int32)
    slot_of[torch.from_numpy(chosen)] = torch.arange(len(chosen), dtype=torch.int32)
    for chunk in chunks():
        bits = chunk.view(torch.int32)
        slot = slot_of.to(bits.device).index_select(0, bits >> _LOW)
        code = (slot << _LOW) | (bits & (2**_LOW - 1))
        fine += torch.bincount(code[slot >= 0], minlength=len(fine)).cpu().numpy()
    return fine.reshape(len(chosen), -1)


def _sum_of(bins: Integers, counts: Integers, low_sums: Array | Integers) -> Array:
    """Return the sums of float32 numbers by their upper bits, how many, and Σ lower bits."""
    exponent = bins >> (23 - _LOW)
    implicit = np.where(exponent > 0, 1 << 23, 0)
    upper = (bins & (2 ** (23 - _LOW) - 1)) << _LOW
    mantissas = counts * (implicit + upper).astype(np.float64) + low_sums
    scaled: Array = np.ldexp(mantissas, np.maximum(exponent, 1) - 150)
    return scaled
