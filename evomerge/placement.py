"""What each tensor of a sliced recipe's result is made of, by the names of tensors alone.

Layers are the whole-number components of names. What precedes them in the model belongs to the
first slice, what follows them to the last.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evomerge.checkpoints import Checkpoint, ModelRef
from evomerge.compatibility import tied_copies
from evomerge.errors import Found
from evomerge.module_groups import group_of, stacks, tensor_names_by_layer
from evomerge.recipe import depth_of, depths
from evomerge.slices import DEFAULT, Module, Slice, SlicedRecipe, Source

# Besides embeddings, what precedes the layers of some models: ln_pre, patch_conv, project_in.
_BEFORE = re.compile(r"(^|[._])pre([._]|$)|proj(ect)?_in([._]|$)|patch|conv|rotary")


@dataclass(frozen=True)
class Placed:
    """One tensor of the result: the slice it belongs to, and the tensor of each of its sources.

    `depth` is where it stands in its slice, for gradients.
    """

    module: Module
    slice: Slice
    depth: float
    sources: Mapping[ModelRef, str]


def place_tensors(recipe: SlicedRecipe, opened: Sequence[Checkpoint]) -> dict[str, Placed]:
    """Return what each tensor of the result is made of; the first of `opened` is the donor.

    Raises RecipeError where the checkpoints have no such modules or layers.
    """
    left_out = tied_copies(opened)
    _check_cover(recipe, opened[0], left_out)
    found: dict[str, Placed] = {}
    for module in recipe.modules:
        refs = {ref for one in module.slices for ref in models_of(recipe, one)}
        own = {
            one.ref: _members(recipe, module, one, left_out) for one in opened if one.ref in refs
        }
        found |= (_whole if module.whole else _sliced)(recipe, module, own)
    return found


def models_of(recipe: SlicedRecipe, one: Slice) -> tuple[ModelRef, ...]:
    """Return the models of a slice, the one whose layers are the pattern first.

    That is the base, listed or not, or else the first source.
    """
    base = recipe.base_of(one)
    listed = [source.model for source in one.sources]
    return tuple(dict.fromkeys(listed if base is None else [base, *listed]))


def sliced_stack(recipe: SlicedRecipe, module: Module, checkpoint: Checkpoint) -> tuple[str, int]:
    """Return the one stack of layers in a module of a checkpoint, and the number of its layers.

    Raises RecipeError where it has none or more than one.
    """
    return _one_stack(module, checkpoint.ref, _members(recipe, module, checkpoint, ()))


def _one_stack(module: Module, ref: ModelRef, names: Iterable[str]) -> tuple[str, int]:
    found = stacks(names)
    if len(found) != 1:
        hint = "name each under modules" if found else "merge it by models"
        shown = Found(", ".join(sorted(found)) or "none")
        raise (module.place / "slices").fail(f"one stack of layers in {ref}", shown, hint)
    return next(iter(found.items()))


def _belongs(name: str, recipe: SlicedRecipe) -> str:
    """Return the module of a tensor: that of the longest name, or what is left."""
    fitting = [one.name for one in recipe.modules if f"{name}.".startswith(f"{one.name}.")]
    return max(fitting, key=len, default=DEFAULT)


def _check_cover(recipe: SlicedRecipe, donor: Checkpoint, left_out: Collection[str]) -> None:
    named = {module.name for module in recipe.modules}
    for name in donor.tensors:
        if name not in left_out and _belongs(name, recipe) not in named:
            for module in recipe.modules:  # a misspelt one is the likely cause
                _members(recipe, module, donor, left_out)
            what, hint = "modules that cover every tensor", "which takes what the others leave"
            found = Found(f"none for {name}")
            raise (recipe.place / "modules").fail(what, found, f"add {DEFAULT!r}, {hint}")


def _members(
    recipe: SlicedRecipe, module: Module, checkpoint: Checkpoint, left_out: Collection[str]
) -> list[str]:
    """Return the tensors of a module; raises RecipeError where a checkpoint has none."""
    found = [
        name
        for name in checkpoint.tensors
        if name not in left_out and _belongs(name, recipe) == module.name
    ]
    if not found:
        known = ", ".join([DEFAULT, *_prefixes(checkpoint.tensors)])
        what = f"a module of {checkpoint.ref}, which are {known}"
        hint = "a module is the beginning of its tensors' names"
        raise (recipe.place / "modules").fail(what, module.name, hint)
    return found


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the beginnings of names that hold layers, shortest first."""
    found: set[str] = set()
    for stack in stacks(names):
        parts = stack.split(".")
        found |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return sorted(found, key=lambda text: (text.count("."), text))


def _whole(
    recipe: SlicedRecipe, module: Module, own: Mapping[ModelRef, Sequence[str]]
) -> dict[str, Placed]:
    one = module.slices[0]
    names: dict[str, dict[ModelRef, str]] = {}
    for ref in models_of(recipe, one):
        for name in own[ref]:
            names.setdefault(name, {})[ref] = name
    return {
        name: Placed(module, one, float(depth), names[name])
        for name, depth in zip(names, depths(list(names)), strict=True)
    }


def _sliced(
    recipe: SlicedRecipe, module: Module, own: Mapping[ModelRef, Sequence[str]]
) -> dict[str, Placed]:
    found: dict[str, Placed] = {}
    start, last = 0, len(module.slices) - 1
    for index, one in enumerate(module.slices):
        length = one.length
        assert length is not None
        for source in one.sources:
            names = own[source.model]
            tensors = list(_layers(module, source, names, start))
            for before, at in ((True, 0), (False, last)):
                if at == index:
                    tensors += [(name, name, 0.0) for name in _outside(names, before)]
            for name, original, depth in tensors:
                known = found[name].sources if name in found else {}
                sources = {**known, source.model: original}
                found[name] = Placed(module, one, depth, sources)
        start += length
    return found


def _outside(names: Iterable[str], before: bool) -> list[str]:
    """Return the tensors outside the layers that precede, or follow, them."""
    return [
        name
        for name, where in tensor_names_by_layer(names).items()
        if where is None
        and before == (group_of(name) == "embeddings" or _BEFORE.search(name) is not None)
    ]


def _layers(
    module: Module, source: Source, names: Sequence[str], start: int
) -> Iterator[tuple[str, str, float]]:
    """Yield the name in the result, the name in the source and the depth of each layer's tensors.

    Raises RecipeError where the source does not have the layers.
    """
    stack, count = _one_stack(module, source.model, names)
    layers = source.layers
    assert layers is not None
    if layers.stop > count:
        what = f"layer_range within the {count} layers of {source.model}"
        raise (source.place / "layer_range").fail(what, [layers.start, layers.stop])
    for name, where in tensor_names_by_layer(names).items():
        if where and where[1] in layers:
            at = where[1] - layers.start
            tail = name.removeprefix(f"{stack}.{where[1]}.")
            yield f"{stack}.{start + at}.{tail}", name, depth_of(at, len(layers))
