"""Checkpoints seen under other names of their tensors: layer 3 as layer 5, or as both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.checkpoints import Checkpoint
from evomerge.tensor_files import TensorsByName

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class View(Checkpoint):
    """Some tensors of `original`: `names` maps each name here to the one there."""

    original: Checkpoint
    names: Mapping[str, str]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors one by one, as `Checkpoint.read`; of two names, one is read twice."""
        wanted: list[dict[str, str]] = []  # by the original's names, each of them once
        for name in names:
            source = self.names[name]
            turn = next((one for one in wanted if source not in one), None)
            if turn is None:
                wanted.append(turn := {})
            turn[source] = name
        for turn in wanted:
            for source, tensor in self.original.read(turn):
                yield turn[source], tensor

    def map(self, names: Iterable[str]) -> Mapping[str, torch.Tensor]:
        """Return tensors as `Checkpoint.map`."""
        wanted = {name: self.names[name] for name in names}
        stored = self.original.map(dict.fromkeys(wanted.values()))
        return TensorsByName(wanted, lambda name: stored[wanted[name]])


def view(checkpoint: Checkpoint, names: Mapping[str, str]) -> Checkpoint:
    """Return tensors of a checkpoint under other names: `names` maps new ones to its own."""
    return View(
        checkpoint.ref,
        checkpoint.folder,
        {name: checkpoint.tensors[names[name]] for name in sorted(names)},
        checkpoint.adapter,
        original=checkpoint,
        names=names,
    )
