"""Recipes of slices and modules: another merge for each part of a model, as mergekit reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evomerge.checkpoints import ModelRef
from evomerge.errors import Found, Place, RecipeError
from evomerge.files import load_yaml
from evomerge.merge_methods import MergeMethod
from evomerge.recipe import Recipe, parse_recipe
from evomerge.recipe_fields import (
    Head,
    ModelEntry,
    as_yaml,
    check_count,
    parse_base,
    parse_head,
    parse_models,
    parse_parameters,
    parse_ref,
)
from evomerge.settings import Setting, plain
from evomerge.tokenizer_rules import KEYS as TEXT_KEYS
from evomerge.tokenizer_rules import TextRules, parse_text_rules

Form = Literal["models", "slices", "modules"]
FORMS: tuple[Form, ...] = ("models", "slices", "modules")
DEFAULT = "default"  # the module that takes what others leave
_MOST_LAYERS = 10**6
_KEYS = ("merge_method", "base_model", *FORMS, "parameters", "dtype", "out_dtype", *TEXT_KEYS)


@dataclass(frozen=True)
class Source:
    """One model of a slice; `layers` of it, or all of the module where None."""

    model: ModelRef
    layers: range | None
    parameters: Mapping[str, Setting]
    place: Place = field(compare=False)


@dataclass(frozen=True)
class Slice:
    """Layers of the result, merged from as many layers of each source."""

    sources: tuple[Source, ...]
    base_model: ModelRef | None  # its own or the recipe's
    parameters: Mapping[str, Setting]
    place: Place = field(compare=False)

    @property
    def length(self) -> int | None:
        """The number of layers; None for all that there are."""
        layers = self.sources[0].layers
        return None if layers is None else len(layers)

    def of(self, model: ModelRef) -> Source | None:
        """Return the source of a model, if it has one."""
        return next((source for source in self.sources if source.model == model), None)


@dataclass(frozen=True)
class Module:
    """A part of the model by the beginning of its tensors' names, made of one slice or more."""

    name: str
    slices: tuple[Slice, ...]
    parameters: Mapping[str, Setting]
    place: Place = field(compare=False)

    @property
    def whole(self) -> bool:
        """Whether it has all layers of its models, as they are numbered there."""
        return self.slices[0].length is None


@dataclass(frozen=True)
class SlicedRecipe:
    """A complete merge in any of the three forms; a recipe of models has one whole module."""

    form: Form
    merge_method: str
    method: MergeMethod
    base_model: ModelRef | None
    modules: tuple[Module, ...]
    parameters: Mapping[str, Setting]
    dtype: str | None
    out_dtype: str | None
    text: TextRules
    place: Place = field(compare=False)

    @property
    def donor(self) -> ModelRef:
        """The model whose configuration and tokenizer the result takes: the base, or the first."""
        return self.base_model or self.modules[0].slices[0].sources[0].model

    @property
    def inputs(self) -> tuple[ModelRef, ...]:
        """All models whose weights are read, in the order of the file, a base first."""
        found: dict[ModelRef, None] = {}
        for module in self.modules:
            for one in module.slices:
                base = self.base_of(one)
                found |= dict.fromkeys(([base] if base else []) + [s.model for s in one.sources])
        return tuple(found)

    @property
    def settings(self) -> tuple[Mapping[str, Setting], ...]:
        """All settings that the file has, by name."""
        found = [self.parameters, *(module.parameters for module in self.modules)]
        for one in [one for module in self.modules for one in module.slices]:
            found += [one.parameters, *(source.parameters for source in one.sources)]
        return tuple(found)

    @property
    def result_dtype(self) -> str | None:
        """The dtype of what is written; None keeps that of the inputs."""
        return self.out_dtype or self.dtype

    def base_of(self, one: Slice) -> ModelRef | None:
        """Return the base model of a slice's arithmetic; None for a method or recipe without."""
        return None if self.method.base == "unused" else one.base_model

    def to_mapping(self) -> dict[str, Any]:
        """Return the recipe as plain data, ready for YAML."""
        data: dict[str, Any] = {"merge_method": self.merge_method}
        if self.base_model:
            data["base_model"] = str(self.base_model)
        if self.form == "modules":
            data["modules"] = {
                module.name: self._parts(module) | _parameters(module.parameters)
                for module in self.modules
            }
        else:
            data |= self._parts(self.modules[0])
        data |= _parameters(self.parameters)
        dtypes = {"dtype": self.dtype, "out_dtype": self.out_dtype}
        return data | {key: one for key, one in dtypes.items() if one} | self.text.to_mapping()

    def _parts(self, module: Module) -> dict[str, Any]:
        if module.whole:
            return {"models": [_source(source) for source in module.slices[0].sources]}
        slices = []
        for one in module.slices:
            own = one.base_model if one.base_model != self.base_model else None
            slices.append(
                {"sources": [_source(source) for source in one.sources]}
                | ({"base_model": str(own)} if own else {})
                | _parameters(one.parameters)
            )
        return {"slices": slices}

    def to_yaml(self, comment: str = "") -> str:
        """Return the recipe as YAML text under a comment."""
        return as_yaml(self.to_mapping(), comment)


def _source(source: Source) -> dict[str, Any]:
    found: dict[str, Any] = {"model": str(source.model)}
    if source.layers is not None:
        found["layer_range"] = [source.layers.start, source.layers.stop]
    return found | _parameters(source.parameters)


def _parameters(parameters: Mapping[str, Setting]) -> dict[str, Any]:
    return {"parameters": plain(parameters)} if parameters else {}


def load_any_recipe(path: Path) -> Recipe | SlicedRecipe:
    """Read a recipe file of any form; raises RecipeError with the place of the first mistake."""
    return parse_any_recipe(load_yaml(path, RecipeError), Place(str(path), RecipeError))


def parse_any_recipe(data: object, place: Place) -> Recipe | SlicedRecipe:
    """Check plain data to be a recipe of any form; raises the place's error."""
    if isinstance(data, dict):  # a form without a value is not given
        data = {key: one for key, one in data.items() if key not in FORMS or one is not None}
    given = [form for form in FORMS if isinstance(data, dict) and form in data]
    if len(given) > 1:
        raise place.fail("one of models, slices and modules", Found(" and ".join(given)))
    return parse_recipe(data, place) if given in ([], ["models"]) else parse_sliced(data, place)


def parse_sliced(data: object, place: Place) -> SlicedRecipe:
    """Check plain data to be a recipe of slices or modules; raises the place's error."""
    head = parse_head(data, _KEYS, place)
    form: Form = "modules" if head.fields.get("modules") is not None else "slices"
    if form == "slices":
        slices = _slices(head.fields["slices"], head, place / "slices")
        modules = [Module(DEFAULT, slices, {}, place)]
    else:
        here = place / "modules"
        named = here.mapping(head.fields["modules"])
        if not named:
            raise here.fail("modules by name", named)
        modules = [_module(name, one, head, here / name) for name, one in named.items()]
    recipe = SlicedRecipe(
        form, head.merge_method, head.method, head.base_model, tuple(modules), head.parameters,
        head.dtype, head.out_dtype, parse_text_rules(head.fields, place), place,
    )  # fmt: skip
    for module in recipe.modules:
        for one in module.slices:
            _check_slice(recipe, module, one)
    return recipe


def as_sliced(recipe: Recipe, place: Place) -> SlicedRecipe:
    """Return a recipe of models as one of modules that says the same."""
    whole = _whole(recipe.models, recipe.base_model, place / "models")
    modules = (Module(DEFAULT, (whole,), {}, place),)
    return SlicedRecipe(
        "models", recipe.merge_method, recipe.method, recipe.base_model, modules,
        recipe.parameters, recipe.dtype, recipe.out_dtype, recipe.text, place,
    )  # fmt: skip


def _module(name: str, data: object, head: Head, place: Place) -> Module:
    fields = place.mapping(data, ("models", "slices", "parameters"))
    given = [key for key in ("models", "slices") if fields.get(key) is not None]
    if len(given) != 1:
        raise place.fail("either models or slices", Found(" and ".join(given) or "neither"))
    if given == ["slices"]:
        slices = _slices(fields["slices"], head, place / "slices")
    else:
        entries = parse_models(fields["models"], head.method, place / "models")
        slices = (_whole(entries, head.base_model, place / "models"),)
    own = parse_parameters(fields.get("parameters"), head.method, "global", place / "parameters")
    return Module(name, slices, own, place)


def _whole(entries: Sequence[ModelEntry], base: ModelRef | None, place: Place) -> Slice:
    sources = [
        Source(entry.model, None, entry.parameters, place[index])
        for index, entry in enumerate(entries)
    ]
    return Slice(tuple(sources), base, {}, place)


def _slices(data: object, head: Head, place: Place) -> tuple[Slice, ...]:
    if not isinstance(data, list) or not data:
        raise place.fail("a list of slices", data)
    return tuple(_slice(item, head, place[index]) for index, item in enumerate(data))


def _slice(data: object, head: Head, place: Place) -> Slice:
    fields = place.mapping(data, ("sources", "base_model", "parameters"))
    listed, here = fields.get("sources"), place / "sources"
    if not isinstance(listed, list) or not listed:
        raise here.fail("a list of sources", listed)
    sources: list[Source] = []
    for index, item in enumerate(listed):
        one = _one_source(item, head.method, here[index])
        if any(one.model == earlier.model for earlier in sources):
            raise (here[index] / "model").fail("each model once in a slice", str(one.model))
        sources.append(one)
        count, first = len(one.layers or ()), len(sources[0].layers or ())
        if count != first:
            what = f"{first} layers, as many as of the first source"
            raise (here[index] / "layer_range").fail(what, Found(str(count)))
    base = parse_base(fields.get("base_model"), place / "base_model") or head.base_model
    own = parse_parameters(fields.get("parameters"), head.method, "global", place / "parameters")
    return Slice(tuple(sources), base, own, place)


def _one_source(data: object, method: MergeMethod, place: Place) -> Source:
    fields = place.mapping(data, ("model", "layer_range", "parameters"))
    model = parse_ref(fields.get("model"), place / "model")
    given = fields.get("layer_range")
    first, end = given if isinstance(given, list) and len(given) == 2 else (None, None)
    if type(first) is not int or type(end) is not int or not 0 <= first < end < _MOST_LAYERS:
        what = "layer_range as [first, end], whole numbers with 0 <= first < end"
        raise (place / "layer_range").fail(what, given)
    own = parse_parameters(fields.get("parameters"), method, "model", place / "parameters")
    return Source(model, range(first, end), own, place)


def _check_slice(recipe: SlicedRecipe, module: Module, one: Slice) -> None:
    """Raise the place's error where a slice lacks what the method needs."""
    method, name, base = recipe.method, recipe.merge_method, recipe.base_of(one)
    if method.base == "required" and base is None:
        raise one.place.fail(f"a base_model, which {name} needs", None)
    here = one.place if module.whole else one.place / "sources"
    if base and not module.whole and one.of(base) is None:
        known = Found(", ".join(str(source.model) for source in one.sources))
        hint = "add it with the layer_range of the layers to start from"
        raise here.fail(f"the base model {base} among the sources", known, hint)
    merged = [source for source in one.sources if source.model != base]
    check_count(method, name, len(merged), here)
    shared = {*one.parameters, *module.parameters, *recipe.parameters}
    for declared in method.parameters:
        if declared.default is not None or declared.name in shared:
            continue
        if declared.scope == "global":
            raise (one.place / "parameters").fail(f"{declared.name}, which {name} needs", None)
        for source in merged:
            if declared.name not in source.parameters:
                what = f"{declared.name}, which {name} needs of every model"
                raise (source.place / "parameters").fail(what, None)
