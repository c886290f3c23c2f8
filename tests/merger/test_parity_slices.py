"""Slices and modules: mergekit's results within the bounds, and the layers they are made of."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from evomerge.checkpoints import open_checkpoint
from evomerge.explain import explain
from evomerge.merger.write import write_model
from evomerge.slices import parse_any_recipe
from tests.mergekit_oracle import (
    MOST_RELATIVE,
    MOST_ULPS,
    relative_error,
    run_mergekit,
    steps,
    ulps_of,
)
from tests.sliced_recipes import (
    CPU,
    STACK,
    experts,
    pair,
    read,
    sliced,
    source,
    write,
    write_family_and_tall,
)
from tests.tiny_models import (
    CONFIG,
    PLACE,
    Tensors,
    base_weights,
    expert_weights,
    parsed,
    weights,
    write_checkpoint,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family_and_tall(tmp_path_factory.mktemp("family"))


def check(data: Mapping[str, Any], tmp_path: Path) -> Tensors:
    """Write a recipe and compare every tensor with mergekit's; returns ours."""
    write(data, tmp_path / "ours")
    ours, theirs = read(tmp_path / "ours"), run_mergekit(data, tmp_path / "theirs")
    assert set(ours) == set(theirs)
    recipe = parse_any_recipe(data, PLACE)
    refs = dict.fromkeys([recipe.donor, *recipe.inputs])
    for one in explain(recipe, [open_checkpoint(ref, PLACE) for ref in refs]):
        origins = [*one.models, *([one.base] if one.base else [])]
        inputs = [weights(Path(at.model.path).parent, Path(at.model.path).name)[at.tensor]
                  for at in origins]  # fmt: skip
        scale = torch.stack(inputs).abs().amax(dim=0)
        mine, other = ours[one.name], theirs[one.name]
        assert mine.dtype == other.dtype
        if mine.dtype == torch.bfloat16:
            assert (steps(mine, other) <= 1).all(), one.name
            continue
        error = ulps_of(mine.double() - other.double(), scale)
        assert (error <= MOST_ULPS).all(), (one.name, float(error.max()))
        assert relative_error(mine, other) <= MOST_RELATIVE, one.name
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["num_hidden_layers"] == json.loads(
        (tmp_path / "theirs" / "config.json").read_text()
    )["num_hidden_layers"]  # fmt: skip
    return ours


def stacked(folder: Path, layers: Sequence[tuple[str, int]]) -> Tensors:
    """The model of these layers, with the embeddings of the first and the head of the last."""
    found: Tensors = {}
    for place, (model, layer) in enumerate(layers):
        for name, tensor in weights(folder, model).items():
            if name.startswith(f"{STACK}.{layer}."):
                found[name.replace(f".{layer}.", f".{place}.", 1)] = tensor
    first, last = (weights(folder, layers[end][0]) for end in (0, -1))
    found["model.embed_tokens.weight"] = first["model.embed_tokens.weight"]
    return found | {name: last[name] for name in ("model.norm.weight", "lm_head.weight")}


STACKS: dict[str, list[tuple[str, int, int]]] = {
    "repeated": [("a", 0, 2), ("a", 1, 3)],
    "reordered": [("a", 2, 3), ("b", 0, 1), ("a", 1, 2)],
    "dropped": [("b", 0, 1), ("b", 2, 3)],
    "of other depths": [("tall", 1, 5), ("a", 0, 3), ("tall", 0, 1)],
}


@pytest.mark.parametrize("name", STACKS)
def test_passthrough_stacks_layers(folder: Path, tmp_path: Path, name: str) -> None:
    """Every tensor is that of its layer, to the bit; transformers run the same layers."""
    slices = [{"sources": [source(folder, *one)]} for one in STACKS[name]]
    ours = check(sliced("passthrough", slices, base_model=str(folder / "a")), tmp_path)
    layers = [(model, n) for model, first, end in STACKS[name] for n in range(first, end)]
    expected = stacked(folder, layers)
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[key], expected[key]) for key in expected)
    config = CONFIG | {"num_hidden_layers": len(layers)}
    write_checkpoint(tmp_path / "expected", expected, config)
    tokens = torch.arange(1, 12)[None]
    models = [transformers.AutoModelForCausalLM.from_pretrained(tmp_path / one)
              for one in ("ours", "expected")]  # fmt: skip
    assert models[0].config.num_hidden_layers == len(layers)
    with torch.no_grad():
        logits = [model(tokens).logits for model in models]
        state = models[0].model.embed_tokens(tokens)
        rotary = models[0].model.rotary_emb(state, torch.arange(11)[None])
        for layer in models[0].model.layers:
            state = layer(state, position_embeddings=rotary, attention_mask=None)
            state = state[0] if isinstance(state, tuple) else state
        by_hand = models[0].lm_head(models[0].model.norm(state))
    assert len(models[0].model.layers) == len(layers)
    assert torch.equal(*logits)
    assert torch.allclose(logits[0], by_hand, rtol=1e-4, atol=1e-4 * float(by_hand.abs().max()))


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    base = str(folder / "base")
    curve = [{"filter": "mlp", "value": [0.1, 0.9, 0.3]}, {"filter": "lm_head", "value": 0.25},
             {"value": [0.4, 0.6]}]  # fmt: skip
    heavy = {"weight": [0.3, 0.7], "density": 0.5}
    light = {"weight": [{"filter": "self_attn", "value": 0.2}, {"value": [0.5, 0.1, 0.3]}]}
    return {
        "slerp, curves over each slice": sliced(
            "slerp",
            [{"sources": pair(folder, 0, 2), "parameters": {"t": curve}},
             {"sources": pair(folder, 2, 3)},
             {"sources": pair(folder, 0, 3), "parameters": {"t": [0.9, 0.2, 0.5]}}],
            base_model=base, parameters={"t": [0.2, 0.8]},
        ),
        "slerp, models of other depths": sliced(
            "slerp",
            [{"sources": [source(folder, "base", 0, 3), source(folder, "tall", 2, 5)],
              "parameters": {"t": curve}}],
            base_model=base,
        ),
        "ties": sliced(
            "ties",
            [{"sources": experts(folder, 0, 1, heavy, light, {"weight": 0.4})},
             {"sources": experts(folder, 1, 3, light, heavy, {"density": 1}),
              "parameters": {"weight": 0.35, "lambda": [0.6, 1.2]}}],
            base_model=base, parameters={"density": 0.7, "normalize": False},
        ),
        "a base of each slice": sliced(
            "task_arithmetic",
            [{"sources": experts(folder, 0, 2, light, light, {"weight": 0.4})[:3]},
             {"sources": experts(folder, 1, 3, light, {"weight": [0.9, 0.1]}, {})[1:],
              "base_model": str(folder / "c"), "parameters": {"lambda": [0.5, 1.5]}}],
            base_model=base,
        ),
        "linear, of other depths": sliced(
            "linear",
            [{"sources": [source(folder, "a", 0, 2, weight=[0.2, 1.4]),
                          source(folder, "b", 1, 3, weight=0.6)]},
             {"sources": [source(folder, "tall", 3, 5, weight=1), source(folder, "c", 0, 2)]}],
            base_model=str(folder / "tall"),  # or mergekit's donor is the first of a set
            parameters={"weight": [{"filter": "layers.1.", "value": 0.1}, {"value": 2}]},
        ),
        "filters of other layers": sliced(
            "linear",
            [{"sources": [source(folder, "a", 1, 3, weight=[{"filter": "layers.2.", "value": 9}]),
                          source(folder, "b", 0, 2, weight=[{"filter": "layers.1.", "value": 5}])]},
             {"sources": [source(folder, "a", 0, 1), source(folder, "b", 2, 3)]}],
            base_model=base,
            parameters={"weight": [{"filter": "layers.2.", "value": 3}, {"value": 1}],
                        "normalize": [{"filter": "layers.2.", "value": False}, {"value": True}]},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("out", [None, "bfloat16"])
@pytest.mark.parametrize(
    "name",
    ["slerp, curves over each slice", "slerp, models of other depths", "ties",
     "a base of each slice", "linear, of other depths", "filters of other layers"],
)  # fmt: skip
def test_slices_are_those_of_mergekit(
    folder: Path, tmp_path: Path, name: str, out: str | None
) -> None:
    check(recipes(folder)[name] | ({"out_dtype": out} if out else {}), tmp_path)


def test_modules_are_those_of_mergekit(folder: Path, tmp_path: Path) -> None:
    settings = {"a": [0.2, 0.9], "b": [{"filter": "mlp", "value": 0.4}]}
    models = [
        {"model": str(folder / name), "parameters": {"weight": weight}}
        for name, weight in settings.items()
    ]
    module = {"models": models, "parameters": {"weight": 0.3, "lambda": 0.8}}
    data = {
        "merge_method": "ties", "dtype": "float32", "base_model": str(folder / "base"),
        "modules": {"default": module}, "parameters": {"density": 0.6, "lambda": 2},
    }  # fmt: skip
    ours = check(data, tmp_path)
    plain = {key: one for key, one in data.items() if key != "modules"} | {"models": models}
    plain["parameters"] = {"density": 0.6, "lambda": 0.8, "weight": 0.3}
    write_model(parsed(plain), tmp_path / "plain", "test.yaml", device=CPU)
    assert all(torch.equal(one, ours[name]) for name, one in read(tmp_path / "plain").items())


def test_modules_of_slices_are_those_of_mergekit(folder: Path, tmp_path: Path) -> None:
    slices = [{"sources": pair(folder, 0, 3), "parameters": {"t": [0.1, 0.5]}},
              {"sources": pair(folder, 1, 2)}]  # fmt: skip
    module = {"slices": slices, "parameters": {"t": [0.3, 0.6]}}
    check(
        {"merge_method": "slerp", "dtype": "float32", "base_model": str(folder / "base"),
         "modules": {"default": module}, "parameters": {"t": 0.9}},
        tmp_path,
    )  # fmt: skip


def test_a_single_layer_takes_the_end_of_a_gradient_as_in_mergekit(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        tensors = {key: one for key, one in expert_weights(base_weights(), seed).items()
                   if f"{STACK}.1." not in key and f"{STACK}.2." not in key}  # fmt: skip
        write_checkpoint(tmp_path / name, tensors, CONFIG | {"num_hidden_layers": 1})
    models = [{"model": str(tmp_path / name)} for name in "ab"]
    data = {"merge_method": "slerp", "dtype": "float32", "base_model": str(tmp_path / "a"),
            "models": models, "parameters": {"t": [0.0, 1.0]}}  # fmt: skip
    ours = check(data, tmp_path)
    layer = f"{STACK}.0.input_layernorm.weight"
    assert torch.equal(ours["lm_head.weight"], weights(tmp_path, "a")["lm_head.weight"])
    assert torch.allclose(ours[layer], weights(tmp_path, "b")[layer])


@pytest.mark.parametrize("seed", range(16))
def test_odd_slices(folder: Path, tmp_path: Path, seed: int) -> None:
    """Random ranges of random models, with settings at random levels."""
    draw = random.Random(seed)
    method = ["linear", "task_arithmetic", "ties", "slerp"][seed % 4]
    name = "t" if method == "slerp" else "weight"

    def number() -> Any:
        value = round(draw.uniform(0.1, 0.9), 3)
        curve = [round(draw.uniform(0.1, 0.9), 2) for _ in range(draw.choice([1, 2, 4]))]
        layer = draw.randrange(4)
        filtered = [{"filter": draw.choice(["mlp", "norm", f"layers.{layer}."]), "value": curve}]
        return draw.choice([value, curve, filtered, [*filtered, {"value": value}]])

    def given(chance: float) -> dict[str, Any]:
        found = {name: number()} if draw.random() < chance else {}
        if method == "ties" and draw.random() < chance:
            found["density"] = draw.choice([0.3, [0.2, 0.9], [{"filter": "mlp", "value": 0.5}]])
        return {"parameters": found} if found else {}

    base = str(folder / "base")
    slices = []
    for _ in range(draw.randint(1, 4)):
        length = draw.randint(1, 3)
        models = draw.sample(["a", "b", "tall"], 1 if method == "slerp" else 2)
        sources = []
        for model in ([] if method == "linear" else ["base"]) + models:
            first = draw.randint(0, (5 if model == "tall" else 3) - length)
            own = {} if model == "base" or method == "slerp" else given(0.4).get("parameters", {})
            sources.append(source(folder, model, first, first + length, **own))
        draw.shuffle(sources)
        slices.append({"sources": sources} | given(0.4))
    check(sliced(method, slices, base_model=base, parameters={name: draw.random()}), tmp_path)
