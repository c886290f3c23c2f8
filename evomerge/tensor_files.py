"""The files of a folder that hold its tensors: which they are, what is where, and reading them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from evomerge.errors import CheckpointError, first_line
from evomerge.headers import FLOATING, TensorInfo, check_name, read_header, read_json
from evomerge.pickled import load_pickled, read_pickled_header

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED = "pytorch_model.bin"
_KEPT = 1 << 24  # bytes of tensors that are given before their files are let go of


def find_tensors(folder: Path) -> dict[str, TensorInfo] | None:
    """Return what the model in a folder holds, or None where no weights of a known name are there.

    Safetensors go before `.bin` and a single file before an index, as in transformers. Raises
    CheckpointError where a file is missing, damaged or outside the folder, or where an index and
    its files disagree on what is where.
    """
    for single, index in ((SINGLE, INDEX), (PICKLED, PICKLED_INDEX)):
        if (folder / single).is_file():
            return describe(folder / single)
        if (folder / index).is_file():
            return _indexed(folder / index, Path(single).suffix)
    return None


def describe(file: Path) -> dict[str, TensorInfo]:
    """Return what one file of tensors holds; raises CheckpointError where it is damaged."""
    return read_pickled_header(file) if file.suffix == ".bin" else read_header(file)


def _indexed(index: Path, suffix: str) -> dict[str, TensorInfo]:
    weight_map = _weight_map(index, suffix)
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(set(weight_map.values())):
        file = index.parent / name
        if not file.is_file():
            raise CheckpointError(
                f"the shard {name} that {index} names is missing; download or save it again"
            )
        for tensor, info in describe(file).items():
            if weight_map.get(tensor) != name:
                where = weight_map.get(tensor, "no file")
                raise CheckpointError(f"{index} places {tensor} in {where}, but {name} holds it")
            tensors[tensor] = info
    for tensor, name in weight_map.items():
        if tensor not in tensors:
            raise CheckpointError(f"{index} places {tensor} in {name}, which does not hold it")
    return tensors


def _weight_map(index: Path, suffix: str) -> dict[str, str]:
    content = read_json(index).get("weight_map")
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"expected a weight_map, got none in {index}")
    for tensor, name in content.items():
        check_name(tensor, index)
        beside = isinstance(name, str) and name.isprintable() and Path(name).name == name
        if not beside or not name.endswith(suffix):
            raise CheckpointError(
                f"expected a {suffix} file beside {index}, got {ascii(name)[:80]} for {tensor}"
            )
    return content


class StoredTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of some files by name, mapped into memory: nothing is read before it is touched.

    They are contiguous, in their storage dtype, and private: writing into one leaves the file as it
    is. A file is opened when one of its tensors is asked for, and safetensors are let go of now and
    then, so that going through a model does not make all of it part of this process's memory.
    Raises CheckpointError where a file is no longer what its header said.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        self._files: dict[Path, Any] = {}
        self._given: dict[str, torch.Tensor] = {}  # by the open files

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._given:
            return self._given[name]
        info = self._tensors[name]
        if sum(one.nbytes for one in self._given.values()) >= _KEPT:
            self._given.clear()
            self._files = {file: one for file, one in self._files.items() if file.suffix == ".bin"}
        try:
            if info.file not in self._files:
                self._files[info.file] = _opened(info.file)
            tensor: torch.Tensor = self._files[info.file](name)
        except (SafetensorError, OSError, RuntimeError, KeyError) as problem:
            raise CheckpointError(
                f"cannot read the tensors of {info.file}: {first_line(problem)}"
            ) from None
        dtype = f"torch.{FLOATING[info.dtype]}" if info.floating else str(tensor.dtype)
        if tuple(tensor.shape) != info.shape or str(tensor.dtype) != dtype:
            raise CheckpointError(
                f"expected {info.dtype} of shape {list(info.shape)} for {name} as when "
                f"{info.file} was opened, got {tensor.dtype} of shape {list(tensor.shape)}"
            )
        self._given[name] = tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class TensorsByName(Mapping[str, "torch.Tensor"]):
    """Tensors that are got, or computed, when they are asked for, each time anew."""

    def __init__(self, names: Collection[str], get: Callable[[str], torch.Tensor]) -> None:
        self._names = names
        self._get = get

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _opened(file: Path) -> Any:
    """Return a function from a name to the tensor of that name in a file."""
    if file.suffix == ".bin":
        return load_pickled(file).__getitem__
    return safe_open(file, framework="pt").get_tensor


def read_by_file(
    tensors: Mapping[str, TensorInfo], names: Iterable[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors one by one, file after file, each file opened once and let go of."""
    wanted: dict[Path, list[str]] = {}
    for name in names:
        wanted.setdefault(tensors[name].file, []).append(name)
    for members in wanted.values():
        stored = StoredTensors({name: tensors[name] for name in members})
        for name in members:
            yield name, stored[name]
