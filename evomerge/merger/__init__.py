"""The merger: input models in, candidates out, each written in one pass.

>>> merger = Merger.open("org/base", "org/math", "org/code")    # doctest: +SKIP
>>> merger.materialize(load_recipe(Path("recipe.yaml")))        # doctest: +SKIP
>>> merger.output["model.layers.0.mlp.up_proj.weight"]          # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from evomerge.adjacent import packed
from evomerge.checkpoints import Checkpoint, ModelRef, open_checkpoint
from evomerge.compatibility import check_alike
from evomerge.errors import CandidateError, CheckpointError, Place
from evomerge.merger.cache import Cache, default_folder
from evomerge.merger.digests import tensor_digest, weights_digest
from evomerge.merger.inputs import Inputs, Memory, choose_memory
from evomerge.merger.layout import WIDTH, allocate, plan_layout, views
from evomerge.merger.lines import Lines
from evomerge.merger.materialize import ChosenKernel, KernelChoice, rows_at_once, write_rows
from evomerge.merger.measures import CHUNK, Source
from evomerge.merger.plan import GroupPlan, Planner, Ranks
from evomerge.merger.prepare import InputStatistics
from evomerge.recipe import Recipe

Progress = Callable[[str, int, int], None]


class Merger:
    """The inputs of many candidates, and the one candidate of the moment on a device.

    The first of `checkpoints` says which tensors there are, and has the configuration and the
    integers; what another one lacks is merged from those that have it. `result_dtype` is that of
    the output; None keeps each tensor's dtype in the first checkpoint. Over several devices the
    model is spread by layers, see spread.py; statistics are measured on the first. `memory` says
    where the inputs lie: on the device, in host memory, or on disk, memory-mapped; `auto` takes the
    first that they fit. `kernel` is fused by torch.compile or eager; `auto` compiles for models
    that are worth it. Statistics of the inputs are kept on disk unless `keep` is false; `once` is
    for a single candidate, and measures no more than it needs. Of the output, and of inputs, the
    tensors of each of `runs` lie end to end. Raises CheckpointError where inputs
    do not fit each other or hold NaN or infinity.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        *,
        result_dtype: str | None = None,
        device: torch.device | str | Sequence[torch.device] = "cpu",
        memory: Memory = "auto",
        kernel: KernelChoice = "auto",
        keep: bool = True,
        once: bool = False,
        runs: Sequence[Sequence[str]] = (),
        progress: Progress = lambda text, done, total: None,
    ) -> None:
        devices = [torch.device(device)] if isinstance(device, str | torch.device) else list(device)
        self.device = devices[0]
        names = check_alike(checkpoints)
        self._checkpoints = tuple(checkpoints)
        self._layout = plan_layout(checkpoints, names, result_dtype, devices, runs)
        self._runs = self._layout.joinable(runs)
        outputs = {one: self._layout.nbytes(None, one) for one in devices}
        every = range(len(checkpoints))
        sizes = {one: sum(self._layout.nbytes(n, one) for n in every) for one in devices}
        self._inputs = Inputs(self._layout, choose_memory(memory, sizes, outputs))
        self._digests: dict[int, dict[str, str]] = {}
        self._copied: dict[str, torch.Tensor] = {}
        self._ranks: dict[tuple[int, Ranks], torch.Tensor] = {}
        self._lines: dict[tuple[object, ...], Lines] = {}
        for number, checkpoint in enumerate(checkpoints):
            progress(f"models: {checkpoint.ref}", number, len(checkpoints))
            self._load(number)
        progress("models", len(checkpoints), len(checkpoints))
        self._planner = Planner(
            self._layout,
            {checkpoint.ref: number for number, checkpoint in enumerate(checkpoints)},
            self._statistics(keep, once, progress),
        )
        elements = sum(slot.elements for _, slot in self._layout.places.values())
        self._kernel = ChosenKernel(kernel, elements, self.device)

    @classmethod
    def open(cls, *models: str, **options: Any) -> Merger:
        """Return a merger of models, each a folder or a Hub id, the base first.

        Raises CheckpointError where one cannot be found or read; `options` are the constructor's.
        """
        place = Place("the arguments", CheckpointError)
        refs = [ModelRef.parse(model, place) for model in models]
        return cls([open_checkpoint(ref, place) for ref in refs], **options)

    @property
    def memory(self) -> str:
        """Where the inputs lie: device, host or disk."""
        return self._inputs.residence

    def _load(self, number: int) -> None:
        checkpoint = self._checkpoints[number]
        if number == 0:
            for name, tensor in checkpoint.read(self._layout.copied):
                self._copied[name] = tensor.to(self._layout.devices[name])
        merged = [name for name in self._layout.tensors if name in checkpoint.tensors]
        if self.memory == "disk":
            self._inputs.add(checkpoint.map(merged))
            return
        places = self._inputs.add(None)
        digests = self._digests[number] = {}
        for name, tensor in checkpoint.read(merged):
            digests[name] = _checked(tensor, name, checkpoint)
            places[name].copy_(tensor)

    def _digests_of(self, number: int) -> Mapping[str, str]:
        """Return the digest of each tensor of an input, read and checked where it was not yet."""
        if number not in self._digests:
            checkpoint = self._checkpoints[number]
            self._digests[number] = {
                name: _checked(tensor, name, checkpoint)
                for name, tensor in self._inputs.tensors(number).items()
            }
        return self._digests[number]

    def _statistics(self, keep: bool, once: bool, progress: Progress) -> InputStatistics:
        layout = self._layout
        held: dict[int, tuple[int, ...]] = {}
        for group in layout.groups:
            held |= dict.fromkeys(group.tensors, group.inputs)
        source = Source(
            self._inputs.flat,
            layout.tensors,
            [layout.places[name][1].shape for name in layout.tensors],
            [held[tensor] for tensor in range(len(layout.tensors))],
            self.device,
        )
        return InputStatistics(
            source,
            lambda number, tensor: self._digests_of(number)[layout.tensors[tensor]],
            Cache(default_folder() if keep else None),
            progress,
            once,
        )

    @cached_property
    def fingerprints(self) -> Mapping[ModelRef, str]:
        """A 128-bit hash of the weights of each input."""
        copied = {name: tensor_digest(tensor) for name, tensor in self._copied.items()}
        return {
            checkpoint.ref: weights_digest({**copied, **self._digests_of(number)})
            for number, checkpoint in enumerate(self._checkpoints)
        }

    @cached_property
    def _output(self) -> tuple[torch.Tensor, ...]:
        return tuple(one for one in allocate(self._layout) if one is not None)

    @cached_property
    def output(self) -> Mapping[str, torch.Tensor]:
        """The tensors of the candidate, views of the one output; integers as in the inputs."""
        return {**self._rows, **self._moved, **self._copied}

    @cached_property
    def _rows(self) -> dict[str, torch.Tensor]:
        return views(self._layout, self._output)

    @cached_property
    def _moved(self) -> dict[str, torch.Tensor]:
        """What lies elsewhere than it is written: small tensors of runs that fill no row."""
        return packed(self._rows, self._runs)

    def input(self, ref: ModelRef) -> Mapping[str, torch.Tensor]:
        """Return the tensors of one input where they lie; what it lacks is the first one's."""
        own = self._inputs.tensors(self._planner.number(ref))
        found = {**self._inputs.tensors(0), **own}
        return {**found, **packed(found, self._runs), **self._copied}

    def materialize(self, recipe: Recipe) -> Mapping[str, torch.Tensor]:
        """Write the candidate of a recipe into the output and return its tensors.

        Raises RecipeError for a model that is not loaded and CandidateError where the recipe's
        numbers cannot be merged or the result is not finite.
        """
        plans = self._planner.plan(recipe)
        for number, block in enumerate(self._layout.blocks):
            self._write(plans[block.group], number, slice(0, block.rows), self._output[number])
        for name, tensor in self._moved.items():
            tensor.copy_(self._rows[name])
        self._kernel.merged()
        return self.output

    def stream(
        self, recipe: Recipe, names: Container[str] | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of a recipe's candidate, or those named, in memory of their own.

        They come one by one in the order of their names. Raises as `materialize`, where a tensor
        is at fault after those before it.
        """
        plans = self._planner.plan(recipe)
        for name in sorted([*self._layout.tensors, *self._layout.copied]):
            if names is not None and name not in names:
                continue
            if name in self._copied:
                yield name, self._copied[name].clone()
                continue
            number, slot = self._layout.places[name]
            block = self._layout.blocks[number]
            rows = slice(slot.start, slot.start + slot.rows)
            output = torch.empty((slot.rows, WIDTH), dtype=block.output_dtype, device=block.device)
            self._write(plans[block.group], number, rows, output)
            yield name, block.view(output, slot, rows.start)

    def _write(self, plan: GroupPlan, number: int, rows: slice, output: torch.Tensor) -> None:
        """Write some rows of a block into `output`, which begins with the first of them."""
        block = self._layout.blocks[number]
        if plan.tables:
            try:
                finite = self._run(plan, number, rows, output)
            except RuntimeError as problem:
                if not self._kernel.failed(problem):
                    raise
                finite = self._run(plan, number, rows, output)
            wrong = torch.isnan(finite)
            if wrong.any():
                tensor = int(block.row_tensor[rows][wrong][0])
                raise self._not_finite(plan, self._layout.groups[block.group].tensors[tensor])
        if not plan.lines:
            return
        for slot, _, _ in block.within(rows):
            if slot.tensor in plan.lines:
                view = block.view(output, slot, rows.start)
                if not self._write_lines(plan, slot.tensor, view):
                    raise self._not_finite(plan, slot.tensor)

    def _run(self, plan: GroupPlan, number: int, rows: slice, output: torch.Tensor) -> torch.Tensor:
        block = self._layout.blocks[number]
        table = plan.tables[block.device]
        finite = torch.empty(rows.stop - rows.start, dtype=torch.float32, device=block.device)
        ranks = [self._rank_words(number, which) for which in plan.ranks]
        step = rows_at_once(self._kernel.fused, block.device)
        for part, inputs in self._inputs.pieces(number, plan.inputs, rows, step):
            here = slice(part.start - rows.start, part.stop - rows.start)
            write_rows(
                table,
                output[here],
                None if plan.base is None else inputs[0],
                inputs if plan.base is None else inputs[1:],
                [one[part].to(block.device) for one in ranks],
                block.row_tensor[part],
                block.row_index[part],
                finite[here],
                self._kernel.fused,
            )
        return finite

    def _rank_words(self, number: int, which: Ranks) -> torch.Tensor:
        """Return DELLA's bits for the rows of a block; those of one seed are kept."""
        if (number, which) not in self._ranks:
            self._ranks = {key: one for key, one in self._ranks.items() if key[1][2] == which[2]}
            words = self._planner.statistics.ranks(*which)
            parts = [words[str(slot.tensor)] for slot in self._layout.blocks[number].slots]
            whole = torch.cat([torch.from_numpy(part) for part in parts])
            place = self._layout.blocks[number].device if self.memory == "device" else "cpu"
            self._ranks[number, which] = whole.to(place)
        return self._ranks[number, which]

    def _write_lines(self, plan: GroupPlan, tensor: int, output: torch.Tensor) -> bool:
        key = (plan.base, plan.models, tensor, tensor in plan.by_column)
        if key not in self._lines:
            self._lines[key] = Lines(
                None if plan.base is None else self._inputs.flat(plan.base, tensor),
                tuple(self._inputs.flat(model, tensor) for model in plan.models),
                self._layout.places[self._layout.tensors[tensor]][1].shape,
                tensor in plan.by_column,
                self._layout.devices[self._layout.tensors[tensor]],
            )
        lines, name = self._lines[key], self._layout.tensors[tensor]
        try:
            planned = lines.plan(plan.method, plan.lines[tensor], name)
        except CandidateError as problem:
            raise self._not_finite(plan, tensor, problem) from None
        return lines.write(plan.method, planned, output)

    def _not_finite(
        self, plan: GroupPlan, tensor: int, own: CandidateError | None = None
    ) -> CheckpointError | CandidateError:
        """Return the error of a result with NaN or infinity: that of an input, or its own."""
        name = self._layout.tensors[tensor]
        for number in plan.inputs:
            if not torch.isfinite(self._inputs.flat(number, tensor)).all():
                return _bad_input(name, self._checkpoints[number])
        sentence = f"expected finite numbers, got NaN or infinity in the merged {name}"
        return own or CandidateError(sentence)

    def digest(self) -> str:
        """Return a 128-bit hash of the output's names and bits."""
        return weights_digest({name: tensor_digest(one) for name, one in self.output.items()})


def _checked(tensor: torch.Tensor, name: str, checkpoint: Checkpoint) -> str:
    """Return a tensor's digest; raises CheckpointError where it is not finite."""
    if not all(map(_finite, torch.split(tensor.reshape(-1), CHUNK))):
        raise _bad_input(name, checkpoint)
    return tensor_digest(tensor)


def _finite(part: torch.Tensor) -> bool:
    """Return whether all numbers are finite: those of a finite sum are, and a sum is soon made."""
    return bool(part.sum().isfinite() or torch.isfinite(part).all())


def _bad_input(name: str, checkpoint: Checkpoint) -> CheckpointError:
    return CheckpointError(
        f"expected finite numbers, got NaN or infinity in {name} of {checkpoint.ref}; leave that "
        "model out, or download it again"
    )
