"""Arguments and options that several commands of the command line take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="study file")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="name of a study")]
Storage = Annotated[
    str | None,
    typer.Option(metavar="URL", help="database of the study (SQLite in runs/NAME by default)"),
]
Trials = Annotated[int | None, typer.Option(min=1, help="trials in all")]
OneDevice = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1 … (CUDA where there is one)")
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, or cuda:0,cuda:1 for both (CUDA where there is one)"),
]
MemoryChoice = Annotated[
    Literal["auto", "device", "host", "disk"],
    typer.Option(help="where the input models lie (the first of the others that they fit)"),
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="let code that comes with the models run")
]
WorkerCount = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="processes that evaluate trials at once (needs Ray)"),
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Ray cluster to run them on, or auto"),
]
GpusEach = Annotated[
    float | None,
    typer.Option(metavar="NUMBER", help="GPUs for each of them, or a share of one (1)"),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="how long one may take for a trial (10 times the longest so far)"
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="print results and errors alone")]
Track = Annotated[
    list[str] | None,
    typer.Option(metavar="TRACKER", help="log trials to tensorboard, wandb or mlflow as well"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="merge recipe")]
OutDir = Annotated[Path, typer.Argument(metavar="OUT_DIR", help="folder to make")]
ShardSize = Annotated[
    str, typer.Option(metavar="SIZE", help="most bytes of a file of weights: 500MB, 2GiB …")
]
Resume = Annotated[bool, typer.Option("--resume", help="go on with what a kill has left")]
Fork = Annotated[
    str | None, typer.Option(metavar="NEW", help="begin the study NEW from NAME's best trials")
]
ForkStudy = Annotated[
    Path | None, typer.Option(metavar="STUDY.yaml", help="another study file for --fork")
]
