"""What a user sees of a run: frames on any terminal, lines in a log, nothing if quiet."""

import itertools
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from evomerge import progress
from evomerge.errors import StudyError
from evomerge.progress import Bars
from evomerge.study.sight import WorkerState
from evomerge.study.standing import Scored, Standing

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HALFWAY = Standing(
    done=112,
    total=300,
    failed=3,
    best=Scored("trial 87", 1.04214, {"maths": 0.7121, "code": 0.6}),
    baseline=Scored("task arithmetic 0.7", 0.99834, {"maths": 0.69, "code": 0.65}),
    seconds=19.5,
    answered=0.62,
)


@pytest.fixture
def own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "memory", lambda: "3.1 GB")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, own_memory: None) -> Callable[..., str]:
    """Run something with stderr a pseudo-terminal; returns all that it wrote there."""

    def run(action: Callable[[], None], columns: int = 60, lines: int = 24) -> str:
        for name, value in {"COLUMNS": columns, "LINES": lines, "TERM": "xterm"}.items():
            monkeypatch.setenv(name, str(value))
        ours, theirs = os.openpty()
        found = bytearray()

        def read() -> None:
            try:
                while piece := os.read(ours, 4096):
                    found.extend(piece)
            except OSError:  # Linux's word for the end of a terminal
                pass

        reader = threading.Thread(target=read)
        reader.start()
        with open(theirs, "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            action()
        reader.join()
        os.close(ours)
        return found.decode()

    return run


def last_frame(written: str) -> list[str]:
    """What a terminal shows in the end of a frame that was drawn over and over."""
    frame = re.split(r"\x1b\[2K(?:\x1b\[1A\x1b\[2K)*", written)[-1]
    return [line.rstrip() for line in CODES.sub("", frame).splitlines() if line.strip()]


def show(standing: Standing) -> None:
    with Bars() as bars:
        bars.stage("loading: base", 1, 1)
        bars.stand(standing)
        bars.stage("final scores: TIES", 2, 9)


def test_a_frame_says_all_there_is(terminal: Callable[..., str]) -> None:
    assert last_frame(terminal(lambda: show(HALFWAY))) == [
        "loading      ━━━━━━━━━━━━━━ 1/1",
        "trials       ━━━━━╺━━━━━━━━ 112/300 3 failed",
        "time         19.50 s/trial",
        "items        62% answered, the others estimated",
        "best         1.0421 trial 87",
        "baseline     0.9983 (best +0.0438) task arithmetic 0.7",
        "  maths      0.7121, baseline 0.6900",
        "  code       0.6000, baseline 0.6500",
        "final scores ━━━╺━━━━━━━━━━ 2/9 TIES",
        "memory       3.1 GB",
    ]


def test_workers_have_a_line_each_where_they_are_few(terminal: Callable[..., str]) -> None:
    busy = WorkerState(0, "busy", "node-a", "NVIDIA H200", 9, 2.5, 0.125)
    idle = WorkerState(3, "idle", "node-b", "NVIDIA H200", 8, 2.0, 0.375)
    new = WorkerState(12, "loading", "", "", 0, None, 0.0)
    shown = last_frame(terminal(lambda: show(replace(HALFWAY, workers=(busy, idle, new)))))
    assert shown[3:7] == [
        "workers      1 busy, 1 idle, 1 loading, 25% of the time idle",
        "  0          busy, 2.50 s each, 12% idle node-a NVIDIA H200",
        "  3          idle, 2.00 s each, 38% idle node-b NVIDIA H200",
        "  12         loading",
    ]
    many = last_frame(terminal(lambda: show(replace(HALFWAY, workers=(busy,) * 9))))
    assert many[3] == "workers      9 busy, 12% of the time idle"
    assert many[4].startswith("items")


def test_the_time_left_is_by_all_workers_that_are_busy(capsys: pytest.CaptureFixture[str]) -> None:
    busy = WorkerState(0, "busy", "node-a", "cpu", 9, 2.5, 0.125)
    with Bars() as bars:
        bars.stand(Standing(100, 300, seconds=6.0, workers=(busy,) * 4))
    line = capsys.readouterr().err
    assert "6.00 s/trial, 5:00 left, workers: 4 busy, 12% of the time idle" in line


@pytest.mark.parametrize("columns", [30, 60, 200])
def test_no_line_of_a_frame_is_wider_than_the_terminal(
    columns: int, terminal: Callable[..., str]
) -> None:
    long = Scored("a soup of " + "very " * 50, 0.5, {"a task " + "named " * 20: 0.25})
    standing = Standing(1, 2, best=long, baseline=long, seconds=1e6)

    def action() -> None:
        with Bars() as bars:
            bars.stage("measuring everything that there is: model.layers.0." + "mlp." * 60, 1, 2)
            bars.stand(standing, {"note": "nobody is running it; go on with `evomerge resume s`"})

    written = terminal(action, columns)
    lines = [CODES.sub("", line).replace("\r", "") for line in written.split("\n")]
    assert max(map(len, lines)) <= columns
    frame = last_frame(written)
    start = next(index for index, line in enumerate(frame) if line.startswith("note"))
    assert start == 7  # one line for each of the others
    note = "".join(line[9:] for line in frame[start:]).replace(" ", "")
    assert note == "nobodyisrunningit;goonwith`evomergeresumes`"
    assert columns > 100 or all("…" in line for line in frame if line[:4] in {"best", "meas"})


def test_a_frame_is_no_higher_than_the_terminal(terminal: Callable[..., str]) -> None:
    tasks = {f"task {n}": 0.5 for n in range(40)}
    standing = Standing(1, 9, 1, Scored("trial 0", 1, tasks), Scored("two", 1, tasks), 1, 0.5)
    frame = last_frame(terminal(lambda: show(standing), lines=16))
    assert len(frame) < 16
    assert "             … and 35 tasks more" in frame
    assert sum(line.startswith("  task ") for line in frame) == 5


def test_a_log_has_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_memory: None
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Bars() as bars:
        for done in range(1, 5):
            bars.stage(f"baselines: model {done}", done, 4)
        for done in range(401):
            now[0] += 2
            bars.trial(done, 400, 0.5, None if done == 0 else 2.0)
        bars.note("a long note " + "that is not broken into lines " * 9)
    found = capsys.readouterr()
    assert found.out == ""
    assert "\x1b" not in found.err
    assert "\r" not in found.err
    lines = found.err.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d \w", line) for line in lines[:-1])
    assert [line[9:] for line in lines[:2]] == [
        "baselines 1/4, model 1, 3.1 GB",
        "trials 14/400, best 0.5000, 2.00 s/trial, 12:52 left, 3.1 GB",
    ]
    assert lines[-2].endswith("trials 400/400, best 0.5000, 2.00 s/trial, 3.1 GB")
    told = [int(re.search(r"trials (\d+)", line)[1]) for line in lines[1:-1]]  # type: ignore[index]
    assert set(range(40, 401, 40)) <= set(told)
    assert all(later - earlier <= 15 for earlier, later in itertools.pairwise(told))
    assert len(told) <= 10 + 800 / 30


def test_quick_trials_make_few_lines(capsys: pytest.CaptureFixture[str], own_memory: None) -> None:
    with Bars() as bars:
        for done in range(1001):
            bars.trial(done, 1000, None, 0.001 if done else None)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 12
    assert lines[-1][9:] == "trials 1000/1000, 0.00 s/trial, 3.1 GB"


def test_quiet(capsys: pytest.CaptureFixture[str], terminal: Callable[..., str]) -> None:
    def action() -> None:
        with Bars(quiet=True) as bars:
            bars.stage("loading: base", 0, 2)
            bars.trial(1, 2, 0.5, 1.0)
            bars.note("by the way")
            bars.warn("stopped")

    action()
    assert capsys.readouterr().err == "stopped\n"
    assert terminal(action) == "stopped\r\n"


def test_a_reader_that_fails_ends_nothing(
    capsys: pytest.CaptureFixture[str], own_memory: None
) -> None:
    def fail() -> Standing:
        raise StudyError("the database failed")

    with Bars(read=fail) as bars:
        bars.trial(3, 3, 0.25, 0.5)
        bars.stage("final scores", 0, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0][9:] == "trials 3/3, best 0.2500, 0.50 s/trial, 3.1 GB"


def test_what_is_read_goes_before_what_is_told(
    capsys: pytest.CaptureFixture[str], own_memory: None
) -> None:
    with Bars(read=lambda: HALFWAY) as bars:
        bars.trial(1, 2, 0.25, 0.5)
    (line,) = capsys.readouterr().err.splitlines()
    assert line[9:] == (
        "trials 112/300, 3 failed, best 1.0421 trial 87, "
        "baseline 0.9983 task arithmetic 0.7, maths 0.7121, code 0.6000, 19.50 s/trial, "
        "1:01:06 left, 62% of the items answered, 3.1 GB"
    )


def test_the_end_of_a_search_before_its_number_is_seen(terminal: Callable[..., str]) -> None:
    standings = iter([Standing(1, 300, seconds=2), Standing(40, 300, seconds=2)])

    def action() -> None:
        with Bars(read=lambda: next(standings)) as bars:
            bars.trial(1, 300, None, None)
            bars.trial(40, 300, None, 2.0)  # too soon after the first to be read
            bars.stage("finalists", 0, 4)

    frame = last_frame(terminal(action))
    assert frame[0].endswith(" 40/300")
    assert frame[1] == "time      2.00 s/trial"


def test_memory_of_this_process_and_of_the_gpus_that_it_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rss = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=3_140_000_000))
    monkeypatch.setattr(progress.psutil, "Process", lambda: rss)
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        memory_reserved=lambda index: [0, 20_400_000_000][index],
        get_device_properties=lambda index: SimpleNamespace(total_memory=150 * 10**9),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert progress.memory() == "3.14 GB, cuda:1 20.4 GB of 150 GB"
    cuda.is_initialized = lambda: False
    assert progress.memory() == "3.14 GB"
