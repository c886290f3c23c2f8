"""How much is run at a time on a device: halved where its memory does not suffice."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from evomerge.errors import DataError, out_of_memory

T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """How much is run at a time: tokens, logits, and tokens that generation holds in its cache.

    An own run is `worth` its overhead from so many tokens on that it saves.
    """

    tokens: int
    worth: int
    held: int
    logits: int = 1 << 26


_CPU = Budget(tokens=512, worth=256, held=32768)  # activations that stay in a core's cache
_GPU = Budget(tokens=16384, worth=1024, held=32768)


class Holder(Protocol):
    """What keeps memory that it can do without."""

    def forget(self) -> None:
        """Leave it to others."""
        ...


holders: weakref.WeakSet[Holder] = weakref.WeakSet()
_halvings: dict[torch.device, int] = {}  # that a device's memory has asked for


def within_memory(device: torch.device, run: Callable[[Budget], T]) -> T:
    """Run with a device's budget: where memory does not suffice, again with half, from then on.

    Raises DataError where it does not suffice for one sequence.
    """
    full = _CPU if device.type == "cpu" else _GPU
    while True:
        half = _halvings.get(device, 0)
        try:
            parts = (full.tokens, full.worth, full.held, full.logits)
            return run(Budget(*(max(1, part >> half) for part in parts)))
        except (RuntimeError, MemoryError) as problem:
            if not out_of_memory(problem):
                raise
        if full.held >> half <= 1:
            raise DataError(
                f"expected memory on {device} for one item at a time, got too little; leave out "
                "the long ones, or free memory"
            )
        _halvings[device] = half + 1  # the same for all that follows: batches decide last bits
        free(device)


def free(device: torch.device) -> None:
    """Leave to others what is kept in memory and can be done without."""
    for holder in list(holders):
        holder.forget()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # after a failed recording it may refuse
            torch.cuda.empty_cache()
