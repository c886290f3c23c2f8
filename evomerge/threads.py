"""How many threads torch has: one where more would only wait for each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_SMALL = 20_000_000  # parameters; below, more threads cost more than they bring


def use_threads(parameters: int) -> None:
    """Set torch's thread count for a model of this size: one where threads would only wait.

    An explicit OMP_NUM_THREADS is left alone.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and parameters < _SMALL:
        torch.set_num_threads(1)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread, which is as fast on small matrices and gives the same bits everywhere.

    This goes for torch and for what NumPy and SciPy call.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)
