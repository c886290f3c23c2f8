"""PyTorch's `.bin` files: plain tensors alone, no code of a file is ever run."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import CheckpointError, first_line
from evomerge.headers import TensorInfo, check_name

if TYPE_CHECKING:
    import torch

_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
          "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64",
          "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64",
          "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}  # fmt: skip
_GLOBAL = re.compile(r"GLOBAL:? ([\w.]+)")


def load_pickled(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.bin` file, contiguous, mapped into memory where the format allows.

    Files of before PyTorch 1.6 are read whole. A tensor that is stored transposed is a copy; tied
    tensors share memory. Raises CheckpointError for anything but dense tensors by name, above all
    for a pickle that asks for code.
    """
    import torch

    sizes = _zip_sizes(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles, which the checks below judge
            content = torch.load(
                file, map_location="cpu", weights_only=True, mmap=sizes is not None
            )
    except Exception as problem:  # an unpickler raises whatever its input makes it raise
        asked = _GLOBAL.search(str(problem))
        reason = f"one that asks for {asked[1]}" if asked else _reason(problem)
        raise _refused(file, reason) from None
    if not isinstance(content, dict) or not content:
        raise _refused(file, f"a {type(content).__name__}" if content else "nothing")
    found: dict[str, torch.Tensor] = {}
    for name, tensor in content.items():
        if not isinstance(name, str):
            raise _refused(file, f"{ascii(name)[:80]} as the name of a tensor")
        check_name(name, file)
        if not isinstance(tensor, torch.Tensor):
            raise _refused(file, f"a {type(tensor).__name__} for {name}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or _code(tensor) is None:
            raise _refused(
                file, f"a {tensor.device.type} {tensor.layout} {tensor.dtype} for {name}"
            )
        size = tensor.untyped_storage().nbytes()
        if sizes is not None and size and size not in sizes:
            raise _refused(file, f"{size} bytes for {name}, which no entry holds")
        found[name] = tensor.detach().contiguous()
    return found


def read_pickled_header(file: Path) -> dict[str, TensorInfo]:
    """Return names, shapes and dtypes of a `.bin` file; imports torch, raises as `load_pickled`."""
    return {
        name: TensorInfo(tuple(tensor.shape), _code(tensor) or "", file)
        for name, tensor in load_pickled(file).items()
    }


def _code(tensor: torch.Tensor) -> str | None:
    return _CODES.get(str(tensor.dtype).removeprefix("torch."))


def _zip_sizes(file: Path) -> set[int] | None:
    """Return the sizes of a zip archive's entries, or None where the file is no such archive.

    Raises CheckpointError where entries are not there as they are: a compressed one would be taken
    for a tensor's numbers.
    """
    try:
        if not zipfile.is_zipfile(file):
            return None
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as problem:
        raise _refused(file, _reason(problem)) from None
    if any(one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1 for one in entries):
        raise _refused(file, "compressed or encrypted entries")
    if len({one.filename for one in entries}) < len(entries):
        raise _refused(file, "an entry twice")
    return {one.file_size for one in entries}


def _reason(problem: Exception) -> str:
    text = first_line(problem)
    return text.split(". ")[0][:200] if text.isprintable() else type(problem).__name__


def _refused(file: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"expected a PyTorch file of plain tensors by name, got {found} in {file}; "
        "nothing in it was run; save the model as safetensors"
    )
