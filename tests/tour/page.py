"""The tour as one page: `python -m tests.tour` writes it anew, and the test compares it."""

from pathlib import Path

from tests.tour.mistakes import SECTIONS
from tests.tour.world import RECIPE, STUDY, Answer, Mistake

PAGE = Path(__file__).parents[2] / "docs/mistakes.md"
HEAD = f"""\
<!-- Written by `python -m tests.tour`; `make docs` writes it anew. -->

# Mistakes, and what they are answered with

What goes wrong is said in one sentence: what was expected, what was found, where, and what to do.
What can be checked is checked before a weight is loaded or a file written. The exit status is 2
where none is named; [commands](commands.md) lists them all.

Each of these mistakes is made anew in the tests, and the answer is the one below, to the letter.
They are made in a folder, `FOLDER` here, which has

- the models `base`, `maths` and `code` (tuned from it), `wide` (another vocabulary), `gpt`
  (another architecture) and `lora` (an adapter of `base`),
- `sums.jsonl` with thirty items,
- a study `monday` that is finished, and a study `tuesday` that has not begun to run,
- and two files, `study.yaml`

```yaml
{STUDY}```

and `recipe.yaml`

```yaml
{RECIPE}```
"""


def page(answers: dict[Mistake, Answer]) -> str:
    """Return the page of all mistakes with their answers."""
    parts = [HEAD]
    for title, mistakes in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [entry(one, answers[one]) for one in mistakes]
    return "\n".join(parts)


def entry(mistake: Mistake, answer: Answer) -> str:
    """Return the page's part on one mistake."""
    told = " ".join(change.told for change in mistake.changes if change.told)
    if answer.status != 2:
        told = f"{told} (Exit status {answer.status}.)".lstrip()
    shown = f"```console\n$ {mistake.command}\n{answer.output}```\n"
    return "\n".join([f"### {mistake.title}\n", *([f"{told}\n"] if told else []), shown])
