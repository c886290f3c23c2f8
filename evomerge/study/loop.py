"""The loop: ask, decode, merge, score, record, tell; and its resume, which is a replay."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from evomerge import optimizers
from evomerge.compatibility import differences
from evomerge.errors import CandidateError, InputError, Place, StudyError, StudyFileError
from evomerge.fitness import Fitness, mean_correct, mean_scores
from evomerge.genome import Genome, describe
from evomerge.merger.inputs import Memory
from evomerge.optimizers import Evaluated, Optimizer
from evomerge.study.baselines import Baselines, baselines, starting_points
from evomerge.study.file import CheckedStudy, check_study, load_study_file, parse_study
from evomerge.study.finals import finish_study
from evomerge.study.scorer import Scorer
from evomerge.study.store import Store, TrialRecord, only_writer, pack, refuse_existing

_LIBRARIES = ("evomerge", "torch", "transformers", "optuna", "cma", "numpy")


class Watcher(Protocol):
    """What a study tells of its progress."""

    def stage(self, text: str, done: int, total: int) -> None:
        """Report a step of loading, of the baselines or of the final scores."""
        ...

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
        """Report the trials done in all, the best fitness and the seconds of the last one."""
        ...

    def note(self, text: str) -> None:
        """Say something once."""
        ...


@dataclass
class Run:
    """One process's work on a study."""

    store: Store
    checked: CheckedStudy
    total: int
    scorer: Scorer
    watcher: Watcher

    def all(self) -> dict[str, Any]:
        """Score the baselines, run all trials, then the finalists; returns the report."""
        prior = baselines(
            self.store,
            self.scorer,
            self.checked.refs,
            self.checked.space.result_dtype,
            self.checked.file.search.seed,
            self.checked.file.fitness.worst,
            self.watcher.stage,
        )
        for task in prior.unsolved:
            self.watcher.note(
                f"no input model answers one search item of {task} right; "
                "check its prompt and answer"
            )
        recommended = self.trials(prior)
        return finish_study(
            self.store,
            self.scorer,
            self.checked.space,
            prior,
            recommended,
            self.watcher.stage,
        )

    def trials(self, prior: Baselines) -> int | None:
        """Run what is missing of the trials; returns the slot that the optimizer recommends."""
        space = self.checked.space
        points = starting_points(space.weighted, space.initial, prior.starts)[: self.total]
        search = _Replay(self, points)
        recorded = {record.slot: record for record in self.store.trials()}
        best = _best(recorded.values())
        finished = sum(record.state != "running" for record in recorded.values())
        self.watcher.trial(finished, self.total, best, None)
        for slot in range(self.total):
            record = recorded.get(slot)
            if record is None or record.state == "running":
                values = search.values(slot) if record is None else record.values
                number = self.store.propose(slot, values) if record is None else record.number
                started = time.perf_counter()
                fitness = self._evaluate(number, values, prior.fitness)
                finished += 1
                best = max((one for one in (best, fitness) if one is not None), default=None)
                self.watcher.trial(finished, self.total, best, time.perf_counter() - started)
                search.results.append(Evaluated(values, fitness))
            else:
                search.results.append(Evaluated(record.values, record.fitness))
        return search.recommended()

    def _evaluate(self, number: int, values: Mapping[str, Any], fitness: Fitness) -> float | None:
        try:
            recipe = self.checked.space.decode(values)
            scores = self.scorer.recipe(recipe, "search", exact=False)
            value = fitness.of(mean_scores(scores))
        except (CandidateError, InputError) as problem:
            self.store.finish(number, None, {"error": str(problem)})
            return None
        means, correct = mean_scores(scores), mean_correct(scores)
        tasks = {name: {"score": means[name], "accuracy": correct[name]} for name in scores}
        self.store.finish(number, value, {"tasks": tasks, "items": pack(scores)})
        return value


class _Replay:
    """Proposes points, telling the optimizer exactly what its horizon allows."""

    def __init__(self, run: Run, points: list[dict[str, Any]]) -> None:
        self.results: list[Evaluated] = []  # of all slots, in order
        self._run = run
        self._points = points
        self._optimizer: Optimizer | None = None
        self._told = 0

    def values(self, slot: int) -> dict[str, Any]:
        """Return what to try in a slot, all slots before it being known."""
        first = len(self._points)
        if slot < first:
            return self._points[slot]
        optimizer = self._ready()
        self._tell(optimizer.horizon(slot - first))
        return optimizer.ask(slot - first)

    def recommended(self) -> int | None:
        """Return the slot that the optimizer, told every result, recommends, if any."""
        first = len(self._points)
        if len(self.results) <= first:
            return None
        optimizer = self._ready()
        self._tell(len(self.results) - first)
        found = optimizer.recommend()
        return None if found is None else first + found

    def _ready(self) -> Optimizer:
        if self._optimizer is None:
            checked = self._run.checked
            self._optimizer = optimizers.create(
                checked.optimizer,
                checked.file.optimizer_settings,
                Genome(checked.space.holes),
                checked.file.search.seed,
                self.results[: len(self._points)],
                checked.file.place / "search" / "optimizer",
            )
        return self._optimizer

    def _tell(self, horizon: int) -> None:
        assert self._optimizer is not None
        while self._told < horizon:
            point = self.results[len(self._points) + self._told]
            self._optimizer.tell(self._told, point.values, point.fitness)
            self._told += 1


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
    device: str | None,
    memory: Memory = "auto",
    watcher: Watcher,
) -> dict[str, Any]:
    """Launch a study from its file under a name; returns its report."""
    checked = check_study(load_study_file(path, trials=trials, seed=seed))
    with only_writer(name, url):
        refuse_existing(name, url)
        scorer = _scorer(checked, device, memory, watcher)
        store = Store.create(name, url, _record(checked))
        _check_inputs(store, scorer)
        return _run(store, checked, scorer, checked.file.search.trials, watcher)


def resume(
    name: str,
    *,
    trials: int | None,
    url: str | None,
    device: str | None,
    memory: Memory = "auto",
    watcher: Watcher,
) -> dict[str, Any]:
    """Go on with a study from its database alone; returns its report.

    `trials` is a total. Raises StudyError where the inputs are no longer what they were.
    """
    Store.open(name, url)  # before the lock, which would make a folder for a misspelt name
    with only_writer(name, url):
        store = Store.open(name, url)
        record = store.get("study")
        done = len(store.trials())
        if trials is not None and trials < done:
            raise StudyError(f"expected a total of at least the {done} trials done, got {trials}")
        place = Place(f"the recorded study {name}", StudyFileError)
        checked = check_study(parse_study(record["study"], Path.cwd(), place))
        checked = replace(checked, optimizer=record["optimizer"])
        _refuse_changes(name, record, _record(checked), watcher)
        scorer = _scorer(checked, device, memory, watcher)
        _check_inputs(store, scorer)
        total = trials or record["trials"]
        if total != record["trials"]:
            store.set("report", None)  # until the longer study has its own
            store.set("study", {**record, "trials": total})
        return _run(store, checked, scorer, total, watcher)


def _scorer(checked: CheckedStudy, device: str | None, memory: Memory, watcher: Watcher) -> Scorer:
    for difference in differences(checked.checkpoints):
        watcher.note(difference)
    return Scorer(
        checked.checkpoints,
        checked.tasks,
        checked.tokenizer,
        result_dtype=checked.space.result_dtype,
        device=device,
        memory=memory,
        progress=watcher.stage,
    )


def _run(
    store: Store, checked: CheckedStudy, scorer: Scorer, total: int, watcher: Watcher
) -> dict[str, Any]:
    store.bind(checked.space.holes)
    return Run(store, checked, total, scorer, watcher).all()


def _record(checked: CheckedStudy) -> dict[str, Any]:
    return {
        "study": checked.file.to_mapping(),
        "trials": checked.file.search.trials,
        "optimizer": checked.optimizer,
        "tensors": list(checked.tensors),
        "dtype": checked.space.result_dtype,
        "holes": describe(checked.space.holes),
        "items": {task.name: task.fingerprint() for task in checked.tasks},
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def _refuse_changes(
    name: str, then: Mapping[str, Any], now: Mapping[str, Any], watcher: Watcher
) -> None:
    for task, fingerprint in then["items"].items():
        if now["items"][task] != fingerprint:
            raise StudyError(
                f"the items of {task} are not those that {name} began with; restore "
                f"{now['study']['tasks'][task]['data']} or start a new study"
            )
    if then["holes"] != now["holes"]:
        raise StudyError(f"the models of {name} have other layers than it began with")
    changed = [
        f"{library} {version} → {now['versions'][library]}"
        for library, version in then["versions"].items()
        if now["versions"].get(library) != version
    ]
    if changed:
        watcher.note(f"libraries changed since the study began: {', '.join(changed)}")


def _check_inputs(store: Store, scorer: Scorer) -> None:
    """Store the fingerprints of the inputs, or refuse to go on with other ones."""
    now = {str(ref): digest for ref, digest in scorer.merger.fingerprints.items()}
    then = store.get("inputs")
    if then is None:
        store.set("inputs", now)
        return
    for ref, digest in then.items():
        if now.get(ref) != digest:
            raise StudyError(
                f"the weights of {ref} are not those that the study began with; "
                "restore them or start a new study"
            )


def _best(records: Iterable[TrialRecord]) -> float | None:
    return max((one.fitness for one in records if one.fitness is not None), default=None)
