"""The command line: one thin function per command.

Results go to stdout, progress to stderr; a user's error is one sentence and exit status 2.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, NoReturn

import typer

from evomerge import __version__
from evomerge.cli import models, studies
from evomerge.cli.common import app, say
from evomerge.errors import EvomergeError, first_line, out_of_memory

__all__ = ["app", "main", "models", "studies"]


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except EvomergeError as problem:
        _end(str(problem))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" for {problem.filename}" if problem.filename else ""
        _end(f"no space is left on the disk{where}; free some, then try again")
    except (MemoryError, RuntimeError) as problem:
        if not out_of_memory(problem):
            raise
        hint = "use a machine with more"
        if {"search", "resume", "evaluate", "inspect"} & set(sys.argv[1:]):
            hint = "say where the input models may lie instead: --memory host or disk"
            if _may_spread(problem):
                hint += "; several GPUs may share a model: --device cuda:0,cuda:1"
        _end(f"memory does not suffice ({first_line(problem)[:160]}); free some, or {hint}")


def _may_spread(problem: Exception) -> bool:
    """Return whether a GPU lacked memory beside another that was not asked for."""
    import torch

    alone = not any("," in word for word in sys.argv)
    return alone and "CUDA" in str(problem) and torch.cuda.device_count() > 1


def _end(sentence: str) -> NoReturn:
    print(f"evomerge: {sentence}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


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
