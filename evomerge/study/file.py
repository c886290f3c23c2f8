"""The study file: everything that changes a study's result, and nothing of machines."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from evomerge import optimizers, plugins, proxy_tasks
from evomerge.architectures import check_runnable, unasked
from evomerge.checkpoints import FLOATING, Checkpoint, ModelRef, open_checkpoint
from evomerge.compatibility import check_alike
from evomerge.errors import CheckpointError, DataError, Found, Place, SpaceError, StudyFileError
from evomerge.evaluator import Split, TaskItems, draw_items
from evomerge.files import load_yaml
from evomerge.genome import Genome
from evomerge.models import load_tokenizer
from evomerge.module_groups import Architecture
from evomerge.optimizers import OptimizerSettings
from evomerge.proxy_tasks import PromptedSettings, TaskSettings
from evomerge.proxy_tasks._data import Rows, read_rows
from evomerge.search_space import Inputs, SearchSpace
from evomerge.space_reader import load_space, parse_space
from evomerge.study.schema import read_settings
from evomerge.study.search_settings import Search, own_settings, read_search
from evomerge.study.stages import check_stages
from evomerge.study.starts import Start, read_starts
from evomerge.tokenizer_files import Tokenizer

_KEYS = ("models", "space", "tasks", "splits", "search", "fitness")
_SEE = "docs/study-file.md says what a study needs"
_NAME = re.compile(r"[A-Za-z][\w-]*\Z")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Models(_Part):
    """The input models: `base` and, by a name of your choice, the experts tuned from it."""

    base: str = Field(description="folder or Hub id of the base model")
    experts: dict[str, str] = Field(min_length=1, description="folder or Hub id of each expert")


class Splits(_Part):
    """Items per task for each split, and the seed that draws them."""

    search: int = Field(128, ge=1, description="items that the optimizer sees")
    select: int = Field(256, ge=1, description="items that pick the winner among the finalists")
    heldout: int = Field(512, ge=1, description="items that are scored once, at the end")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of the draw")

    @property
    def sizes(self) -> dict[Split, int]:
        """The sizes by split."""
        return {"search": self.search, "select": self.select, "heldout": self.heldout}


class FitnessSettings(_Part):
    """How the tasks' normalized scores make one fitness."""

    worst: float = Field(
        0.0, ge=0, le=1, description="weight of the worst task, the rest on the mean"
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
    starts: tuple[Start, ...]
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
            whole = _absolute(settings, self.folder, self.place / "tasks" / name)
            data = whole.model_dump(mode="json", exclude_unset=True)
            for part in (data, data.get("shots") or {}):
                if part.get("data") is not None:
                    part["data"] = self._absolute(part["data"])
            tasks[name] = data
        search = self.search.model_dump(exclude={"start"})
        if self.starts:
            search["start"] = [start.recipe.to_mapping() for start in self.starts]
        return {
            "models": {"base": base, "experts": refs},
            "space": self.space,
            "tasks": tasks,
            "splits": self.splits.model_dump(),
            "search": search,
            "fitness": self.fitness.model_dump(),
        }

    def _absolute(self, source: Any) -> Any:
        """Return a task's data, as plain data, with its path absolute."""
        if isinstance(source, str):
            return str((self.folder / source).resolve())
        if (self.folder / source["dataset"]).exists():
            return source | {"dataset": str((self.folder / source["dataset"]).resolve())}
        return source


def load_study_file(path: Path, *, trials: int | None = None, seed: int | None = None) -> StudyFile:
    """Read a study file; `trials` and `seed`, where given, stand for those of its search.

    Raises StudyFileError or SpaceError with the place of the first mistake.
    """
    data = load_yaml(path, StudyFileError)
    given = {"trials": trials, "seed": seed}
    search = data.setdefault("search", {}) if isinstance(data, dict) else None
    if isinstance(search, dict):
        search.update({key: value for key, value in given.items() if value is not None})
    return parse_study(data, path.resolve().parent, Place(str(path), StudyFileError))


def parse_study(data: object, folder: Path, place: Place) -> StudyFile:
    """Check plain data to be a study whose paths are relative to `folder`."""
    if isinstance(data, dict) and "merge_method" in data:
        raise place.fail("a study", Found("a recipe"), "`evomerge merge` makes what it says")
    top = place.mapping(data, _KEYS)
    for key in ("models", "space", "tasks"):
        if key not in top:
            raise place.fail(f"the key {key}", Found("none"), _SEE)
    models = read_settings(Models, top["models"], place / "models")
    for name in models.experts:
        if name == "base":
            here = place / "models" / "experts"
            raise here.fail("a name of the expert's own", name, "`base` is the base model's name")
        _check_name(name, place / "models" / "experts")
    tasks = _tasks(top["tasks"], place / "tasks")
    space, space_place = load_space(top["space"], folder, place / "space")
    search = read_search(top.get("search", {}), place / "search")
    file = StudyFile(
        models=models,
        space=space,
        space_place=space_place,
        tasks=tasks,
        splits=read_settings(Splits, top.get("splits", {}), place / "splits"),
        search=search,
        optimizer_settings=own_settings(search, place / "search"),
        fitness=read_settings(FitnessSettings, top.get("fitness", {}), place / "fitness"),
        starts=(),
        folder=folder,
        place=place,
    )
    refs = tuple(file.refs.values())
    starts = read_starts(search.start, refs, folder, place / "search" / "start")
    return replace(file, starts=starts)


def _check_name(name: str, place: Place) -> None:
    if not _NAME.match(name):
        raise place.fail("a name of letters, digits, - and _ that begins with a letter", name)


def _tasks(data: object, place: Place) -> dict[str, TaskSettings]:
    tasks: dict[str, TaskSettings] = {}
    for name, item in place.mapping(data).items():
        _check_name(name, place)
        fields = (place / name).mapping(item)
        if "kind" not in fields:
            known = ", ".join(plugins.names(proxy_tasks))
            raise (place / name).fail(f"the key kind (one of {known})", Found("none"))
        kind = proxy_tasks.get(fields["kind"], place / name / "kind")
        tasks[name] = read_settings(kind.Settings, fields, place / name)
    if not tasks:
        raise place.fail("at least one task", data)
    return tasks


@dataclass(frozen=True)
class CheckedStudy:
    """A study checked against its models' headers and its data; no weights have been read."""

    file: StudyFile
    refs: Mapping[str, ModelRef]
    checkpoints: tuple[Checkpoint, ...]  # base first
    space: SearchSpace
    tensors: tuple[str, ...]  # those that are merged
    tasks: tuple[TaskItems, ...]
    tokenizer: Tokenizer  # the base's
    optimizer: str  # never auto
    starts: tuple[Mapping[str, Any], ...] = ()  # the points that the file's recipes are


def check_study(file: StudyFile, trust: bool = False) -> CheckedStudy:
    """Open the checkpoints, bind the space to them, read and draw the items.

    The checkpoints' own code runs only where `trust` is set. Raises the error of whatever is wrong,
    before any weight is read.
    """
    refs = file.refs
    here = file.place / "models"
    opened: list[Checkpoint] = []
    for name, ref in refs.items():
        at = here / name if name == "base" else here / "experts" / name
        if ref in [one.ref for one in opened]:
            raise at.fail("each model once", str(ref), "take one of them out")
        opened.append(open_checkpoint(ref, Place(at.document, CheckpointError, at.path)))
    names = check_alike(opened)
    merged = tuple(name for name in names if opened[0].tensors[name].floating)
    dtypes = [FLOATING[opened[0].tensors[name].dtype] for name in merged]
    space = bind_space(file, merged, max(dict.fromkeys(dtypes), key=dtypes.count))
    for one in opened:
        shapes = {name: info.shape for name, info in one.tensors.items()}
        check_runnable(one.folder, shapes, trust)
    tokenizer = load_tokenizer(opened[0].folder, trust)
    taken: dict[str, Split] = {}  # what each split asks so far
    tasks = tuple(_items(file, name, settings, taken) for name, settings in file.tasks.items())
    for task in tasks:
        _check_models(task, opened, file.place / "tasks" / task.name, trust)
    optimizer = _optimizer(file, space)
    starts = start_points(file, space, merged)
    return CheckedStudy(
        file, refs, tuple(opened), space, merged, tasks, tokenizer, optimizer, starts
    )


def bind_space(file: StudyFile, tensors: Sequence[str], dtype: str) -> SearchSpace:
    """Return the study's space for models of these tensors; raises SpaceError where it is wrong."""
    refs = {name: str(ref) for name, ref in file.refs.items()}
    inputs = Inputs(refs.pop("base"), refs)
    architecture = Architecture(tuple(tensors))
    seed = file.search.seed
    space = parse_space(file.space, inputs, architecture, dtype, seed, file.space_place)
    check_stages(space, file.search.stages, architecture, file.place / "search" / "stages")
    return space


def start_points(
    file: StudyFile, space: SearchSpace, tensors: Sequence[str]
) -> tuple[Mapping[str, Any], ...]:
    """Return the points that the file's recipes are, each once.

    Raises SpaceError where the space lacks one.
    """
    found: list[Mapping[str, Any]] = []
    for start in file.starts:
        values = start.values(space, tensors)
        found += [values] if values not in found else []
    return tuple(found)


def _absolute(settings: TaskSettings, folder: Path, place: Place) -> TaskSettings:
    """Return settings whose paths, that of the data aside, are absolute."""
    kind = proxy_tasks.get(settings.kind, place / "kind")
    found: TaskSettings = kind.absolute(settings, folder) if hasattr(kind, "absolute") else settings
    return found


def _items(
    file: StudyFile, name: str, settings: TaskSettings, taken: dict[str, Split]
) -> TaskItems:
    place = file.place / "tasks" / name
    place = Place(place.document, DataError, place.path)
    kind = proxy_tasks.get(settings.kind, place / "kind")
    settings = _absolute(settings, file.folder, place)
    own: Callable[[TaskSettings, Path, Place], Rows] | None = getattr(kind, "rows", None)
    if own:
        rows = own(settings, file.folder, place)
    else:
        rows = read_rows(settings.data, file.folder, place / "data")
    shots = settings.shots if isinstance(settings, PromptedSettings) else None
    shown = None
    if shots is not None and shots.data is not None:
        shown = read_rows(shots.data, file.folder, place / "shots" / "data")
    sizes, seed = file.splits.sizes, file.splits.seed
    return draw_items(name, kind, settings, rows, sizes, seed, place, shown, taken)


def _check_models(task: TaskItems, models: Sequence[Checkpoint], at: Place, trust: bool) -> None:
    """Check that the models are of the sort that a task asks: language models or classifiers."""
    if hasattr(task.kind, "check"):
        task.kind.check(task.examples, models, task.where, at)
    elif not hasattr(task.kind, "NEEDS_MODULE") and (other := unasked(models[0].folder, trust)):
        found = Found(f"{task.settings.kind}, and {other} as models")
        raise (at / "kind").fail("the kind classification, or causal language models", found)


def _optimizer(file: StudyFile, space: SearchSpace) -> str:
    genome = Genome(space.holes)
    name = file.search.optimizer
    if name == optimizers.AUTO:
        several = file.search.objectives == "tasks"
        trials = min([file.search.trials, *(one.after for one in file.search.stages)])
        return optimizers.choose(genome, trials, several)
    if name == "cma_es" and (not genome.numeric or len(genome) < 2):
        place = file.place / "search" / "optimizer"
        what = "a choice" if not genome.numeric else "one hole"
        raise Place(place.document, SpaceError, place.path).fail(
            f"an optimizer for a space with {what} (tpe, gp, random_search or auto)", name
        )
    return name
