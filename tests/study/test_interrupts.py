"""Ctrl-C and SIGTERM on a real process: the running trial is finished, a second one is not."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.study.fake_study import contents, go_on

ROOT = Path(__file__).parents[2]
# Runs the command line, and at a chosen moment says so and waits for a line.
PROGRAM = """
import sys
from evomerge import cli
from evomerge.study import loop
from tests.study import fake_study

moment, sys.argv = sys.argv[1], ["evomerge", *sys.argv[2:]]
calls = 0

def wait():
    print("now", flush=True)
    sys.stdin.readline()

class Scorer(fake_study.FakeScorer):
    def candidate(self, recipe, split):
        global calls
        calls += 1
        if calls == 6 and moment == "trial":
            wait()
        return super().candidate(recipe, split)

def scorer(checked, watcher, machine):
    if moment == "loading":
        wait()
    return Scorer(checked)

with fake_study.faked() as patch:
    patch.setattr(loop, "_scorer", scorer)
    cli.main()
"""


@contextmanager
def stopped_at(moment: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command that has come to the moment and waits there."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, moment, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "now\n"
        yield process


def until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr
    assert any(words in line for line in process.stderr), words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_running_trial(fake: Path, number: signal.Signals) -> None:
    go_on(fake, "whole")
    with stopped_at("trial", "search", str(fake), "--name", "s") as process:
        process.send_signal(number)
        until(process, "stopping after this trial; once more stops at once")
        _, errors = process.communicate("\n")
    assert process.returncode == 130
    assert "stopped; go on with `evomerge resume s`" in errors
    states = [state for *_, state in contents("s")["trials"]]
    assert len(states) == 6
    assert "RUNNING" not in states
    go_on(fake, "s")
    assert contents("s") == contents("whole")


def test_a_second_signal_ends_at_once(fake: Path) -> None:
    go_on(fake, "whole")
    with stopped_at("trial", "search", str(fake), "--name", "s") as process:
        process.send_signal(signal.SIGINT)
        until(process, "stopping after this trial")
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert "stopped; go on with `evomerge resume s`" in process.stderr.read()
        assert process.wait() == 130
    assert [state for *_, state in contents("s")["trials"]][-1] == "RUNNING"
    go_on(fake, "s")
    assert contents("s") == contents("whole")


def test_a_signal_before_there_is_a_study(fake: Path) -> None:
    with stopped_at("loading", "search", str(fake), "--name", "s") as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "note: stopped\n"
    assert not Path("runs/s/study.db").exists()
