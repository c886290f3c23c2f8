"""PyTorch's own files: read as plain tensors, or refused; nothing in them is ever run."""

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints import Checkpoint, ModelRef, open_checkpoint
from evomerge.errors import CheckpointError, Place
from evomerge.pickled import load_pickled, read_pickled_header

PLACE = Place("study.yaml", CheckpointError, "models.base")
INDEX = "pytorch_model.bin.index.json"
WEIGHTS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.arange(3),
    "scalar": torch.tensor(2.0),
    "none": torch.empty(0, 3),
}


class Evil:
    """Pickles as a call of os.mkdir."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def write(folder: Path, content: object, old: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "x"}')
    file = folder / "pytorch_model.bin"
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file


def open_(folder: Path) -> Checkpoint:
    return open_checkpoint(ModelRef(str(folder)), PLACE)


def refused(folder: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        open_(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()
    assert str(folder) in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("old", [False, True])
def test_one_file(tmp_path: Path, old: bool) -> None:
    write(tmp_path / "m", OrderedDict(WEIGHTS), old)
    checkpoint = open_(tmp_path / "m")
    assert list(checkpoint.tensors) == sorted(WEIGHTS)
    assert [info.dtype for info in checkpoint.tensors.values()] == ["F32", "BF16", "I64"] + 2 * [
        "F32"
    ]
    read, mapped = dict(checkpoint.read(WEIGHTS)), checkpoint.map(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(read[name], tensor)
        assert torch.equal(mapped[name], tensor)
        assert read[name].dtype == tensor.dtype


def test_shards(tmp_path: Path) -> None:
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    write(tmp_path, WEIGHTS).unlink()
    torch.save({"a": WEIGHTS["a"]}, tmp_path / names[0])
    torch.save({"b": WEIGHTS["b"]}, tmp_path / names[1])
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    read = dict(open_(tmp_path).read("ab"))
    assert torch.equal(read["a"], WEIGHTS["a"])
    assert torch.equal(read["b"], WEIGHTS["b"])
    for place in ("../x.bin", "/x.bin", "x.safetensors", "sub/x.bin", "x.bin\n"):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": names[0], "b": place}}))
        refused(tmp_path, "expected a .bin file beside .* for b")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": names[0], "b": names[0]}}))
    refused(tmp_path, "places b in .*00001.*, which does not hold it")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": names[0], "c": names[1]}}))
    refused(tmp_path, "places b in no file, but .*00002.* holds it")
    (tmp_path / names[1]).unlink()
    refused(tmp_path, "the shard pytorch_model-00002-of-00002.bin that .* is missing")


def test_safetensors_go_first(tmp_path: Path) -> None:
    """As transformers have it, a safetensors index too goes before a single `.bin`."""
    write(tmp_path, {"x": torch.ones(2)})
    save_file({"x": torch.zeros(2)}, tmp_path / "part.safetensors")
    index = {"weight_map": {"x": "part.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert dict(open_(tmp_path).read("x"))["x"].sum() == 0


def test_shared_and_transposed_tensors(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    content = {
        "a": tensor,
        "b": tensor,
        "c": tensor[1:],
        "d": tensor.T,
        "e": torch.nn.Parameter(tensor),
    }
    file = write(tmp_path, content)
    found = load_pickled(file)
    assert found["a"].data_ptr() == found["b"].data_ptr()
    for name, one in content.items():
        assert torch.equal(found[name], one)
        assert found[name].is_contiguous()
        assert not found[name].requires_grad


def test_it_is_mapped(tmp_path: Path) -> None:
    file = write(tmp_path, WEIGHTS)
    before = file.read_bytes()
    load_pickled(file)["a"].fill_(3)
    assert file.read_bytes() == before


class TestRefused:
    @pytest.mark.parametrize("old", [False, True])
    def test_code(self, tmp_path: Path, old: bool) -> None:
        write(tmp_path / "m", {"a": Evil(tmp_path / "made")}, old)
        refused(tmp_path / "m", r"got one that asks for \w+.mkdir in .*; nothing in it was run")
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("protocol", range(6))
    def test_a_bare_pickle(self, tmp_path: Path, protocol: int) -> None:
        file = write(tmp_path / "m", {})
        file.write_bytes(pickle.dumps({"a": Evil(tmp_path / "made")}, protocol))
        refused(tmp_path / "m", "expected a PyTorch file of plain tensors by name")
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ([torch.ones(2)], "got a list"),
            ({}, "got nothing"),
            ({"model": {"a": torch.ones(2)}}, "got a dict for model"),
            ({"a": torch.ones(2), "step": 3}, "got a int for step"),
            ({3: torch.ones(2)}, "got 3 as the name"),
            ({"a\n": torch.ones(2)}, "expected printable names of tensors"),
            ({"a": torch.eye(2).to_sparse()}, "got a cpu torch.sparse_coo torch.float32 for a"),
            ({"a": torch.empty(2, device="meta")}, "got a meta .* for a"),
            (torch.nn.Linear(2, 2), r"asks for torch.nn.modules.linear.Linear"),
        ],
    )
    def test_what_is_no_state_dict(self, tmp_path: Path, content: object, words: str) -> None:
        write(tmp_path, content)
        refused(tmp_path, words)

    @pytest.mark.parametrize("keep", [0, 1, 100, -100, -1])
    @pytest.mark.parametrize("old", [False, True])
    def test_truncated(self, tmp_path: Path, keep: int, old: bool) -> None:
        file = write(tmp_path, WEIGHTS, old)
        file.write_bytes(file.read_bytes()[:keep])
        refused(tmp_path, "expected a PyTorch file of plain tensors by name")

    @pytest.mark.parametrize(
        ("change", "compression", "words"),
        [
            (b"", zipfile.ZIP_DEFLATED, "got compressed or encrypted entries"),
            (b"K\x03K\x64\x86", zipfile.ZIP_STORED, "expected a PyTorch file of plain tensors"),
        ],
    )
    def test_archives_that_lie(
        self, tmp_path: Path, change: bytes, compression: int, words: str
    ) -> None:
        """A compressed entry; a shape [3, 100] of a storage of 12."""
        file = write(tmp_path, {"a": WEIGHTS["a"]})
        made = io.BytesIO()
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(made, "w", compression) as new:
            for entry in old.infolist():
                data = old.read(entry)
                if change and entry.filename.endswith("data.pkl"):
                    assert data.count(b"K\x03K\x04\x86") == 1
                    data = data.replace(b"K\x03K\x04\x86", change)
                new.writestr(entry.filename, data)
        file.write_bytes(made.getvalue())
        refused(tmp_path, words)

    def test_a_storage_larger_than_its_entry(self, tmp_path: Path) -> None:
        """The numbers behind the entry's end would be another tensor's, or no numbers."""
        file = write(tmp_path, {"a": torch.arange(12.0)})
        made = io.BytesIO()
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(made, "w") as new:
            for entry in old.infolist():
                data = old.read(entry)
                if entry.filename.endswith("data.pkl"):
                    assert data.count(b"K\x0c") == 2  # the storage's size and the tensor's
                    data = data.replace(b"K\x0c", b"K\x0e")
                new.writestr(entry.filename, data)
        file.write_bytes(made.getvalue())
        refused(tmp_path, "got 56 bytes for a, which no entry holds")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"in .*gone.bin; nothing in it was run"):
            read_pickled_header(tmp_path / "gone.bin")
