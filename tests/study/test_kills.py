"""Killing processes at random moments leaves a database whose study goes on exactly."""

import itertools
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.study.fake_study import NAMES, contents, go_on_in, mapping, staged, write_study

KILLS = 13  # of each optimizer
PRELOAD = ["tests.study.fake_study", "optuna.storages", "alembic.command", "scipy.optimize", "cma"]


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def kill_often(
    processes: Any, folder: Path, study: Path, url: str | None, optimizer: str, kills: int
) -> None:
    """Kill processes that work on studies at random moments, until there were enough kills."""

    def start(name: str) -> Any:
        here, there = processes.Pipe(duplex=False)
        process = processes.Process(target=go_on_in, args=(folder, study, name, url, there))
        process.start()
        there.close()  # so that its death is seen
        here.recv()
        return process

    begun = time.perf_counter()
    name = f"{optimizer}-whole"
    process = start(name)
    process.join()
    assert process.exitcode == 0
    whole = time.perf_counter() - begun
    expected = contents(name, url)
    chance = random.Random(optimizer)
    killed, round_ = 0, 0
    while killed < kills:
        name = f"{optimizer}-{round_}"
        for life in itertools.count(1):
            process = start(name)
            process.join(
                chance.uniform(0, whole * life / 8)
            )  # longer, so that it ends on any machine
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -9
            killed += 1
        assert contents(name, url) == expected
        round_ += 1


@pytest.mark.parametrize(
    ("optimizer", "make"), [*((name, mapping) for name in NAMES), ("cma_es", staged)]
)
def test_kills_at_random_moments(
    optimizer: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    study = write_study(tmp_path, make(optimizer))
    kill_often(processes, tmp_path, study, None, optimizer, KILLS)


def test_kills_at_random_moments_with_a_server(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, processes: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    study = write_study(tmp_path, mapping("cma_es"))
    kill_often(processes, tmp_path, study, server, "cma_es", KILLS)
