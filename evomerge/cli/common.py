"""What the commands share: the application, results on stdout, bars on stderr."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from evomerge.progress import Bars
    from evomerge.study.standing import Standing

# The commands in the order of their use; those that are not named here come last.
ORDER = (
    "init", "inspect", "check", "search", "watch", "dashboard", "resume", "status", "enqueue",
    "export", "report", "compare", "merge", "evaluate", "push", "list", "zoo",
)  # fmt: skip


class Commands(TyperGroup):
    """The commands, listed in the order of their use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        places = {name: place for place, name in enumerate(ORDER)}
        return sorted(super().list_commands(ctx), key=lambda name: places.get(name, len(ORDER)))


app = typer.Typer(
    cls=Commands,
    help="Evolutionary search for the best recipe to merge fine-tuned language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def say(text: str) -> None:
    """Print a result."""
    typer.echo(text)


@contextlib.contextmanager
def bars(
    hint: str = "", *, quiet: bool = False, read: Callable[[], Standing] | None = None
) -> Iterator[Bars]:
    """Show progress; Ctrl-C ends in one line and exit status 130."""
    from evomerge.progress import Bars

    shown = Bars(quiet, read)
    try:
        with shown:
            yield shown
    except KeyboardInterrupt as problem:
        shown.warn(f"note: {str(problem) or f'stopped{hint}'}")
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
