"""The safetensors files that are written tensor by tensor, read by the library of the format."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from evomerge.merger.shards import Entry, distribute, write_shard

TENSORS = {
    "a scalar": torch.tensor(2.5),
    "bf16": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "bool": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
    "f16": torch.arange(7).half(),
    "f64": torch.arange(3).double(),
    "i64": torch.arange(-2, 2),
    "ünïcode \"quoted\"": torch.ones(2, 2),
    "strided": torch.arange(12.0).view(3, 4).T,
    "u8": torch.arange(3, dtype=torch.uint8),
    "z": torch.ones(1),
}  # fmt: skip
CODES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.bool: "BOOL", torch.int64: "I64", torch.uint8: "U8",
}  # fmt: skip


def entries() -> list[Entry]:
    return [Entry(name, CODES[one.dtype], tuple(one.shape)) for name, one in TENSORS.items()]


def test_every_dtype_and_shape_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_shard(file, entries(), iter(TENSORS.items()))
    found = load_file(file)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("length", range(1, 18))
def test_the_data_begins_at_a_multiple_of_8(tmp_path: Path, length: int) -> None:
    """Where readers map it into memory."""
    name = "x" * length
    write_shard(tmp_path / "file", [Entry(name, "F32", (3,))], iter({name: torch.ones(3)}.items()))
    data = (tmp_path / "file").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    assert size % 8 == 0
    assert json.loads(data[8 : 8 + size])[name]["data_offsets"] == [0, 12]
    assert len(data) == 8 + size + 12
    assert torch.equal(load_file(tmp_path / "file")[name], torch.ones(3))


def test_only_the_tensors_of_the_file_are_taken(tmp_path: Path) -> None:
    every = iter(TENSORS.items())
    parts = distribute(entries(), 30)
    for number, part in enumerate(parts):
        write_shard(tmp_path / str(number), part, every)
        assert list(load_file(tmp_path / str(number))) == sorted(one.name for one in part)
    assert next(every, None) is None
    assert [one for part in parts for one in part] == entries()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(FileExistsError):
        write_shard(tmp_path / "file", entries(), iter(TENSORS.items()))
    assert (tmp_path / "file").read_text() == "here"


def test_shards_are_full_but_not_overfull() -> None:
    sizes = [3, 4, 2, 2, 9, 1, 0, 5]
    made = [Entry(str(index), "F32", (size,)) for index, size in enumerate(sizes)]
    found = [[one.nbytes // 4 for one in part] for part in distribute(made, 4 * 6)]
    assert found == [[3], [4, 2], [2], [9], [1, 0, 5]]
    assert distribute(made, 4 * 26) == [made]
    assert distribute([], 10) == []
