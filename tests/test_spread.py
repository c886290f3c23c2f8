"""Models over several devices: which layer lies where, what moves, and the same results."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.devices import best_devices
from evomerge.errors import CheckpointError
from evomerge.merger import Merger
from evomerge.spread import connect, moved, spread
from tests.tiny_models import opened, parsed, recipe_of, write_family

CPUS = [torch.device("cpu"), torch.device("cpu:0")]  # to PyTorch, two names of one device
GPUS = [torch.device(f"cuda:{number}") for number in range(3)]


def layers(sizes: list[int], outside: int = 0) -> dict[str, int]:
    return {"embed.weight": outside} | {
        f"layers.{number}.{part}": size // 2
        for number, size in enumerate(sizes)
        for part in ("attention", "mlp")
    }


def counted(sizes: list[int], outside: int, devices: int) -> list[list[int]]:
    """The layers on each device."""
    found = spread(layers(sizes, outside), GPUS[:devices])
    assert found["embed.weight"] == GPUS[0]
    for number in range(len(sizes)):
        assert found[f"layers.{number}.attention"] == found[f"layers.{number}.mlp"]
    return [
        [n for n in range(len(sizes)) if found[f"layers.{n}.mlp"] == device]
        for device in GPUS[:devices]
    ]


def test_each_device_gets_about_as_much() -> None:
    assert counted([10] * 4, 0, 2) == [[0, 1], [2, 3]]
    assert counted([10] * 4, 20, 2) == [[0], [1, 2, 3]]  # 30 and 30
    assert counted([10] * 6, 0, 3) == [[0, 1], [2, 3], [4, 5]]
    assert counted([10] * 11, 10, 3) == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert counted([10] * 12, 1000, 1) == [list(range(12))]
    assert counted([2, 2, 40, 2, 2], 0, 2) == [[0, 1, 2], [3, 4]]


def test_no_device_goes_without_a_layer() -> None:
    assert counted([10] * 3, 0, 3) == [[0], [1], [2]]
    assert counted([2, 2, 40], 0, 3) == [[0], [1], [2]]
    assert counted([40, 2, 2], 0, 3) == [[0], [1], [2]]
    with pytest.raises(CheckpointError, match="at most 2 devices, one for each layer"):
        counted([10, 10], 0, 3)


def test_layers_of_more_than_nine() -> None:
    """By number, not by name."""
    found = spread(layers([10] * 12), GPUS[:2])
    assert found["layers.2.mlp"] == GPUS[0]
    assert found["layers.10.mlp"] == GPUS[1]


def test_what_is_moved() -> None:
    place = torch.device("meta")
    one = torch.ones(2)
    found = moved({"a": (one, [one, None]), "b": 3, "c": GPUS}, place)
    assert found["a"][0].device == found["a"][1][0].device == place
    assert found["a"][1][1] is None
    assert (found["b"], found["c"]) == (3, GPUS)
    assert isinstance(found["a"], tuple)


def test_buffers_come_to_their_layer() -> None:
    model = torch.nn.Module()
    layers = [torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4, device="meta")]
    layers[1].running_mean = torch.ones(4)
    model.layers, model.norm = torch.nn.ModuleList(layers), torch.nn.BatchNorm1d(4)
    connect(model, torch.device("cpu"))
    assert model.layers[1].running_mean.device.type == "meta"
    assert {one.device.type for one in (*layers[0].buffers(), *model.norm.buffers())} == {"cpu"}


def test_models_over_two_devices_run(tmp_path: Path) -> None:
    names = ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "bloom"]
    words = [sys.executable, "-m", "tests.two_devices", str(tmp_path), *names]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == names, done.stderr


TRIMMED = {"weight": 0.5, "density": 0.5}
RECIPES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ties", TRIMMED, {"base_model": "base"}),
    ("dare_ties", TRIMMED, {"base_model": "base", "parameters": {"seed": 3, "rescale": True}}),
    ("della", TRIMMED | {"epsilon": 0.1}, {"base_model": "base", "parameters": {"seed": 3}}),
    ("linear", {"weight": 0.4}, {}),
    ("model_stock", {}, {"base_model": "base", "parameters": {"filter_wise": True}}),
]


@pytest.mark.parametrize("memory", ["device", "host", "disk"])
def test_merging_over_two_devices_gives_the_same_bits(memory: Any, tmp_path: Path) -> None:
    family = write_family(tmp_path)
    inputs = opened(family, "base", "a", "b", "c")
    split = Merger(inputs, device=CPUS, memory=memory, keep=False)
    whole = Merger(inputs, device="cpu", memory=memory, keep=False)
    assert {block.device for block in split._layout.blocks} == {*CPUS}
    assert dict(split.fingerprints) == dict(whole.fingerprints)
    for method, own, fields in RECIPES:
        recipe = parsed(recipe_of(family, method, **fields, models=dict.fromkeys("abc", own)))
        expected = {name: one.clone() for name, one in whole.materialize(recipe).items()}
        found = split.materialize(recipe)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert split.digest() == whole.digest()
        streamed = dict(split.stream(recipe))
        assert all(torch.equal(streamed[name], expected[name]) for name in expected)


def test_devices_that_are_named() -> None:
    assert best_devices("cpu") == (torch.device("cpu"),)
    assert best_devices("cpu,cpu:0") == tuple(CPUS)
    for names, sentence in [
        ("cpu,cpu", "expected each device once, got 'cpu,cpu'"),
        ("cpu,meta", "expected devices of one kind, got 'cpu,meta'"),
        ("cpu,", "expected a device such as cpu, cuda or cuda:1, got ''"),
        ("cpu,gpu", "expected a device such as cpu, cuda or cuda:1, got 'gpu'"),
    ]:
        with pytest.raises(CheckpointError, match=sentence):
            best_devices(names)
