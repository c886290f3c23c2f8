"""The trials of a study: begun slot by slot, evaluated by whoever is free, noted slot by slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge import optimizers
from evomerge.errors import CandidateError, InputError
from evomerge.fitness import Fitness, TaskScores
from evomerge.optimizers import Evaluated
from evomerge.racing import Raced, Racer
from evomerge.recipe import weights_key
from evomerge.study.file import CheckedStudy
from evomerge.study.interrupts import Interrupts
from evomerge.study.item_scores import pack, unpack
from evomerge.study.queue import Proposal, Queue
from evomerge.study.replay import Search
from evomerge.study.rows import TrialRecord
from evomerge.study.store import Store
from evomerge.study.workers import Done, Job, Workers


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


@dataclass(frozen=True)
class _UnderWay:
    """A trial that is evaluated somewhere: its number, what it tries, the key of its weights."""

    number: int
    proposal: Proposal
    weights: str


@dataclass(frozen=True)
class _Outcome:
    """What has come of a slot; `seconds` None where an earlier process has told of it."""

    evaluated: Evaluated
    weights: str
    scores: TaskScores | None
    means: Mapping[str, float]
    seconds: float | None


class Trials:
    """Runs what is missing of a study's trials.

    A slot is begun as soon as all is known that it depends on and a worker is free. What comes of
    it is written at once, in whatever order the workers finish, but noted in the order of slots:
    so the trials are the same with any number of workers.
    """

    def __init__(
        self,
        store: Store,
        checked: CheckedStudy,
        total: int,
        workers: Workers,
        interrupts: Interrupts,
        watcher: Watcher,
        fitness: Fitness,
        racer: Racer,
        search: Search,
    ) -> None:
        self._store = store
        self._checked = checked
        self._total = total
        self._workers = workers
        self._interrupts = interrupts
        self._watcher = watcher
        self._fitness = fitness
        self._racer = racer
        self._search = search
        self._several = checked.file.search.objectives == "tasks"
        self._recorded = {record.slot: record for record in store.trials()}
        self._metrics = store.metrics()
        self._queue = Queue(store, (record.queued for record in self._recorded.values()))
        self._told = 0  # slots that an earlier process has told of
        while self._finished(self._told):
            self._told += 1
        self._under_way: dict[int, _UnderWay] = {}
        self._outcomes: dict[int, _Outcome] = {}  # of slots that are not noted yet
        self._best = max(
            (one.fitness for one in self._recorded.values() if one.fitness is not None),
            default=None,
        )
        self._over = self._advised = False

    def run(self) -> None:
        """Run them; a signal lets those that are under way end and begins no more."""
        self._watcher.trial(self._told, self._total, self._best, None)
        while self._under_way or not (self._over or self._search.begun == self._total):
            with self._interrupts.put_off():
                self._fill()
                while self._under_way or not (self._ended or self._workers.free):
                    for done in self._workers.wait():
                        self._end(done)
                    self._note()
                    if not self._interrupts.asked:
                        break

    @property
    def _ended(self) -> bool:
        """Whether no other slot is begun."""
        full = self._search.begun == self._total
        return self._over or self._interrupts.asked or full

    def _finished(self, slot: int) -> bool:
        return slot in self._recorded and self._recorded[slot].state != "running"

    def _fill(self) -> None:
        """Begin slots as long as the next one can be."""
        search = self._search
        while not self._ended and search.ready():
            slot = search.begun
            if not self._finished(slot) and not self._workers.free:
                return
            if search.begin():
                self._store.bind(search.space.holes)
            if self._finished(slot):
                self._read(slot, self._recorded[slot])
            else:
                self._begin(slot, self._recorded.get(slot))
            self._note()

    def _read(self, slot: int, record: TrialRecord) -> None:
        """Take from the database what has come of a slot."""
        seconds = None if slot < self._told else 0.0
        self._search.take(record.values, record.queued is not None)
        if record.fitness is None:
            self._outcomes[slot] = _Outcome(Evaluated(record.values, None), "", None, {}, seconds)
            return
        known: dict[str, Any] = self._metrics.pop(record.number)
        means = {task: one["score"] for task, one in known["tasks"].items()}
        objectives = self._fitness.normalized(means) if self._several else ()
        evaluated = Evaluated(record.values, record.fitness, objectives)
        scores = unpack(known["items"])
        self._outcomes[slot] = _Outcome(evaluated, known["weights"], scores, means, seconds)

    def _begin(self, slot: int, record: TrialRecord | None) -> None:
        """Propose what a slot tries, unless that is recorded, and let a worker evaluate it."""
        search, horizon = self._search, self._search.horizon()
        if record is None:
            queued = self._queued(slot)
            if queued is None and search.over():
                self._over = True
                return
            proposal = queued or Proposal(search.values())
            number = self._store.propose(slot, proposal.values, proposal.queued)
        else:
            proposal, number = Proposal(record.values, record.queued), record.number
        search.take(proposal.values, proposal.queued is not None)
        if not search.starting(slot):
            self._advise()
        try:
            recipe = search.decode(proposal.values)
            weights = weights_key(recipe, self._checked.tensors)
        except (CandidateError, InputError) as problem:
            self._under_way[slot] = _UnderWay(number, proposal, "")
            self._end(Done(slot, None, str(problem), 0.0))
            return
        self._under_way[slot] = _UnderWay(number, proposal, weights)
        known = self._racer.known(horizon, weights)
        if known is None:
            self._workers.submit(Job(slot, recipe, self._racer.race(slot, horizon, weights)))
        else:
            self._end(Done(slot, known, None, 0.0))

    def _advise(self) -> None:
        """Say once what would keep workers busy that the optimizer leaves idle."""
        if not self._advised and self._workers.size > 1:
            self._advised = True
            name, width = self._checked.optimizer, self._search.width()
            if (found := optimizers.advice(name, width, self._workers.size)) is not None:
                self._watcher.note(found)

    def _queued(self, slot: int) -> Proposal | None:
        """Return what is first in the queue; the starting points go before it."""
        if self._search.starting(slot):
            return None
        found, notes = self._queue.next(self._search.space, self._checked.tensors)
        for note in notes:
            self._watcher.note(note)
        return found

    def _end(self, done: Done) -> None:
        """Write what has come of a slot."""
        trial = self._under_way.pop(done.slot)
        values = trial.proposal.values
        error, raced = done.error, done.raced
        if raced is not None:
            try:
                value = self._fitness.of(raced.means)
            except CandidateError as problem:
                error, raced = str(problem), None
        if raced is None:
            self._store.finish(trial.number, None, {"error": error})
            means: Mapping[str, float] = {}
            evaluated, scores = Evaluated(values, None), None
        else:
            self._store.finish(trial.number, value, _metrics(raced, trial.weights))
            objectives = self._fitness.normalized(raced.means) if self._several else ()
            evaluated = Evaluated(values, value, objectives)
            scores, means = raced.scores, raced.means
        self._outcomes[done.slot] = _Outcome(evaluated, trial.weights, scores, means, done.seconds)

    def _note(self) -> None:
        """Note what has come of the slots up to the first that is under way."""
        while (one := self._outcomes.pop(self._search.known, None)) is not None:
            if one.scores is not None:
                self._racer.note(self._search.known, one.weights, one.scores, one.means)
            self._search.note(one.evaluated)
            fitness = one.evaluated.fitness
            self._best = max((it for it in (self._best, fitness) if it is not None), default=None)
            if one.seconds is not None:
                self._watcher.trial(self._search.known, self._total, self._best, one.seconds)


def _metrics(raced: Raced, weights: str) -> dict[str, object]:
    """Return what the database keeps of a trial that succeeded."""
    tasks = {
        name: {"score": raced.means[name], "accuracy": raced.accuracies[name]}
        for name in raced.scores
    }
    found = {"tasks": tasks, "items": pack(raced.scores), "weights": weights}
    return found | {"answered": raced.answered}
