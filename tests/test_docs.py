"""The examples of the documentation run, or are read, as they stand; made pages are current."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from evomerge import cli
from evomerge.errors import Place, SpaceError, StudyFileError
from evomerge.module_groups import Architecture
from evomerge.search_space import Inputs
from evomerge.slices import parse_any_recipe
from evomerge.space_reader import parse_space
from evomerge.study.file import parse_study
from evomerge.study.reference import json_schema
from tests.tiny_models import PLACE, llama_shapes

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = {
    f"{page.stem}-{number}": (language, code)
    for page in PAGES
    for number, (language, code) in enumerate(FENCE.findall(page.read_text()))
}
PYTHON = {name: code for name, (language, code) in BLOCKS.items() if language == "python"}
READ = {name: block for name, block in BLOCKS.items() if block[0] != "python"}
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
MINIMAL: dict[str, Any] = {
    "models": {"base": "base", "experts": {"maths": "maths", "code": "code"}},
    "space": "task_arithmetic",
    "tasks": {"one": {"kind": "perplexity", "data": "items.jsonl", "text": "{text}"}},
}
HOLES = ("range", "choice", "curve", "blocks", "share", "product")
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
TENSORS = dict.fromkeys(
    re.sub(r"layers\.\d+", f"layers.{number}", name)
    for number in range(32)
    for name in llama_shapes()
)


@pytest.mark.parametrize("name", PYTHON)
def test_python(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", PYTHON[name]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def read_study(data: dict[str, Any], folder: Path) -> None:
    file = parse_study(data, folder, Place("docs", StudyFileError))
    jsonschema.validate(data, json_schema())
    read_space(file.space, folder)


def read_part(data: dict[str, Any], folder: Path) -> None:
    read_study(MINIMAL | data, folder)


def read_tasks(data: dict[str, Any], folder: Path) -> None:
    read_part({"tasks": data}, folder)


def read_space(data: dict[str, Any], folder: Path) -> None:
    inputs = Inputs("base", {"maths": "maths", "code": "code"})
    place = Place("docs", SpaceError)
    parse_space(data, inputs, Architecture(tuple(TENSORS)), "float32", 0, place)


def read_recipe(data: dict[str, Any], folder: Path) -> None:
    parse_any_recipe(data, PLACE)


def read_evolution(data: dict[str, Any], folder: Path) -> None:
    from mergekit.evo.config import EvolMergeConfiguration

    read = EvolMergeConfiguration.model_validate(data)
    assert set(data) <= set(read.model_fields)
    assert set(data["genome"]) <= set(read.genome.model_fields)


def rule(data: Any) -> Callable[[dict[str, Any], Path], None] | None:
    """How a YAML example is read, by its keys; None where there is no such rule."""
    keys = set(data)
    if "genome" in keys:
        return read_evolution
    if {"models", "space", "tasks"} <= keys:
        return read_study
    if "merge_method" in keys or "either" in keys:
        text = json.dumps(data)
        return read_space if any(f'"{one}": ' in text for one in HOLES) else read_recipe
    if keys <= {"models", "space", "tasks", "splits", "search", "fitness"}:
        return read_part
    if all(isinstance(one, dict) and "kind" in one for one in data.values()):
        return read_tasks
    return None


def read_command(line: str) -> None:
    """Read a line of a shell: commands of ours, targets of make, scripts of the repository."""
    program = line.split(maxsplit=1)[0] if line.strip() else ""
    if program not in ("evomerge", "make", "python"):
        return
    line = re.split(r" \| | > ", line.replace("[", "").replace("]", ""))[0]
    words = shlex.split(line, comments=True)[1:]
    if program == "make":
        assert set(words) <= set(TARGETS), line
    elif program == "python":
        assert all((ROOT / word).exists() for word in words if word.endswith(".py")), line
    else:
        assert words[0] in COMMANDS, line
        COMMANDS[words[0]].make_context(words[0], words[1:])  # raises where an option is wrong


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mergekit's own
@pytest.mark.parametrize("name", READ)
def test_example_is_read(name: str, tmp_path: Path) -> None:
    language, code = READ[name]
    if language == "yaml":
        data = yaml.safe_load(code)
        how = rule(data)
        assert how, f"an example of a new kind: give it a rule\n{code}"
        how(data, tmp_path)
    elif language == "json":
        assert [json.loads(line) for line in code.splitlines()]
    else:
        assert language in ("", "console"), f"a block of {language}: give it a rule"
        for line in code.splitlines():
            read_command(line)


def test_commands_in_sentences_are_real() -> None:
    options = {
        name: {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
        for name, command in COMMANDS.items()
    }
    found = 0
    for page in PAGES:
        for name, rest in re.findall(r"`evomerge ([a-z]+)([^`]*)`", page.read_text()):
            assert name in options, (page.name, name)
            assert set(re.findall(r"--[a-z-]+", rest)) <= options[name], (page.name, name, rest)
            found += 1
    assert found > 20


def test_rules_refuse_what_is_wrong(tmp_path: Path) -> None:
    for line in ("evomerge search a.yaml --trails 3", "evomerge search", "evomerge status a b c"):
        with pytest.raises(Exception, match=r"No such option|Missing parameter|unexpected extra"):
            read_command(line)
    for line in ("evomerge serch a.yaml", "make quikstart", "python benchmarks/serch.py"):
        with pytest.raises(AssertionError):
            read_command(line)
    assert rule({"something": "else"}) is None
    assert rule({"merge_method": "linear", "models": []}) is read_recipe
    with pytest.raises(StudyFileError):
        read_part({"splits": {"serch": 3}}, tmp_path)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere_on_github(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", text):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def test_generated_pages_are_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, page in module.PAGES.items():
        assert (DOCS / name).read_text() == page(), f"python docs/generate.py writes {name} anew"


def test_figures_are_those_that_were_measured() -> None:
    sources = [ROOT / "benchmarks/README.md", DOCS / "study-file.md"]
    measured = {line for source in sources for line in source.read_text().splitlines()}
    lines = (DOCS / "choosing.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\|.*\d?\.\d\d", line)]
    assert len(rows) > 15
    for row in rows:
        assert row in measured, "docs/choosing.md has figures that no benchmark has"
