"""What a study began with, and whether it is still so: items, models, words, libraries."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.checkpoints import ModelRef
from evomerge.errors import CheckpointError, EvomergeError, Place, StudyError
from evomerge.files import exists
from evomerge.genome import describe
from evomerge.study.database import command
from evomerge.study.file import CheckedStudy, StudyFile, load_study_file
from evomerge.study.store import Store, studies
from evomerge.tokenizer_files import tokenizer_digest

# Those whose versions change results.
_LIBRARIES = ("evomerge", "torch", "transformers", "optuna", "cma", "cmaes", "scipy", "numpy")
_NAMED = 3  # changes that an error names


def record(checked: CheckedStudy, source: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is recorded of a study: the study itself and all that its results depend on.

    `source` is its `file`, and the `trials` and `seed` that the command line put in their place.
    """
    return {
        "study": checked.file.to_mapping(),
        "source": source,
        "trials": checked.file.search.trials,
        "optimizer": checked.optimizer,
        "tensors": list(checked.tensors),
        "dtype": checked.space.result_dtype,
        "holes": describe(checked.space.holes),
        "items": {task.name: task.fingerprint() for task in checked.tasks},
        "tokenizer": tokenizer_digest(checked.checkpoints[0].folder),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def refuse_changes(
    name: str, url: str | None, then: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raise StudyError, which says what, where something is not what the study began with."""
    fork = f"begin a new study from it with {command('resume', name, url, '--fork NEW')}"
    versions = [
        f"{library} {version}, now {now['versions'][library]}"
        for library, version in then["versions"].items()
        if now["versions"].get(library) != version
    ]
    if versions:
        raise StudyError(
            f"{name} began with {' and '.join(versions)}, which may change its results; "
            f"install what it began with or {fork}"
        )
    for task, fingerprint in then["items"].items():
        if now["items"][task] != fingerprint:
            given = now["study"]["tasks"][task]
            data = " and ".join(
                str(given[one]) for one in ("data", "function", "task") if one in given
            )
            raise StudyError(
                f"the items of {task} are not those that {name} began with; "
                f"restore {data} or {fork}"
            )
    if then.get("tokenizer", now["tokenizer"]) != now["tokenizer"]:
        base = now["study"]["models"]["base"]
        raise StudyError(
            f"the tokenizer or chat template of {base} is not that which {name} began with; "
            f"restore it or {fork}"
        )
    if then["holes"] != now["holes"] or then["dtype"] != now["dtype"]:
        raise StudyError(
            f"the models of {name} have other layers or another dtype than it began with; "
            f"restore them or {fork}"
        )


def refuse_changed_file(name: str, url: str | None, then: Mapping[str, Any]) -> str | None:
    """Raise StudyError where the file that a study was made from says something else now.

    The study needs its file no more, so one that is gone is no change; returns what is worth a
    note, if anything.
    """
    source = then.get("source")
    if source is None or not Path(source["file"]).is_file():
        return None
    path = Path(source["file"])
    try:
        file = load_study_file(path, trials=source["trials"], seed=source["seed"])
    except EvomergeError as problem:
        return f"{problem}; {name} goes on as it began"
    now = file.to_mapping()
    if _lost(then["study"]["models"]):  # which is told where the model is opened
        now["models"] = then["study"]["models"]
    changed = differences(then["study"], now)
    if changed:
        options = f"--fork NEW --study {path}"
        raise StudyError(
            f"{path} is not what {name} began with: {_all(changed)}; undo that, or begin a "
            f"new study from {name} with {command('resume', name, url, options)}"
        )
    trials = file.search.trials
    if trials not in (then["study"]["search"]["trials"], then["trials"]):
        return f"{path} asks for {trials} trials now; --trials {trials} makes {name} as long"
    return None


def _lost(models: Mapping[str, Any]) -> bool:
    """Return whether a folder of a study's models is not there any more."""
    place = Place("the recorded study", CheckpointError)
    refs = [ModelRef.parse(one, place) for one in (models["base"], *models["experts"].values())]
    paths = [Path(one.path) for ref in refs for one in (ref, ref.adapter) if one]
    return any(path.is_absolute() and not exists(path) for path in paths)


def refuse_existing(name: str, url: str | None, file: StudyFile) -> None:
    """Raise StudyError where a study of that name exists, with what has changed since it began."""
    if name not in studies(url):
        return
    then = Store.open(name, url).get("study")
    changed = differences(then["study"], file.to_mapping())
    raise StudyError(
        f"the study {name} exists{f' and was another: {_all(changed)}' if changed else ''}; "
        f"go on with {command('resume', name, url)}, or choose another name"
    )


def _all(changed: Sequence[str]) -> str:
    return ", ".join(changed[:_NAMED]) + (" and more" if changed[_NAMED:] else "")


def differences(then: object, now: object, place: str = "") -> list[str]:
    """Return in words where two studies as plain data differ, their numbers of trials aside."""
    if not place:
        now = json.loads(json.dumps(now))  # as the database gives it back
    if place == "search.trials" or then == now:
        return []
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*then, *now])
        inner = [
            differences(then.get(key), now.get(key), f"{place}.{key}" if place else str(key))
            for key in keys
        ]
        return [one for found in inner for one in found]
    return [f"{place} was {_brief(then)}, is {_brief(now)}"]


def _brief(value: object) -> str:
    if value is None:
        return "none"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_weights(name: str, url: str | None, store: Store, now: Mapping[str, str]) -> None:
    """Record the fingerprints of the inputs, or refuse to go on with other ones."""
    then = store.get("inputs")
    if then is None:
        store.set("inputs", dict(now))
        return
    for ref, digest in then.items():
        if now.get(ref) != digest:
            raise StudyError(
                f"the weights of {ref} are not those that {name} began with; restore them or begin "
                f"a new study from it with {command('resume', name, url, '--fork NEW')}"
            )
