"""Families of models as their libraries save them: merged on disk, they load and are the merge.

No family is named in the package: tensors come from the files, layers from their names.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from evomerge.checkpoints import SINGLE
from tests.families import FAMILIES, Family, Stack, build, load, run, write_models
from tests.mergekit_oracle import MOST_ULPS, steps, ulps_of
from tests.sliced_recipes import write
from tests.tiny_models import Tensors, write_checkpoint

Method = Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]
States = dict[str, Tensors]
ALIKE = 2e-5  # of the largest output, where sums of float32 are in another order


@pytest.fixture(scope="module", autouse=True)
def _no_progress_bars() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module", params=FAMILIES)
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Family, Path, States]:
    """A family, the folder of its `base`, `a` and `b`, and the states of the live models."""
    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("models")
    return family, folder, write_models(folder, family)


# Each returns the merge in float64 and where rounding, not the formula, decides it.
def linear(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    base, one, other = (tensor.double() for tensor in tensors)
    found = (0.2 * base + 0.5 * one + 0.9 * other) / 1.6
    return found, torch.zeros_like(found, dtype=torch.bool)


def task_arithmetic(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    base, one, other = (tensor.double() for tensor in tensors)
    found = base + 0.8 * (0.7 * (one - base) + 0.4 * (other - base))
    return found, torch.zeros_like(found, dtype=torch.bool)


def ties(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Trim the largest 60 %, elect by weighted sums, average those that agree."""
    base, *others = (tensor.float() for tensor in tensors)
    kept, terms = [], []
    for other, weight in zip(others, (0.7, 0.4), strict=True):
        delta = other - base
        count = max(1, int(0.6 * delta.numel()))
        bound = delta.abs().flatten().sort(descending=True).values[count - 1]
        left = torch.where(delta.abs() >= bound, delta, 0.0).double()
        kept.append(weight * (left != 0))
        terms.append(weight * left)
    total = terms[0] + terms[1]
    elected = torch.where(total >= 0, 1.0, -1.0)
    agree = [torch.sign(term) == elected for term in terms]
    shares = sum(share * same for share, same in zip(kept, agree, strict=True))
    summed = sum(term * same for term, same in zip(terms, agree, strict=True))
    found = base.double() + summed / torch.where(shares == 0, 1.0, shares)
    return found, total.abs() < 1e-5 * (terms[0].abs() + terms[1].abs())


METHODS: dict[str, tuple[Method, dict[str, Any], dict[str, Any]]] = {
    "linear": (linear, {"weight": 0.5}, {"weight": 0.9}),
    "task_arithmetic": (task_arithmetic, {"weight": 0.7}, {"weight": 0.4}),
    "ties": (ties, {"weight": 0.7, "density": 0.6}, {"weight": 0.4, "density": 0.6}),
}


def recipe(folder: Path, method: str) -> dict[str, Any]:
    _, one, other = METHODS[method]
    entries = [
        {"model": str(folder / name), "parameters": own} for name, own in (("a", one), ("b", other))
    ]
    data: dict[str, Any] = {"merge_method": method, "base_model": str(folder / "base")}
    if method == "linear":
        entries = [{"model": str(folder / "base"), "parameters": {"weight": 0.2}}, *entries]
    if method == "task_arithmetic":
        data["parameters"] = {"lambda": 0.8}
    return data | {"models": entries}


def stored(folder: Path) -> Tensors:
    """Read a checkpoint's tensors by its library alone."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("method", METHODS)
def test_merged_on_disk(models: tuple[Family, Path, States], tmp_path: Path, method: str) -> None:
    """The files hold the merge of the files, and the model that loads is the merge of models."""
    family, folder, states = models
    merge = METHODS[method][0]
    out = tmp_path / "out"
    write(recipe(folder, method), out, **({"shard_bytes": 30_000} if family.sharded else {}))
    assert (out / SINGLE).exists() != family.sharded
    inputs = [stored(folder / name) for name in ("base", "a", "b")]
    ours = stored(out)
    assert set(ours) == set(inputs[0])
    decided = 0
    for name, mine in ours.items():
        tensors = [one[name] for one in inputs]
        assert (mine.dtype, mine.shape) == (tensors[0].dtype, tensors[0].shape)
        if not mine.is_floating_point():
            assert torch.equal(mine, tensors[0])
            continue
        exact, uncertain = merge(tensors)
        decided += int((~uncertain).sum())
        check(name, mine[~uncertain], exact[~uncertain], [one[~uncertain] for one in tensors])
    assert decided >= 0.99 * sum(one.numel() for one in ours.values())

    model, said = load(out, family)
    assert not any(said.values()), said
    state = model.state_dict()
    if method == "ties" and not set(ours) <= set(state):
        return  # the library fuses what is trimmed apart in the files
    expected = {}
    for key in states["base"]:
        exact, uncertain = merge([one[key] for one in states.values()])
        expected[key] = torch.where(uncertain, state[key], exact.to(family.dtype).float())
    other = build(family)
    assert not other.load_state_dict(expected, strict=False).unexpected_keys
    ulps = 1 if family.dtype == torch.float32 else 500
    same(run(model, family), run(other, family), ulps * ALIKE)


def check(
    name: str, mine: torch.Tensor, exact: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> None:
    """Compare with float64 rounded once, within the bounds for mergekit."""
    assert torch.isfinite(mine).all()
    rounded = exact.to(mine.dtype)
    if mine.dtype == torch.float32:
        scale = torch.stack(list(inputs)).abs().amax(dim=0)
        assert (ulps_of(mine.double() - rounded.double(), scale) <= MOST_ULPS).all(), name
    else:
        assert (steps(mine.contiguous(), rounded) <= 1).all(), name


def same(mine: torch.Tensor, other: torch.Tensor, share: float) -> None:
    assert mine.shape == other.shape
    assert float((mine - other).abs().max()) <= share * float(other.abs().max())


Layers = Sequence[tuple[str, int, int]]
STACKED: Layers = [("a", 2, 3), ("b", 0, 2), ("a", 2, 3), ("b", 1, 2)]  # reordered and repeated
FIRST_STAYS: Layers = [("a", 0, 1), ("a", 2, 3), ("b", 1, 3), ("b", 1, 2)]


def frankenmerge(folder: Path, stack: Stack, stacked: Layers) -> dict[str, Any]:
    slices = [
        {"sources": [{"model": str(folder / model), "layer_range": [first, end]}]}
        for model, first, end in stacked
    ]
    data: dict[str, Any] = {"merge_method": "passthrough", "base_model": str(folder / "base")}
    if not stack.module:
        return data | {"slices": slices}
    rest = {"models": [{"model": str(folder / "b")}]}
    return data | {"modules": {stack.module: {"slices": slices}, "default": rest}}


def layers_of(stacked: Layers) -> list[tuple[str, int]]:
    return [(model, layer) for model, first, end in stacked for layer in range(first, end)]


def by_hand(models: Mapping[str, Tensors], stack: Stack, name: str, stacked: Layers) -> Tensors:
    """The tensors of the layers, with what precedes them from `a` and what follows from `b`."""
    found = {}
    for key in models["base"]:
        if not key.startswith(f"{name}."):
            found[key] = models["a" if any(part in key for part in stack.before) else "b"][key]
    for place, (model, layer) in enumerate(layers_of(stacked)):
        for key, one in models[model].items():
            if key.startswith(f"{name}.{layer}."):
                found[key.replace(f"{name}.{layer}.", f"{name}.{place}.", 1)] = one
    return found


def deepened(config: Any, stack: Stack, stacked: Layers) -> Any:
    """The configuration of the stacked layers, made with the library's own."""
    layers = [layer for _, layer in layers_of(stacked)]
    config = copy.deepcopy(config)
    inner = config
    for step in stack.count[:-1]:
        inner = getattr(inner, step)
    kinds, dense = getattr(inner, "layer_types", None), getattr(inner, "mlp_only_layers", None)
    setattr(inner, stack.count[-1], len(layers))
    if kinds:
        inner.layer_types = [kinds[layer] for layer in layers]
    if dense:
        inner.mlp_only_layers = [at for at, layer in enumerate(layers) if layer in dense]
    return config


def test_layers_repeated_reordered_and_dropped(
    models: tuple[Family, Path, States], tmp_path: Path
) -> None:
    family, folder, states = models
    files = {name: stored(folder / name) for name in states}
    for number, stack in enumerate(family.stacks):
        out, stacked = tmp_path / f"{number}", FIRST_STAYS if stack.first_stays else STACKED
        write(frankenmerge(folder, stack, stacked), out)
        ours, expected = stored(out), by_hand(files, stack, stack.name, stacked)
        assert set(ours) == set(expected)
        assert [key for key, one in expected.items() if not torch.equal(ours[key], one)] == []
        model, said = load(out, family)
        assert not any(said.values()), said
        other = build(family, deepened(family.config(), stack, stacked))
        live = stack.live or stack.name
        state = by_hand(states, stack, live, stacked)
        assert not other.load_state_dict(state, strict=False).unexpected_keys
        assert len(other.get_submodule(live)) == len(model.get_submodule(live)) == 5
        same(run(model, family), run(other, family), 1e-6)


INVENTED = {  # names, numbers and a configuration that nobody has seen
    "backbone.stem.kernel": (5, 2, 3, 3),
    **{f"backbone.stage.{n}.mixer.weight": (4, 6) for n in range(3)},
    **{f"backbone.stage.{n}.mixer.temperature": () for n in range(3)},
    **{f"backbone.stage.{n}.gate.0.bias": (1,) for n in range(3)},
    "readout": (7,),
}


def invented(seed: int) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=draw) for name, shape in INVENTED.items()}
    return found | {"backbone.steps": torch.tensor([3, 1, 2])}


@pytest.mark.parametrize("method", METHODS)
def test_a_family_that_nobody_has_seen(tmp_path: Path, method: str) -> None:
    models = {name: invented(seed) for seed, name in enumerate(("base", "a", "b"))}
    for name, tensors in models.items():
        write_checkpoint(tmp_path / name, tensors, {"model_type": "novel", "stages": 3})
    write(recipe(tmp_path, method), tmp_path / "out")
    ours = stored(tmp_path / "out")
    assert set(ours) == {*INVENTED, "backbone.steps"}
    assert torch.equal(ours["backbone.steps"], models["base"]["backbone.steps"])
    for name in INVENTED:
        inputs = [one[name] for one in models.values()]
        exact, uncertain = METHODS[method][0](inputs)
        assert not uncertain.any()
        check(name, ours[name], exact, inputs)


def test_a_gradient_over_the_layers_of_a_family_that_nobody_has_seen(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        write_checkpoint(tmp_path / name, invented(seed), {"model_type": "novel", "depth": 3})
    fields: dict[str, Any] = {"merge_method": "slerp", "base_model": str(tmp_path / "base")}
    fields["parameters"] = {"t": [0.0, 1.0]}
    sources = [{"model": str(tmp_path / name), "layer_range": [0, 3]} for name in ("base", "a")]
    write(fields | {"models": [{"model": str(tmp_path / "a")}]}, tmp_path / "whole")
    write(fields | {"slices": [{"sources": sources}]}, tmp_path / "sliced")
    ours = {name: stored(tmp_path / name) for name in ("whole", "sliced")}
    assert set(ours["whole"]) == set(ours["sliced"])
    assert all(torch.equal(one, ours["sliced"][name]) for name, one in ours["whole"].items())
    weight = "backbone.stage.{}.mixer.weight"
    for layer, model in ((0, 0), (2, 1)):
        name = weight.format(layer)
        assert torch.allclose(ours["whole"][name], invented(model)[name], rtol=1e-6)
    middle, (base, other) = weight.format(1), (invented(seed) for seed in (0, 1))
    sphere = torch.nn.functional.cosine_similarity
    theta = sphere(base[middle].double().flatten(), other[middle].double().flatten(), dim=0).acos()
    exact = (base[middle] + other[middle]).double() * (theta / 2).sin() / theta.sin()
    assert torch.allclose(ours["whole"][middle].double(), exact, rtol=1e-5)


COPIES = {  # what some libraries store beside the embeddings: the same numbers by another name
    "bert": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "whisper": ("proj_out.weight", "model.decoder.embed_tokens.weight"),
    "t5": ("decoder.embed_tokens.weight", "shared.weight"),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_tied_copy_that_some_models_store(name: str, tmp_path: Path) -> None:
    """It is left to the tie, whether the donor stores it or an expert."""
    family, (copy, origin) = FAMILIES[name], COPIES[name]
    write_models(tmp_path, family)
    for model in ("base", "a"):
        file = tmp_path / model / "model.safetensors"
        tensors = stored(tmp_path / model)
        save_file(tensors | {copy: tensors[origin].clone()}, file, metadata={"format": "pt"})
        data = recipe(tmp_path, "task_arithmetic")
        write(data, tmp_path / f"{model}-out")
        assert copy not in stored(tmp_path / f"{model}-out")
        state = load(tmp_path / f"{model}-out", family)[0].state_dict()
        assert torch.equal(state[copy], state[origin])
