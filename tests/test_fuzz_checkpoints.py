"""Damaged checkpoints: each is read as a second reader reads it, or refused in one sentence."""

import json
import math
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints import ModelRef, open_checkpoint
from evomerge.errors import CheckpointError, EvomergeError, Place
from tests.tiny_adapters import PREFIX, by_hand, factors, write_adapter
from tests.tiny_models import Tensors

PLACE = Place("study.yaml", CheckpointError, "models.base")
CASES = 300  # of each kind of damage
SHAPES = {"layers.0.q": (6, 4), "layers.0.v": (4, 4), "layers.1.q": (6, 4), "layers.1.v": (4, 4)}
INDEX, CONFIG = "base/model.safetensors.index.json", "lora/adapter_config.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I32": torch.int32}
Files = dict[str, bytes]


def pristine(folder: Path) -> Files:
    """A model of three shards with an adapter: path → content."""
    draw = torch.Generator().manual_seed(0)
    tensors = {f"{name}.weight": torch.randn(size, generator=draw) for name, size in SHAPES.items()}
    tensors["layers.1.v.weight"] = tensors["layers.1.v.weight"].bfloat16()
    tensors |= {"norm.weight": torch.ones(4), "steps": torch.arange(3, dtype=torch.int32)}
    (folder / "base").mkdir(parents=True)
    weight_map = {}
    for part in range(3):
        members = {name: tensors[name] for name in list(tensors)[part::3]}
        save_file(members, folder / "base" / f"model-{part}.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(members, f"model-{part}.safetensors")
    (folder / "base/config.json").write_text('{"model_type": "x", "tie_word_embeddings": false}')
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_adapter(folder / "lora", factors(SHAPES, 2), r=2, rank_pattern={}, use_rslora=False)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def second_reader(files: Files) -> Tensors:
    """Read a checkpoint as it is meant, unchecked, from its bytes."""
    config = json.loads(files[CONFIG])
    own = stored(files["lora/adapter_model.safetensors"])
    scale = config["lora_alpha"] / config["r"]
    if config.get("use_rslora"):
        scale *= math.sqrt(config["r"])
    shards = set(json.loads(files[INDEX])["weight_map"].values())
    found = {}
    for shard in sorted(shards):
        found |= stored(files[f"base/{shard}"])
    for module in SHAPES:
        if f"{PREFIX}{module}.lora_A.weight" in own:
            weight = found[f"{module}.weight"]
            sums = by_hand(weight, own, module, alpha_scale(config, module, scale))
            found[f"{module}.weight"] = sums.to(weight.dtype)
    return found


def alpha_scale(config: dict[str, Any], module: str, scale: float) -> float:
    alpha = (config.get("alpha_pattern") or {}).get(module.rpartition(".")[2])
    return scale if alpha is None else scale * alpha / config["lora_alpha"]


def stored(content: bytes) -> Tensors:
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        data = torch.frombuffer(bytearray(content[start + first : start + end]), dtype=torch.uint8)
        found[name] = data.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def truncate(files: Files, draw: random.Random) -> None:
    name = draw.choice(sorted(files))
    files[name] = files[name][: draw.randrange(len(files[name]) + 1)]


def flip(files: Files, draw: random.Random) -> None:
    name = draw.choice(sorted(files))
    bits = bytearray(files[name])
    for _ in range(draw.choice([1, 1, 2, 8])):
        bits[draw.randrange(len(bits))] ^= 1 << draw.randrange(8)
    files[name] = bytes(bits)


def splice(files: Files, draw: random.Random) -> None:
    """Insert, remove or repeat some bytes."""
    name = draw.choice(sorted(files))
    content = files[name]
    first, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    end = min(end, first + 16)
    part = draw.choice([b"", bytes(end - first), content[first:end] * 2, draw.randbytes(3)])
    files[name] = content[:first] + part + content[end:]


def rename(files: Files, draw: random.Random) -> None:
    name = draw.choice(sorted(files))
    other = draw.choice(
        [
            "base/x.safetensors",
            "base/model.safetensors",
            "base/pytorch_model.bin",
            "x",
            CONFIG,
            INDEX,
        ]
    )
    files[other] = files.pop(name)


def swap(files: Files, draw: random.Random) -> None:
    one, other = draw.sample(sorted(files), 2)
    files[one], files[other] = files[other], files[one]
    if draw.random() < 0.3:
        files[other] = files[one]


ODD: list[Any] = [None, True, 0, 1, -1, 2, 7, 1.5, 2**63, 1e400, math.nan, "", "x", "../x",
       "/etc/passwd", "a\nb", "\ud800", [], [1], {}, {"q": 3}, {"q": 0}, {"(": 1}, "F32", "BF16",
       "I32", "F64", [4, 6], [0, 64], "model-0.safetensors", "model-1.safetensors",
       "model-0.safetensors/", "pissa"]  # fmt: skip


def edit(content: Any, draw: random.Random) -> str:
    """Change one entry somewhere in plain data and write it as JSON, keys given twice included."""
    place = content
    while True:
        keys = sorted(place, key=str) if isinstance(place, dict) else range(len(place))
        key = draw.choice(list(keys)) if keys else None
        if key is None or not isinstance(place[key], (dict, list)) or draw.random() < 0.2:
            break
        place = place[key]
    kind = draw.choice(["set", "set", "set", "remove", "add", "twice"])
    if kind == "remove" and key is not None:
        del place[key]
    elif kind == "add" or key is None:
        name = draw.choice(["x", "alpha_pattern", "use_dora", "bias", "\n"])
        place.append(draw.choice(ODD)) if isinstance(place, list) else place.update(
            {name: draw.choice(ODD)}
        )
    elif kind == "set":
        place[key] = draw.choice(ODD)
    text = json.dumps(content)
    if kind == "twice" and isinstance(key, str):
        again = f"{json.dumps(key)}: {json.dumps(draw.choice(ODD))}, "
        text = text.replace(json.dumps(key), again + json.dumps(key), 1)
    return text


def edit_json(files: Files, draw: random.Random) -> None:
    name = draw.choice([INDEX, CONFIG, CONFIG])
    files[name] = edit(json.loads(files[name]), draw).encode()


def edit_header(files: Files, draw: random.Random) -> None:
    name = draw.choice([one for one in sorted(files) if one.endswith(".safetensors")])
    content = files[name]
    start = 8 + struct.unpack("<Q", content[:8])[0]
    text = edit(json.loads(content[8:start]), draw).encode()
    files[name] = struct.pack("<Q", len(text)) + text + content[start:]


def outcome(folder: Path, files: Files) -> str:
    """Read a checkpoint: `right` where it is as in the second reader, or the refusal."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    ref = ModelRef(str(folder / "base"), None, ModelRef(str(folder / "lora")))
    try:
        checkpoint = open_checkpoint(ref, PLACE)
        found = dict(checkpoint.read(checkpoint.tensors))
    except EvomergeError as problem:
        return one_sentence(problem)
    right = second_reader(files)
    mapped = checkpoint.map(checkpoint.tensors)
    assert list(found) == sorted(right, key=list(found).index)
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (right[name].dtype, right[name].shape)
        torch.testing.assert_close(tensor, right[name], rtol=1e-5, atol=1e-6, equal_nan=True)
        torch.testing.assert_close(tensor, mapped[name], rtol=0, atol=0, equal_nan=True)
    return "right"


def one_sentence(problem: EvomergeError) -> str:
    assert str(problem).isprintable()
    assert problem.__cause__ is None
    return str(problem)


@pytest.mark.parametrize(
    ("damage", "least_right"),
    [
        (truncate, 0),
        (flip, 30),
        (splice, 0),
        (rename, 0),
        (swap, 0),
        (edit_json, 20),
        (edit_header, 0),
    ],
)
def test_damage(
    tmp_path: Path, damage: Callable[[Files, random.Random], None], least_right: int
) -> None:
    whole = pristine(tmp_path / "pristine")
    assert outcome(tmp_path / "whole", whole) == "right"
    found: list[str] = []
    for seed in range(CASES):
        files = dict(whole)
        draw = random.Random(f"{damage.__name__} {seed}")
        for _ in range(draw.choice([1, 1, 1, 2])):
            damage(files, draw)
        try:
            found.append(outcome(tmp_path / str(seed), files))
        except BaseException as problem:
            problem.add_note(f"{damage.__name__}, case {seed}: {tmp_path / str(seed)}")
            raise
        shutil.rmtree(tmp_path / str(seed))
    assert least_right <= found.count("right") < CASES - 50


def test_damaged_pickles(tmp_path: Path) -> None:
    """A flipped bit is a right read of another number, or of another name, or refused."""
    weights = {"a": torch.randn(5, 4), "b": torch.ones(3, dtype=torch.bfloat16)}
    torch.save(weights, tmp_path / "new")
    torch.save(weights, tmp_path / "old", _use_new_zipfile_serialization=False)
    refused = 0
    for seed in range(4 * CASES):
        draw = random.Random(f"pickle {seed}")
        files = {"m/pytorch_model.bin": (tmp_path / draw.choice(["new", "old"])).read_bytes()}
        draw.choice([truncate, flip, splice])(files, draw)
        folder = tmp_path / str(seed) / "m"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "x"}')
        (folder / "pytorch_model.bin").write_bytes(files["m/pytorch_model.bin"])
        try:
            checkpoint = open_checkpoint(ModelRef(str(folder)), PLACE)
            found = dict(checkpoint.read(checkpoint.tensors))
        except EvomergeError as problem:
            refused += bool(one_sentence(problem))
            continue
        for name, tensor in found.items():
            assert tuple(tensor.shape) == checkpoint.tensors[name].shape
            assert tensor.numel() <= 23
    assert CASES < refused < 4 * CASES
