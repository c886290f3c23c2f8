"""Safetensors files written tensor by tensor, with one tensor in memory at a time.

The format (https://huggingface.co/docs/safetensors): the length of the header in 8 bytes, the
header in JSON, and the tensors' bytes one after the other.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evomerge.errors import CheckpointError
from evomerge.headers import BITS, TensorInfo
from evomerge.merger.digests import tensor_digest
from evomerge.tensor_files import StoredTensors


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


def header_of(entries: Sequence[Entry]) -> bytes:
    """Return what a file of tensors begins with."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        place = [start, start + entry.nbytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": place}
        start += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def is_intact(file: Path, entries: Sequence[Entry], digests: Mapping[str, str]) -> bool:
    """Return whether a file is the one that was written: of these tensors, with these digests."""
    header = header_of(entries)
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            same = stream.read(len(header)) == header
    except OSError:
        return False
    if not same or size != len(header) + sum(entry.nbytes for entry in entries):
        return False
    infos = {entry.name: TensorInfo(entry.shape, entry.dtype, file) for entry in entries}
    try:
        found = {name: tensor_digest(one) for name, one in StoredTensors(infos).items()}
    except CheckpointError:
        return False
    return found == digests


def write_shard(
    file: Path, entries: Sequence[Entry], tensors: Iterator[tuple[str, torch.Tensor]]
) -> None:
    """Write a file of the next tensors of an iterator, which are those of `entries`, in order.

    Raises OSError where the file cannot be written.
    """
    with file.open("xb") as stream:
        stream.write(header_of(entries))
        for entry in entries:
            name, tensor = next(tensors)
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            assert (name, data.numel()) == (entry.name, entry.nbytes)
            stream.write(data.numpy().data)
        stream.flush()
        os.fsync(stream.fileno())
