"""Every mistake of docs/mistakes.md is answered with the sentence that stands there."""

import re
import shutil
from pathlib import Path

import pytest

from tests.tour.mistakes import SECTIONS
from tests.tour.page import HEAD, PAGE, entry
from tests.tour.world import Mistake, answer, build

MISTAKES = [one for section in SECTIONS.values() for one in section]
ADVICE = re.compile(r"; |did you mean |: expected |^Try 'evomerge", re.MULTILINE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder as it is before any mistake, and the path at which it was built."""
    folder = tmp_path_factory.mktemp("tour").resolve() / "folder"
    folder.mkdir()
    build(folder)
    kept = folder.with_name("whole")
    shutil.copytree(folder, kept)
    return kept, folder


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one.title)
def test_mistake(mistake: Mistake, whole: tuple[Path, Path]) -> None:
    found = answer(mistake, *whole)
    assert found.status == mistake.status
    assert entry(mistake, found) in PAGE.read_text(), "python -m tests.tour writes the page anew"
    if found.status == 2:
        assert ADVICE.search(found.output)
        assert found.output.startswith("Usage: ") or found.output.count("\n") == 1
        assert "Traceback" not in found.output
        # Nothing that was asked for is half there.
        assert all(one.startswith("runs/") for one in found.left), found.left


def test_the_page_is_the_tour() -> None:
    text = PAGE.read_text()
    assert text.startswith(HEAD)
    assert re.findall(r"^## (.+)", text, re.MULTILINE) == list(SECTIONS)
    assert re.findall(r"^### (.+)", text, re.MULTILINE) == [one.title for one in MISTAKES]
    assert len(MISTAKES) >= 40
