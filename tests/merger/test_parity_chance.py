"""Random masks of mergekit and ours agree in distribution: fractions, ranks, L1 mass.

What is counted is within five standard deviations of what the definition says, theirs and ours.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.mergekit_oracle import merge_in_memory
from tests.tiny_models import Tensors, merged, recipe_of, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own

SHAPE = (300, 400)
SIGMAS = 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task vectors without equal magnitudes, with many and with four of them alone."""
    generator = torch.Generator().manual_seed(0)
    untied = torch.randn(SHAPE, generator=generator)
    signs = torch.where(torch.randn(SHAPE, generator=generator) > 0, 1.0, -1.0)
    steps = torch.randint(1, 5, SHAPE, generator=generator) / 128 * signs
    place = tmp_path_factory.mktemp("chance")
    model = {"untied": untied, "tied": untied.bfloat16().float(), "steps": steps}
    write_checkpoint(place / "a", model)
    write_checkpoint(place / "base", {name: torch.zeros(SHAPE) for name in model})
    return place


def both(folder: Path, method: str, **own: float) -> list[Tensors]:
    """Our merge and mergekit's of one task vector onto zeros."""
    own = {"weight": 1.0} | own
    data = recipe_of(folder, method, base_model="base", models={"a": own})
    ours = merged(data)
    inputs = {
        name: {key: one.clone() for key, one in merged(
            recipe_of(folder, "passthrough", models={name: {}})).items()}
        for name in ("base", "a")
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [ours, merge_in_memory(method, inputs, own, "base")]


def model_of(folder: Path) -> Tensors:
    return merged(recipe_of(folder, "passthrough", models={"a": {}}))


def near(kept: npt.NDArray[np.bool_], probability: npt.NDArray[np.float64] | float) -> bool:
    """Whether as many are kept as by independent draws; of equal ones that sum is smoother."""
    each = np.broadcast_to(probability, kept.shape)
    deviation = float((each * (1 - each)).sum()) ** 0.5
    return bool(abs(kept.sum() - each.sum()) <= SIGMAS * deviation)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare(folder: Path, method: str, density: float) -> None:
    model = model_of(folder)
    for found in both(folder, method, density=density):
        for name, tensor in found.items():
            kept = (tensor != 0).numpy()
            assert near(kept, density)
            assert near(kept[:, :100], density)
            mass = float(tensor.abs().double().sum() / model[name].abs().double().sum())
            assert mass == pytest.approx(1, abs=1e-5)
            before = float((model[name].abs() * (tensor != 0)).double().sum())
            share = before / float(model[name].abs().double().sum())
            squares = float(model[name].double().square().sum())
            total = float(model[name].abs().double().sum())
            deviation = (density * (1 - density) * squares) ** 0.5 / total
            assert abs(share - density) <= SIGMAS * deviation


@pytest.mark.parametrize(
    ("density", "epsilon"), [(0.5, 0.15), (0.3, 0.29), (0.5, 0.45), (0.9, 0.05)]
)
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_by_rank(folder: Path, method: str, density: float, epsilon: float) -> None:
    """In each twentieth of the ranks; where magnitudes are equal, for each magnitude."""
    model = model_of(folder)
    for found in both(folder, method, density=density, epsilon=epsilon):
        for name, tensor in found.items():
            magnitude, kept = model[name].abs().numpy(), (tensor != 0).numpy()
            assert near(kept, density)
            ranks = magnitude.argsort(axis=1).argsort(axis=1) / (SHAPE[1] - 1)
            chance = density - epsilon + 2 * epsilon * ranks
            if name == "untied":
                for part in range(20):
                    chosen = (ranks >= part / 20) & (ranks <= (part + 1) / 20)
                    assert near(kept[chosen], chance[chosen]), part
            if name == "steps":
                for step in (1, 2, 3, 4):  # among equal ones any order has the same sum
                    chosen = magnitude == step / 128
                    assert near(kept[chosen], chance[chosen]), step
            mass = float(tensor.abs().double().sum() / model[name].abs().double().sum())
            assert mass == pytest.approx(1, abs=1e-5)


def test_equal_magnitudes_are_kept_alike_wherever_they_stand(folder: Path) -> None:
    """mergekit ranks equal ones by an order of its own; ours is random."""
    tensor = both(folder, "della", density=0.5, epsilon=0.45)[0]["steps"].numpy()
    magnitude = model_of(folder)["steps"].abs().numpy()
    for step in (1, 2, 3, 4):
        chosen = magnitude == step / 128
        share = float((tensor[chosen] != 0).mean())
        for columns in (slice(0, 100), slice(100, 300), slice(300, 400)):
            part = (tensor != 0)[:, columns][chosen[:, columns]]
            assert near(part, share)
