"""Models whose tensors are in memory already are merged as those in files are."""

from pathlib import Path

import pytest
import torch

from evomerge.checkpoints import InMemory
from evomerge.errors import CheckpointError
from evomerge.merger import Merger
from tests.tiny_models import CONFIG, merged, parsed, recipe_of, weights, write_family

OWN = {"weight": [0.2, 0.9], "density": 0.3}


@pytest.mark.parametrize("memory", ["device", "host", "disk"])
@pytest.mark.parametrize("method", ["ties", "della", "arcee_fusion"])
def test_the_same_as_from_files(tmp_path: Path, method: str, memory: str) -> None:
    folder = write_family(tmp_path, torch.bfloat16)
    experts = "a" if method == "arcee_fusion" else "abc"
    own = {} if method == "arcee_fusion" else OWN
    data = recipe_of(folder, method, base_model="base", models=dict.fromkeys(experts, own))
    inputs = [
        InMemory.of(str(folder / name), weights(folder, name), CONFIG) for name in ("base", *"abc")
    ]
    merger = Merger(inputs, result_dtype="float32", memory=memory)
    found = merger.materialize(parsed(data))
    assert all(torch.equal(found[name], one) for name, one in merged(data).items())


def test_parameters_of_a_module_and_strided_tensors() -> None:
    layer = torch.nn.Linear(3, 5)
    turned = InMemory.of("turned", {"weight": torch.ones(3, 5).T, "bias": torch.zeros(5)})
    own = InMemory.of("own", layer.state_dict(keep_vars=True))
    recipe = parsed({
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 1}} for name in ("own", "turned")],
    })  # fmt: skip
    for memory in ("device", "disk"):
        found = Merger([own, turned], memory=memory).materialize(recipe)
        assert torch.allclose(found["weight"], (layer.weight.detach() + 1) / 2)
        assert not found["weight"].requires_grad


def test_a_dtype_that_no_checkpoint_has() -> None:
    with pytest.raises(CheckpointError, match=r"expected one of .* for x, got complex64"):
        InMemory.of("odd", {"x": torch.zeros(2, dtype=torch.complex64)})
