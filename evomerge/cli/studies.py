"""The commands on studies."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evomerge.cli.common import app, bars, command, say
from evomerge.cli.options import (
    Deadline,
    Device,
    Fork,
    ForkStudy,
    GpusEach,
    Json,
    MemoryChoice,
    NameArgument,
    Quiet,
    RayAddress,
    Recipe,
    Storage,
    StudyArgument,
    Track,
    Trials,
    Trust,
    WorkerCount,
)

if TYPE_CHECKING:
    from evomerge.study.run import Watcher
    from evomerge.study.workers import Elsewhere


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
    workers: WorkerCount = None,
    ray: RayAddress = None,
    gpus_per_worker: GpusEach = None,
    deadline: Deadline = None,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Launch a study; it lives in runs/NAME."""
    from evomerge.study import loop

    name = loop.default_name(study) if name is None else name
    machine: loop.Machine = {"device": device, "memory": memory, "trust": trust}
    machine["elsewhere"] = _elsewhere(workers, ray, gpus_per_worker, deadline)
    with _watching(name, storage, track, quiet) as watcher:
        report = loop.search(
            study, name, trials=trials, seed=seed, url=storage, watcher=watcher, **machine
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
    workers: WorkerCount = None,
    ray: RayAddress = None,
    gpus_per_worker: GpusEach = None,
    deadline: Deadline = None,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Go on with a study from its database; more --trials extend it."""
    from evomerge.study import loop

    machine: loop.Machine = {"device": device, "memory": memory, "trust": trust}
    machine["elsewhere"] = _elsewhere(workers, ray, gpus_per_worker, deadline)
    with _watching(fork or name, storage, track, quiet) as watcher:
        report = loop.resume(
            name, fork=fork, study=study, trials=trials, url=storage, watcher=watcher, **machine
        )
    _conclude(fork or name, storage, report)


def _elsewhere(
    workers: int | None, address: str | None, gpus: float | None, deadline: float | None
) -> Elsewhere | None:
    """Return the workers that are asked for, None for this process alone."""
    from evomerge.errors import InputError
    from evomerge.study.workers import Elsewhere

    if gpus is not None and not (0 < gpus <= 1 or (gpus > 1 and gpus.is_integer())):
        raise InputError(
            f"expected --gpus-per-worker of more than 0 and at most 1, or 2, 3 …, got {gpus:g}"
        )
    if deadline is not None and not deadline > 0:
        raise InputError(f"expected --deadline of more than 0 seconds, got {deadline:g}")
    if workers is None and address is None:
        for option, value in {"--gpus-per-worker": gpus, "--deadline": deadline}.items():
            if value is not None:
                raise InputError(f"expected --workers or --ray with {option}, got neither")
        return None
    return Elsewhere(workers, address, gpus, deadline)


@contextlib.contextmanager
def _watching(
    name: str, url: str | None, track: list[str] | None, quiet: bool
) -> Iterator[Watcher]:
    """Yield what a study that is about to run tells of its progress."""
    from evomerge.study.api import Study
    from evomerge.study.standing import Reader
    from evomerge.tracking import tracked

    with (
        bars(quiet=quiet, read=Reader(name, url).read) as shown,
        tracked(
            track or (), Study(name, url), shown, lambda text: shown.warn(f"note: {text}")
        ) as watcher,
    ):
        yield watcher


def _conclude(name: str, url: str | None, report: dict[str, Any]) -> None:
    from evomerge.files import write_json, write_text
    from evomerge.report.html import write_html
    from evomerge.report.table import print_report
    from evomerge.study.background import background
    from evomerge.study.export import exported
    from evomerge.study.store import database, run_folder

    folder = run_folder(name)
    write_text(folder / "recipe.yaml", exported(name, url, None))
    write_json(folder / "report.json", report)
    write_html(folder / "report.html", name, report, background(name, url))
    print_report(report)
    winner = report["winner"]
    say(f"winner    {winner['name']}, weights {winner['weights']}")
    say(f"recipe    {folder / 'recipe.yaml'}")
    say(f"report    {folder / 'report.html'}, {folder / 'report.json'}")
    say(f"database  {database(name, url).name}")
    say(f"next      {command()} merge {folder / 'recipe.yaml'} {folder / 'model'}")


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
        say(json.dumps(found[0] if name else found, indent=2))
    else:
        say("\n".join(map(summary.status_line, found)) or summary.none_yet(storage))


@app.command()
def watch(
    name: NameArgument,
    once: Annotated[bool, typer.Option("--once", help="show it once, and return")] = False,
    storage: Storage = None,
) -> None:
    """Show how far a study is that another process runs, until it is finished."""
    from evomerge.progress import watch as shown
    from evomerge.study.standing import Reader

    try:
        shown(Reader(name, storage), once)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@app.command()
def dashboard(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="name of a study")] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0 is any free one")] = 8080,
    storage: Storage = None,
) -> None:
    """Show a study in the browser, by optuna-dashboard, which can change nothing of it."""
    from evomerge.study.dashboard import serve

    try:
        serve(name, storage, host, port, say)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


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
    say(str(output))


@app.command()
def enqueue(name: NameArgument, recipe: Recipe, storage: Storage = None) -> None:
    """Let a study try a recipe in its next free trial, also while it runs."""
    from evomerge.study.queue import enqueue_file

    say(enqueue_file(name, storage, recipe))


@app.command()
def report(
    name: NameArgument,
    as_json: Json = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="write the page, over any before")
    ] = None,
    storage: Storage = None,
) -> None:
    """Show a finished study's table: the winner beside its baselines on the three splits."""
    from evomerge.report.table import print_report
    from evomerge.study.summary import stored_report

    found = stored_report(name, storage)
    if html is not None:
        from evomerge.report.html import write_html
        from evomerge.study.background import background

        write_html(html, name, found, background(name, storage))
        say(str(html))
    elif as_json:
        say(json.dumps(found, indent=2))
    else:
        print_report(found)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="names of studies")],
    as_json: Json = False,
    storage: Storage = None,
) -> None:
    """Set studies side by side: what they searched, their winners on held-out items, speed."""
    from evomerge.report.comparison import print_comparison
    from evomerge.study.comparison import compare as compared

    found = compared(names, storage)
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        print_comparison(found)
