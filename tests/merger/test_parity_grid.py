"""Every method × dtype of the inputs × dtype of the result × density × odd shapes, by mergekit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.mergekit_oracle import (
    MOST_RELATIVE,
    compare,
    given_masks,
    merge_in_memory,
    relative_error,
)
from tests.reference import expected
from tests.reference_masks import dare_mask, della_mask, shares
from tests.tiny_models import Tensors, merged, parsed, recipe_of, weights, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own

SHAPES = {"one": (1,), "seven": (7,), "plane": (127, 513), "cube": (3, 1, 5)}
SHAPES |= {"still": (9, 31), "flat": (20, 30), "steps": (33, 40)}
OUT = (torch.float32, torch.bfloat16, torch.float16)
SEED = 11


@dataclass(frozen=True)
class Case:
    """A recipe, once for each of `settings`: {parameter: scalar or {model: scalar}}.

    `fine`: mergekit runs in float64. Its sums in float32 are up to 4e-6 off that; ours may be no
    farther from them than by the relative bound beside. `small`: whether tensors of a few elements
    are held to the strict bound too; what is left of them by chance may be rescaled a thousandfold,
    and so may all where few are kept, which leaves terms far larger than the inputs.
    """

    method: str
    models: str = "abc"
    base: bool = True
    settings: tuple[Mapping[str, Any], ...] = ({},)
    strict: bool = True
    fine: bool = False
    without: tuple[str, ...] = ()
    small: bool = True


def each(*values: float) -> dict[str, float]:
    return dict(zip("abc", values, strict=False))


W, NEGATIVE = {"weight": each(0.5, 0.3, 0.2)}, {"weight": each(0.9, -0.4, 0.3)}
DENSITIES = tuple(
    {"density": each(*three)}
    for three in ((0.01, 0.05, 0.5), (0.31, 0.77, 0.99), (1.0, 0.123, 0.9))
)
RANKED = tuple(
    {"density": each(*densities), "epsilon": each(*epsilons)}
    for densities, epsilons in (
        ((0.02, 0.16, 0.5), (0.01, 0.15, 0.49)),
        ((1.0, 0.84, 0.7), (0.3, 0.15, 0.0)),
    )
)
TRIMMED = tuple(W | density for density in DENSITIES)
DROPPED = (W | {"density": each(0.8, 0.9, 0.99)}, W | DENSITIES[0] | {"rescale": False})
UNSCALED = W | RANKED[0] | {"rescale": False}
FREE = {"normalize": True, "rescale": True, "lambda": -0.7}
CASES = {
    "linear": Case("linear", base=False, settings=(W,)),
    "linear negative": Case("linear", base=False, settings=(NEGATIVE,), strict=False),
    "task_arithmetic": Case("task_arithmetic", settings=(W, W | {"normalize": True})),
    "task_arithmetic negative": Case("task_arithmetic", settings=(NEGATIVE,), strict=False),
    "ties": Case("ties", settings=TRIMMED),
    "ties negative": Case("ties", settings=(NEGATIVE | DENSITIES[1] | FREE,), strict=False),
    "breadcrumbs": Case("breadcrumbs", settings=TRIMMED),
    "breadcrumbs negative": Case(
        "breadcrumbs", settings=(NEGATIVE | DENSITIES[1] | {"gamma": 0.2},), strict=False
    ),
    "breadcrumbs_ties": Case("breadcrumbs_ties", settings=TRIMMED),
    "breadcrumbs_ties negative": Case(
        "breadcrumbs_ties", settings=(NEGATIVE | DENSITIES[1] | FREE,), strict=False
    ),
    "dare_linear": Case("dare_linear", settings=DROPPED, small=False),
    "dare_linear sparse": Case("dare_linear", settings=TRIMMED, strict=False),
    "dare_linear negative": Case(
        "dare_linear", settings=(NEGATIVE | DENSITIES[1] | FREE,), strict=False
    ),
    "dare_ties": Case("dare_ties", settings=DROPPED, small=False),
    "dare_ties sparse": Case("dare_ties", settings=TRIMMED, strict=False),
    "dare_ties negative": Case(
        "dare_ties", settings=(NEGATIVE | DENSITIES[1] | FREE,), strict=False
    ),
    "della": Case("della", settings=(W | RANKED[1], UNSCALED), small=False),
    "della sparse": Case("della", settings=(W | RANKED[0], W | RANKED[1]), strict=False),
    "della negative": Case("della", settings=(NEGATIVE | RANKED[0] | FREE,), strict=False),
    "della_linear": Case("della_linear", settings=(W | RANKED[1], UNSCALED), small=False),
    "della_linear sparse": Case("della_linear", settings=(W | RANKED[0],), strict=False),
    "della_linear negative": Case(
        "della_linear", settings=(NEGATIVE | RANKED[1] | FREE,), strict=False
    ),
    "sce": Case("sce", settings=tuple({"select_topk": k} for k in (1.0, 0.5, 0.01, 0.0))),
    "slerp": Case("slerp", "a", settings=tuple({"t": t} for t in (0.0, 0.3, 1.0))),
    "nuslerp": Case("nuslerp", "ab", base=False, settings=(W,), fine=True),
    "nuslerp rows": Case("nuslerp", "ab", settings=(W | {"nuslerp_flatten": False},), fine=True),
    "nuslerp columns": Case(
        "nuslerp", "ab", base=False, fine=True,
        settings=(W | {"nuslerp_flatten": False, "nuslerp_row_wise": True},),
    ),
    "multislerp": Case("multislerp", base=False, settings=(W,), fine=True),
    "multislerp on a base": Case("multislerp", settings=(W,), fine=True, without=("still",)),
    "karcher": Case("karcher", base=False, fine=True),
    "model_stock": Case("model_stock", fine=True),
    "model_stock rows": Case("model_stock", settings=({"filter_wise": True},), fine=True),
    "nearswap": Case("nearswap", "a", settings=tuple({"t": t} for t in (0.0, 0.01, 3.0))),
    "arcee_fusion": Case("arcee_fusion", "d"),
    "passthrough": Case("passthrough", "a", base=False, settings=({}, {"scale": {"a": -0.3}})),
}  # fmt: skip


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Experts a, b, c near the base and d far from it; `still` no expert moved, `flat` not b, and
    in `steps` every entry moved as far.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(name: str) -> torch.Tensor:
        return torch.randn(SHAPES[name], generator=generator)

    base = {name: noise(name) for name in SHAPES}
    base["steps"] = (base["steps"] * 8).round().clamp(-32, 32) / 64
    every = {"base": base}
    for expert, scale in (("a", 0.02), ("b", 0.02), ("c", 0.02), ("d", 1.0)):
        moved = {name: one + scale * noise(name) for name, one in base.items()}
        moved["steps"] = base["steps"] + torch.where(noise("steps") > 0, 1.0, -1.0) / 128
        every[expert] = moved | {"still": base["still"].clone()}
    every["b"]["flat"] = base["flat"].clone()
    found = {}
    for dtype in ("float32", "bfloat16", "float16"):
        found[dtype] = tmp_path_factory.mktemp(dtype)
        for model, tensors in every.items():
            stored = {name: one.to(getattr(torch, dtype)) for name, one in tensors.items()}
            write_checkpoint(found[dtype] / model, stored)
    return found


def ours(folder: Path, case: Case, settings: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    own = {
        model: {name: one[model] for name, one in settings.items() if isinstance(one, dict)}
        for model in case.models
    }
    shared = {name: one for name, one in settings.items() if not isinstance(one, dict)}
    base = {"base_model": "base"} if case.base else {}
    return recipe_of(folder, case.method, models=own, parameters=shared, **base, **fields)


def masks_of(
    method: str, inputs: Mapping[str, Tensors], models: str, settings: Mapping[str, Any]
) -> Iterator[torch.Tensor]:
    """Our masks in the order in which mergekit asks for them: none where all is kept."""
    for name, base in sorted(inputs["base"].items()):
        for position, model in enumerate(models):
            density = settings["density"][model]
            delta = (inputs[model][name].float() - base.float()).numpy()
            if density >= 1:
                continue
            if method.startswith("dare"):
                mask = dare_mask(SEED, position, name, delta.size, density)
            else:
                epsilon = settings["epsilon"][model]
                mask = della_mask(SEED, position, name, delta, density, epsilon)
            yield torch.from_numpy(mask)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_as_mergekit_merges(families: dict[str, Path], name: str, stored: str) -> None:
    case, folder = CASES[name], families[stored]
    chosen = [*(["base"] if case.base else []), *case.models]
    inputs = {
        model: {key: one for key, one in weights(folder, model).items() if key not in case.without}
        for model in chosen
    }
    by_ref = {str(folder / model): tensors for model, tensors in inputs.items()}
    random = case.method.startswith(("dare", "della"))
    for settings in case.settings:
        base = "base" if case.base else None
        masks = masks_of(case.method, inputs, case.models, settings) if random else iter(())
        finer = torch.float64 if case.fine else torch.float32
        with given_masks(masks):
            theirs = merge_in_memory(case.method, inputs, settings, base, finer)
        data = ours(folder, case, settings | ({"seed": SEED} if random else {}))
        exact = expected(parsed(data), by_ref)
        for out in OUT:
            mine = merged(data | {"out_dtype": str(out).removeprefix("torch.")})
            rounded = {key: one.to(out) for key, one in theirs.items()}
            few = [] if case.small else [key for key in exact if exact[key].value.size < 20]
            for names, strict in ((set(exact) - set(few), case.strict), (few, False)):
                some = [{key: one[key] for key in names} for one in (mine, rounded)]
                here = {key: exact[key] for key in names}
                compare(some[0], some[1], here, list(inputs.values()), strict)
            if case.fine and out == torch.float32:
                coarse = merge_in_memory(case.method, inputs, settings, base)
                for key, tensor in coarse.items():
                    own = relative_error(theirs[key], tensor)  # mergekit's of itself
                    assert relative_error(mine[key], tensor) <= MOST_RELATIVE + own, key


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_mergekit_asks_for_the_probabilities_that_our_masks_have(
    families: dict[str, Path], stored: str
) -> None:
    """Entry by entry where magnitudes differ, and the same set of them in every row."""
    inputs = {model: weights(families[stored], model) for model in ("base", "a")}
    zeros = (torch.zeros(one.shape) for _, one in sorted(inputs["a"].items()))
    settings = {"weight": 1.0, "density": 0.4, "epsilon": 0.35}
    with given_masks(zeros) as asked:
        merge_in_memory("della", inputs, settings, "base")
    untied = 0
    for (name, base), found in zip(sorted(inputs["base"].items()), asked, strict=True):
        delta = (inputs["a"][name].float() - base.float()).numpy()
        if found.shape[1] == 1:
            continue  # mergekit has NaN for an entry alone in its row
        share = shares(delta, np.arange(delta.size, dtype=np.int32).reshape(delta.shape))
        wanted = 0.05 + 0.7 * share.reshape(found.shape)
        assert np.allclose(np.sort(found, axis=1), np.sort(wanted, axis=1), rtol=0, atol=1e-6)
        rows = np.abs(delta).reshape(found.shape)
        for row, probability, right in zip(rows, found.numpy(), wanted, strict=True):
            if len(set(row.tolist())) == len(row):
                assert np.allclose(probability, right, rtol=0, atol=1e-6)
                untied += 1
    assert untied > 5 or stored != "float32"
