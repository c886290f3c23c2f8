"""The commands on models, recipes and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.common import app, bars, command, say
from evomerge.cli.options import (
    Device,
    Json,
    MemoryChoice,
    OutDir,
    Recipe,
    Resume,
    ShardSize,
    StudyArgument,
    Trust,
)
from evomerge.errors import EvomergeError


@app.command()
def zoo(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="folder to make")],
    seed: Annotated[int, typer.Option(min=0, help="seed of data and training")] = 0,
) -> None:
    """Build the tiny model family: a base, three experts, their tasks and a study file."""
    from evomerge.zoo import build_zoo

    with bars() as shown:
        try:
            build_zoo(directory, seed=seed, progress=shown.stage)
        except FileExistsError as problem:
            raise EvomergeError(str(problem)) from None
    study = directory / "study.yaml"
    say(f"{study} is ready; next: {command()} search {study}")


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

    with bars() as shown:
        digest = merge_file(recipe, out_dir, device, most, resume, trust, shown.stage, shown.note)
    say(f"{out_dir} holds the merged model, weights {digest}")


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

    with bars() as shown:
        found = run(model, study, split, device, memory, trust, shown.stage)
    if as_json:
        say(json.dumps(found, indent=2))
        return
    say(f"fitness {found['fitness']:.6f} · normalized accuracy {found['normalized']:.4f}")
    for task, scores in found["tasks"].items():
        say(f"{task}: accuracy {scores['accuracy']:.4f} · score {scores['score']:.6f}")


@app.command(name="list")
def list_() -> None:
    """List merge methods, optimizers, proxy tasks and search spaces with their parameters."""
    from evomerge.catalogue import catalogue

    for line in catalogue():
        say(line)


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

    say(checking.explained(file, as_json) if explain or as_json else checking.check(file))
