"""The command line: one thin function per command.

Results go to stdout, progress to stderr; a user's error is one sentence and exit status 2.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from evomerge import __version__
from evomerge.cli import models, studies
from evomerge.cli.common import app, say
from evomerge.errors import EvomergeError

__all__ = ["app", "main", "models", "studies"]


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except EvomergeError as problem:
        print(f"evomerge: {problem}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _version(value: bool) -> None:
    if value:
        say(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass
