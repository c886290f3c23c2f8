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
    OneDevice,
    OutDir,
    Recipe,
    Resume,
    ShardSize,
    StudyArgument,
    Trust,
)


@app.command()
def init(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="the base, then its experts: folders, Hub ids, adapters; without the base where "
            "the experts' cards name it",
        ),
    ],
    task: Annotated[
        list[Path] | None,
        typer.Option("--task", metavar="FILE", help="a file of items; once for each task"),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="the base, whatever the cards say")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="name of the study, which is written to NAME.yaml")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="file to write (study.yaml by default)")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="search space (see evomerge list; by default by the models)")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="trials (by default by the space)")
    ] = None,
    trust: Trust = False,
) -> None:
    """Write a study file for some models and files of items."""
    from evomerge.draft import draft

    path = output or Path(f"{name or 'study'}.yaml")
    files = [one for one in models if Path(one).is_file()]  # what a shell makes of --task *.jsonl
    tasks = [*(task or []), *map(Path, files)]
    named = [one for one in models if one not in files]
    with bars() as shown:
        made = draft(
            named, tasks, path, base=base, space=space, trials=trials, trust=trust,
            progress=shown.stage,
        )  # fmt: skip
    for what, text in made.found:
        say(f"{what:<8}  {text}")
    for text in made.notes:
        say(f"note      {text}")
    called = f" --name {name}" if name and path.stem != name else ""
    say(f"wrote     {path}; read it, change what you like")
    say(f"next      {command()} inspect {path}")
    say(f"then      {command()} search {path}{called}")


@app.command()
def zoo(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="folder to make")],
    seed: Annotated[int, typer.Option(min=0, help="seed of data and training")] = 0,
) -> None:
    """Build the tiny model family: a base, three experts, their tasks and a study file."""
    from evomerge.errors import InputError
    from evomerge.files import unwritten
    from evomerge.zoo import build_zoo

    with bars() as shown:
        try:
            build_zoo(directory, seed=seed, progress=shown.stage)
        except OSError as problem:
            raise InputError(unwritten(directory, problem)) from None
    study = directory / "study.yaml"
    say(f"{study} is ready; next: {command()} search {study}")


@app.command()
def merge(
    recipe: Recipe,
    out_dir: OutDir,
    device: OneDevice = None,
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
def schema() -> None:
    """Print the JSON schema of study files, for editors."""
    from evomerge.study.reference import json_schema

    say(json.dumps(json_schema(), indent=2, ensure_ascii=False))


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


@app.command()
def inspect(
    study: StudyArgument,
    score: Annotated[
        bool, typer.Option("--score", help="load the models; score the lines between them")
    ] = False,
    as_json: Json = False,
    device: Device = None,
    memory: MemoryChoice = "auto",
    trust: Trust = False,
) -> None:
    """Measure how well the models of a study can be merged."""
    from evomerge.inspection import inspect as run

    with bars() as shown:
        found = run(
            study, score=score, device=device, memory=memory, trust=trust, progress=shown.stage
        )
    if as_json:
        say(json.dumps(found, indent=2))
        return
    from evomerge.report.mergeability import print_mergeability

    print_mergeability(found)


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a merged model")],
    repository: Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the Hub")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="who may see a repository that is made")
    ] = True,
) -> None:
    """Upload a merged model to the Hugging Face Hub, for yourself alone unless --public."""
    from evomerge import hub

    say(hub.push(directory, repository, private))
