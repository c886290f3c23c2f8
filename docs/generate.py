"""Writes the pages that are made of the program itself: `python docs/generate.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer
from pydantic import BaseModel

from evomerge import cli
from evomerge.catalogue import space_comment
from evomerge.proxy_tasks import Dataset, PromptedSettings, Shots, TaskSettings
from evomerge.racing import Racing
from evomerge.space_reader import space_names
from evomerge.study.file import FitnessSettings, Models, Splits
from evomerge.study.reference import kinds, lines, searchers
from evomerge.study.search_settings import Search
from evomerge.study.stages import Stage

DOCS = Path(__file__).parent
WIDTH = 88
NOTE = "<!-- Written by docs/generate.py; `make docs` writes it anew. -->"

COMMANDS = """\
# Commands

Results go to stdout, progress and errors to stderr. An error is one sentence. Everything is
`evomerge COMMAND`, or `python -m evomerge COMMAND`. `evomerge --install-completion` teaches your
shell the commands and their options.

| exit status | meaning |
|---|---|
| 0 | all went well |
| 1 | the reader of the output went away, as in `evomerge list \\| head -1` |
| 2 | a mistake that you can mend, of the command line too; the message says how |
| 130 | Ctrl-C stopped it, or SIGTERM a study; what is recorded stays, and `resume` goes on |
"""

FILE = """\
# Every field of a study file

What the fields mean together is in [The study file](study-file.md). Fields that are not *required*
may be left out; – stands where they then have no value. Unknown keys are refused, with the nearest
right one.

## In an editor

```
evomerge schema > study.schema.json
```

writes a JSON schema (draft 7) of all this, with the merge methods, optimizers and kinds of task
that are installed. An editor with the YAML language server (VS Code's YAML extension, Neovim,
Helix, Emacs …) completes and checks a study file that begins with such a line:

```yaml
# yaml-language-server: $schema=study.schema.json
models:
  base: org/base
  experts: {maths: org/maths}
space: slerp
tasks:
  sums: {kind: generation, data: sums.jsonl, prompt: "{question}", answer: "{answer}"}
```

The schema knows keys, types and ranges; `evomerge check` knows the models and the data too.
"""


def commands() -> str:
    """Return the page of every command's --help, at a fixed width."""
    group = typer.main.get_command(cli.app)
    top = typer.Context(group, info_name="evomerge", terminal_width=WIDTH)
    parts = [NOTE, COMMANDS]
    for name in group.list_commands(top):
        command = group.get_command(top, name)
        context = typer.Context(command, parent=top, info_name=name, terminal_width=WIDTH)
        parts.append(f"## {name}\n\n```\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def study_file() -> str:
    """Return the page of every field of a study file."""
    return "\n".join([NOTE, FILE, *_parts()])


def _parts() -> Iterator[str]:
    yield _part("models", Models)
    yield "## space\n\nOne of these, a file, or a [search space](search-spaces.md) itself.\n"
    spaces = [(f"`{one}`", space_comment(one)) for one in space_names()]
    yield _table(("name", "what it searches"), spaces)
    yield _part("tasks", TaskSettings, "Each by a name of its own; every kind has these fields")
    own = tuple(TaskSettings.model_fields)
    yield _part(
        "tasks: prompts",
        PromptedSettings,
        "More fields of `generation`, `multiple_choice` and `perplexity`",
        own,
    )
    for kind, settings in kinds().items():
        base = PromptedSettings if issubclass(settings, PromptedSettings) else TaskSettings
        left_out = tuple(
            name
            for name, field in base.model_fields.items()
            if settings.model_fields[name].description == field.description
        )
        yield _part(f"tasks: {kind}", settings, left_out=left_out)
    yield _part("data", Dataset, "Where `data` is a mapping")
    yield _part("shots", Shots)
    yield _part("splits", Splits)
    yield _part("search", Search, "Further keys are the optimizer's own")
    for name, settings in searchers().items():
        if settings.model_fields:
            yield _part(f"search: {name}", settings)
    yield _part("search.stages", Stage, "Each entry of the list")
    yield _part("search.racing", Racing, "A mapping, or `true` or `false`")
    yield _part("fitness", FitnessSettings)


def _part(
    title: str, settings: type[BaseModel], note: str = "", left_out: tuple[str, ...] = ()
) -> str:
    rows = [
        (
            f"`{one.name}`",
            one.kind,
            "*required*"
            if one.default is None
            else "–"
            if one.default == "none"
            else f"`{one.default}`",
            one.meaning,
        )
        for one in lines(settings, left_out)
    ]
    head = f"## {title}\n\n" + (f"{note}:\n\n" if note else "")
    return head + _table(("field", "type", "default", "meaning"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "".join(
        f"| {' | '.join(one.replace('|', '&#124;') for one in row)} |\n" for row in cells
    )


PAGES = {"commands.md": commands, "study-file-reference.md": study_file}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
