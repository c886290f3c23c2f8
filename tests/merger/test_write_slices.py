"""Recipes of slices, written: bits, masks, shards, configurations, whole or not at all."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.errors import CheckpointError, RecipeError
from evomerge.merger import Merger
from evomerge.merger import write as writing
from evomerge.merger.write import write_model
from evomerge.recipe import load_recipe
from tests.architectures import CONFIGS, reference, save_random
from tests.sliced_recipes import (
    CPU,
    STACK,
    experts,
    read,
    sliced,
    source,
    write,
    write_family_and_tall,
)
from tests.tiny_adapters import factors, write_adapter
from tests.tiny_models import (
    CONFIG,
    base_weights,
    expert_weights,
    parsed,
    weights,
    write_checkpoint,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family_and_tall(tmp_path_factory.mktemp("family"))


ORDER = (1, 0, 1)


def rearranged(model: Any, stack: str) -> Any:
    """The loaded model with its layers in another order, by hand."""
    parent, _, name = stack.rpartition(".")
    layers = model.get_submodule(stack)
    setattr(model.get_submodule(parent), name,
            torch.nn.ModuleList([copy.deepcopy(layers[layer]) for layer in ORDER]))  # fmt: skip
    model.config.num_hidden_layers = len(ORDER)
    kinds = vars(model.config).get("layer_types")
    if kinds:
        model.config.layer_types = [kinds[layer] for layer in ORDER]
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_architectures(tmp_path: Path, name: str) -> None:
    """No table of architectures is needed: transformers run the layers in the new order."""
    folder = save_random(tmp_path / "model", name)
    slices = [{"sources": [source(tmp_path, "model", layer, layer + 1)]} for layer in ORDER]
    write(sliced("passthrough", slices), tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((folder / "config.json").read_text())
    changed = {key for key in before if stored[key] != before[key]}
    assert changed <= {"num_hidden_layers", "n_layer", "layer_types", "max_window_layers"}
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    names = {name for name, _ in model.named_modules()}
    (stack,) = {one for one in ("model.layers", "transformer.h", "gpt_neox.layers",
                                "backbone.layers") if one in names}  # fmt: skip
    tokens = torch.arange(3, 14)[None]
    with torch.no_grad():
        found = model.eval()(tokens, use_cache=False).logits
        wanted = rearranged(reference(folder), stack)(tokens, use_cache=False).logits
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


def dare(folder: Path, *ranges: tuple[int, int], method: str = "dare_ties") -> dict[str, Any]:
    own = ({"weight": 0.4, "density": 0.5}, {"weight": 0.7, "density": 0.3},
           {"weight": 0.2, "density": 0.8})  # fmt: skip
    slices = [{"sources": experts(folder, first, end, *own)} for first, end in ranges]
    shared = {"seed": 5, "lambda": 0.9}
    return sliced(method, slices, base_model=str(folder / "base"), parameters=shared)


@pytest.mark.parametrize("method", ["dare_ties", "della", "ties"])
def test_slices_of_everything_are_the_recipe_of_models(
    folder: Path, tmp_path: Path, method: str
) -> None:
    """To the bit, masks and statistics included, whether in one slice or in three."""
    whole = dare(folder, (0, 3), method=method)
    if method == "ties":
        del whole["parameters"]["seed"]
    models = [
        {"model": one["model"], "parameters": one["parameters"]}
        for one in whole["slices"][0]["sources"][1:]
    ]
    plain = {key: one for key, one in whole.items() if key != "slices"} | {"models": models}
    digest = write_model(parsed(plain), tmp_path / "plain", "test.yaml", device=CPU)
    assert write(whole, tmp_path / "whole") == digest
    thirds = dare(folder, (0, 1), (1, 2), (2, 3), method=method)
    thirds["parameters"] = whole["parameters"]
    assert write(thirds, tmp_path / "thirds") == digest


def test_masks_are_those_of_the_name_in_the_result(folder: Path, tmp_path: Path) -> None:
    """A layer that stands twice is thinned out in two ways, as two layers of a model are."""
    write(dare(folder, (0, 2), (1, 3)), tmp_path / "out")
    ours, base = read(tmp_path / "out"), weights(folder, "base")
    tail = "mlp.up_proj.weight"
    first, second = (ours[f"{STACK}.{n}.{tail}"] - base[f"{STACK}.1.{tail}"] for n in (1, 2))
    kept = [(one != 0).float().mean() for one in (first, second)]
    assert all(0.5 < one < 0.99 for one in kept)
    assert ((first != 0) != (second != 0)).float().mean() > 0.05


def test_shards_of_all_parts(folder: Path, tmp_path: Path) -> None:
    slices = [{"sources": [source(folder, name, 0, 3)]} for name in "abc"]
    data = sliced("passthrough", slices)
    told: list[tuple[str, int, int]] = []
    whole = write(data, tmp_path / "one")
    split = write(data, tmp_path / "many", shard_bytes=8000,
                  progress=lambda *step: told.append(step))  # fmt: skip
    assert whole == split
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    one = read(tmp_path / "one")
    assert set(index["weight_map"]) == set(one)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "many" / file)[name], one[name])
    merging = [(done, total) for text, done, total in told if text == "merging"]
    assert merging == [(done, len(one)) for done in range(len(one) + 1)]
    assert "slices:\n- sources:\n  - model: " in (tmp_path / "one" / "README.md").read_text()


def test_one_part_is_merged_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that stand often cost no memory: one merger for the same models, from disk."""
    made: list[tuple[int, str]] = []

    class Told(Merger):
        def __init__(self, checkpoints: Any, **options: Any) -> None:
            super().__init__(checkpoints, **options)
            made.append((len(checkpoints), self.memory))

    monkeypatch.setattr(writing, "Merger", Told)
    slices = [{"sources": [source(folder, name, 0, 3)]} for name in "ababab"]
    write(sliced("passthrough", slices), tmp_path / "out")
    assert made == [(1, "disk"), (1, "disk")]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 18


def test_an_adapter_is_in_the_layers_that_it_changes(folder: Path, tmp_path: Path) -> None:
    module = "model.layers.1.mlp.up_proj"
    write_adapter(tmp_path / "lora", factors({module: (27, 20)}), target_modules=["up_proj"])
    adapted = f"{folder / 'a'}+{tmp_path / 'lora'}"
    slices = [{"sources": [{"model": model, "layer_range": [1, 2]}]}
              for model in (str(folder / "a"), adapted, adapted)]  # fmt: skip
    write(sliced("passthrough", slices), tmp_path / "out")
    ours = read(tmp_path / "out")
    plain, first, second = (ours[f"{STACK}.{n}.mlp.up_proj.weight"] for n in range(3))
    assert torch.equal(plain, weights(folder, "a")[f"{module}.weight"])
    assert torch.equal(first, second)
    assert not torch.equal(plain, first)
    one = {"merge_method": "passthrough", "models": [{"model": adapted}], "dtype": "float32"}
    write(one, tmp_path / "one")
    assert torch.equal(read(tmp_path / "one")[f"{module}.weight"], first)


def test_integers_and_a_tied_head(tmp_path: Path) -> None:
    config = CONFIG | {"tie_word_embeddings": True}
    for seed, name in enumerate("ab"):
        tensors = expert_weights(base_weights(), seed)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if name == "b":
            del tensors["lm_head.weight"]
        for layer in range(3):
            tensors[f"{STACK}.{layer}.count"] = torch.tensor([layer + 10 * seed])
        write_checkpoint(tmp_path / name, tensors, config)
    slices = [
        {"sources": [source(tmp_path, "a", 1, 3)]},
        {"sources": [source(tmp_path, "b", 0, 1)]},
    ]
    write(sliced("passthrough", slices), tmp_path / "out")
    ours = read(tmp_path / "out")
    assert "lm_head.weight" not in ours
    assert [int(ours[f"{STACK}.{layer}.count"]) for layer in range(3)] == [1, 2, 10]


def test_numbers_that_are_not_finite_leave_no_folder(folder: Path, tmp_path: Path) -> None:
    bad = weights(folder, "a")
    bad[f"{STACK}.2.mlp.up_proj.weight"][0, 0] = float("nan")
    write_checkpoint(tmp_path / "bad", bad)
    slices = [
        {"sources": [source(folder, "b", 0, 3)]},
        {"sources": [source(tmp_path, "bad", 2, 3)]},
    ]
    with pytest.raises(CheckpointError, match=r"model.layers.3.mlp.up_proj.* \(as the result"):
        write(sliced("passthrough", slices), tmp_path / "out", shard_bytes=8000)
    assert {path.name for path in tmp_path.iterdir()} == {"bad"}


def test_the_command_and_who_refuses_slices(folder: Path, tmp_path: Path) -> None:
    data = sliced("passthrough", [{"sources": [source(folder, "a", 1, 3)]}])
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    run = CliRunner().invoke(app, ["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out")])
    assert run.exit_code == 0
    assert f"{tmp_path / 'out'} holds the merged model, weights " in run.output
    layer = f"{STACK}.0.input_layernorm.weight"
    assert torch.equal(
        read(tmp_path / "out")[layer], weights(folder, "a")[f"{STACK}.1.{layer[15:]}"]
    )
    with pytest.raises(RecipeError, match="only merge and check take slices and modules"):
        load_recipe(tmp_path / "r.yaml")
