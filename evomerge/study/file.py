"""The study file: everything that changes a study's result, and nothing of machines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evomerge import optimizers, proxy_tasks
from evomerge.checkpoints import FLOATING, Checkpoint, ModelRef, check_alike, open_checkpoint
from evomerge.errors import CheckpointError, DataError, Found, Place, SpaceError, StudyFileError
from evomerge.evaluator import Split, TaskItems, draw_items
from evomerge.files import load_yaml
from evomerge.module_groups import Architecture
from evomerge.optimizers import OptimizerSettings
from evomerge.proxy_tasks import TaskSettings
from evomerge.proxy_tasks._data import read_rows
from evomerge.search_space import Inputs, SearchSpace, load_space, parse_space

_KEYS = ("models", "space", "tasks", "splits", "search", "fitness")
_NAME = re.compile(r"[A-Za-z][\w-]*\Z")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Models(_Part):
    """The input models: `base` and, by a name of your choice, the experts tuned from it."""

    base: str = Field(description="folder or Hub id of the base model")
    experts: dict[str, str] = Field(min_length=1, description="folder or Hub id of each expert")


class Splits(_Part):
    """Items per task for each split, and the seed that draws them."""

    search: int = Field(128, ge=1, description="items that the optimizer sees")
    select: int = Field(256, ge=1, description="items that pick the winner among the finalists")
    heldout: int = Field(512, ge=1, description="items that are scored once, at the end")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the draw")

    @property
    def sizes(self) -> dict[Split, int]:
        """The sizes by split."""
        return {"search": self.search, "select": self.select, "heldout": self.heldout}


class Search(_Part):
    """The optimizer, its budget and its seed; further keys are the optimizer's own settings."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    optimizer: str = Field("auto", description="name of an optimizer, or auto")
    trials: int = Field(300, ge=1, description="candidates to evaluate in all")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the search and of random masks")


class FitnessSettings(_Part):
    """How the tasks' normalized scores make one fitness."""

    worst: float = Field(
        0.0, ge=0, le=1, strict=False, description="weight of the worst task, the rest on the mean"
    )


@dataclass(frozen=True)
class StudyFile:
    """A study file that has been read and checked by itself, not yet against its models."""

    models: Models
    space: dict[str, Any]
    space_place: Place
    tasks: Mapping[str, TaskSettings]
    splits: Splits
    search: Search
    optimizer_settings: OptimizerSettings
    fitness: FitnessSettings
    folder: Path
    place: Place

    @property
    def refs(self) -> dict[str, ModelRef]:
        """The references of all models by name, `base` first, local paths absolute."""
        here = self.place / "models"
        found = {"base": ModelRef.parse(self.models.base, here / "base")}
        for name, text in self.models.experts.items():
            found[name] = ModelRef.parse(text, here / "experts" / name)
        return {name: ref.resolved(self.folder) for name, ref in found.items()}

    def to_mapping(self) -> dict[str, Any]:
        """Return the study as plain data in which every path is absolute."""
        refs = {name: str(ref) for name, ref in self.refs.items()}
        base = refs.pop("base")
        tasks = {}
        for name, settings in self.tasks.items():
            data = settings.model_dump(mode="json", exclude_unset=True)
            source = data["data"]
            if isinstance(source, str):
                data["data"] = str((self.folder / source).resolve())
            elif (self.folder / source["dataset"]).exists():
                source["dataset"] = str((self.folder / source["dataset"]).resolve())
            tasks[name] = data
        return {
            "models": {"base": base, "experts": refs},
            "space": self.space,
            "tasks": tasks,
            "splits": self.splits.model_dump(),
            "search": self.search.model_dump(),
            "fitness": self.fitness.model_dump(),
        }


def load_study_file(path: Path) -> StudyFile:
    """Read a study file; raises StudyFileError or SpaceError with the place of the first mistake."""
    data = load_yaml(path, StudyFileError)
    return parse_study(data, path.resolve().parent, Place(str(path), StudyFileError))


def parse_study(data: object, folder: Path, place: Place) -> StudyFile:
    """Check plain data to be a study whose paths are relative to `folder`."""
    top = place.mapping(data, _KEYS)
    for key in ("models", "space", "tasks"):
        if key not in top:
            raise place.fail(f"the key {key}", Found("none"))
    tasks: dict[str, TaskSettings] = {}
    for name, item in (place / "tasks").mapping(top["tasks"]).items():
        here = place / "tasks" / name
        fields = here.mapping(item)
        if "kind" not in fields:
            raise here.fail("a kind of task", None)
        kind = proxy_tasks.get(fields["kind"], here / "kind")
        tasks[name] = _read(kind.Settings, fields, here)
    if not tasks:
        raise (place / "tasks").fail("at least one task", top["tasks"])
    models = _read(Models, top["models"], place / "models")
    for name in models.experts:
        if name == "base" or not _NAME.match(name):
            here = place / "models" / "experts"
            raise here.fail("a name of letters, digits, - and _ that is not base", name)
    space, space_place = load_space(top["space"], folder, place / "space")
    search = _read(Search, top.get("search", {}), place / "search")
    return StudyFile(
        models=models,
        space=space,
        space_place=space_place,
        tasks=tasks,
        splits=_read(Splits, top.get("splits", {}), place / "splits"),
        search=search,
        optimizer_settings=_optimizer_settings(search, place / "search"),
        fitness=_read(FitnessSettings, top.get("fitness", {}), place / "fitness"),
        folder=folder,
        place=place,
    )


def _optimizer_settings(search: Search, place: Place) -> OptimizerSettings:
    extra = dict(search.model_extra or {})
    if search.optimizer == optimizers.AUTO:
        settings: type[OptimizerSettings] = OptimizerSettings
    else:
        settings = optimizers.get(search.optimizer, place / "optimizer").Settings
    known = [*Search.model_fields, *settings.model_fields]
    for key in extra:
        if key not in known:
            raise place.unknown(key, "key", known)
    found: OptimizerSettings = _read(settings, extra, place)
    return found


def _read(schema: type[BaseModel], data: object, place: Place) -> Any:
    """Check data against a pydantic model; its first error becomes one sentence with the place."""
    place.mapping(data)
    try:
        return schema.model_validate(data)
    except ValidationError as problem:
        error = problem.errors(include_url=False)[0]
    path = [part for part in error["loc"] if part not in ("str", "Dataset", "tuple[str, ...]")]
    here, known = place, schema
    for part in path[:-1]:
        here = here[part] if isinstance(part, int) else here / part
        known = proxy_tasks.Dataset if part == "data" else known
    last = path[-1] if path else ""
    if error["type"] == "extra_forbidden":
        raise here.unknown(last, "key", known.model_fields)
    if error["type"] == "missing":
        near = known.model_fields[str(last)].description
        raise here.fail(f"the key {last}" + (f" ({near})" if near else ""), Found("none"))
    at = here[last] if isinstance(last, int) else (here / last if last else here)
    raise at.fail(_wanted(error, schema, path), error["input"])


def _wanted(error: Any, schema: type[BaseModel], path: Sequence[int | str]) -> str:
    text: str = error["msg"]
    for opening in ("Input should be ", "Value error, "):
        text = text.removeprefix(opening)
    text = text.replace("a valid string", "a text").replace("a valid integer", "a whole number")
    text = text.replace("valid ", "").replace("dictionary", "mapping")
    field = schema.model_fields.get(str(path[0])) if len(path) == 1 else None
    return f"{text} ({field.description})" if field and field.description else text


@dataclass(frozen=True)
class CheckedStudy:
    """A study checked against its models' headers and its data; no weights have been read."""

    file: StudyFile
    refs: Mapping[str, ModelRef]
    checkpoints: tuple[Checkpoint, ...]  # base first
    space: SearchSpace
    tasks: tuple[TaskItems, ...]
    optimizer: str  # never auto


def check_study(file: StudyFile) -> CheckedStudy:
    """Open the checkpoints, bind the space to them, read and draw the items.

    Raises the error of whatever is wrong, before any weight is read.
    """
    refs = file.refs
    here = file.place / "models"
    opened: list[Checkpoint] = []
    for name, ref in refs.items():
        at = here / name if name == "base" else here / "experts" / name
        if ref in [one.ref for one in opened]:
            raise at.fail("each model once", str(ref))
        opened.append(open_checkpoint(ref, Place(at.document, CheckpointError, at.path)))
    names = check_alike(opened)
    merged = tuple(name for name in names if opened[0].tensors[name].floating)
    experts = {name: str(ref) for name, ref in refs.items() if name != "base"}
    dtypes = [FLOATING[opened[0].tensors[name].dtype] for name in merged]
    space = parse_space(
        file.space,
        Inputs(str(refs["base"]), experts),
        Architecture(merged),
        max(set(dtypes), key=dtypes.count),
        file.search.seed,
        file.space_place,
    )
    tasks = tuple(_items(file, name, settings) for name, settings in file.tasks.items())
    return CheckedStudy(file, refs, tuple(opened), space, tasks, _optimizer(file, space))


def _items(file: StudyFile, name: str, settings: TaskSettings) -> TaskItems:
    place = file.place / "tasks" / name
    place = Place(place.document, DataError, place.path)
    kind = proxy_tasks.get(settings.kind, place / "kind")
    rows = read_rows(settings.data, file.folder, place / "data")
    return draw_items(name, kind, settings, rows, file.splits.sizes, file.splits.seed, place)


def _optimizer(file: StudyFile, space: SearchSpace) -> str:
    from evomerge.genome import Genome

    genome = Genome(space.holes)
    name = file.search.optimizer
    if name == optimizers.AUTO:
        return optimizers.choose(genome, file.search.trials)
    if name == "cma_es" and (not genome.numeric or len(genome) < 2):
        place = file.place / "search" / "optimizer"
        what = "a choice" if not genome.numeric else "one hole"
        raise Place(place.document, SpaceError, place.path).fail(
            f"an optimizer for a space with {what} (tpe, gp, random_search or auto)", name
        )
    return name
