"""Safetensors files written tensor by tensor, with one tensor in memory at a time.

The format (https://huggingface.co/docs/safetensors): the length of the header in 8 bytes, the
header in JSON, and the tensors' bytes one after the other.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evomerge.headers import BITS


@dataclass(frozen=True)
class Entry:
    """What the header says of a tensor; `dtype` is such as F32, BF16 or I64."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of its data."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def distribute(entries: Sequence[Entry], most: int) -> list[list[Entry]]:
    """Distribute tensors, in order, over files of at most `most` bytes, or of one tensor."""
    shards: list[list[Entry]] = []
    size = 0
    for entry in entries:
        if not shards or size + entry.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


def write_shard(
    file: Path, entries: Sequence[Entry], tensors: Iterator[tuple[str, torch.Tensor]]
) -> None:
    """Write a file of the next tensors of an iterator, which are those of `entries`, in order.

    Raises OSError where the file cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        place = [start, start + entry.nbytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": place}
        start += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            name, tensor = next(tensors)
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            assert (name, data.numel()) == (entry.name, entry.nbytes)
            stream.write(data.numpy().data)
        stream.flush()
        os.fsync(stream.fileno())
