"""Tensors mapped from files: files are let go of, and what was given stays as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evomerge import tensor_files
from evomerge.tensor_files import StoredTensors, describe


def test_files_are_let_go_of_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {f"x{n}": torch.full((10,), float(n)) for n in range(9)}
    save_file(wanted, tmp_path / "model.safetensors")
    opened: list[Path] = []

    def counted(file: Path) -> Any:
        opened.append(file)
        return original(file)

    original = tensor_files._opened
    monkeypatch.setattr(tensor_files, "_opened", counted)
    monkeypatch.setattr(tensor_files, "_KEPT", 100)  # two tensors and a half
    stored = StoredTensors(describe(tmp_path / "model.safetensors"))
    given = dict(stored)
    assert len(opened) == 3
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)
    for _ in range(5):
        assert stored["x8"] is stored["x8"]
    assert len(opened) == 3


def test_pickled_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of them are read as a whole."""
    wanted = {f"x{n}": torch.full((10,), float(n)) for n in range(9)}
    torch.save(wanted, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(tensor_files, "_KEPT", 1)
    stored = StoredTensors(describe(tmp_path / "pytorch_model.bin"))
    first = stored["x0"]
    found = dict(stored)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert found["x0"].data_ptr() == first.data_ptr()
