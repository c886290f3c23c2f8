"""Workers on Ray (`pip install 'evomerge[ray]'`): actors of this machine or of a cluster."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from evomerge.errors import StudyError, first_line
from evomerge.evaluator import TaskItems
from evomerge.study.crew import Crew
from evomerge.study.pool import LostError, Pool
from evomerge.study.resident import Reply, Resident, Study
from evomerge.study.scorer import Scorer
from evomerge.study.sight import Sight
from evomerge.study.trials import Watcher
from evomerge.study.workers import Elsewhere

try:
    # Else it says how many use it, and warns of what is to change; asked of its own process alone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.exceptions import RayError, RayTaskError
except ModuleNotFoundError as problem:
    if problem.name != "ray":
        raise
    raise StudyError("--workers and --ray need Ray; pip install 'evomerge[ray]'") from None

_STARTS = 3  # times that a Ray of this machine's own is tried to be started
_SECONDS = 10.0  # to reach a cluster
_WORDS = 160  # letters of a reason
_STORE = 200 * 2**20  # bytes of this machine's own Ray: what is sent are recipes and scores


@contextlib.contextmanager
def crew(
    study: Study,
    tasks: Sequence[TaskItems],
    elsewhere: Elsewhere,
    watcher: Watcher,
    opened: Callable[[Study], Scorer],
) -> Iterator[Crew]:
    """Yield the workers of a study, of which the first has loaded the models.

    `opened` is called where a worker is. They end with the block, and with this process however it
    ends.
    """
    connected = ray.is_initialized()
    if not connected:
        _connect(elsewhere)
    try:
        fleet = RayFleet(elsewhere, study.device)
        pool = Pool(fleet, opened, fleet.placed(study), elsewhere, Sight(study.name), watcher)
        try:
            yield Crew(pool, tasks)
        finally:
            pool.close()
    finally:
        if not connected:
            ray.shutdown()


def _connect(elsewhere: Elsewhere) -> None:
    """Join a cluster, or start a Ray of this process's own; its handlers of signals stay."""
    main = threading.current_thread() is threading.main_thread()
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if elsewhere.address is None:
        cores = os.cpu_count() or 1
        options |= {
            "address": "local",
            "num_cpus": max(elsewhere.workers or 0, cores),
            "include_dashboard": False,
            "object_store_memory": _STORE,
        }
    else:
        options["address"] = elsewhere.address
    try:
        _reach(elsewhere.address)
        _begin(options, 1 if elsewhere.address else _STARTS)
    except Exception as problem:  # its own are of any kind
        where = elsewhere.address or "this machine"
        raise StudyError(f"cannot use Ray on {where}: {first_line(problem)}") from None
    finally:
        if main:
            for one, handler in handlers.items():
                signal.signal(one, handler)


def _reach(address: str | None) -> None:
    """Raise OSError where nobody listens at an address, which Ray takes minutes to say."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()


def _begin(options: Mapping[str, Any], tries: int) -> None:
    """Start Ray or join it; on a busy machine it may be too slow for its own patience."""
    for one in range(tries):
        try:
            ray.init(**options)
        except Exception:
            ray.shutdown()
            if one + 1 == tries:
                raise
        else:
            return


class RayFleet:
    """Actors that each have a core and a share of a GPU, or several, none where there are no GPUs.

    Ray never restarts one nor calls it twice: that is the pool's to decide.
    """

    def __init__(self, elsewhere: Elsewhere, device: str | None) -> None:
        gpus = elsewhere.gpus
        if device is not None and device not in ("cpu", "cuda"):
            raise StudyError(
                f"expected --device cpu or cuda with workers, got {device}; with "
                "--gpus-per-worker 2 each has two GPUs"
            )
        there = ray.cluster_resources().get("GPU", 0)
        if gpus is None:
            gpus = 1.0 if device != "cpu" and there else 0.0
        elif elsewhere.address is None and there < max(gpus, 1):
            wanted = "a GPU" if gpus <= 1 else f"{gpus:g} GPUs"
            raise StudyError(
                f"expected {wanted} on this machine with --gpus-per-worker {gpus:g}, got "
                f"{there:g}; {'give fewer, or ' if there else ''}leave it out"
            )
        self._gpus = gpus
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        self._actor: Any = remote(Resident)

    def placed(self, study: Study) -> Study:
        """Return the study as its workers run it: without a share of a GPU, on the CPU.

        With several GPUs the model is spread over them.
        """
        device = study.device or (None if self._gpus else "cpu")
        if device != "cpu" and self._gpus > 1:
            device = ",".join(f"cuda:{number}" for number in range(int(self._gpus)))
        return Study(study.name, study.url, study.record, device, study.memory, study.trust)

    def room(self) -> int:
        """Return how many workers the machines of the cluster have room for, each by itself."""
        return sum(self._fit(node["Resources"]) for node in ray.nodes() if node["Alive"])

    def _fit(self, node: Mapping[str, float]) -> int:
        """Return how many workers fit a machine: as many as a GPU has shares, on each of them."""
        cores, gpus, each = int(node.get("CPU", 0)), int(node.get("GPU", 0)), self._gpus
        if not each:
            return cores
        return min(cores, gpus * int(1 / each + 1e-9) if each <= 1 else gpus // int(each))

    def start(self) -> Any:
        """Start an actor, which waits for room."""
        return self._actor.remote()

    def stop(self, worker: Any) -> None:
        """Kill an actor."""
        with contextlib.suppress(RayError):
            ray.kill(worker, no_restart=True)

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Call an actor's method."""
        return getattr(worker, method).remote(*arguments)

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        """Return the calls that are answered, after some time at most."""
        if not calls:
            time.sleep(seconds)
            return []
        found, others = ray.wait(list(calls), num_returns=1, timeout=seconds)
        if found and others:
            found += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return list(found)

    def reply(self, call: Any) -> Reply:
        """Return what an actor has answered; raises LostError where it has gone."""
        try:
            found: Reply = ray.get(call)
        except RayTaskError:
            raise
        except RayError as problem:
            raise LostError(_words(problem)) from None
        return found


def _words(problem: RayError) -> str:
    """Return the reason of a loss in a few words, out of the many that Ray makes."""
    text = " ".join(str(problem).split())
    detail = re.search(r"exit detail: (.+)", text)
    text = (detail[1] if detail else text).split(" Some common causes")[0]
    return text if len(text) <= _WORDS else text[: _WORDS - 1] + "…"
