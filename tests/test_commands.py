"""The list of commands, completion in a shell, exit statuses."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge import cli
from evomerge.cli.common import ORDER
from tests.conftest import run_cli


def test_commands_are_listed_in_the_order_of_their_use(tmp_path: Path) -> None:
    text = run_cli("--help", cwd=tmp_path).stdout
    names = re.findall(r"^  ([a-z]+) {2,}", text.split("Commands:")[1], re.MULTILINE)
    assert names[:4] == ["init", "inspect", "check", "search"]
    known = [name for name in ORDER if name in names]
    assert names[: len(known)] == known
    assert "--install-completion" in text


def test_a_shell_is_told_the_commands(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['evomerge']; from evomerge.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"_EVOMERGE_COMPLETE": "complete_bash", "COMP_WORDS": "evomerge in", "COMP_CWORD": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["init", "inspect"]


def test_a_reader_that_goes_away_is_exit_status_1(tmp_path: Path) -> None:
    command = f"{sys.executable} -m evomerge list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "evomerge", "schema"],
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "evomerge: no space is left on the disk; free some, then try again\n"


def test_what_is_a_bug_of_ours_is_shown_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for problem in (RuntimeError("sizes do not match"), OSError(errno.EIO, "Input/output error")):

        def fails(problem: Exception = problem) -> None:
            raise problem

        monkeypatch.setattr(cli, "app", fails)
        with pytest.raises(type(problem)):
            cli.main()
