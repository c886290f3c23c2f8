"""What tests share: one small trained family, made once a session, and a helper to run the CLI."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Statistics are kept in a folder of the tests', also by processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", str(tmp_path_factory.mktemp("statistics")))
        yield


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that comes with models is copied to, and imported from, a folder of the test's."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    others = [one for one in sys.path if (Path(one) / "transformers_modules").is_dir()]
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in others])
    for name in [one for one in sys.modules if one.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="session")
def trained_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family whose training was cut short: weak, but of the real shape. Not to be written to."""
    from evomerge.zoo import Family, Schedule, build_zoo

    family = Family(
        shares=dict.fromkeys(("sort", "reverse", "caesar"), 1.0),
        base=Schedule(steps=40, adam=4e-3, muon=2e-2),
        expert=Schedule(steps=15, adam=3e-4),
        items=400,
    )
    directory = tmp_path_factory.mktemp("zoo") / "family"
    build_zoo(directory, family=family)
    return directory


@pytest.fixture
def family(trained_family: Path, tmp_path: Path) -> Path:
    """A copy of the family that a test may change; its study.yaml asks for small splits."""
    copy_family(trained_family, tmp_path / "family")
    return tmp_path / "family"


def copy_family(trained_family: Path, copy: Path) -> None:
    """Copy the family and make its study small."""
    shutil.copytree(trained_family, copy)
    study = copy / "study.yaml"
    text = study.read_text()
    small = text.replace(
        "splits: {search: 128, select: 256, heldout: 1024}",
        "splits: {search: 16, select: 16, heldout: 16}",
    ).replace("trials: 300", "trials: 12")
    assert small != text
    study.write_text(small)


def run_cli(*arguments: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `python -m evomerge` in a folder, as a user does; `check` asks for exit status 0."""
    command = [sys.executable, "-m", "evomerge", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if check:
        assert done.returncode == 0, done.stderr
    return done
