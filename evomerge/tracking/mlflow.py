"""MLflow: a run of the experiment `evomerge`, or of MLFLOW_EXPERIMENT_NAME; numbers alone."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.tracking import Values

_TAG = "evomerge"  # of a run: which study it is of
_MOST = 1000  # metrics in a batch
_LAST = "seconds"  # what is written last of a trial


def start(name: str, identity: str, folder: Path, config: Mapping[str, Any]) -> _Log:
    """Return the run of a study, begun or gone on with, where MLFLOW_TRACKING_URI says."""
    import mlflow

    client = mlflow.MlflowClient()
    title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "evomerge")
    experiment = client.get_experiment_by_name(title)
    where = experiment.experiment_id if experiment else client.create_experiment(title)
    found = client.search_runs([where], f"tags.{_TAG} = '{identity}'")
    if found:
        run = found[0].info.run_id
        client.update_run(run, status="RUNNING")
    else:
        run = client.create_run(where, tags={_TAG: identity}, run_name=name).info.run_id
        client.log_dict(run, dict(config), "study.json")
    return _Log(client, run)


class _Log:
    def __init__(self, client: Any, run: str) -> None:
        self._client = client
        self._run = run

    def logged(self) -> set[int]:
        return {one.step for one in self._client.get_metric_history(self._run, _LAST)}

    def write(self, number: int, values: Values) -> None:
        """Write a trial, in one batch but for those of very many holes."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(re.sub(r"[^\w\-./ ]", "_", name), value, now, number)
            for name, value in values.items()
            if not isinstance(value, str)
        ]
        for first in range(0, len(metrics), _MOST):
            self._client.log_batch(self._run, metrics=metrics[first : first + _MOST])

    def close(self) -> None:
        self._client.set_terminated(self._run)
