"""Merges a recipe again and again in processes that are killed, and goes on from what they leave.

    python killed.py FOLDER operations|moments

FOLDER holds recipe.yaml. Prints as JSON how many processes were killed. Each process is a fork of
this one, which has imported what a merge needs.
"""

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import CheckpointError
from evomerge.merger.write import merge_file

OPERATIONS = ("mkdir", "open", "write", "fsync", "chmod", "rename", "replace", "unlink", "rmdir")
KILLED, REFUSED = 9, 2


def die_at(number: int) -> None:
    """End this process, as a kill does, in place of its n-th operation on files."""
    count = 0

    def counted(operation: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os._exit(KILLED)
            return operation(*arguments, **options)

        return run

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


def merge(recipe: Path, out: Path, resume: bool) -> int:
    """Merge in this process, every tensor a shard; returns an exit status."""
    try:
        digest = merge_file(
            recipe, out, "cpu", 1, resume, False, lambda *step: None, lambda text: None
        )
    except CheckpointError as problem:
        return REFUSED if "exists already" in str(problem) else 1
    out.with_suffix(".digest").write_text(digest)
    return 0


def forked(recipe: Path, out: Path, resume: bool, at: int = 0, after: float = 0.0) -> int:
    """Merge in a fork that dies at an operation or after some seconds; returns its status."""
    process = os.fork()
    if not process:
        status = 1
        try:
            if at:
                die_at(at)
            status = merge(recipe, out, resume)
        finally:
            os._exit(status)
    if after:
        signal.signal(signal.SIGALRM, lambda *arguments: kill(process))
        signal.setitimer(signal.ITIMER_REAL, after)
    _, status = os.waitpid(process, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return KILLED if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def kill(process: int) -> None:
    """Kill a process that may have ended just now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def content(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check(out: Path, reference: Path, status: int) -> None:
    """Assert that a model is whole and like another, and that nothing else is beside it."""
    assert status in (0, REFUSED), status
    assert content(out) == content(reference)
    assert {path.name for path in out.parent.iterdir()} <= {"out", "out.digest"}
    if status == 0:
        digest = out.with_suffix(".digest").read_text()
        assert digest == reference.with_suffix(".digest").read_text()


def operations(folder: Path, recipe: Path, reference: Path) -> int:
    """Die at every operation once, and then at another of the process that goes on."""
    killed = 0
    for number in range(1, 10_000):
        out = folder / f"at-{number}" / "out"
        status = forked(recipe, out, False, at=number)
        if status == 0:
            check(out, reference, status)
            return killed
        assert status == KILLED
        killed += 1
        assert not out.exists() or content(out) == content(reference)
        status = forked(recipe, out, True, at=1 + number * 7 % 40)
        if status == KILLED:
            killed += 1
            status = forked(recipe, out, True)
        check(out, reference, status)
    raise AssertionError("a merge never ends")


def moments(folder: Path, recipe: Path, reference: Path) -> int:
    """Kill at random moments until two dozen processes have been killed."""
    chance = random.Random(0)
    begun = time.monotonic()
    assert forked(recipe, folder / "timed" / "out", False) == 0
    seconds = time.monotonic() - begun
    killed = turn = 0
    while killed < 24:
        turn += 1
        out = folder / f"turn-{turn}" / "out"
        status = forked(recipe, out, False, after=chance.uniform(0.001, seconds))
        while status == KILLED:
            killed += 1
            assert not out.exists() or content(out) == content(reference)
            again = chance.random() < 0.5
            after = chance.uniform(0.001, seconds) if again else 0.0
            status = forked(recipe, out, True, after=after)
        check(out, reference, status)
    return killed


def main() -> None:
    """Run one of the two ways to die."""
    folder, way = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    recipe, reference = folder / "recipe.yaml", folder / "reference" / "out"
    assert forked(recipe, reference, False) == 0
    run = {"operations": operations, "moments": moments}[way]
    print(json.dumps({"killed": run(folder, recipe, reference)}))  # noqa: T201


if __name__ == "__main__":
    main()
