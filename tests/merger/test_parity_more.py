"""The methods beside the first five are mergekit 0.1.5's too, and as in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.mergekit_oracle import MOST_RELATIVE, relative_error, run_mergekit
from tests.merger.test_parity import CURVES, SCALARS, TRIMMED, check, inputs_of
from tests.reference_masks import dare_mask
from tests.tiny_models import merged, recipe_of, write_family

pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own

BASE = {"base_model": "base"}
CASES: dict[str, dict[str, Any]] = {
    "breadcrumbs": BASE | {"models": TRIMMED},
    "breadcrumbs_default_density": BASE | {"models": SCALARS},
    "breadcrumbs_curves": BASE | {
        "models": CURVES,
        "parameters": {"density": [0.1, 0.9], "normalize": True, "rescale": True, "lambda": 0.8,
                       "gamma": [{"filter": "mlp", "value": 0.1}, {"value": [0.0, 0.3]}]},
    },
    "breadcrumbs_ties": BASE | {"models": TRIMMED},
    "breadcrumbs_ties_curves": BASE | {
        "models": CURVES,
        "parameters": {"density": [{"filter": "mlp", "value": [0.3, 1.0]}, {"value": 0.6}],
                       "gamma": 0.2, "normalize": True, "lambda": [0.5, 1.2]},
    },
    "model_stock": BASE | {"models": {name: {} for name in "abc"}},
    "model_stock_of_two": BASE | {
        "models": {"base": {}, "a": {}, "c": {}}, "parameters": {"filter_wise": False},
    },
    "nuslerp": {"models": {"a": {"weight": 0.3}, "c": {"weight": 0.9}}},
    "nuslerp_curves": {"models": {name: CURVES[name] for name in "ab"}},
    "nuslerp_on_a_base": BASE | {
        "models": {"a": {"weight": 0.3}, "base": {}, "b": {"weight": [0.9, 0.1]}},
        "parameters": {"nuslerp_flatten": True, "nuslerp_row_wise": False},
    },
    "nuslerp_of_no_weight": BASE | {"models": {"a": {"weight": 0.3}, "c": {"weight": -0.3}}},
    "multislerp": {"models": SCALARS},
    "multislerp_curves": {"models": CURVES, "parameters": {"normalize_weights": False}},
    "multislerp_on_a_base": BASE | {"models": SCALARS, "parameters": {"eps": 0.0001}},
    "multislerp_on_a_base_curves": BASE | {"models": {name: CURVES[name] for name in "ba"}},
    "multislerp_of_one": {"models": {"a": {"weight": 0.3}}},
    "nuslerp_rows": BASE | {
        "models": {"a": {"weight": 0.3}, "c": {"weight": 0.6}},
        "parameters": {"nuslerp_flatten": [{"filter": "mlp", "value": False}, {"value": True}]},
    },
    "nuslerp_columns": {
        "models": {"a": {"weight": 0.3}, "c": {"weight": 0.6}},
        "parameters": {"nuslerp_flatten": False,
                       "nuslerp_row_wise": [{"filter": "mlp", "value": False}, {"value": True}]},
    },
    "model_stock_rows": BASE | {
        "models": {name: {} for name in "abc"},
        "parameters": {"filter_wise": [{"filter": "mlp", "value": True}, {"value": False}]},
    },
    "karcher": {"models": {name: {} for name in "abc"}},
    "karcher_of_one": {"models": {"b": {}}},
    "karcher_coarse": {
        "models": {name: {} for name in "ab"},
        "parameters": {"max_iter": 1, "tol": [{"filter": "mlp", "value": 0.1}, {"value": 0.001}]},
    },
    "nearswap": BASE | {"models": {"a": {}}, "parameters": {"t": 0.01}},
    "nearswap_curves": BASE | {
        "models": {"base": {}, "b": {}},
        "parameters": {"t": [{"filter": "mlp", "value": [0, 0.1]}, {"value": 0.0001}]},
    },
    "sce": BASE | {"models": {name: {} for name in "abc"}, "parameters": {"int8_mask": True}},
    "passthrough": {"models": {"a": {}}},
    "passthrough_scaled": {
        "models": {"a": {"scale": [{"filter": "mlp", "value": [0.5, -2]}, {"value": 0.3}]}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: write_family(tmp_path_factory.mktemp(name), getattr(torch, name))
        for name in ("float32", "bfloat16")
    }


def method_of(name: str) -> str:
    """The method of a case: the longest file name that its name begins with."""
    return max((one for one in METHODS if name.startswith(one)), key=len)


METHODS = (
    "breadcrumbs",
    "breadcrumbs_ties",
    "model_stock",
    "nuslerp",
    "multislerp",
    "karcher",
    "nearswap",
    "passthrough",
    "sce",
)


# mergekit's sums over a tensor or row, in float32, put its elements up to 8 ulp off float64: it is
# within the relative bound, but for the bound on elements it has to run in float64.
SPHERICAL = ("nuslerp", "multislerp", "karcher")


@pytest.mark.parametrize(
    ("stored", "out"), [("float32", None), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
)
@pytest.mark.parametrize("name", CASES)
def test_recipes(
    families: dict[str, Path], tmp_path: Path, name: str, stored: str, out: str | None
) -> None:
    ending = {"out_dtype": out} if out else {}
    data = recipe_of(families[stored], method_of(name), **(CASES[name] | ending))
    theirs = run_mergekit(data, tmp_path / "out")
    if data["merge_method"] in SPHERICAL or name == "model_stock_rows":
        for tensor, result in {} if out else merged(data).items():
            assert relative_error(result, theirs[tensor]) <= MOST_RELATIVE
        finer = data | {"dtype": "float64", "out_dtype": out or "float32"}
        theirs = run_mergekit(finer, tmp_path / "finer")
    check(data, families[stored], theirs, strict=True)


@pytest.mark.parametrize("out", [None, "bfloat16"])
@pytest.mark.parametrize(
    "topk", [0.5, 0.0, 0.003, [0.1, 1.0], [{"filter": "mlp", "value": 0.77}, {"value": 0.2}]]
)
def test_sce_selects_the_same(
    families: dict[str, Path], tmp_path: Path, topk: Any, out: str | None
) -> None:
    """In float32, where no two variances are equal and mergekit's choice is not arbitrary."""
    folder = families["float32"]
    models: dict[str, Any] = {name: {} for name in "abc"}
    fields = BASE | {"models": models, "parameters": {"select_topk": topk}}
    data = recipe_of(folder, "sce", **(fields | ({"out_dtype": out} if out else {})))
    check(data, folder, run_mergekit(data, tmp_path / "out"), strict=True)


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_strongly_rescaled(families: dict[str, Path], tmp_path: Path, method: str) -> None:
    """Terms grow far above the inputs, and errors are measured by them."""
    models = {name: {"weight": 1.4, "density": 0.05, "gamma": 0.2} for name in "abc"}
    shared = {"rescale": True, "lambda": -1.5}
    data = recipe_of(families["float32"], method, **BASE, models=models, parameters=shared)
    check(data, families["float32"], run_mergekit(data, tmp_path / "out"), strict=False)


@pytest.mark.parametrize("shared", [{}, {"rescale": False, "normalize": True, "lambda": [0.3, 1]}])
def test_dare_linear_with_the_same_masks(
    families: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shared: dict[str, Any],
) -> None:
    import mergekit.sparsify

    folder, seed = families["float32"], 5
    inputs = inputs_of(folder)
    masks = {}
    for position, (name, own) in enumerate(TRIMMED.items()):
        for tensor, base in inputs[str(folder / "base")].items():
            delta = inputs[str(folder / name)][tensor] - base
            density = own["density"]
            kept = torch.from_numpy(dare_mask(seed, position, tensor, delta.numel(), density))
            masks[delta.numpy().tobytes()] = kept.reshape(delta.shape)

    def with_our_mask(tensor: torch.Tensor, density: float, rescale_norm: Any) -> Any:
        mask = masks[tensor.contiguous().numpy().tobytes()]
        return mergekit.sparsify.rescaled_masked_tensor(tensor, mask, rescale_norm)

    monkeypatch.setattr(mergekit.sparsify, "bernoulli", with_our_mask)
    data = recipe_of(folder, "dare_linear", **BASE, models=TRIMMED, parameters=dict(shared))
    theirs = run_mergekit(data, tmp_path / "out")
    data["parameters"]["seed"] = seed
    check(data, folder, theirs, strict="rescale" in shared)  # rescaled, terms outgrow the inputs


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_dare_linear_against_float64(families: dict[str, Path], stored: str) -> None:
    models = {name: dict(own, weight=[0.2, 1.3]) for name, own in TRIMMED.items()}
    shared = {"lambda": 0.6, "seed": 2**32 - 1}
    data = recipe_of(families[stored], "dare_linear", **BASE, models=models, parameters=shared)
    check(data, families[stored], None, strict=False)
