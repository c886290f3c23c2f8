"""Merges are mergekit 0.1.5's to a few units in the last place, and those of float64."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.mergekit_oracle import compare, run_mergekit
from tests.reference import expected
from tests.reference_masks import dare_mask
from tests.tiny_models import FLAT, STEPS, Tensors, merged, parsed, recipe_of, weights, write_family

pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: write_family(tmp_path_factory.mktemp(name), getattr(torch, name))
        for name in ("float32", "bfloat16")
    }


def inputs_of(folder: Path) -> dict[str, Tensors]:
    return {str(folder / name): weights(folder, name) for name in ("base", "a", "b", "c")}


def check(data: Mapping[str, Any], folder: Path, theirs: Tensors | None, strict: bool) -> None:
    """Compare our merge with mergekit's, where given, and with float64: see `compare`."""
    inputs = inputs_of(folder)
    exact = expected(parsed(data), inputs)
    compare(merged(data), theirs, exact, list(inputs.values()), strict)


SCALARS = {"a": {"weight": 0.5}, "b": {"weight": 0.3}, "c": {"weight": 0.2}}
CURVES = {
    "a": {"weight": [0.1, 0.6, 0.3]},
    "b": {"weight": [{"filter": "mlp", "value": [0.2, 0.4]}, {"value": 0.3}]},
    "c": {"weight": [{"filter": "self_attn", "value": 0.25}, {"filter": "*", "value": [0.0, 0.3]}]},
}
TRIMMED = {
    name: dict(own, density=density)
    for (name, own), density in zip(SCALARS.items(), (0.2, 0.53, 0.8), strict=True)
}
ORDINARY: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": SCALARS},
    "linear_curves": {"merge_method": "linear", "models": CURVES},
    "linear_sum": {"merge_method": "linear", "models": CURVES, "parameters": {"normalize": False}},
    "linear_with_base": {"merge_method": "linear", "base_model": "a", "models": SCALARS},
    "task_arithmetic": {"merge_method": "task_arithmetic", "models": SCALARS},
    "task_arithmetic_curves": {
        "merge_method": "task_arithmetic",
        "models": CURVES,
        "parameters": {"normalize": True, "lambda": 0.8},
    },
    "task_arithmetic_listed_base": {
        "merge_method": "task_arithmetic",
        "models": {"base": {}, **SCALARS},
        "parameters": {"lambda": [0.5, 1.5]},
    },
    "ties": {"merge_method": "ties", "models": TRIMMED},
    "ties_default_density": {"merge_method": "ties", "models": SCALARS},
    "ties_curves": {
        "merge_method": "ties",
        "models": CURVES,
        "parameters": {"density": [0.1, 0.9], "normalize": False, "int8_mask": True},
    },
    "ties_rescaled": {
        "merge_method": "ties",
        "models": TRIMMED,
        "parameters": {"rescale": True, "lambda": 0.7},
    },
    "slerp": {"merge_method": "slerp", "models": {"base": {}, "b": {}}, "parameters": {"t": 0.3}},
    "slerp_ends": {
        "merge_method": "slerp",
        "models": {"a": {}},
        "parameters": {"t": [{"filter": "mlp", "value": 1}, {"filter": "norm", "value": 0.0},
                             {"value": [0, 0.5, 1]}]},
    },
}  # fmt: skip
DENSITIES = (0.01, 0.05, 0.29, 0.5, 0.77, 0.99, 1.0)


def case(folder: Path, fields: Mapping[str, Any], out: str | None) -> dict[str, Any]:
    needed = {} if fields["merge_method"] == "linear" else {"base_model": "base"}
    given = {key: value for key, value in fields.items() if key != "merge_method"}
    ending = {"out_dtype": out} if out else {}
    return recipe_of(folder, fields["merge_method"], **(needed | given | ending))


@pytest.mark.parametrize("out", [None, "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_recipes(
    families: dict[str, Path], tmp_path: Path, name: str, stored: str, out: str | None
) -> None:
    data = case(families[stored], ORDINARY[name], out)
    check(data, families[stored], run_mergekit(data, tmp_path / "out"), strict=True)


@pytest.mark.parametrize("density", DENSITIES)
def test_ties_at_every_density(families: dict[str, Path], tmp_path: Path, density: float) -> None:
    models = {name: dict(own, density=density) for name, own in SCALARS.items()}
    data = case(families["float32"], {"merge_method": "ties", "models": models}, None)
    check(data, families["float32"], run_mergekit(data, tmp_path / "out"), strict=True)


@pytest.mark.parametrize("seed", range(24))
def test_odd_recipes(families: dict[str, Path], tmp_path: Path, seed: int) -> None:
    """Random recipes: negative weights, weights above 1, negative λ, gradients and filters."""
    draw = random.Random(seed)

    def weight() -> Any:
        return draw.choice(
            [
                round(draw.uniform(-1, 2), 3),
                [round(draw.uniform(-0.5, 1.5), 2) for _ in range(draw.choice([1, 2, 5]))],
                [{"filter": "mlp", "value": -0.4}, {"filter": "self_attn", "value": [0.2, 1.9]},
                 {"value": 0.6}],
            ]
        )  # fmt: skip

    def parameters() -> dict[str, Any]:
        density = draw.choice([0.01, 0.2, 0.77, [0.1, 0.9], [{"filter": "mlp", "value": 0.3}]])
        return {"weight": weight()} | ({"density": density} if method == "ties" else {})

    method = ["linear", "task_arithmetic", "ties", "ties"][seed % 4]
    own = {name: parameters() for name in "abc"}
    shared: dict[str, Any] = {"normalize": draw.choice([True, False])}
    if method != "linear":
        shared["lambda"] = draw.choice([1.0, -0.3, 1.7])
    if method == "ties":
        shared["rescale"] = draw.choice([True, False])
    folder = families[draw.choice(["float32", "bfloat16"])]
    fields = {"merge_method": method, "models": own, "parameters": shared}
    data = case(folder, fields, draw.choice([None, "bfloat16"]))
    check(data, folder, run_mergekit(data, tmp_path / "out"), strict=False)


@pytest.mark.parametrize("rescale", [True, False])
def test_dare_ties_with_the_same_masks(
    families: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rescale: bool
) -> None:
    import mergekit.sparsify

    folder, seed = families["float32"], 11
    inputs = inputs_of(folder)
    densities = {"a": 0.3, "b": 0.55, "c": 0.9}
    masks = {}
    for position, (name, density) in enumerate(densities.items()):
        for tensor, base in inputs[str(folder / "base")].items():
            delta = inputs[str(folder / name)][tensor] - base
            kept = torch.from_numpy(dare_mask(seed, position, tensor, delta.numel(), density))
            masks[delta.numpy().tobytes()] = kept.reshape(delta.shape)

    def with_our_mask(tensor: torch.Tensor, density: float, rescale_norm: Any) -> Any:
        mask = masks[tensor.contiguous().numpy().tobytes()]
        return mergekit.sparsify.rescaled_masked_tensor(tensor, mask, rescale_norm)

    monkeypatch.setattr(mergekit.sparsify, "bernoulli", with_our_mask)
    models = {name: {"weight": 0.4, "density": density} for name, density in densities.items()}
    fields = {"merge_method": "dare_ties", "models": models, "parameters": {"rescale": rescale}}
    data = case(folder, fields, None)
    theirs = run_mergekit(data, tmp_path / "out")
    data["parameters"]["seed"] = seed
    check(data, folder, theirs, strict=True)


def test_dare_ties_keeps_the_fraction_and_the_mass_that_mergekit_keeps(
    families: dict[str, Path], tmp_path: Path
) -> None:
    """Sparsity of one expert's merge, L1 norm of what it adds; mergekit draws by torch's seed."""
    folder = families["float32"]
    base = weights(folder, "base")
    large = [name for name, tensor in base.items() if tensor.numel() > 100]
    deltas = {name: weights(folder, "a")[name] - base[name] for name in large}
    elements = sum(delta.numel() for delta in deltas.values())
    for density in (0.2, 0.7):
        own = {"weight": 1.0, "density": density}
        data = case(folder, {"merge_method": "dare_ties", "models": {"a": own}}, None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            theirs = run_mergekit(data, tmp_path / str(density))
        deviation = (density * (1 - density) / elements) ** 0.5
        for found in (merged(data), theirs):
            kept = sum(int((found[name] != base[name]).sum()) for name in large)
            assert abs(kept / elements - density) < 4 * deviation
            for name, delta in deltas.items():  # rescaled: each tensor keeps its L1 norm
                mass = (found[name] - base[name]).abs().sum() / delta.abs().sum()
                assert abs(mass - 1) < 1e-4


@pytest.mark.parametrize("seed", range(12))
def test_dare_ties_against_float64(families: dict[str, Path], seed: int) -> None:
    draw = random.Random(seed)
    models = {
        name: {"weight": draw.uniform(-0.5, 1.5), "density": draw.choice([0.1, 0.37, 0.9, 1.0])}
        for name in "abc"
    }
    flags = {name: draw.choice([True, False]) for name in ("rescale", "normalize")}
    shared = flags | {"lambda": draw.uniform(0.5, 1.5), "seed": draw.randrange(2**32)}
    stored = draw.choice(["float32", "bfloat16"])
    fields = {"merge_method": "dare_ties", "models": models, "parameters": shared}
    data = case(families[stored], fields, draw.choice([None, "bfloat16"]))
    check(data, families[stored], None, strict=False)


def test_a_zero_task_vector_adds_nothing(families: dict[str, Path]) -> None:
    folder = families["float32"]
    for method, own in (
        ("task_arithmetic", {"weight": 1.3}),
        ("ties", {"weight": 1.3, "density": 0.1}),
        ("dare_ties", {"weight": 1.3, "density": 0.1}),
    ):
        data = case(folder, {"merge_method": method, "models": {"b": own}}, None)
        assert torch.equal(merged(data)[FLAT], weights(folder, "base")[FLAT])


def test_equal_magnitudes_at_the_threshold_all_stay(families: dict[str, Path]) -> None:
    """mergekit keeps an arbitrary k of them; here the rule is: none is dropped."""
    folder = families["float32"]
    own = {"weight": 1.0, "density": 0.1}
    data = case(folder, {"merge_method": "ties", "models": {"c": own}}, None)
    assert torch.equal(merged(data)[STEPS], weights(folder, "c")[STEPS])
