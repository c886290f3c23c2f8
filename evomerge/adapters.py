"""LoRA adapters in PEFT's format, applied to a model's tensors one by one as they are read.

Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): W + s·B·A with s = alpha / r, or, where it
is rank-stabilized (Kalajdzievski 2023, arXiv:2312.03732), s = alpha / √r. DoRA (Liu et al. 2024,
arXiv:2402.09353) then scales each row of that sum to a length of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.headers import TensorInfo

if TYPE_CHECKING:
    import torch

_CHUNK = 2**20  # elements computed at a time


@dataclass(frozen=True)
class LowRank:
    """What an adapter does to one tensor W [out, in]; the names are of the adapter's tensors."""

    a: str  # [r, in]
    b: str  # [out, r]
    magnitude: str | None  # [out], of DoRA
    scale: float
    transposed: bool  # W is stored as [in, out]


@dataclass(frozen=True)
class Adapter:
    """An adapter whose header has been read and checked against its model's tensors."""

    folder: Path
    tensors: Mapping[str, TensorInfo]  # of its own file
    replaced: Mapping[str, str]  # a tensor of the model → the adapter's in its place
    low_rank: Mapping[str, LowRank]  # by the name of the model's tensor

    def apply(
        self, name: str, tensor: torch.Tensor, stored: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the model's tensor `name` with the adapter in it, of the same shape and dtype.

        `stored` are the adapter's tensors. What the adapter leaves alone is returned as it is. The
        arithmetic is float64, so that neither threads nor machines show in the rounded result.
        """
        if name in self.replaced:
            tensor = stored[self.replaced[name]].to(tensor.dtype)
        if name in self.low_rank:
            tensor = _updated(tensor, self.low_rank[name], stored)
        return tensor


def _updated(
    tensor: torch.Tensor, update: LowRank, stored: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    import torch

    a = stored[update.a].double()
    b = stored[update.b].double() * update.scale
    lengths = None if update.magnitude is None else stored[update.magnitude].double()
    result = torch.empty(tensor.shape, dtype=tensor.dtype)
    old, new = (tensor.T, result.T) if update.transposed else (tensor, result)
    step = max(1, _CHUNK // max(1, old.shape[1]))
    for first in range(0, old.shape[0], step):
        rows = slice(first, first + step)
        values = torch.addmm(old[rows].double(), b[rows], a)
        if lengths is not None:
            norms = torch.linalg.vector_norm(values, dim=1)
            values *= (lengths[rows].reshape(-1) / norms)[:, None]
        new[rows] = values.to(tensor.dtype)
    return result
