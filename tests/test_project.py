"""The project keeps its own rules: imports, a quick --help, size of files, documentation."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "evomerge").rglob("*.py"))


def test_imports_point_downwards() -> None:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 broken" in done.stdout


def test_help_imports_no_torch() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['evomerge', '--help']\n"
        "try:\n    runpy.run_module('evomerge', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'optuna', 'cma', 'datasets', 'numpy'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 320
    assert text.startswith('"""')


def test_readme_names_every_file() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme[readme.index("```\nevomerge/") :]
    for path in SOURCES:
        if path.name != "__init__.py":
            assert path.name in tree, path
    for path in (ROOT / "search_spaces").glob("*.yaml"):
        assert path.name in tree, path


def test_the_commands_in_the_documentation_are_the_real_ones() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evomerge", "--help"], capture_output=True, text=True, check=True
    )
    real = set(re.findall(r"^  ([a-z]+) {2,}", done.stdout.split("Commands:")[1], re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^\| `([a-z]+)[ `]", readme, re.MULTILINE))
    assert named == real


def test_every_dependency_is_justified() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs/dependencies.md").read_text()
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in wanted:
        name = re.match(r"[\w-]+", requirement)
        assert name
        assert name[0] in text, name[0]


def test_every_field_of_a_study_file_is_documented() -> None:
    from evomerge.study import file

    text = (ROOT / "docs/study-file.md").read_text()
    parts = {
        "models": file.Models,
        "splits": file.Splits,
        "search": file.Search,
        "fitness": file.FitnessSettings,
    }
    for part, schema in parts.items():
        for field in schema.model_fields:
            assert f"`{part}.{field}`" in text, (part, field)
