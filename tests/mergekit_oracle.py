"""mergekit 0.1.5 as the oracle, and the bounds within which a merge must be the same as its own."""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.tiny_models import Tensors


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


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    difference = (ours.double() - theirs.double()).norm()
    return float(difference / theirs.double().norm().clamp(min=1e-30))


def ulps_of(difference: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A difference in float32 units in the last place of `scale`, elementwise."""
    exponent = torch.frexp(scale.abs().clamp(min=2.0**-126)).exponent
    return difference.abs().double() / torch.exp2((exponent - 24).double())


def bfloat16_steps(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """How many bfloat16 numbers lie between two tensors, elementwise."""

    def place(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (place(ours) - place(theirs)).abs()
