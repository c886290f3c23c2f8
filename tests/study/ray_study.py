"""Studies without models whose workers are actors: what these are told to open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evomerge.errors import Place, StudyFileError
from evomerge.study import changes
from evomerge.study.file import parse_study
from evomerge.study.resident import Study
from tests.study.fake_study import FakeScorer, fake_check


def open_fake(study: Study) -> Any:
    """Stand for open_scorer: the record is read and compared, the models are not."""
    file = parse_study(study.record["study"], Path.cwd(), Place("the record", StudyFileError))
    checked = fake_check(file)
    changes.refuse_changes(study.name, study.url, study.record, changes.record(checked, None))
    scorer: Any = FakeScorer(checked)
    return scorer
