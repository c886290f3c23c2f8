"""The command line: one thin function per command.

Results go to stdout, progress to stderr; a user's error is one sentence and exit status 2.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evomerge import __version__
from evomerge.errors import EvomergeError
from evomerge.options import (
    Device,
    Fork,
    ForkStudy,
    Json,
    MemoryChoice,
    NameArgument,
    OutDir,
    Recipe,
    Resume,
    ShardSize,
    Storage,
    StudyArgument,
    Trials,
    Trust,
)

if TYPE_CHECKING:
    from evomerge.progress import Bars

app = typer.Typer(
    help="Evolutionary search for the best recipe to merge fine-tuned language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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


def _say(text: str) -> None:
    typer.echo(text)


@contextlib.contextmanager
def _bars(hint: str = "") -> Iterator[Bars]:
    from evomerge.progress import Bars

    with Bars() as bars:
        try:
            yield bars
        except KeyboardInterrupt as problem:
            bars.note(str(problem) or f"stopped{hint}")
            raise SystemExit(130) from None


@app.command()
def zoo(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="folder to make")],
    seed: Annotated[int, typer.Option(min=0, help="seed of data and training")] = 0,
) -> None:
    """Build the tiny model family: a base, three experts, their tasks and a study file."""
    from evomerge.zoo import build_zoo

    with _bars() as bars:
        try:
            build_zoo(directory, seed=seed, progress=bars.stage)
        except FileExistsError as problem:
            raise EvomergeError(str(problem)) from None
    study = directory / "study.yaml"
    _say(f"{study} is ready; next: {_command()} search {study}")


@app.command()
def search(
    study: StudyArgument,
    name: Annotated[str | None, typer.Option(help="name of the study, its folder in runs/")] = None,
    trials: Trials = None,
    seed: Annotated[int | None, typer.Option(min=0, help="seed of the search")] = None,
    storage: Storage = None,
    device: Device = None,
    memory: MemoryChoice = "auto",
    trust: Trust = False,
) -> None:
    """Launch a study; it lives in runs/NAME."""
    from evomerge.study import loop

    name = loop.default_name(study) if name is None else name
    machine: loop.Machine = {"device": device, "memory": memory, "trust": trust}
    with _bars() as bars:
        report = loop.search(
            study, name, trials=trials, seed=seed, url=storage, watcher=bars, **machine
        )
    _conclude(name, storage, report)


@app.command()
def resume(
    name: NameArgument,
    trials: Trials = None,
    fork: Fork = None,
    study: ForkStudy = None,
    storage: Storage = None,
    device: Device = None,
    memory: MemoryChoice = "auto",
    trust: Trust = False,
) -> None:
    """Go on with a study from its database; more --trials extend it."""
    from evomerge.study import loop

    machine: loop.Machine = {"device": device, "memory": memory, "trust": trust}
    with _bars() as bars:
        report = loop.resume(
            name, fork=fork, study=study, trials=trials, url=storage, watcher=bars, **machine
        )
    _conclude(fork or name, storage, report)


def _conclude(name: str, url: str | None, report: dict[str, Any]) -> None:
    from evomerge.files import write_json, write_text
    from evomerge.report.html import write_html
    from evomerge.report.table import print_report
    from evomerge.study.export import exported
    from evomerge.study.store import database, run_folder
    from evomerge.study.summary import trial_history

    folder = run_folder(name)
    write_text(folder / "recipe.yaml", exported(name, url, None))
    write_json(folder / "report.json", report)
    write_html(folder / "report.html", name, report, trial_history(name, url))
    print_report(report)
    winner = report["winner"]
    _say(f"winner    {winner['name']}, weights {winner['weights']}")
    _say(f"recipe    {folder / 'recipe.yaml'}")
    _say(f"report    {folder / 'report.html'}, {folder / 'report.json'}")
    _say(f"database  {database(name, url).name}")
    _say(f"next      {_command()} merge {folder / 'recipe.yaml'} {folder / 'model'}")


def _command() -> str:
    """Return how this program is called here, for the next command to try."""
    called = Path(sys.argv[0])
    if called.name != "evomerge":
        return f"{Path(sys.executable).name} -m evomerge"
    found = shutil.which("evomerge")
    if found and Path(found).resolve() == called.resolve():
        return "evomerge"
    return str(called)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="name of a study")] = None,
    as_json: Json = False,
    storage: Storage = None,
) -> None:
    """List the studies of this folder, or show one: trials by state, best so far, speed."""
    from evomerge.study import summary

    names = [name] if name else summary.studies(storage)
    found = [summary.status(one, storage) for one in names]
    if as_json:
        _say(json.dumps(found[0] if name else found, indent=2))
    else:
        _say("\n".join(map(summary.status_line, found)) or summary.none_yet(storage))


@app.command()
def export(
    name: NameArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="file to write (stdout by default)")
    ] = None,
    trial: Annotated[int | None, typer.Option(min=0, help="a trial's recipe, not the best")] = None,
    storage: Storage = None,
) -> None:
    """Print or write the winning recipe, at any moment, also while the study runs."""
    from evomerge.errors import StudyError
    from evomerge.files import write_text
    from evomerge.study.export import exported

    text = exported(name, storage, trial)
    if output is None:
        typer.echo(text, nl=False)
        return
    if output.exists():
        raise StudyError(f"{output} exists already; choose another file or remove it first")
    write_text(output, text)
    _say(str(output))


@app.command()
def enqueue(name: NameArgument, recipe: Recipe, storage: Storage = None) -> None:
    """Let a study try a recipe in its next free trial, also while it runs."""
    from evomerge.study.queue import enqueue_file

    _say(enqueue_file(name, storage, recipe))


@app.command()
def merge(
    recipe: Recipe,
    out_dir: OutDir,
    device: Device = None,
    shard_size: ShardSize = "4GB",
    resume: Resume = False,
    trust: Trust = False,
) -> None:
    """Write the merged model of a recipe as a Hugging Face folder."""
    from evomerge.sizes import parse_size

    most = parse_size(shard_size, "--shard-size")
    from evomerge.merger.write import merge_file

    with _bars() as bars:
        digest = merge_file(recipe, out_dir, device, most, resume, trust, bars.stage, bars.note)
    _say(f"{out_dir} holds the merged model, weights {digest}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RECIPE", help="model or recipe")],
    study: StudyArgument,
    split: Annotated[str, typer.Option(help="search, select or heldout")] = "search",
    as_json: Json = False,
    device: Device = None,
    memory: MemoryChoice = "auto",
    trust: Trust = False,
) -> None:
    """Score a model or a recipe on a study's tasks."""
    from evomerge.study.evaluate import evaluate as run

    with _bars() as bars:
        found = run(model, study, split, device, memory, trust, bars.stage)
    if as_json:
        _say(json.dumps(found, indent=2))
        return
    _say(f"fitness {found['fitness']:.6f} · normalized accuracy {found['normalized']:.4f}")
    for task, scores in found["tasks"].items():
        _say(f"{task}: accuracy {scores['accuracy']:.4f} · score {scores['score']:.6f}")


@app.command()
def report(name: NameArgument, as_json: Json = False, storage: Storage = None) -> None:
    """Show a finished study's table: the winner beside its baselines on the three splits."""
    from evomerge.report.table import print_report
    from evomerge.study.summary import stored_report

    found = stored_report(name, storage)
    if as_json:
        _say(json.dumps(found, indent=2))
    else:
        print_report(found)


@app.command(name="list")
def list_() -> None:
    """List merge methods, optimizers, proxy tasks and search spaces with their parameters."""
    from evomerge.catalogue import catalogue

    for line in catalogue():
        _say(line)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="study file or recipe")],
    explain: Annotated[
        bool, typer.Option("--explain", help="say which line of a recipe gives each tensor what")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a study or a recipe against the real checkpoints, loading no weights."""
    from evomerge import checking

    _say(checking.explained(file, as_json) if explain or as_json else checking.check(file))


def _version(value: bool) -> None:
    if value:
        _say(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass
