"""The device to work on."""

from __future__ import annotations

import torch

from evomerge.errors import CheckpointError, first_line


def best_device(name: str | None) -> torch.device:
    """Return the device to work on: the one named, else CUDA where there is one, else the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = f"{type(problem).__name__}: {first_line(problem)}"
        raise CheckpointError(
            f"expected a device such as cpu or cuda, got {name!r}: {reason}"
        ) from None
    return device
