"""A recipe of any form as ordinary merges, part by part, and the configuration of the result.

A part is what the same models merge in the same roles. It is a recipe of models whose every value
is resolved, over views of the checkpoints in which each tensor has the name of the result's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from evomerge.checkpoints import Checkpoint, ModelRef
from evomerge.compatibility import CONSTANTS, check_alike, tied_copies
from evomerge.errors import CheckpointError
from evomerge.merge_methods import Parameter
from evomerge.module_groups import tensor_names_by_layer
from evomerge.placement import Placed, models_of, place_tensors
from evomerge.recipe import Recipe, default_of
from evomerge.recipe_fields import ModelEntry
from evomerge.settings import ByName, Setting, line_at, value_at
from evomerge.slices import SlicedRecipe
from evomerge.views import View, view

_Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """An ordinary merge: a recipe of models and its checkpoints, the first of them its donor."""

    recipe: Recipe
    checkpoints: tuple[Checkpoint, ...]
    names: tuple[str, ...]  # of the tensors to write

    @property
    def renamed(self) -> bool:
        """Whether a tensor has another name in the result than in a checkpoint."""
        views = [one for one in self.checkpoints if isinstance(one, View)]
        return any(name != source for one in views for name, source in one.names.items())


@dataclass(frozen=True)
class Value:
    """A resolved parameter, and which line of the recipe it is from."""

    value: float
    origin: str


_Key = tuple[ModelRef | None, tuple[ModelRef, ...], tuple[tuple[str, int], ...]]


def assemble(recipe: SlicedRecipe, opened: Sequence[Checkpoint]) -> list[Part]:
    """Return the merges that make the result; the first of `opened` is the donor.

    Raises RecipeError where the checkpoints have no such modules or layers, or where a parameter
    has no value for a tensor, and CheckpointError where the checkpoints do not fit each other.
    """
    by_ref = {checkpoint.ref: checkpoint for checkpoint in opened}
    members: dict[_Key, dict[str, Placed]] = {}
    for name, placed in place_tensors(recipe, opened).items():
        members.setdefault(_key(recipe, name, placed), {})[name] = placed
    if recipe.result_dtype is None:
        _check_dtypes(opened)
    parts = [_part(recipe, key, placed, by_ref) for key, placed in members.items()]
    _check_shapes(parts, opened[0], tied_copies(opened))
    return parts


def value_of(
    recipe: SlicedRecipe,
    placed: Placed,
    declared: Parameter,
    name: str,
    model: ModelRef | None = None,
) -> Value:
    """Resolve a parameter for the tensor `name` of the result; `model` where it is a model's own.

    The source is asked first, then the slice, the module, the recipe. As in mergekit, filters of a
    model's parameter look at the name that the tensor has in that model.
    """
    levels = [
        (f"{placed.slice.place.path}.parameters", placed.slice.parameters),
        (f"{placed.module.place.path}.parameters", placed.module.parameters),
        ("parameters", recipe.parameters),
    ]
    if model is not None:
        source = placed.slice.of(model)
        assert source is not None
        levels.insert(0, (f"{source.place.path}.parameters", source.parameters))
        name = placed.sources.get(model, name)
    for path, parameters in levels:
        if declared.name in parameters:
            setting = parameters[declared.name]
            value = value_at(setting, name, placed.depth)
            if value is not None:
                line = line_at(setting, name, placed.depth)
                return Value(value, f"{path}.{declared.name}{line}")
    return Value(default_of(declared, name), "default")


def _key(recipe: SlicedRecipe, name: str, placed: Placed) -> _Key:
    """Return what the tensors of a part have in common; whole numbers are the same for a part."""
    numbers = [
        (declared.name, int(value_of(recipe, placed, declared, name).value))
        for declared in recipe.method.parameters
        if declared.kind == "int"
    ]
    models = models_of(recipe, placed.slice)
    return recipe.base_of(placed.slice), models, tuple(numbers)


def _part(
    recipe: SlicedRecipe,
    key: _Key,
    members: Mapping[str, Placed],
    by_ref: Mapping[ModelRef, Checkpoint],
) -> Part:
    base, refs, numbers = key
    checkpoints = []
    for ref in refs:
        sources = {name: one.sources[ref] for name, one in members.items() if ref in one.sources}
        checkpoints.append(view(by_ref[ref], sources))
    names = check_alike(checkpoints)
    merged = [name for name in names if checkpoints[0].tensors[name].floating]

    def resolved(scope: str, model: ModelRef | None) -> dict[str, Setting]:
        found: dict[str, Setting] = {}
        for declared in recipe.method.parameters:
            if declared.scope == scope:
                values = {
                    name: value_of(recipe, members[name], declared, name, model).value
                    for name in merged
                }
                found[declared.name] = ByName(values)
        return found

    entries = [ModelEntry(ref, resolved("model", ref)) for ref in refs if ref != base]
    return Part(
        Recipe(
            recipe.merge_method, recipe.method, base, tuple(entries),
            {**resolved("global", None), **dict(numbers)}, recipe.dtype, recipe.out_dtype,
        ),
        tuple(checkpoints),
        names,
    )  # fmt: skip


def _check_dtypes(opened: Sequence[Checkpoint]) -> None:
    """Raise CheckpointError where it is open which dtype the result should have."""
    first, *others = opened
    mine = {info.dtype for info in first.tensors.values() if info.floating}
    for other in others:
        its = {info.dtype for info in other.tensors.values() if info.floating}
        if its != mine:
            raise CheckpointError(
                f"expected one dtype in all models, got {'/'.join(sorted(mine))} in {first.ref} "
                f"and {'/'.join(sorted(its))} in {other.ref}; say dtype or out_dtype in the recipe"
            )


def _check_shapes(parts: Sequence[Part], donor: Checkpoint, tied: Collection[str]) -> None:
    """Raise CheckpointError where the result has tensors other than the donor's configuration has.

    Each layer must be like one of the donor's, since the donor's configuration describes it; so
    must be what is outside the layers.
    """
    written = {
        name: (part.checkpoints[0].tensors[name].shape, part.checkpoints[0].ref)
        for part in parts
        for name in part.names
    }
    known: dict[str, list[_Shapes]] = {}
    for (stack, _), shapes in _by_layer(
        {name: info.shape for name, info in donor.tensors.items() if name not in tied}
    ).items():
        known.setdefault(stack, []).append(shapes)
    for (stack, layer), shapes in _by_layer({n: one[0] for n, one in written.items()}).items():
        alike = known.get(stack, [{}])
        if shapes in alike:
            continue
        tail = min(
            tail for tail in {**shapes, **alike[0]} if shapes.get(tail) != alike[0].get(tail)
        )
        name = tail if layer is None else f"{stack}.{layer}.{tail}"
        found, wanted = (
            str(list(one[tail])) if tail in one else "none" for one in (shapes, alike[0])
        )
        source = f" from {written[name][1]}" if name in written else ""
        raise CheckpointError(
            f"expected tensors like those of {donor.ref}, whose configuration the result has, "
            f"got {found} for {name}{source} where it has {wanted}; models whose layers are "
            "combined must share one architecture"
        )


def _by_layer(shapes: _Shapes) -> dict[tuple[str, int | None], _Shapes]:
    """Return shapes by stack and layer; those outside the layers are a stack without a name."""
    found: dict[tuple[str, int | None], _Shapes] = {}
    for name, where in tensor_names_by_layer(shapes).items():
        if name.endswith(CONSTANTS):
            continue
        stack, layer = where or ("", None)
        tail = name.removeprefix(f"{stack}.{layer}.") if where else name
        found.setdefault((stack, layer), {})[tail] = shapes[name]
    return found
