"""The merger: inputs resident in memory, one output, candidates written in one pass.

>>> merger = Merger([open_checkpoint(ref, place) for ref in refs])   # doctest: +SKIP
>>> merger.materialize(load_recipe(Path("recipe.yaml")))             # doctest: +SKIP
>>> merger.output["model.layers.0.mlp.up_proj.weight"]               # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
import xxhash

from evomerge.checkpoints import Checkpoint, ModelRef
from evomerge.compatibility import check_alike
from evomerge.errors import CandidateError, CheckpointError, RecipeError
from evomerge.merge_methods import Array, Settings
from evomerge.merger import random
from evomerge.merger.layout import allocate, plan_layout, views
from evomerge.merger.materialize import (
    KernelChoice,
    Spans,
    choose_kernel,
    compiler_failed,
    write_block,
)
from evomerge.merger.prepare import InputStatistics, Selected
from evomerge.recipe import Recipe, resolve

Progress = Callable[[str, int, int], None]


class Merger:
    """The inputs of many candidates, resident on one device, and the one candidate of the moment.

    `checkpoints` must share names and shapes of tensors. `result_dtype` is that of the output; None
    keeps each tensor's dtype in the first checkpoint. `names` restricts the merger to some tensors
    (a shard of a model). Raises CheckpointError where inputs do not fit each other, hold NaN or
    infinity, or differ in integers.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        *,
        result_dtype: str | None = None,
        names: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        kernel: KernelChoice = "auto",
        progress: Progress = lambda text, done, total: None,
    ) -> None:
        self.device = torch.device(device)
        every = check_alike(checkpoints)
        self._numbers = {checkpoint.ref: index for index, checkpoint in enumerate(checkpoints)}
        self._layout = plan_layout(checkpoints, names or every, result_dtype, self.device)
        # A gradient's position depends on all layers, also when only a shard is merged.
        merged = [name for name in every if checkpoints[0].tensors[name].floating]
        self._all_tensors = merged
        place = {name: row for row, name in enumerate(merged)}
        self._rows = np.array([place[name] for name in self._layout.tensors], dtype=np.int64)
        self._inputs: list[tuple[torch.Tensor, ...]] = []
        self.fingerprints: dict[ModelRef, str] = {}
        self._copied: dict[str, torch.Tensor] = {}
        for number, checkpoint in enumerate(checkpoints):
            progress(f"models: {checkpoint.ref}", number, len(checkpoints))
            self._load(number, checkpoint)
        progress("models", len(checkpoints), len(checkpoints))
        self._output = allocate(self._layout, self.device)
        # By the whole model, so that a shard is merged by the kernel that merged the candidate.
        shapes = [checkpoints[0].tensors[name].shape for name in merged]
        self._fused = choose_kernel(kernel, sum(map(math.prod, shapes)), self.device)
        self._must_fuse = kernel == "fused"
        self._statistics = InputStatistics(self._read, self._layout.tensors)

    def _load(self, number: int, checkpoint: Checkpoint) -> None:
        buffers = allocate(self._layout, self.device, number)
        self._inputs.append(buffers)
        places = views(self._layout, buffers)
        digests: dict[str, str] = {}
        for name, tensor in checkpoint.read([*self._layout.tensors, *self._layout.copied]):
            digests[name] = tensor_digest(tensor)
            if name in places:
                if not torch.isfinite(tensor).all():
                    raise CheckpointError(
                        "expected finite numbers, got NaN or infinity "
                        f"in {name} of {checkpoint.ref}"
                    )
                places[name].copy_(tensor)
            elif number == 0:
                self._copied[name] = tensor.to(self.device)
            elif digests[name] != tensor_digest(self._copied[name]):
                raise CheckpointError(
                    "expected the same whole numbers in every model, which are not merged, "
                    f"got others in {name} of {checkpoint.ref}"
                )
        self.fingerprints[checkpoint.ref] = weights_digest(digests)

    @cached_property
    def output(self) -> Mapping[str, torch.Tensor]:
        """The tensors of the candidate, views of the one output; integers as in the inputs."""
        return {**views(self._layout, self._output), **self._copied}

    def input(self, ref: ModelRef) -> Mapping[str, torch.Tensor]:
        """Return the tensors of one input, views of the resident copy."""
        return {**views(self._layout, self._inputs[self._number(ref)]), **self._copied}

    @cached_property
    def _input_views(self) -> list[list[torch.Tensor]]:
        found = []
        for buffers in self._inputs:
            by_name = views(self._layout, buffers)
            found.append([by_name[name].reshape(-1) for name in self._layout.tensors])
        return found

    def _read(self, number: int, tensor: int) -> torch.Tensor:
        return self._input_views[number][tensor]

    def _number(self, ref: ModelRef) -> int:
        if ref not in self._numbers:
            known = ", ".join(str(one) for one in self._numbers)
            raise RecipeError(f"expected one of the loaded models ({known}), got {ref}")
        return self._numbers[ref]

    def materialize(self, recipe: Recipe) -> Mapping[str, torch.Tensor]:
        """Write the candidate of a recipe into the output and return its tensors.

        Raises RecipeError for a model that is not loaded and CandidateError where the recipe's
        numbers cannot be merged.
        """
        base = self._number(recipe.base) if recipe.base else None
        models = tuple(self._number(entry.model) for entry in recipe.entries)
        planned = self._plan(recipe, base, models)
        try:
            self._write(recipe, base, models, *planned)
        except RuntimeError as problem:
            if not self._fused or self._must_fuse or not compiler_failed(problem):
                raise
            self._fused = False
            self._write(recipe, base, models, *planned)
        return self.output

    def _write(
        self,
        recipe: Recipe,
        base: int | None,
        models: tuple[int, ...],
        table: torch.Tensor,
        spans: Spans,
        keys: torch.Tensor | None,
    ) -> None:
        for number, block in enumerate(self._layout.blocks):
            write_block(
                recipe.method,
                block,
                self._output[number],
                None if base is None else self._inputs[base][number],
                [self._inputs[model][number] for model in models],
                table,
                spans,
                keys,
                self._fused,
            )

    def _plan(
        self, recipe: Recipe, base: int | None, models: tuple[int, ...]
    ) -> tuple[torch.Tensor, Spans, torch.Tensor | None]:
        values = {
            name: column[..., self._rows]
            for name, column in resolve(recipe, self._all_tensors).items()
        }
        seed = recipe.parameters.get("seed", 0) if recipe.method.stochastic else 0
        assert isinstance(seed, int)
        statistics = Selected(self._statistics, base, models)
        with np.errstate(all="ignore"):  # what overflows is refused below
            columns = recipe.method.plan(Settings(values, statistics, self._layout.tensors, seed))
            spans, parts = _stack(columns)
            table = np.concatenate(parts, axis=1).astype(np.float32)
        if not np.isfinite(table).all():
            raise CandidateError("the recipe's numbers overflow float32")
        keys = None
        if recipe.method.stochastic:
            drawn = random.keys(seed, len(models), self._layout.tensors)
            keys = torch.from_numpy(drawn).to(self.device)
        return torch.from_numpy(table).to(self.device), spans, keys

    def digest(self) -> str:
        """Return a 128-bit hash of the output's names and bits."""
        return weights_digest({name: tensor_digest(one) for name, one in self.output.items()})


def _stack(columns: Mapping[str, Array]) -> tuple[Spans, list[Array]]:
    spans: list[tuple[str, int, int]] = []
    parts: list[Array] = []
    first = 0
    for name, column in columns.items():
        part = np.atleast_2d(column).T
        spans.append((name, first, part.shape[1]))
        parts.append(part)
        first += part.shape[1]
    return tuple(spans), parts


def weights_digest(digests: Mapping[str, str]) -> str:
    """Return a 128-bit hash of a model's weights from the digests of its tensors, by name."""
    lines = sorted(f"{name} {digest}" for name, digest in digests.items())
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return dtype, shape and a 128-bit hash of a tensor's bits."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {list(tensor.shape)} {xxhash.xxh3_128_hexdigest(data.data)}"
