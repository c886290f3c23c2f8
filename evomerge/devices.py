"""The device to work on, or several."""

from __future__ import annotations

import torch

from evomerge.errors import CheckpointError, first_line


def best_device(name: str | None) -> torch.device:
    """Return the device to work on: the one named, else CUDA where there is one, else the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hint = "leave it out for the best there is"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CheckpointError(
            f"expected a device such as cpu, cuda or cuda:1, got {name!r}; {hint}"
        ) from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as problem:
        reason = first_line(problem).partition(". ")[0][:160]
        raise CheckpointError(
            f"expected a device of this machine, got {name!r}, which PyTorch cannot use here "
            f"({reason}); {hint}"
        ) from None
    return device


def _numbered(device: torch.device) -> torch.device:
    """Return cuda as the GPU that it stands for."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def best_devices(names: str | None) -> tuple[torch.device, ...]:
    """Return the devices to work on: those named, as in cuda:0,cuda:1, else the best one."""
    found = tuple(map(best_device, [None] if names is None else names.split(",")))
    if len({_numbered(one) for one in found}) < len(found):
        raise CheckpointError(f"expected each device once, got {names!r}; name others, or one")
    if len({one.type for one in found}) > 1:
        raise CheckpointError(
            f"expected devices of one kind, got {names!r}; name GPUs alone, or the CPU"
        )
    return found
