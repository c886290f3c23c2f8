"""Building the zoo: train the family into a temporary folder, then rename that into place."""

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import LlamaForCausalLM

from evomerge.errors import InputError
from evomerge.zoo.family import FAMILY, Family, Progress, stream, train_family
from evomerge.zoo.tasks import TASKS, Part, ToyTask, draw_distinct_words, question, spell
from evomerge.zoo.tokenizer import build_tokenizer

STUDY_FILE = "study.yaml"

_STUDY = """\
# An evomerge study: merge the experts of this folder into one model that does all their tasks.
# Paths are relative to this file.

# Each expert was fine-tuned from the base on the one task that it is named after.
models:
  base: base
  experts:
{experts}

# Which merges to search: task arithmetic, base + sum of weight * (expert - base), where every
# expert has a weight of its own for each layer and kind of module.
space: per_layer

# What the merged model should be good at. Every line of a data file is an item: the model reads
# the prompt and has to go on with exactly the answer. {{question}} and {{answer}} are its fields.
tasks:
{tasks}

# Items per task, drawn from the data files and never shared. The search sees the first, the
# second pick the winner among the finalists, and the last score it once, at the very end.
splits: {{search: 128, select: 256, heldout: 1024}}

# How to search, how many merges to try, and the seed from which all that is random follows.
search: {{optimizer: cma_es, trials: 300, seed: 0}}
"""


def _silent(phase: str, done: int, total: int) -> None:
    pass


def build_zoo(
    directory: Path, *, seed: int = 0, progress: Progress = _silent, family: Family = FAMILY
) -> None:
    """Train a family of tiny models and write it, with items and a study file, as a new folder.

    `progress` is told a phase, the optimizer steps done in it and their total. An interrupted
    build leaves no folder of that name; one that exists and is not empty is never touched.
    """
    directory = Path(directory)
    _check_free(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
        building = Path(scratch) / directory.name
        building.mkdir()
        base, experts = train_family(family, seed, progress)
        _write_model(base, building / "base")
        for name, expert in experts.items():
            _write_model(expert, building / "experts" / name)
        _write_items(building / "tasks", family, seed)
        (building / STUDY_FILE).write_text(_study(family), encoding="utf-8")
        _check_free(directory)
        os.rename(building, directory)


def _check_free(directory: Path) -> None:
    if (directory / STUDY_FILE).exists():
        raise InputError(
            f"expected no zoo at {directory} yet, found a complete one; search its {STUDY_FILE}, "
            "or choose another folder"
        )
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise InputError(
            f"expected a new or an empty folder for the zoo, found other files at {directory}; "
            "choose another folder"
        )


def _write_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write what save_pretrained would, with no progress bar and no file that others can't read."""
    folder.mkdir(parents=True)
    # Tied weights come once in named_parameters, as they have to in the file.
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    model.config.save_pretrained(folder)
    assert model.generation_config is not None
    model.generation_config.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def _write_items(folder: Path, family: Family, seed: int) -> None:
    folder.mkdir()
    for name in family.tasks:
        rows = draw_items(TASKS[name], family.items, Part.POOL, stream(seed, f"{name} items"))
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def draw_items(task: ToyTask, count: int, part: Part, seed: int) -> list[dict[str, str]]:
    """Draw distinct items of one part, as rows of a data file."""
    words = draw_distinct_words(count, part, torch.Generator().manual_seed(seed))
    return [
        {"question": question(task, word), "answer": answer}
        for word, answer in zip(spell(words), spell(task.answer(words)), strict=True)
    ]


def _study(family: Family) -> str:
    experts = "\n".join(f"    {name}: experts/{name}" for name in family.tasks)
    tasks = "\n".join(
        f"  {name}: {{kind: generation, data: tasks/{name}.jsonl,"
        ' prompt: "{question}", answer: "{answer}"}'
        for name in family.tasks
    )
    return _STUDY.format(experts=experts, tasks=tasks)
