"""Reads search spaces: `{range: [0, 1.5], init: 0.4}` where a recipe would have a number.

Beside plain holes there are curves over depth (`{curve: 4, over: [attention, mlp, other], …}`),
products of holes, shares that sum to one, holes with a name that stand wherever the name does,
`each: experts`, and `either:` with several recipes by name, one of which a candidate is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge import merge_methods
from evomerge.errors import Found, Place, SpaceError
from evomerge.expression_reader import Reader
from evomerge.expressions import Constant, Hole, OpenSetting
from evomerge.files import beside, exists, load_yaml
from evomerge.merge_methods import MergeMethod
from evomerge.module_groups import Architecture
from evomerge.search_space import EITHER, Branch, Inputs, SearchSpace, SpaceModel

_BRANCH = ("merge_method", "base_model", "models", "parameters")


def space_folder() -> Path:
    """Return the folder of the ready-made search spaces, in a checkout or an installed package."""
    installed = Path(__file__).parent / "search_spaces"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "search_spaces"


def space_names() -> list[str]:
    """Return the names of the ready-made search spaces."""
    return sorted(path.stem for path in space_folder().glob("*.yaml"))


def load_space(source: object, folder: Path, place: Place) -> tuple[dict[str, Any], Place]:
    """Return the mapping of a space, given by name, by path or as itself, and its own place.

    A path ends in .yaml or .yml and is relative to `folder`. Raises the place's error, with the
    nearest name, where there is no such space.
    """
    if isinstance(source, dict):
        return source, Place(place.document, SpaceError, place.path)
    if not isinstance(source, str):
        raise place.fail("the name of a search space, a path, or a mapping", source)
    path = space_folder() / f"{source}.yaml"
    if source not in space_names():
        if not source.endswith((".yaml", ".yml")):
            raise place.unknown(source, "search space", space_names())
        path = folder / source
        if not exists(path):
            found = Found(f"{path}, which does not exist")
            raise place.fail("the file of a search space", found, beside(path))
    here = Place(str(path), SpaceError)
    return here.mapping(load_yaml(path, SpaceError)), here


def parse_space(
    data: object,
    inputs: Inputs,
    architecture: Architecture,
    result_dtype: str,
    seed: int,
    place: Place,
) -> SearchSpace:
    """Check a space against the study's models; raises SpaceError at the first mistake.

    `seed` becomes the seed of the masks where a method is stochastic and the space names none.
    """
    several = isinstance(data, dict) and EITHER in data
    top = place.mapping(data, (EITHER, "init", "holes") if several else (*_BRANCH, "holes"))
    reader = Reader(architecture, top.get("holes"), place / "holes")
    if several:
        named = (place / EITHER).mapping(top[EITHER])
        if len(named) < 2:
            raise (place / EITHER).fail("at least two recipes by name", named)
        chooser = _chooser(list(named), top.get("init"), place)
        branches = [
            _branch(one, name, inputs, reader, seed, place / EITHER / name)
            for name, one in named.items()
        ]
        holes = (chooser, *reader.holes.values())
    else:
        own = {key: one for key, one in top.items() if key != "holes"}
        branches = [_branch(own, "", inputs, reader, seed, place)]
        holes = tuple(reader.holes.values())
    reader.finish()
    if not holes:
        hint = "write {range: [0, 1]} in the place of a number"
        raise place.fail("a recipe with at least one hole", Found("none"), hint)
    space = SearchSpace(tuple(branches), holes, result_dtype, place)
    for branch in branches:  # holes change numbers alone, whose limits are known to hold
        space.decode(space.initial | ({EITHER: branch.name} if branch.name else {}))
    return space


def _chooser(names: Sequence[str], init: object, place: Place) -> Hole:
    if init is not None and init not in names:
        raise (place / "init").unknown(init, "recipe", names)
    return Hole(EITHER, "categorical", names[0], names[-1], init or names[0], choices=tuple(names))


def _branch(
    data: object, name: str, inputs: Inputs, reader: Reader, seed: int, place: Place
) -> Branch:
    fields = place.mapping(data, _BRANCH)
    if "merge_method" not in fields:
        raise place.fail("a merge_method", None)
    method = merge_methods.get(fields["merge_method"], place / "merge_method")
    prefix = f"{name}." if name else ""
    base_model = None
    if fields.get("base_model") is not None:
        base_model = inputs.ref(fields["base_model"], place / "base_model")[1]
    models = _models(fields.get("models"), inputs, method, reader, prefix, place / "models")
    known = [declared.name for declared in method.parameters]
    parameters = _settings(
        fields.get("parameters"), known, prefix, method, reader, place / "parameters"
    )
    if method.stochastic and "seed" not in parameters:
        parameters["seed"] = Constant(seed)
    branch = Branch(name, str(fields["merge_method"]), base_model, models, parameters)
    _check_inputs(branch, inputs, place)
    return branch


def _models(
    data: object, inputs: Inputs, method: MergeMethod, reader: Reader, prefix: str, place: Place
) -> tuple[SpaceModel, ...]:
    if not isinstance(data, list) or not data:
        raise place.fail("a list of models", data)
    found: list[SpaceModel] = []
    known = [declared.name for declared in method.parameters if declared.scope == "model"]
    for index, item in enumerate(data):
        here = place[index]
        fields = here.mapping(item, ("model", "each", "parameters"))
        if ("model" in fields) == ("each" in fields):
            raise here.fail("either model or each", item)
        if "each" in fields and fields["each"] != "experts":
            raise (here / "each").fail("experts", fields["each"])
        aliases: Sequence[object] = list(inputs.experts) if "each" in fields else [fields["model"]]
        for alias in aliases:
            name, ref = inputs.ref(alias, here / "model")
            settings = _settings(
                fields.get("parameters"), known, f"{prefix}{name}.", method, reader,
                here / "parameters",
            )  # fmt: skip
            found.append(SpaceModel(name, ref, settings))
    return tuple(found)


def _settings(
    data: object,
    known: Sequence[str],
    prefix: str,
    method: MergeMethod,
    reader: Reader,
    place: Place,
) -> dict[str, OpenSetting]:
    if data is None:
        return {}
    found: dict[str, OpenSetting] = {}
    for name, value in place.mapping(data).items():
        if name not in known:
            raise place.unknown(name, "parameter", known)
        declared = method.parameter(name)
        assert declared is not None
        found[name] = reader.setting(value, declared, f"{prefix}{name}", place / name)
    return found


def _check_inputs(branch: Branch, inputs: Inputs, place: Place) -> None:
    """Raise the place's error where a recipe leaves an expert out."""
    used = {model.ref for model in branch.models} | {branch.base_model}
    for name, ref in inputs.experts.items():
        if ref not in used:
            raise (place / "models").fail(
                "every expert of the study",
                Found(f"none for {name}"),
                "add it or use `each: experts`",
            )
