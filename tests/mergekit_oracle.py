"""mergekit 0.1.5 as the oracle, and the bounds within which a merge must be the same as its own."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.reference import Expected
from tests.tiny_models import Tensors

MOST_ULPS = 4.0
MOST_RELATIVE = 1e-6


def run_mergekit(data: Mapping[str, Any], out: Path) -> Tensors:
    """Run a recipe in mergekit, in this process, and read what it writes."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    with contextlib.redirect_stderr(io.StringIO()):
        run_merge(MergeConfiguration.model_validate(data), str(out), options)
    found: Tensors = {}
    for file in sorted(out.glob("*.safetensors")):
        found |= load_file(file)
    return found


def merge_in_memory(
    method: str,
    models: Mapping[str, Tensors],
    parameters: Mapping[str, Any],
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    """Merge state dictionaries by a method of mergekit, tensor by tensor in order, as float32.

    A parameter is a scalar or {model: scalar}.
    """
    from mergekit.merge_methods.api import merge_tensors

    names = list(models)
    return {
        name: merge_tensors(
            [model[name] for model in models.values()],
            method,
            parameters=parameters,
            ids=names,
            base_index=None if base is None else names.index(base),
            name=name,
            dtype=dtype,
            out_dtype=torch.float32,
        )
        for name in sorted(models[names[0]])
    }


@contextlib.contextmanager
def given_masks(masks: Iterator[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Let torch.bernoulli return these masks in turn; yields the probabilities it is asked for."""
    asked: list[torch.Tensor] = []

    def bernoulli(probabilities: torch.Tensor) -> torch.Tensor:
        asked.append(probabilities)
        return next(masks).reshape(probabilities.shape).to(probabilities.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "bernoulli", bernoulli)
        yield asked
    assert next(masks, None) is None, "mergekit asked for fewer masks"


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    difference = (ours.double() - theirs.double()).norm()
    return float(difference / theirs.double().norm().clamp(min=1e-30))


def ulps_of(difference: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A difference in float32 units in the last place of `scale`, elementwise."""
    exponent = torch.frexp(scale.abs().clamp(min=2.0**-126)).exponent
    return difference.abs().double() / torch.exp2((exponent - 24).double())


def steps(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """How many numbers of their dtype, of 16 bits, lie between two tensors, elementwise."""

    def place(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (place(ours) - place(theirs)).abs()


def compare(
    ours: Tensors,
    theirs: Tensors | None,
    exact: Mapping[str, Expected],
    inputs: Sequence[Tensors],
    strict: bool,
) -> None:
    """Compare our merge with mergekit's, where given, and with float64.

    `strict` measures errors by the largest input; otherwise by the sum of the terms' magnitudes
    where that is larger: weights of both signs or far above 1 amplify every rounding.
    """
    assert theirs is None or set(ours) == set(theirs)
    every = sum(tensor.numel() for tensor in ours.values())
    assert sum(int((~reference.uncertain).sum()) for reference in exact.values()) >= 0.6 * every
    for name, tensor in ours.items():
        assert torch.isfinite(tensor).all()
        mine, reference = tensor.reshape(-1), exact[name]
        scale = torch.from_numpy(reference.scale)
        if strict:
            stack = torch.stack([model[name].float().abs() for model in inputs])
            scale = stack.amax(dim=0).reshape(-1)
        decided = torch.from_numpy(~reference.uncertain)
        rounded = torch.from_numpy(reference.value).to(mine.dtype)
        _same(name, mine[decided], rounded[decided], scale[decided], strict)
        if theirs is not None:
            decided = torch.from_numpy(~reference.open)
            other = theirs[name].reshape(-1)[decided]
            _same(name, mine[decided], other, scale[decided], strict)


def _same(
    name: str, mine: torch.Tensor, other: torch.Tensor, scale: torch.Tensor, strict: bool
) -> None:
    assert other.dtype == mine.dtype
    error = ulps_of(mine.double() - other.double(), scale)
    if mine.dtype != torch.float32:  # where terms cancel to about 0, steps are tiny
        assert ((error <= MOST_ULPS) | (steps(mine, other) <= 1)).all(), name
        return
    assert (error <= MOST_ULPS).all(), (name, float(error.max()))
    if strict and len(mine):
        assert relative_error(mine, other) <= MOST_RELATIVE, name
