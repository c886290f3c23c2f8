"""Lazy, checked reading of safetensors checkpoints, and writing them back.

Opening a checkpoint reads headers only and imports no torch; tensors are read one by one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from evomerge.errors import CheckpointError, Found, Place, first_line
from evomerge.files import exists

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_HUB_COPIES = ["*/*", "consolidated*"]  # the same weights in other formats
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?\Z")


@dataclass(frozen=True)
class ModelRef:
    """A reference to a model: a local folder or a Hub id, with an optional revision.

    Written `path`, `org/name` or `org/name@revision`.
    """

    path: str
    revision: str | None = None

    @classmethod
    def parse(cls, value: object, place: Place) -> ModelRef:
        """Read a reference from a recipe or study file; raises the place's error."""
        if not isinstance(value, str) or not value.strip():
            raise place.fail("a model: a folder or a Hub id such as org/name@revision", value)
        text = value.strip()
        if "+" in text and not exists(Path(text)):
            raise place.fail(
                "a model without an adapter",
                text,
                "merge the adapter into its model first (adapters are not read yet)",
            )
        head, at, revision = text.rpartition("@")
        if at and not exists(Path(text)):
            if not head or not revision:
                raise place.fail("model@revision", text)
            return cls(head, revision)
        return cls(text)

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path

    def resolved(self, folder: Path) -> ModelRef:
        """Return this reference with a relative local path made absolute against `folder`."""
        local = folder / os.path.expanduser(self.path)
        if self.revision or not exists(local):
            return self
        return ModelRef(str(local.resolve()))


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str  # as in the header: F32, BF16, I64, …
    file: Path = field(compare=False)

    @property
    def floating(self) -> bool:
        """Whether the tensor holds floating-point numbers that can be merged."""
        return self.dtype in FLOATING


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder whose headers have been read and checked; `tensors` is in sorted order."""

    ref: ModelRef
    folder: Path
    tensors: Mapping[str, TensorInfo]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json; raises CheckpointError where it is missing or broken."""
        return _read_json(self.folder / "config.json")

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors one by one in their storage dtype, each file opened once.

        Raises CheckpointError where a file has become unreadable since it was opened.
        """
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self.tensors[name].file, []).append(name)
        for file, members in wanted.items():
            try:
                with safe_open(file, framework="pt") as stream:
                    for name in members:
                        yield name, stream.get_tensor(name)
            except (SafetensorError, OSError) as problem:
                raise CheckpointError(
                    f"cannot read the tensors of {file}: {first_line(problem)}"
                ) from None


def locate(ref: ModelRef, place: Place) -> Path:
    """Return the local folder of a model, downloading a Hub model that is not in the cache.

    Raises the place's error where there is neither a folder nor a model of that name in reach.
    """
    local = Path(os.path.expanduser(ref.path))
    if exists(local):
        if ref.revision:
            raise place.fail("a folder without a revision", str(ref), "drop what follows the @")
        if local.is_dir():
            return local.resolve()
        raise place.fail("a folder with config.json and safetensors files", str(ref))
    if not _REPOSITORY.fullmatch(ref.path):
        raise place.fail("a model's folder", Found(f"{ref.path}, which does not exist"))
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                ref.path,
                revision=ref.revision,
                allow_patterns=_HUB_FILES,
                ignore_patterns=_HUB_COPIES,
            )
        ).resolve()
    except Exception as problem:  # the library raises whatever its HTTP client raises
        reason = first_line(problem)
        raise place.fail(
            "a model's folder or a Hub id",
            Found(f"{str(ref)!r}, for which there is no folder and the Hub gave none"),
            f"check the spelling, the network and your access ({type(problem).__name__}: {reason})",
        ) from None


def open_checkpoint(ref: ModelRef, place: Place) -> Checkpoint:
    """Open a model's folder and read the headers of all its safetensors files.

    A single file goes before an index, as in transformers. Raises the place's error where the model
    cannot be found, and CheckpointError where a file is missing, damaged, or outside the folder, or
    where an index and its files disagree on what is where.
    """
    folder = locate(ref, place)
    if (folder / SINGLE).is_file():
        tensors = _header(folder / SINGLE)
    elif (folder / INDEX).is_file():
        tensors = _indexed(folder / INDEX)
    else:
        adapter = (folder / "adapter_config.json").is_file()
        raise CheckpointError(
            f"expected {SINGLE} or {INDEX} in {folder}, got neither; "
            + ("merge the adapter into its model" if adapter else "only safetensors are read")
        )
    if not tensors:
        raise CheckpointError(f"expected tensors, got none in {folder}")
    checkpoint = Checkpoint(ref, folder, dict(sorted(tensors.items())))
    if not checkpoint.config:
        raise CheckpointError(
            f"expected a model's configuration, got an empty {folder}/config.json"
        )
    return checkpoint


def _indexed(index: Path) -> dict[str, TensorInfo]:
    weight_map = _weight_map(index)
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(set(weight_map.values())):
        file = index.parent / name
        if not file.is_file():
            raise CheckpointError(f"the shard {name} that {index} names is missing")
        for tensor, info in _header(file).items():
            if weight_map.get(tensor) != name:
                where = weight_map.get(tensor, "no file")
                raise CheckpointError(f"{index} places {tensor} in {where}, but {name} holds it")
            tensors[tensor] = info
    for tensor, name in weight_map.items():
        if tensor not in tensors:
            raise CheckpointError(f"{index} places {tensor} in {name}, which does not hold it")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    content = _read_json(index).get("weight_map")
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"expected a weight_map, got none in {index}")
    for tensor, name in content.items():
        if (
            not isinstance(name, str)
            or not name.endswith(".safetensors")
            or Path(name).name != name
        ):
            raise CheckpointError(
                f"expected a safetensors file beside {index}, got {name!r} for {tensor}"
            )
    return content


def _header(file: Path) -> dict[str, TensorInfo]:
    try:
        with safe_open(file, framework="numpy") as stream:
            found = {}
            for name in stream.keys():  # noqa: SIM118 (a handle, not a mapping)
                part = stream.get_slice(name)
                found[name] = TensorInfo(tuple(part.get_shape()), part.get_dtype(), file)
            return found
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(
            f"expected a whole safetensors file, got {first_line(problem)} in {file}"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"expected {path.name} in {path.parent}, got no such file") from None
    except (ValueError, OSError, RecursionError) as problem:
        raise CheckpointError(f"expected JSON, got {first_line(problem)} in {path}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"expected a JSON object, got a {type(content).__name__} in {path}")
    return content
