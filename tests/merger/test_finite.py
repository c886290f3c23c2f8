"""NaN and infinity, in an input or in a candidate, end in one sentence that names the tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import CandidateError, CheckpointError
from evomerge.merger import Merger
from evomerge.merger.materialize import fused_available
from tests.tiny_models import (
    Tensors,
    base_weights,
    expert_weights,
    opened,
    parsed,
    recipe_of,
    write_checkpoint,
)

NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"
OWN = {"weight": 0.5, "density": 0.5}
BAD = [float("nan"), float("inf"), -float("inf")]


def write(folder: Path, name: str, tensors: Tensors, dtype: torch.dtype = torch.float32) -> None:
    write_checkpoint(folder / name, {key: one.to(dtype) for key, one in tensors.items()})


def family(folder: Path, bad: float, where: str, dtype: torch.dtype = torch.float32) -> Path:
    base = base_weights()
    write(folder, "base", base, dtype)
    for seed, name in enumerate("ab"):
        model = expert_weights(base, seed)
        if name == "b":
            model[where].view(-1)[-1] = bad
        write(folder, name, model, dtype)
    return folder


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("memory", ["device", "host"])
def test_an_input_is_refused_when_it_is_loaded(tmp_path: Path, bad: float, memory: Any) -> None:
    family(tmp_path, bad, NORM)
    with pytest.raises(CheckpointError, match=f"NaN or infinity in {NORM} of {tmp_path}/b"):
        Merger(opened(tmp_path, "base", "a", "b"), memory=memory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", ["linear", "ties", "nuslerp", "arcee_fusion", "dare_linear"])
def test_an_input_on_disk_is_named_when_it_is_read(
    tmp_path: Path, bad: float, method: str, dtype: torch.dtype
) -> None:
    family(tmp_path, bad, DOWN, dtype)
    base = {} if method in ("linear", "nuslerp") else {"base_model": "base"}
    models = {"b": {}} if method == "arcee_fusion" else dict.fromkeys("ab", OWN)
    if method in ("linear", "nuslerp"):
        models = {name: {"weight": 0.5} for name in "ab"}
    shared = {"nuslerp_flatten": False} if method == "nuslerp" else {}
    data = recipe_of(tmp_path, method, models=models, parameters=shared, **base)
    merger = Merger(opened(tmp_path, "base", "a", "b"), memory="disk")
    sentence = f"NaN or infinity in {DOWN} of {tmp_path}/b"
    with pytest.raises(CheckpointError, match=sentence):
        merger.materialize(parsed(data))
    with pytest.raises(CheckpointError, match=sentence):
        dict(merger.stream(parsed(data)))
    with pytest.raises(CheckpointError, match=sentence):
        _ = merger.fingerprints


KERNELS = [
    "eager",
    pytest.param(
        "fused",
        marks=[
            pytest.mark.skipif(not fused_available(torch.device("cpu")), reason="no C++ compiler"),
            pytest.mark.filterwarnings("ignore"),  # the compiler's own
        ],
    ),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("memory", ["device", "disk"])
def test_a_candidate_beyond_float16_is_refused(tmp_path: Path, kernel: Any, memory: Any) -> None:
    base = base_weights()
    for seed, name in enumerate("ab"):
        model = expert_weights(base, seed)
        model[DOWN][2, 1] = 60_000.0
        write(tmp_path, name, model)
    models = {name: {"weight": 1} for name in "ab"}
    data = recipe_of(tmp_path, "linear", models=models, parameters={"normalize": False})
    merger = Merger(
        opened(tmp_path, "a", "b"), result_dtype="float16", kernel=kernel, memory=memory
    )
    with pytest.raises(CandidateError, match=f"NaN or infinity in the merged {DOWN}"):
        merger.materialize(parsed(data))
    stream = merger.stream(parsed(data))
    for name in sorted(base)[: sorted(base).index(DOWN)]:
        assert next(stream)[0] == name
    with pytest.raises(CandidateError, match=f"NaN or infinity in the merged {DOWN}"):
        next(stream)
    halved = recipe_of(tmp_path, "linear", models=models)
    assert merger.materialize(parsed(halved))[DOWN][2, 1] == 60_000  # and goes on


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float16", 65520.0), ("bfloat16", (2 - 2.0**-8) * 2.0**127)]
)
def test_only_what_rounds_to_infinity_is_refused(
    tmp_path: Path, kernel: Any, dtype: str, bound: float
) -> None:
    """Half way between the largest number of the dtype and the next that there would be."""
    edge = torch.tensor(bound)
    below = torch.nextafter(edge, torch.tensor(0.0))
    for sign in (1, -1):
        for at, value in (("fine", below), ("beyond", edge)):
            tensors = {"x": torch.ones(3, 500), "y": torch.ones(2, 1500)}
            tensors["y"][1, 700] = sign * value
            write(tmp_path, at, tensors)
            data = recipe_of(tmp_path, "passthrough", models={at: {}})
            merger = Merger(opened(tmp_path, at), result_dtype=dtype, kernel=kernel)
            if at == "fine":
                found = merger.materialize(parsed(data))["y"][1, 700]
                assert found == sign * torch.finfo(getattr(torch, dtype)).max
            else:
                with pytest.raises(CandidateError, match="NaN or infinity in the merged y"):
                    merger.materialize(parsed(data))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("method", "shared"),
    [
        ("task_arithmetic", {}),
        ("ties", {"normalize": False}),
        ("dare_linear", {"rescale": False}),
        ("ties", {"lambda": 3e38}),
    ],
)
def test_weights_that_overflow_in_the_merge(
    tmp_path: Path, kernel: Any, method: str, shared: dict[str, Any]
) -> None:
    base = {name: torch.full((3, 700), 1.0) for name in ("x", "y")}
    write(tmp_path, "base", base)
    write(tmp_path, "a", {"x": base["x"] + 0.1, "y": base["y"] + 7.0})
    own = {"weight": 1e38, "density": 1.0} if method != "task_arithmetic" else {"weight": 1e38}
    data = recipe_of(tmp_path, method, base_model="base", models={"a": own}, parameters=shared)
    merger = Merger(opened(tmp_path, "base", "a"), kernel=kernel)
    with pytest.raises(CandidateError, match=r"NaN or infinity in the merged [xy]"):
        merger.materialize(parsed(data))


def test_lines_that_overflow_are_refused(tmp_path: Path) -> None:
    for name, factor in (("base", 0.0), ("a", 3e38), ("b", -3e38)):
        write(tmp_path, name, {"x": torch.tensor([[1.0, 0.5], [0.1, 1.0]]) * factor})
    data = recipe_of(tmp_path, "nuslerp", models={name: {"weight": 1} for name in "ab"},
                     parameters={"nuslerp_flatten": False}, out_dtype="float16")  # fmt: skip
    merger = Merger(opened(tmp_path, "a", "b"), result_dtype="float16")
    values = {"a": {"weight": 30}, "b": {"weight": -29}}
    data["models"] = [
        {"model": one["model"], "parameters": values[name]}
        for name, one in zip("ab", data["models"], strict=True)
    ]
    with pytest.raises(CandidateError, match="NaN or infinity in the merged x"):
        merger.materialize(parsed(data))
