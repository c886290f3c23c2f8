"""What prepare knows of random masks: the mass that they keep, and DELLA's ranks as random bits.

DELLA keeps an entry with probability density − ε + 2ε r, r the rank of its magnitude in its row,
from 0 to 1. With a random bit that is one with probability r, drawn once, that is: keep with
probability density + ε where the bit is one, else density − ε. So a rank costs one bit of memory
per element, and the probability is the exact one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merge_methods import Array
from evomerge.merger import random
from evomerge.merger.layout import WIDTH
from evomerge.merger.materialize import packed, spread
from evomerge.merger.measures import CHUNK, Source, ratio


@dataclass(frozen=True)
class Stream:
    """The random numbers of one tensor of the model at a position of a recipe."""

    seed: int
    position: int
    tensor: str

    def numbers(
        self, start: int, count: int, device: torch.device, purpose: str = ""
    ) -> torch.Tensor:
        """Return the numbers of some elements, int32 [count]."""
        drawn = random.keys(self.seed, [self.position], [self.tensor], purpose)[0, 0]
        first, second = torch.from_numpy(drawn.copy()).to(device)
        index = torch.arange(start, start + count, dtype=torch.int32, device=device)
        return random.draw(first, second, index)


def rescale(
    source: Source,
    base: int,
    model: int,
    tensor: int,
    stream: Stream,
    densities: Array,
    words: torch.Tensor | None,
    epsilon: float | None,
) -> Array:
    """Return Σ|δ| / Σ|kept δ|, [K, 1], for ascending densities; `words` are DELLA's bits."""
    mass = np.zeros(len(densities) + 1)
    start = 0
    for magnitude in source.magnitudes(base, model, tensor):
        level = random.fraction(stream.numbers(start, len(magnitude), source.device))
        if words is not None:
            assert epsilon is not None
            rows = slice(start // WIDTH, -(-(start + len(magnitude)) // WIDTH))
            bits = spread(words[rows].to(source.device)).reshape(-1)[: len(magnitude)]
            level = level + epsilon * (2 * bits + 1).to(torch.float64)  # bits are 0 or −1
        bins = _reached(level, densities)
        weights = magnitude.to(torch.float64).cpu()
        mass += torch.bincount(bins.cpu(), weights=weights, minlength=len(mass)).numpy()
        start += len(magnitude)
    return ratio(mass.sum(), np.cumsum(mass)[:-1])[:, None]


def _reached(level: torch.Tensor, densities: Array) -> torch.Tensor:
    """Return how many of K evenly spaced densities up to 1, or of one, a level reaches."""
    count = len(densities)
    if count == 1:
        return (level >= float(densities[0])).to(torch.int64)
    edges = torch.from_numpy(np.concatenate([[-np.inf], densities, [np.inf]])).to(level.device)
    guess = (level * count).to(torch.int64).clamp_(0, count)  # right but for rounding
    guess += level >= edges.take(guess + 1)
    return guess.sub_((level < edges.take(guess)).to(torch.int64))


def rank_bits(
    source: Source, base: int, model: int, tensor: int, stream: Stream
) -> npt.NDArray[np.int32]:
    """Return for each element a bit that is one with probability r, int32 [rows, WORDS].

    r is the rank of its magnitude in its row, from 0 to 1; equal ones are ranked at random. A row
    is what `torch.argsort(dim=1)` sorts; a vector is one row.
    """
    size = source.size(tensor)
    bits = torch.zeros(max(1, -(-size // WIDTH)) * WIDTH, dtype=torch.bool)
    if size:
        shape = source.shapes[tensor]
        length = shape[1] if len(shape) > 1 else size
        inner = int(np.prod(shape[2:], dtype=np.int64))  # dimension 1 need not be the last
        span = length * inner
        flats = source.flat(model, tensor), source.flat(base, tensor)
        step = max(1, CHUNK // span) * span
        for start in range(0, size, step):
            x, b = (one[start : start + step].to(source.device).float() for one in flats)
            rows = (x - b).abs_().view(-1, length, inner)
            index = (start, len(x))
            ties = stream.numbers(*index, source.device, "/ties").view(rows.shape)
            chance = random.fraction(stream.numbers(*index, source.device, "/ranks"))
            found = _above(rows.mT, ties.mT, chance.view(rows.shape).mT).mT
            bits[start : start + len(x)] = found.reshape(-1).cpu()
    parts = [packed(part) for part in torch.split(bits.view(-1, WIDTH), CHUNK // WIDTH)]
    words: npt.NDArray[np.int32] = torch.cat(parts).numpy()
    return words


def _above(rows: torch.Tensor, ties: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Return where the rank in the last dimension, from 0 to 1, is above `chance`."""
    length = rows.shape[-1]
    if length == 1:
        return chance < 0.5
    order = (rows.contiguous().view(torch.int32).long() << 32) | (ties.long() & 0xFFFFFFFF)
    ranked = torch.from_numpy(np.sort(order.cpu().numpy(), axis=-1)).to(rows.device)
    bound = (chance * (length - 1)).long()  # rank > chance · (length − 1)
    return order > ranked.gather(-1, bound)
