"""What the commands share: the application, results on stdout, bars on stderr."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from evomerge.progress import Bars

app = typer.Typer(
    help="Evolutionary search for the best recipe to merge fine-tuned language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def say(text: str) -> None:
    """Print a result."""
    typer.echo(text)


@contextlib.contextmanager
def bars(hint: str = "") -> Iterator[Bars]:
    """Show progress; Ctrl-C ends in one line and exit status 130."""
    from evomerge.progress import Bars

    with Bars() as shown:
        try:
            yield shown
        except KeyboardInterrupt as problem:
            shown.note(str(problem) or f"stopped{hint}")
            raise SystemExit(130) from None


def command() -> str:
    """Return how this program is called here, for the next command to try."""
    called = Path(sys.argv[0])
    if called.name != "evomerge":
        return f"{Path(sys.executable).name} -m evomerge"
    found = shutil.which("evomerge")
    if found and Path(found).resolve() == called.resolve():
        return "evomerge"
    return str(called)
