"""Layers of several kinds: the configuration follows them, or they stay where they are."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import CheckpointError
from tests.test_assembly import config_of, parts_of, passthrough
from tests.tiny_models import write_checkpoint

STACK = "model.layers"


def write_kinds(folder: Path, kinds: str, **config: Any) -> Path:
    """A model whose layers have a tensor of their kind beside one that all have."""
    names = [f"{STACK}.{at}.{tail}" for at, kind in enumerate(kinds) for tail in ("norm", kind)]
    tensors = {f"{name}.weight": torch.ones(2) for name in [*names, "model.embed"]}
    return write_checkpoint(folder, tensors, {"num_hidden_layers": len(kinds)} | config)


def found(folder: Path, *layers: tuple[str, int, int]) -> dict[str, Any]:
    data = passthrough(folder, *layers)
    parts_of(data)
    return config_of(data)


def test_lists_of_the_numbers_of_layers(tmp_path: Path) -> None:
    """Of each source its own; with an entry per layer, a list is no list of numbers."""
    lists = {"mlp_only_layers": [0, 2], "no_rope_layers": [1, 1, 0, 1], "eos_token_id": [0, 2]}
    write_kinds(tmp_path / "a", "dede", **lists)
    write_kinds(tmp_path / "b", "eedd", mlp_only_layers=[2, 3])
    config = found(tmp_path, ("a", 2, 4), ("b", 1, 4), ("a", 0, 1))
    assert config["mlp_only_layers"] == [0, 3, 4, 5]
    assert config["no_rope_layers"] == [0, 1, 1, 0, 1, 1]  # b has none: entries of a
    assert (config["eos_token_id"], config["num_hidden_layers"]) == ([0, 2], 6)
    assert found(tmp_path, ("a", 1, 2), ("a", 3, 4))["mlp_only_layers"] == []


def test_a_list_of_all_layers(tmp_path: Path) -> None:
    write_kinds(tmp_path / "a", "ddd", mlp_only_layers=[0, 1, 2])
    assert found(tmp_path, ("a", 1, 3), ("a", 0, 2))["mlp_only_layers"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kinds", "layers"),
    [
        ("dee", [(0, 1), (2, 3), (1, 3), (1, 2)]),  # the first is another, as in T5
        ("dee", [(0, 2)]),
        ("dede", [(2, 4), (2, 4), (0, 4)]),  # in turns
        ("dedd", [(0, 2), (3, 4), (2, 4)]),
    ],
)
def test_kinds_at_their_places(
    tmp_path: Path, kinds: str, layers: Sequence[tuple[int, int]]
) -> None:
    write_kinds(tmp_path / "a", kinds, layer_types=["full"] * len(kinds))
    config = found(tmp_path, *(("a", *one) for one in layers))
    count = sum(end - first for first, end in layers)
    assert config == {"num_hidden_layers": count, "layer_types": ["full"] * count}


@pytest.mark.parametrize(
    ("kinds", "layers", "words"),
    [
        ("dee", [(0, 1), (0, 3)],
         "like model.layers.1 of FOLDER/a as layer 1, got layer 0 of FOLDER/a, which differs in"),
        ("dee", [(1, 3)], "like model.layers.0 of FOLDER/a as layer 0, got layer 1 of FOLDER/a"),
        ("dee", [(0, 3), (0, 1)], "like model.layers.2 of FOLDER/a as layer 3, got layer 0"),
        ("dede", [(0, 4), (1, 2)], "like model.layers.0 of FOLDER/a as layer 4, got layer 1"),
    ],
)  # fmt: skip
def test_kinds_at_other_places(
    tmp_path: Path, kinds: str, layers: Sequence[tuple[int, int]], words: str
) -> None:
    """The model would be made with other layers than the files have."""
    write_kinds(tmp_path / "a", kinds)
    with pytest.raises(CheckpointError, match=re.escape(words.replace("FOLDER", str(tmp_path)))):
        found(tmp_path, *(("a", *one) for one in layers))
    write_kinds(tmp_path / "a", kinds, layer_types=list(kinds))  # with which they may be anywhere
    order = [layer for first, end in layers for layer in range(first, end)]
    config = found(tmp_path, *(("a", *one) for one in layers))
    assert config["layer_types"] == [kinds[layer] for layer in order]


def test_constants_are_no_kind(tmp_path: Path) -> None:
    write_kinds(tmp_path / "a", "ddd")
    tensors = {f"{STACK}.{at}.d.weight": torch.ones(2) for at in range(3)}
    constant = {f"{STACK}.0.rotary_emb.inv_freq": torch.ones(2)}
    write_checkpoint(tmp_path / "a", tensors | constant, {"num_hidden_layers": 3})
    assert found(tmp_path, ("a", 1, 3), ("a", 0, 1)) == {"num_hidden_layers": 3}


def test_what_precedes_the_layers_by_its_name(tmp_path: Path) -> None:
    for value, name in enumerate("ab"):
        names = ["decoder.project_in.weight", "decoder.project_out.weight", "decoder.proj_in.bias"]
        names += [f"{STACK}.{at}.w" for at in range(2)]
        tensors = {one: torch.full((2,), float(value)) for one in names}
        write_checkpoint(tmp_path / name, tensors, {"num_hidden_layers": 2})
    made = {
        name: float(tensor[0])
        for part in parts_of(passthrough(tmp_path, ("a", 0, 1), ("b", 0, 1)))
        for name, tensor in part.checkpoints[0].map(part.names).items()
    }
    assert (made["decoder.project_in.weight"], made["decoder.proj_in.bias"]) == (0.0, 0.0)
    assert made["decoder.project_out.weight"] == 1.0
