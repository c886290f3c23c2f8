"""Launching, forking and resuming a study: what may go on, and by whom."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

from evomerge.compatibility import differences
from evomerge.devices import best_devices
from evomerge.errors import Place, StudyError, StudyFileError
from evomerge.merger import Progress
from evomerge.merger.inputs import Memory
from evomerge.study import changes
from evomerge.study.database import command
from evomerge.study.file import CheckedStudy, StudyFile, check_study, load_study_file, parse_study
from evomerge.study.finalists import best_trials
from evomerge.study.interrupts import Interrupts
from evomerge.study.run import Run, Watcher
from evomerge.study.scorer import Scorer, Scoring
from evomerge.study.store import Store, only_writer, studies
from evomerge.study.workers import Elsewhere, OneWorker, Workers


class Machine(TypedDict, total=False):
    """Where a study runs and what it may do there: nothing that changes its result."""

    device: str | None
    memory: Memory
    trust: bool  # let the checkpoints' own code run
    elsewhere: Elsewhere | None  # workers that are processes of their own


def default_name(path: Path) -> str:
    """Return what a study is called without --name: its file, or the folder of a `study.yaml`."""
    return path.resolve().parent.name if path.stem == "study" else path.stem


def search(
    path: Path,
    name: str,
    *,
    trials: int | None,
    seed: int | None,
    url: str | None,
    watcher: Watcher,
    **machine: Unpack[Machine],
) -> dict[str, Any]:
    """Launch a study from its file under a name; returns its report."""
    source = {"file": str(path.resolve()), "trials": trials, "seed": seed}
    with _interruptible(name, url, watcher) as interrupts:
        file = load_study_file(path, trials=trials, seed=seed)
        return _launch(file, name, source, None, url, interrupts, watcher, machine)


def _fork(
    name: str,
    new: str,
    study: Path | None,
    trials: int | None,
    url: str | None,
    watcher: Watcher,
    machine: Machine,
) -> dict[str, Any]:
    """Launch a new study warm-started from another, which is left as it is; returns its report.

    The study is that of `name`, or of the file `study`. The best trials of `name` are among its
    first, evaluated again; they are part of its record.
    """
    with _interruptible(new, url, watcher) as interrupts:
        old = Store.open(name, url)
        then = old.get("study")
        if study is None:
            data = {**then["study"], "search": {**then["study"]["search"]}}
            data["search"]["trials"] = trials or then["trials"]
            file = parse_study(data, Path.cwd(), _recorded(name))
            source = None
        else:
            file = load_study_file(study, trials=trials)
            source = {"file": str(study.resolve()), "trials": trials, "seed": None}
        best = best_trials(old.trials())
        origin = {
            "study": name,
            "trials": [one.number for one in best],
            "points": [dict(one.values) for one in best],
        }
        return _launch(file, new, source, origin, url, interrupts, watcher, machine)


def _launch(
    file: StudyFile,
    name: str,
    source: Mapping[str, Any] | None,
    origin: Mapping[str, Any] | None,
    url: str | None,
    interrupts: Interrupts,
    watcher: Watcher,
    machine: Machine,
) -> dict[str, Any]:
    changes.refuse_existing(name, url, file)
    checked = check_study(file, machine.get("trust", False))
    if machine.get("elsewhere") is None:
        best_devices(machine.get("device"))  # before anything is written
    with only_writer(name, url, watcher.note) as writer:
        changes.refuse_existing(name, url, file)
        record = {**changes.record(checked, source), "origin": origin}
        with (
            _staff(name, url, checked, record, watcher, machine) as staff,
            contextlib.closing(Store.create(name, url, record, writer)) as store,
        ):
            changes.check_weights(name, url, store, staff.scorer.fingerprints)
            return _run(store, checked, staff, record, interrupts, watcher)


def create(
    file: StudyFile, name: str, source: Mapping[str, Any] | None, url: str | None, trust: bool
) -> None:
    """Record a study that is to be run later; loads no weights."""
    changes.refuse_existing(name, url, file)
    checked = check_study(file, trust)
    with only_writer(name, url) as writer:
        changes.refuse_existing(name, url, file)
        record = {**changes.record(checked, source), "origin": None}
        Store.create(name, url, record, writer).close()


def resume(
    name: str,
    *,
    fork: str | None = None,
    study: Path | None = None,
    trials: int | None,
    url: str | None,
    watcher: Watcher,
    **machine: Unpack[Machine],
) -> dict[str, Any]:
    """Go on with a study from its database alone; returns its report.

    `trials` is a total. Raises StudyError where anything that results depend on has changed. With
    `fork`, the name of a new study, that one is begun from the other's best trials, and the file
    `study`, if given, says what it is.
    """
    if fork is not None:
        return _fork(name, fork, study, trials, url, watcher, machine)
    if study is not None:
        raise StudyError(
            f"expected --fork NEW with --study {study}: {name} itself goes on as it began"
        )
    with _interruptible(name, url, watcher) as interrupts:
        Store.open(name, url)  # before the lock, which would make a folder for any name
        with (
            only_writer(name, url, watcher.note) as writer,
            contextlib.closing(Store.open(name, url, writer)) as store,
        ):
            record = store.get("study")
            note = changes.refuse_changed_file(name, url, record)
            checked = reopened(name, url, record, machine.get("trust", False))
            total = _total(name, store, record, trials, watcher)
            if note is not None and trials is None:
                watcher.note(note)
            with _staff(name, url, checked, record, watcher, machine) as staff:
                changes.check_weights(name, url, store, staff.scorer.fingerprints)
                if total != record["trials"]:
                    store.set("report", None)  # until the study of another length has its own
                    record = {**record, "trials": total}
                    store.set("study", record)
                return _run(store, checked, staff, record, interrupts, watcher)


def reopened(name: str, url: str | None, record: Mapping[str, Any], trust: bool) -> CheckedStudy:
    """Check a recorded study again; StudyError where anything that counts has changed."""
    checked = check_study(parse_study(record["study"], Path.cwd(), _recorded(name)), trust)
    checked = replace(checked, optimizer=record["optimizer"])
    changes.refuse_changes(name, url, record, changes.record(checked, None))
    return checked


def _total(
    name: str, store: Store, record: Mapping[str, Any], trials: int | None, watcher: Watcher
) -> int:
    """Return how many trials the study is to have; one that is to be shorter is told so."""
    before: int = record["trials"]
    if trials is None or trials >= before:
        return trials or before
    done = sum(store.summary().count.values())
    if trials < done:
        raise StudyError(
            f"expected a total of at least the {done} trials done, got {trials}; "
            "give more, or leave --trials out"
        )
    watcher.note(f"{name} ends after {trials} trials, not {before}, unless --trials asks for more")
    return trials


def _recorded(name: str) -> Place:
    return Place(f"the recorded study {name}", StudyFileError)


@contextlib.contextmanager
def _interruptible(name: str, url: str | None, watcher: Watcher) -> Iterator[Interrupts]:
    """Let signals end the block with a KeyboardInterrupt that says how to go on."""
    interrupts = Interrupts(watcher.note)
    try:
        with interrupts.caught():
            yield interrupts
    except KeyboardInterrupt as stop:
        if stop.args:  # it says how already
            raise
        how = ""
        with contextlib.suppress(StudyError):  # a database that cannot be asked
            how = f"; go on with {command('resume', name, url)}" if name in studies(url) else ""
        raise KeyboardInterrupt(f"stopped{how}") from None


def _tell(checked: CheckedStudy, watcher: Watcher) -> None:
    """Say what is worth knowing of models and items before they are loaded."""
    for difference in differences(checked.checkpoints):
        watcher.note(difference)
    for task in checked.tasks:
        for note in task.notes:
            watcher.note(note)


def _scorer(checked: CheckedStudy, watcher: Watcher, machine: Machine) -> Scorer:
    _tell(checked, watcher)
    return scorer_of(checked, machine, watcher.stage)


def scorer_of(
    checked: CheckedStudy, machine: Machine, progress: Progress = lambda text, done, total: None
) -> Scorer:
    """Load the models of a study in this process."""
    return Scorer(
        checked.checkpoints,
        checked.tasks,
        checked.tokenizer,
        result_dtype=checked.space.result_dtype,
        progress=progress,
        device=machine.get("device"),
        memory=machine.get("memory", "auto"),
        trust=machine.get("trust", False),
    )


class _Staff(NamedTuple):
    """Who scores what a study asks for beside its trials, and who evaluates these."""

    scorer: Scoring
    workers: Workers


@contextlib.contextmanager
def _staff(
    name: str,
    url: str | None,
    checked: CheckedStudy,
    record: Mapping[str, Any],
    watcher: Watcher,
    machine: Machine,
) -> Iterator[_Staff]:
    """Load the models, in this process or in workers that end with the block."""
    elsewhere = machine.get("elsewhere")
    if elsewhere is None:
        scorer = _scorer(checked, watcher, machine)
        yield _Staff(scorer, OneWorker(scorer))
        return
    from evomerge.study import resident
    from evomerge.study.ray_workers import crew

    _tell(checked, watcher)
    study = resident.Study(
        name,
        url,
        record,
        machine.get("device"),
        machine.get("memory", "auto"),
        machine.get("trust", False),
    )
    with crew(study, checked.tasks, elsewhere, watcher, resident.open_scorer) as found:
        yield _Staff(found, found)


def _run(
    store: Store,
    checked: CheckedStudy,
    staff: _Staff,
    record: Mapping[str, Any],
    interrupts: Interrupts,
    watcher: Watcher,
) -> dict[str, Any]:
    store.bind(checked.space.holes)
    scorer, workers = staff
    return Run(store, checked, record, scorer, workers, interrupts, watcher).all()
