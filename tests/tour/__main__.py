"""Makes every mistake and writes what it is answered with: `python -m tests.tour`."""

import os
import shutil
import tempfile
from pathlib import Path

import tests.conftest  # noqa: F401 - which keeps the network and other threads out


def main() -> None:
    from tests.tour.mistakes import SECTIONS
    from tests.tour.page import PAGE, page
    from tests.tour.world import answer, build

    with tempfile.TemporaryDirectory() as name:
        os.environ["EVOMERGE_CACHE"] = f"{name}/statistics"
        whole, folder = Path(name).resolve() / "whole", Path(name).resolve() / "folder"
        folder.mkdir()
        build(folder)
        shutil.copytree(folder, whole)
        mistakes = [one for section in SECTIONS.values() for one in section]
        PAGE.write_text(page({one: answer(one, whole, folder) for one in mistakes}))


main()
