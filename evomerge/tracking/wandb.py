"""Weights & Biases: a run of the project `evomerge`, or of WANDB_PROJECT."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.tracking import Values


def start(name: str, identity: str, folder: Path, config: Mapping[str, Any]) -> _Log:
    """Return the run of a study, begun or gone on with; what is kept of it here is in `folder`."""
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "evomerge"),
        id=identity,
        name=name,
        resume="allow",
        dir=str(folder),
        config=dict(config),
        settings=wandb.Settings(console="off", silent=True),  # the terminal is ours
    )
    return _Log(run)


class _Log:
    def __init__(self, run: Any) -> None:
        self._run = run

    def logged(self) -> range | None:
        """Return the numbers below the server's next step; None where no server is asked."""
        return None if self._run.offline else range(self._run.step)

    def write(self, number: int, values: Values) -> None:
        self._run.log(dict(values), step=number)

    def close(self) -> None:
        self._run.finish()
