"""Roughly what a study takes: memory by the headers, time by how fast this machine multiplies."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evomerge.checkpoints import Checkpoint
from evomerge.compatibility import check_alike
from evomerge.devices import best_device
from evomerge.evaluator import TaskItems
from evomerge.headers import BITS
from evomerge.merger.inputs import Residence, choose_memory
from evomerge.sizes import as_size
from evomerge.study.file import CheckedStudy
from evomerge.tokenizer_files import Tokenizer

_OVERHEAD = 0.1  # seconds a candidate takes beside multiplying
_USED = 0.3  # of the speed of multiplying matrices that scoring reaches
_BANDWIDTH = 5e9  # bytes a second that merging moves, at the least
_OTHERS = 30  # candidates' worth of baselines beside the trials
_FINAL = 12  # rows of the report, each scored on select and held-out items, exactly
_GENERATES = 2  # times as much work as reading, where answers are generated
_SAMPLE = 32  # items that tokens are counted of


@dataclass(frozen=True)
class Estimate:
    """Bytes of the inputs and of the one candidate, where they lie here, and seconds in all."""

    inputs: int
    output: int
    residence: Residence
    device: str
    seconds: float

    @property
    def memory(self) -> str:
        """The bytes in words."""
        return f"{as_size(self.inputs)} of inputs and {as_size(self.output)} for the candidate"

    @property
    def place(self) -> str:
        """Where the inputs will lie on this machine, in words."""
        return {
            "device": f"they fit in the memory of this machine's {self.device}",
            "host": "the inputs stay in host memory and stream to the GPU",
            "disk": "too much for this machine's memory, so the inputs stay on disk",
        }[self.residence]

    @property
    def time(self) -> str:
        """The time in words, rounded."""
        for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
            if self.seconds >= 1.5 * length:
                return (
                    f"about {round(self.seconds / length)} {unit} on a {self.device} such as here"
                )
        return f"a minute or two on a {self.device} such as here"


def parameters(checkpoint: Checkpoint, names: Sequence[str]) -> int:
    """Return the number of a model's entries in some tensors."""
    return sum(math.prod(checkpoint.tensors[name].shape) for name in names)


def estimate(checked: CheckedStudy, trials: int, device: str | None = None) -> Estimate:
    """Return what a study will roughly take on this machine; multiplies for a moment."""
    names = check_alike(checked.checkpoints)
    sizes = [_size(one, names) for one in checked.checkpoints]
    place = best_device(device)
    items = [_tokens(task, checked.tokenizer) for task in checked.tasks]
    flops = 2.0 * parameters(checked.checkpoints[0], names)
    speed = _speed(place) * _USED
    splits = checked.file.splits
    merge = (sum(sizes) + sizes[0]) / _BANDWIDTH
    trial = _OVERHEAD + merge + sum(items) * splits.search * flops / speed
    both = (splits.select + splits.heldout) * _GENERATES
    final = _OVERHEAD + merge + sum(items) * both * flops / speed
    residence = choose_memory("auto", {place: sum(sizes)}, {place: sizes[0]})
    seconds = (trials + _OTHERS) * trial + _FINAL * final
    name = "GPU" if place.type == "cuda" else "CPU"
    return Estimate(sum(sizes), sizes[0], residence, name, seconds)


def _size(checkpoint: Checkpoint, names: Sequence[str]) -> int:
    return sum(
        math.prod(info.shape) * BITS[info.dtype] // 8
        for name, info in checkpoint.tensors.items()
        if name in set(names)
    )


def _tokens(task: TaskItems, tokenizer: Tokenizer) -> float:
    """Return the mean number of tokens that a model reads for an item, by its first items."""
    counts = []
    for example in task.examples[:_SAMPLE]:
        texts = [str(getattr(example, name, "")) for name in ("prompt", "text", "target")]
        options = [str(one) for one in getattr(example, "options", ())] or [""]
        own = len(tokenizer("".join(texts))["input_ids"])
        counts.append(sum(own + len(tokenizer(one)["input_ids"]) for one in options))
    return sum(counts) / len(counts)


def _speed(device: torch.device) -> float:
    """Return how many operations a second the device does when it multiplies matrices."""
    size, dtype = (512, torch.float32) if device.type == "cpu" else (4096, torch.bfloat16)
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
