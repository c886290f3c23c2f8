"""The workers of a study that are processes of their own: staff, work, losses."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge.errors import StudyError
from evomerge.study.database import command
from evomerge.study.resident import Loaded, Reply, Study
from evomerge.study.scorer import Scorer
from evomerge.study.sight import Sight, WorkerState
from evomerge.study.trials import Watcher
from evomerge.study.workers import Elsewhere

_TRIES = 3  # other workers that a piece of work gets which has lost its own
_TURN = 1.0  # seconds to wait for an answer, before something else is looked after
_AHEAD = 8  # workers for each piece of work that waits for the next of them to be free
_LOOK = 5.0  # seconds between two looks at how many workers there is room for
_LEAST = 600.0  # seconds that any piece of work may take, ...
_TIMES = 10  # ... or so many times what the longest took


class LostError(Exception):
    """A worker has gone: its process, its machine or the way to it."""


class Fleet(Protocol):
    """Where workers are started and asked; `Any` is a worker or a call of one, as it has them."""

    def room(self) -> int:
        """Return how many workers there is room for, those that there are counted."""
        ...

    def start(self) -> Any:
        """Start a worker, as soon as there is room."""
        ...

    def stop(self, worker: Any) -> None:
        """End a worker at once."""
        ...

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Call a method of a worker's `Resident`."""
        ...

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        """Wait until some calls are answered, which are returned, or the time is over."""
        ...

    def reply(self, call: Any) -> Reply:
        """Return the answer to a call; raises LostError where the worker has gone."""
        ...


@dataclass
class _Task:
    """A piece of work: what is called, and how many workers it has lost."""

    key: Hashable
    what: str  # in words
    method: str
    arguments: tuple[Any, ...]
    losses: int = 0


@dataclass
class _Worker:
    """A worker: what it does, and what it has done."""

    number: int
    itself: Any
    call: Any  # None while it has nothing to do
    since: float  # when the call was made
    begun: float  # when it had loaded the models, until when it is `loaded` by nothing
    task: _Task | None = None
    loaded: Loaded | None = None
    node: str = ""
    done: int = 0
    busy: float = 0.0

    def state(self, now: float) -> WorkerState:
        """Return what is seen of it."""
        busy = self.busy + (now - self.since if self.task else 0.0)
        idle = max(0.0, 1 - busy / max(now - self.begun, 1e-9)) if self.loaded else 0.0
        return WorkerState(
            self.number,
            "loading" if self.loaded is None else "busy" if self.task else "idle",
            self.node,
            self.loaded.device if self.loaded else "",
            self.done,
            self.busy / self.done if self.done else None,
            round(idle, 4),
        )


class Pool:
    """Keeps so many workers and gives them work, one piece at a time to each.

    A worker that is lost, or gives no answer in time, is replaced, and another does its work. The
    answers are in `done`, by the keys of the work.
    """

    def __init__(
        self,
        fleet: Fleet,
        opened: Callable[[Study], Scorer],
        study: Study,
        elsewhere: Elsewhere,
        sight: Sight,
        watcher: Watcher,
    ) -> None:
        self._fleet = fleet
        self._opened = opened
        self._study = study
        self._elsewhere = elsewhere
        self._sight = sight
        self._watcher = watcher
        self._workers: list[_Worker] = []
        self._todo: deque[_Task] = deque()
        self._started = self._unborn = 0
        self._looked = -_LOOK
        self._longest = 0.0
        self._unlike = False
        self._first: Loaded | None = None
        self.size = elsewhere.workers or 1
        self.temperatures: Mapping[str, float] | None = None
        self.done: dict[Hashable, Reply] = {}

    @property
    def free(self) -> bool:
        """Whether a worker has nothing to do, or soon will have where there are many of them."""
        idle = sum(self._idle(one) for one in self._workers)
        return self._first is not None and len(self._todo) < idle + self.size // _AHEAD

    @staticmethod
    def _idle(worker: _Worker) -> bool:
        return worker.loaded is not None and worker.call is None

    def first(self) -> Loaded:
        """Wait for the first worker to have loaded the models; returns what it says of itself."""
        room, wanted = self._fleet.room(), self._elsewhere.workers
        if not room:
            self._watcher.note("no machine has room for a worker; waiting for one that has")
        elif room < (wanted or 1):
            self._watcher.note(f"there is room for {room} of {wanted or 1} workers, others wait")
        self._watcher.stage("workers: loading the models", 0, wanted or max(room, 1))
        while self._first is None:
            self.turn()
        return self._first

    def submit(self, key: Hashable, what: str, method: str, arguments: tuple[Any, ...]) -> None:
        """Let the next worker that is free do a piece of work."""
        self._todo.append(_Task(key, what, method, arguments))
        self._assign()

    def turn(self) -> None:
        """Look after the workers, and wait a while for their answers.

        Raises StudyError where they cannot load the models, and where a piece of work loses one
        worker after the other.
        """
        self._staff()
        self._assign()
        calls = {one.call: one for one in self._workers if one.call is not None}
        for call in self._fleet.wait(list(calls), _TURN):
            self._answered(calls[call])
        self._give_up()
        self._assign()
        now = time.monotonic()
        self._sight.show([one.state(now) for one in self._workers])

    def close(self) -> None:
        """End all workers."""
        for one in self._workers:
            self._fleet.stop(one.itself)
        self._workers.clear()
        self._sight.close()

    def _staff(self) -> None:
        """Start workers that are missing; end those that there is no room for any more."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        wanted = self._elsewhere.workers or self._fleet.room()
        self.size = max(wanted, 1)
        while len(self._workers) < wanted:
            itself = self._fleet.start()
            call = self._fleet.call(itself, "load", self._opened, self._study)
            self._workers.append(_Worker(self._started, itself, call, now, now))
            self._started += 1
        waiting = [one for one in self._workers if one.loaded is None]
        for one in waiting[: len(self._workers) - wanted]:
            self._fleet.stop(one.itself)
            self._workers.remove(one)

    def _assign(self) -> None:
        for one in self._workers:
            if self._todo and self._idle(one):
                one.task = self._todo.popleft()
                one.since = time.monotonic()
                one.call = self._fleet.call(
                    one.itself, "call", self.temperatures, one.task.method, one.task.arguments
                )

    def _answered(self, worker: _Worker) -> None:
        try:
            reply = self._fleet.reply(worker.call)
        except LostError as lost:
            self._lose(worker, str(lost))
            return
        now, task = time.monotonic(), worker.task
        worker.call = worker.task = None
        if task is None and worker.loaded is not None:
            return  # it has been asked whether it is there
        worker.node = reply.node
        problem = reply.problem or (reply.failure if task is None else None)
        if problem is not None:
            self._sight.log(worker.number, f"{reply.output}\n{problem}".lstrip())
            raise StudyError(f"{problem} (so worker {worker.number} on {worker.node})")
        if task is None:
            self._join(worker, reply.result, now)
            words = f"loaded the models on {worker.node}, {reply.result.device}"
        else:
            took = now - worker.since
            worker.done += 1
            worker.busy += took
            self._longest = max(self._longest, took)
            self.done[task.key] = reply
            words = f"{task.what}, {took:.2f} s"
        self._sight.log(worker.number, f"{reply.output}\n{words}".lstrip())

    def _join(self, worker: _Worker, loaded: Loaded, now: float) -> None:
        """Let a worker that has loaded the models do its part; they are those of the others."""
        if self._first is None:
            self._first = loaded
        for ref, digest in self._first.fingerprints.items():
            if loaded.fingerprints.get(ref) != digest:
                raise StudyError(
                    f"the weights of {ref} on {worker.node} are not those that the other workers "
                    "have; give every machine the same files"
                )
        if loaded.device != self._first.device and not self._unlike:
            self._unlike = True
            self._watcher.note(
                f"some workers are {self._first.device}, others {loaded.device}: scores may differ "
                "in their last digits, and the search with them"
            )
        worker.loaded, worker.begun = loaded, now
        self._unborn = 0
        there = sum(one.loaded is not None for one in self._workers)
        self._watcher.stage(f"workers: {worker.node}", there, max(self.size, there))

    def _lose(self, worker: _Worker, reason: str) -> None:
        """Replace a worker, and let another do its work."""
        self._workers.remove(worker)
        if worker.loaded:  # one that cannot load is replaced at the next look
            self._looked = -_LOOK
        self._sight.log(worker.number, f"lost: {reason}")
        for one in self._workers:
            if self._idle(one):  # it may have gone with the other, which only a call shows
                one.since = time.monotonic()
                one.call = self._fleet.call(one.itself, "here")
        task = worker.task
        if task is None:
            self._unborn += worker.loaded is None
            nobody = not any(one.loaded for one in self._workers)
            if nobody and self._unborn > max(_TRIES, self.size):
                raise StudyError(
                    f"{self._unborn} workers in a row were lost while they loaded the models; "
                    f"the last one: {reason}"
                )
            return
        task.losses += 1
        if task.losses > _TRIES:
            raise StudyError(
                f"{task.what} has lost {task.losses} workers, the last one: {reason}; once that "
                f"is mended, go on with {command('resume', self._study.name, self._study.url)}"
            )
        where = f" on {worker.node}" if worker.node else ""
        self._watcher.note(
            f"worker {worker.number}{where} was lost ({reason}); another does {task.what} again"
        )
        self._todo.appendleft(task)

    def _give_up(self) -> None:
        """Give up workers that have not answered for too long."""
        limit = self._elsewhere.deadline
        if limit is None:
            if not self._longest:
                return
            limit = max(_LEAST, _TIMES * self._longest)
        now = time.monotonic()
        for one in list(self._workers):
            if one.loaded and one.call is not None and now - one.since > limit:
                self._fleet.stop(one.itself)
                self._lose(one, f"no answer for {limit:.0f} s")
