"""Studies on Ray, with real models and processes: whatever dies, the trials are the same.

tests/study/test_workers.py and test_pool.py have the many cases, without Ray.
"""

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from evomerge.errors import StudyError
from evomerge.study.resident import Study
from evomerge.study.workers import Elsewhere
from tests.conftest import run_cli
from tests.study.fake_study import NAMES, contents

pytest.importorskip("ray")
TRIALS = 24


@pytest.fixture
def study(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the family's study for an optimizer, in a file of its name."""
    monkeypatch.chdir(tmp_path)

    def write(optimizer: str) -> Path:
        path = family / f"{optimizer}.yaml"
        data = yaml.safe_load((family / "study.yaml").read_text())
        own: dict[str, Any] = {"startup_trials": 6, "lag": 4} if optimizer in ("gp", "tpe") else {}
        data["search"] = {"optimizer": optimizer, "trials": TRIALS, "seed": 0, **own}
        path.write_text(yaml.safe_dump(data))
        return path

    return write


def started(*words: object) -> subprocess.Popen[bytes]:
    with Path("driver.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "evomerge", *map(str, words)], stdout=log, stderr=log
        )


def until(process: subprocess.Popen[bytes], ready: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 300
    while not ready():
        log = Path("driver.log").read_text()
        assert process.poll() is None, f"the study ended before {what}: {log}"
        assert time.monotonic() < deadline, f"{what} took too long: {log}"
        time.sleep(0.01)


def actors(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The workers of a driver that has started Ray itself."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            if "ray::Resident" in " ".join(one.cmdline()):
                found.append(one)
        except psutil.NoSuchProcess:
            continue
    return found


def same(one: str, other: str, url: str | None = None) -> None:
    found = [contents(one, url), contents(other)]
    for each in found:
        del each["attributes"]["evomerge:study"]["source"]
    assert len(found[0]["trials"]) == TRIALS
    assert found[0] == found[1]


def trials() -> int:
    """How many trials the study has begun."""
    database = Path("runs/s/study.db")
    if not database.exists():
        return 0
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return int(connection.execute("select count(*) from trials").fetchone()[0])


# Random search learns nothing that a death could change.
@pytest.mark.parametrize("optimizer", [name for name in NAMES if name != "random_search"])
def test_workers_and_drivers_are_killed_and_nothing_changes(
    optimizer: str, study: Callable[[str], Path]
) -> None:
    path = study(optimizer)
    run_cli("search", path, "--name", "alone", cwd=Path.cwd())

    driver = started("search", path, "--name", "s", "--workers", 2)
    until(driver, lambda: trials() > 5 and len(actors(driver)) == 2, "two workers died")
    for one in actors(driver):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    begun = trials()
    until(driver, lambda: trials() > begun + 3, "the driver died")
    left = actors(driver)
    driver.kill()
    driver.wait()
    assert left
    assert not psutil.wait_procs(left, timeout=60)[1]  # they end with their driver

    often = optimizer == "cma_es"  # as for the others: to start Ray takes most of the time
    if often:
        driver, begun = started("resume", "s", "--workers", 1), trials()
        until(driver, lambda: trials() > begun + 2, "the driver died again")
        driver.kill()
        driver.wait()

    run_cli("resume", "s", "--workers", 4 if often else 1, cwd=Path.cwd())
    same("s", "alone")
    logs = [one.read_text() for one in Path("runs/s/workers").glob("*.log")]
    assert sum("lost: " in one for one in logs) >= 2


def test_a_node_of_a_cluster_dies_and_another_joins(study: Callable[[str], Path]) -> None:
    from ray.cluster_utils import Cluster

    path = study("cma_es")
    run_cli("search", path, "--name", "alone", cwd=Path.cwd())
    memory = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **memory})
    try:
        node = cluster.add_node(num_cpus=1, **memory)
        driver = started("search", path, "--name", "s", "--ray", cluster.address)
        until(driver, lambda: trials() > 5, "a node died")
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1, **memory)
        assert driver.wait(300) == 0, Path("driver.log").read_text()
    finally:
        cluster.shutdown()
    same("s", "alone")
    logs = [one.read_text() for one in Path("runs/s/workers").glob("*.log")]
    assert len(logs) >= 2


def test_two_studies_share_a_cluster_and_a_server(
    study: Callable[[str], Path], server: str
) -> None:
    from ray.cluster_utils import Cluster

    names = ["cma_es", "random_search"]
    paths = {name: study(name) for name in names}
    for name, path in paths.items():
        run_cli("search", path, "--name", f"{name}-alone", cwd=Path.cwd())
    whole = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=whole)
    drivers: list[subprocess.Popen[bytes]] = []
    try:
        shared = ["--ray", cluster.address, "--workers", 1, "--storage", server]
        drivers = [started("search", paths[name], "--name", name, *shared) for name in names]
        ends = [driver.wait(300) for driver in drivers]
    finally:
        for driver in drivers:
            driver.kill()
        cluster.shutdown()
    assert ends == [0, 0], Path("driver.log").read_text()
    for name in names:
        same(name, f"{name}-alone", server)


def test_gpus_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of two GPUs needs both on one machine, and has the model spread over them."""
    from evomerge.study import ray_workers

    def node(cores: float, gpus: float, alive: bool = True) -> dict[str, Any]:
        return {"Alive": alive, "Resources": {"CPU": cores, "GPU": gpus}}

    def placed(gpus: float | None, device: str | None = None) -> tuple[int, str | None]:
        fleet = ray_workers.RayFleet(Elsewhere(address="auto", gpus=gpus), device)
        return fleet.room(), fleet.placed(Study("s", None, {}, device, "auto", False)).device

    nodes = [node(16, 5), node(3, 8), node(64, 64, alive=False)]
    monkeypatch.setattr(ray_workers.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray_workers.ray, "cluster_resources", lambda: {"CPU": 19, "GPU": 13})
    assert placed(None) == (5 + 3, None)
    assert placed(0.25) == (16 + 3, None)
    assert placed(2) == (2 + 3, "cuda:0,cuda:1")
    assert placed(4, "cuda") == (1 + 2, "cuda:0,cuda:1,cuda:2,cuda:3")
    assert placed(None, "cpu") == (19, "cpu")
    monkeypatch.setattr(ray_workers.ray, "cluster_resources", lambda: {"CPU": 8, "GPU": 1})
    with pytest.raises(StudyError, match=r"expected 2 GPUs on this machine .* got 1; give fewer"):
        ray_workers.RayFleet(Elsewhere(2, gpus=2), None)
    with pytest.raises(
        StudyError, match="got cuda:0,cuda:1; with --gpus-per-worker 2 each has two"
    ):
        ray_workers.RayFleet(Elsewhere(2), "cuda:0,cuda:1")


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    from evomerge.study.ray_workers import _connect

    with pytest.raises(StudyError, match=r"cannot use Ray on 127.0.0.1:1: .*refused"):
        _connect(Elsewhere(address="127.0.0.1:1"))
