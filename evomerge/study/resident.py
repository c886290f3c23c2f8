"""A worker of a study: a process that holds the models and scores what the driver asks for."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.errors import CandidateError, EvomergeError, InputError
from evomerge.study.workers import evaluate

if TYPE_CHECKING:
    from evomerge.merger.inputs import Memory
    from evomerge.study.scorer import Scorer


@dataclass(frozen=True)
class Study:
    """What a worker makes its models and tasks of: a study's record, read where it runs."""

    name: str
    url: str | None
    record: Mapping[str, Any]
    device: str | None
    memory: Memory
    trust: bool


@dataclass(frozen=True)
class Loaded:
    """What a worker says of itself once it holds the models."""

    process: int
    device: str
    side_by_side: bool
    fingerprints: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """What has come of a call: a result, or the sentence that a recipe or the study failed with.

    `output` is what was printed meanwhile.
    """

    result: Any
    failure: str | None
    problem: str | None
    output: str
    node: str


def open_scorer(study: Study) -> Scorer:
    """Load a study's models and items from this machine's disk or cache, and check the items."""
    from evomerge.study import loop

    checked = loop.reopened(study.name, study.url, study.record, study.trust)
    machine: loop.Machine = {"device": study.device, "memory": study.memory, "trust": study.trust}
    return loop.scorer_of(checked, machine)


class Resident:
    """One merger and one evaluator that stay; it answers one call after the other."""

    def __init__(self) -> None:
        self._scorer: Scorer | None = None
        self._temperatures: Mapping[str, float] | None = None

    def load(self, opened: Callable[[Study], Scorer], study: Study) -> Reply:
        """Load the models; the result is a `Loaded`."""

        def load() -> Loaded:
            self._scorer = scorer = opened(study)
            return Loaded(
                os.getpid(),
                scorer.device,
                scorer.side_by_side,
                scorer.fingerprints,
            )

        return _reply(load)

    def here(self) -> Reply:
        """Answer, which shows that it is there."""
        return _reply(lambda: None)

    def call(
        self, temperatures: Mapping[str, float] | None, method: str, arguments: tuple[Any, ...]
    ) -> Reply:
        """Call a method of the scorer, or `evaluate` a job, at the study's temperatures."""

        def call() -> Any:
            assert self._scorer is not None
            if temperatures is not None and temperatures != self._temperatures:
                self._scorer.set_temperatures(temperatures)
                self._temperatures = temperatures
            if method == "evaluate":
                return evaluate(self._scorer, *arguments)
            return getattr(self._scorer, method)(*arguments)

        return _reply(call)


def _reply(action: Callable[[], Any]) -> Reply:
    result, failure, problem = None, None, None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            result = action()
        except (CandidateError, InputError) as error:
            failure = str(error)
        except EvomergeError as error:
            problem = str(error)
    return Reply(result, failure, problem, printed.getvalue(), socket.gethostname())
