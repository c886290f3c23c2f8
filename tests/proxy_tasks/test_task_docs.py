"""The examples of docs/proxy-tasks.md are read as tasks, and their rows rendered."""

import json
import re
from pathlib import Path

import pytest
import yaml

from evomerge import plugins, proxy_tasks
from evomerge.errors import DataError, Place, StudyFileError
from evomerge.study.file import parse_study

TEXT = (Path(__file__).parents[2] / "docs/proxy-tasks.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```\n(?:```json\n(.*?)```)?", TEXT, re.DOTALL)


@pytest.mark.parametrize(("tasks", "rows"), BLOCKS)
def test_example(tasks: str, rows: str, tmp_path: Path) -> None:
    study = {
        "models": {"base": "base", "experts": {"one": "one"}},
        "space": "task_arithmetic",
        "tasks": yaml.safe_load(tasks),
    }
    file = parse_study(study, tmp_path, Place("docs", StudyFileError))
    for name, settings in file.tasks.items():
        place = Place("docs", DataError, f"tasks.{name}")
        for row in map(json.loads, rows.splitlines()):
            proxy_tasks.get(settings.kind, place).render(row, settings, place)


def test_every_kind_has_a_section() -> None:
    for kind in plugins.names(proxy_tasks):
        assert f"\n## {kind}\n" in TEXT
    assert sum(bool(rows) for _, rows in BLOCKS) >= 6
