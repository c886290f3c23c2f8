"""What can be said of a study's models before any search: distances, conflicts, barriers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evomerge.checkpoints import open_checkpoint
from evomerge.errors import CheckpointError, Place
from evomerge.expectation import expectation
from evomerge.mergeability import measure
from evomerge.merger import Progress
from evomerge.merger.inputs import Memory
from evomerge.study.barriers import Line, score_lines
from evomerge.study.file import StudyFile, check_study, load_study_file
from evomerge.study.scorer import Scorer


def inspect(
    study: Path,
    *,
    score: bool = False,
    device: str | None = None,
    memory: Memory = "auto",
    trust: bool = False,
    progress: Progress = lambda text, done, total: None,
) -> dict[str, Any]:
    """Measure the models of a study file; with `score`, also the scores on the lines between them.

    Without `score` no model is run and the tasks' data are not read. Raises the error of whatever
    is wrong with the file, the models or, to be scored, the data.
    """
    file = load_study_file(study)
    lines = _lines(file, device, memory, trust, progress) if score else None
    place = Place(str(study), CheckpointError, "models")
    opened = {name: open_checkpoint(ref, place) for name, ref in file.refs.items()}
    found = measure(opened, progress)
    return {
        "models": {name: str(ref) for name, ref in file.refs.items()},
        **found.as_data(),
        "lines": None if lines is None else [one.as_data() for one in lines],
        "expect": expectation(found, [(one.ends, one.relative_barrier) for one in lines or ()]),
    }


def _lines(
    file: StudyFile, device: str | None, memory: Memory, trust: bool, progress: Progress
) -> list[Line]:
    checked = check_study(file, trust)
    scorer = Scorer(
        checked.checkpoints,
        checked.tasks,
        checked.tokenizer,
        device=device,
        memory=memory,
        trust=trust,
        progress=progress,
    )
    return score_lines(scorer, checked.refs, file.fitness.worst, progress)
