"""Ten faults of mergekit 0.1.5, each shown by running it, and the same input in evomerge."""

import contextlib
import copy
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from evomerge.checkpoints import open_checkpoint
from evomerge.errors import CheckpointError, RecipeError
from evomerge.merger import Merger
from evomerge.merger.write import write_model
from evomerge.recipe import parse_recipe
from evomerge.slices import parse_any_recipe
from evomerge.zoo.tokenizer import build_tokenizer
from tests.counted_work import Counted
from tests.fake_hub import Hub
from tests.tiny_adapters import factors, write_adapter
from tests.tiny_models import (
    CONFIG,
    PLACE,
    Tensors,
    base_weights,
    expert_weights,
    llama_shapes,
    recipe_of,
    write_checkpoint,
    write_family,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own
Data = dict[str, Any]


@pytest.fixture(autouse=True)
def fresh_caches() -> Iterator[None]:
    """mergekit keeps what it has opened by the text of the path, which may be relative."""
    assert importlib.metadata.version("mergekit") == "0.1.5"
    forget_opened()
    yield
    forget_opened()


def forget_opened() -> None:
    from mergekit.io.tasks import LoaderCache

    LoaderCache.loaders.clear()


def theirs(data: Data, out: Path, **options: Any) -> Tensors:
    """Run a recipe in mergekit and read the weights that it writes."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    with contextlib.redirect_stderr(io.StringIO()):
        config = MergeConfiguration.model_validate(copy.deepcopy(data))
        run_merge(config, str(out), MergeOptions(**{"quiet": True} | options))
    return written(out)


def ours(data: Data, out: Path) -> Tensors:
    """Run a recipe in evomerge and read the weights that it writes."""
    write_model(parse_any_recipe(data, PLACE), out, "test.yaml", device=torch.device("cpu"))
    return written(out)


def written(out: Path) -> Tensors:
    found: Tensors = {}
    for file in sorted(out.glob("*.safetensors")):
        found |= load_file(file)
    return found


def config_of(out: Path) -> Data:
    found: Data = json.loads((out / "config.json").read_text())
    return found


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def write_tokenizer(folder: Path) -> None:
    build_tokenizer().save_pretrained(folder)


def test_1_misspelt_keys(tmp_path: Path) -> None:
    """mergekit merges as if they were not there; evomerge names them and what they should be."""
    family = write_family(tmp_path)
    right = recipe_of(family, "ties", base_model="base", models={"a": {"weight": 1}},
                      parameters={"normalize": False})  # fmt: skip
    plain = theirs(right, tmp_path / "plain")
    misspelt: list[tuple[Callable[[Data], Any], str]] = [
        (lambda data: data["models"][0]["parameters"].update(densty=0.1), "density"),
        (lambda data: data["parameters"].update(lamda=0.1), "lambda"),
        (lambda data: data.update(paramters={"lambda": 0.1}), "parameters"),
    ]
    for number, (misspell, meant) in enumerate(misspelt):
        data = copy.deepcopy(right)
        misspell(data)
        assert same(theirs(data, tmp_path / f"theirs {number}"), plain)
        with pytest.raises(RecipeError, match=f"did you mean '{meant}'") as caught:
            ours(data, tmp_path / "ours")
        assert "unknown" in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_2_tensors_that_its_table_lacks(tmp_path: Path) -> None:
    """mergekit leaves the biases of a Llama with attention_bias out; evomerge merges them."""
    config = CONFIG | {"attention_bias": True}
    wide = {"q": 20, "k": 10, "v": 10, "o": 20}
    models: list[Tensors] = []
    for seed, name in enumerate("ab"):
        tensors = expert_weights(base_weights(), seed)
        for layer in range(CONFIG["num_hidden_layers"]):
            for part, width in wide.items():
                bias = torch.full((width,), float(seed + layer + 1))
                tensors[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = bias
        write_checkpoint(tmp_path / name, tensors, config)
        models.append(tensors)
    biases = {name for name in models[0] if name.endswith("bias")}
    assert len(biases) == 12
    data = recipe_of(tmp_path, "linear", models={"a": {"weight": 1}, "b": {"weight": 3}})
    incomplete = theirs(data, tmp_path / "theirs")
    assert models[0].keys() - incomplete.keys() == biases
    assert config_of(tmp_path / "theirs")["attention_bias"] is True
    _, notes = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert set(notes["missing_keys"]) == biases  # left as they are made: 0
    found = ours(data, tmp_path / "ours")
    assert found.keys() == models[0].keys()
    for name in biases:
        assert torch.equal(found[name], (models[0][name] + 3 * models[1][name]) / 4)


DONORS = """
import sys, json, yaml, torch
from pathlib import Path
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from evomerge.merger.write import write_model
from evomerge.slices import load_any_recipe
seed, recipe = sys.argv[1], Path("r.yaml")
config = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text()))
run_merge(config, f"theirs{seed}", MergeOptions(quiet=True, write_model_card=False))
write_model(load_any_recipe(recipe), Path(f"ours{seed}"), "r.yaml", device=torch.device("cpu"))
"""


def test_3_the_donor_of_config_and_tokenizer(tmp_path: Path) -> None:
    """Without a base model, mergekit's donor changes from run to run; evomerge's is the first."""
    for seed, name in enumerate("ab"):
        config = CONFIG | {"max_position_embeddings": 64 + seed}
        write_checkpoint(tmp_path / name, expert_weights(base_weights(), seed), config)
        write_tokenizer(tmp_path / name)
        (tmp_path / name / "chat_template.jinja").write_text(name)
    models = [{"model": name, "parameters": {"weight": 1}} for name in "ab"]
    data = {"merge_method": "linear", "dtype": "float32", "models": models}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    donors: dict[str, set[tuple[int, str]]] = {"theirs": set(), "ours": set()}
    for seed in (0, 2, 1, 3, 4, 5, 6, 7):  # of Python's hashes, which each run draws anew
        if len(donors["theirs"]) == 2:
            break
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-c", DONORS, str(seed)]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        for tool, found in donors.items():
            out = tmp_path / f"{tool}{seed}"
            length = config_of(out)["max_position_embeddings"]
            found.add((length, (out / "chat_template.jinja").read_text()))
    assert donors == {"theirs": {(64, "a"), (65, "b")}, "ours": {(64, "a")}}


def test_4_a_tied_base_and_an_untied_expert(tmp_path: Path) -> None:
    """mergekit writes a head of its own under a config that says tied; evomerge refuses."""
    base = base_weights()
    expert = expert_weights(base, 0)
    del base["lm_head.weight"]
    write_checkpoint(tmp_path / "base", base, CONFIG | {"tie_word_embeddings": True})
    write_checkpoint(tmp_path / "a", expert, CONFIG | {"tie_word_embeddings": False})
    data = recipe_of(tmp_path, "task_arithmetic", base_model="base", models={"a": {"weight": 1}})
    found = theirs(data, tmp_path / "theirs")
    head, embedding = found["lm_head.weight"], found["model.embed_tokens.weight"]
    assert not torch.equal(head, embedding)
    assert config_of(tmp_path / "theirs")["tie_word_embeddings"] is True
    with pytest.raises(CheckpointError, match=r"expected lm_head\.weight tied to the embeddings"):
        ours(data, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_5_a_relative_path_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergekit asks the Hub whether dir/model is there, when all but the tokenizer is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    write_family(tmp_path / "dir")
    write_tokenizer(tmp_path / "dir/base")
    data = recipe_of(
        Path("dir"), "task_arithmetic", base_model="base", models={"a": {"weight": 0.5}}
    )
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        theirs(data, Path("theirs"))
    assert (tmp_path / "theirs/model.safetensors").exists()
    assert not (tmp_path / "theirs/tokenizer.json").exists()
    assert ours(data, Path("ours")).keys() == llama_shapes().keys()
    assert (tmp_path / "ours/tokenizer.json").exists()


def test_6_an_interrupted_merge_with_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergekit takes the folder that an interrupt left for the merged model ever after."""
    family, cache = write_family(tmp_path), tmp_path / "cache"
    module = "model.layers.1.self_attn.q_proj"
    adapter = factors({module: (20, 20)})
    write_adapter(tmp_path / "lora", adapter, target_modules=["q_proj"],
                  base_model_name_or_path=str(family / "a"))  # fmt: skip
    data = recipe_of(family, "linear", models={"b": {"weight": 1}})
    data["models"].append({"model": f"{family / 'a'}+{tmp_path / 'lora'}",
                           "parameters": {"weight": 1}})  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(peft.PeftModel, "merge_and_unload", interrupt, raising=False)
        with pytest.raises(KeyboardInterrupt):
            theirs(data, tmp_path / "theirs", lora_merge_cache=str(cache))
    assert [list(one.iterdir()) for one in cache.iterdir()] == [[]]
    for attempt in range(2):
        with pytest.raises(RuntimeError, match="Unable to find model files"):
            theirs(data, tmp_path / f"again {attempt}", lora_merge_cache=str(cache))

    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("evomerge.adapters.Adapter.apply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ours(data, tmp_path / "out/ours")
    assert list((tmp_path / "out").iterdir()) == []
    found = ours(data, tmp_path / "out/ours")
    whole = theirs(data, tmp_path / "whole", lora_merge_cache=str(tmp_path / "new cache"))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=2e-6)


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path, monkeypatch)
    found.add("org/base", base_weights())
    found.add("org/a", expert_weights(base_weights(), 0))
    return found


ON_THE_HUB: Data = {
    "merge_method": "ties", "base_model": "org/base", "dtype": "float32",
    "models": [{"model": "org/a", "parameters": {"weight": 1, "density": 0.5}}],
}  # fmt: skip


def test_7_the_chat_template_of_a_model_of_the_hub(tmp_path: Path, hub: Hub) -> None:
    """mergekit does not download chat_template.jinja and merges.txt, so they cannot be carried."""
    theirs(ON_THE_HUB, tmp_path / "theirs", write_model_card=False)
    ours(ON_THE_HUB, tmp_path / "ours")
    for file in ("chat_template.jinja", "merges.txt", "tokenizer.json"):
        assert (hub.folder / "org/base" / file).exists()
        assert (tmp_path / "theirs" / file).exists() == (file == "tokenizer.json")
        assert (tmp_path / "ours" / file).read_bytes() == (
            hub.folder / "org/base" / file
        ).read_bytes()


def test_8_the_file_has_the_dtype_that_the_config_says(tmp_path: Path) -> None:
    """mergekit's arcee_fusion of bfloat16 writes float32 under a config that says bfloat16."""
    family = write_family(tmp_path, torch.bfloat16)
    data = recipe_of(family, "arcee_fusion", base_model="base", models={"a": {}})
    data["dtype"] = "bfloat16"
    for tool, dtype in ((theirs, torch.float32), (ours, torch.bfloat16)):
        out = tmp_path / tool.__name__
        assert {tensor.dtype for tensor in tool(data, out).values()} == {dtype}
        assert config_of(out)["dtype"] == "bfloat16"


def test_9_a_wrong_recipe_is_found_before_downloads(tmp_path: Path, hub: Hub) -> None:
    """mergekit downloads all models, then finds that a weight is missing or a method unknown."""
    without_weight: Data = copy.deepcopy(ON_THE_HUB)
    del without_weight["models"][0]["parameters"]["weight"]
    unknown = ON_THE_HUB | {"merge_method": "tise"}
    for number, data in enumerate((without_weight, unknown)):
        with pytest.raises(RuntimeError, match=r"Missing required parameter|merge method"):
            theirs(data, tmp_path / f"theirs {number}")
        assert set(hub.downloads) == {"org/base", "org/a"}
        shutil.rmtree(hub.cache)
        hub.fetch("org/base", ["config.json"])
        hub.fetch("org/a", ["config.json"])
        hub.downloads.clear()
        forget_opened()
        with pytest.raises(RecipeError, match=r"expected weight, which ties needs|did you mean"):
            ours(data, tmp_path / "ours")
        assert hub.downloads == []


def test_10_the_second_candidate_costs_no_reading_and_no_sorting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergekit's evolution plans each candidate anew: every input is read and sorted again.

    Its evaluator in memory does not start with current libraries; that on disk merges as here.
    """
    family = write_family(tmp_path)
    candidates = [
        recipe_of(family, "ties", base_model="base", models={
            name: {"weight": weight, "density": density} for name in "ab"})
        for weight, density in ((0.5, 0.3), (0.7, 0.4))
    ]  # fmt: skip
    tensors, counted = len(llama_shapes()), Counted(monkeypatch)
    for number, data in enumerate(candidates):
        made = theirs(data, tmp_path / f"theirs {number}", copy_tokenizer=False)
        assert made.keys() == llama_shapes().keys()
        assert counted.since() == (3 * tensors, 2 * tensors)

    first, second = (parse_recipe(data, PLACE) for data in candidates)
    opened = [open_checkpoint(ref, PLACE) for ref in first.inputs]
    merger = Merger(opened, result_dtype="float32", memory="device", keep=False)
    before = {name: one.clone() for name, one in merger.materialize(first).items()}
    assert min(counted.since()) > 0
    after = merger.materialize(second)
    assert counted.since() == (0, 0)
    for name, tensor in after.items():
        assert not torch.equal(tensor, before[name])
        torch.testing.assert_close(tensor, made[name], rtol=0, atol=2e-6)
