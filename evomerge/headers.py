"""What a file of tensors says of itself, believed only where it adds up; no torch is imported."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from evomerge.errors import CheckpointError, first_line

FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OTHERS = {"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8,
           "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
           "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}  # fmt: skip
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16} | _OTHERS
_MOST_BYTES = 100_000_000  # of a header, as in the safetensors library
_MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str  # as in a safetensors header: F32, BF16, I64, …
    file: Path = field(compare=False)

    @property
    def floating(self) -> bool:
        """Whether the tensor holds floating-point numbers that can be merged."""
        return self.dtype in FLOATING


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read the header of a safetensors file and check that it describes the whole file, once.

    Every byte behind the header must belong to exactly one tensor, of a size that follows from its
    dtype and shape. Raises CheckpointError naming the file and the tensor where that does not hold.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(size - 8, _MOST_BYTES):
                raise _broken(file, f"{size} bytes that do not begin with a header")
            text = stream.read(length)
    except OSError as problem:
        raise CheckpointError(f"cannot read {file}: {problem.strerror or problem}") from None
    if not text.startswith(b"{"):
        raise _broken(file, "a header that is no JSON object")
    content = _parsed(text, file)
    _check_metadata(content.pop("__metadata__", {}), file)
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, TensorInfo] = {}
    for name, entry in content.items():
        check_name(name, file)
        tensors[name], first, end = _entry(name, entry, file)
        spans.append((first, end, name))
    _check_cover(spans, size - 8 - length, file)
    return tensors


def _entry(name: str, entry: object, file: Path) -> tuple[TensorInfo, int, int]:
    """Return a tensor's description, checked, and where its bytes begin and end."""
    known = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (known.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken(file, f"the dtype {ascii(dtype)[:40]} for {name}")
    if not _naturals(shape):
        raise _broken(file, f"the shape {ascii(shape)[:80]} for {name}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise _broken(file, f"the offsets {ascii(offsets)[:80]} for {name}")
    first, end = offsets
    bits = math.prod(shape) * BITS[dtype]
    if bits != (end - first) * 8:
        raise _broken(
            file,
            f"{end - first} bytes for {name}, where {dtype} of shape {shape} takes {bits / 8:g}",
        )
    return TensorInfo(tuple(shape), dtype, file), first, end


def _naturals(value: object) -> TypeGuard[list[int]]:
    """Return whether `value` is a list of natural numbers, no longer than torch has dimensions."""
    return (
        isinstance(value, list)
        and len(value) <= _MOST_DIMENSIONS
        and all(type(one) is int and 0 <= one < 2**63 for one in value)
    )


def _check_metadata(value: object, file: Path) -> None:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise _broken(file, "metadata that are not texts by name")


def _check_cover(spans: list[tuple[int, int, str]], size: int, file: Path) -> None:
    reached = 0
    for first, end, name in sorted(spans):
        if first != reached:
            kind = "overlap" if first < reached else "leave a hole before it"
            raise _broken(file, f"bytes {first} to {end} for {name}, which {kind}")
        reached = end
    if reached != size:
        raise _broken(file, f"{size} bytes of data where its header has {reached}")


def check_name(name: str, file: Path) -> None:
    """Raise CheckpointError where a tensor's name cannot be printed on one line."""
    if not name or not name.isprintable():
        raise CheckpointError(
            f"expected printable names of tensors, got {ascii(name)[:80]} in {file}"
        )


def _broken(file: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"expected a whole safetensors file, got {found} in {file}; download or save it again"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises CheckpointError where there is none, or where a key of it is given twice.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"expected {path.name} in {path.parent}, got no such file; copy it there from the "
            "model's source"
        ) from None
    except OSError as problem:
        raise CheckpointError(f"cannot read {path}: {problem.strerror or problem}") from None
    return _parsed(text, path)


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as problem:
        found = first_line(problem)
        if isinstance(problem, json.JSONDecodeError):
            found = f"a text that is none ({found})"
        raise CheckpointError(
            f"expected JSON, got {found} in {path}; download or save it again"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"expected a JSON object, got a {type(content).__name__} in {path}")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {ascii(name)[:80]} twice")
        found[name] = value
    return found


def context(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens that a model of a configuration takes at once; None if it is silent.

    With the rope of "longrope" models it is what its short factors cover: a longer sequence changes
    the positions of all that are run beside it.
    """
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    ropes = (text, text.get("rope_scaling"), text.get("rope_parameters"))
    names = ["max_position_embeddings", "n_positions"]
    if any(isinstance(one, Mapping) and "longrope" in one.values() for one in ropes):
        names.insert(0, "original_max_position_embeddings")
    known = [
        one[name] for name in names for one in ropes if isinstance(one, Mapping) and name in one
    ]
    return known[0] if known and type(known[0]) is int and known[0] > 0 else None
