"""The list of commands, completion in a shell, exit statuses."""

import re
import subprocess
import sys
from pathlib import Path

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
