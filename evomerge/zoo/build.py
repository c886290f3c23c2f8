"""Building the family: train, write into a temporary folder, then rename it into place."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import LlamaForCausalLM

from evomerge.zoo.family import FAMILY, Family
from evomerge.zoo.tasks import TASKS, Part, ToyTask, draw_distinct_words, question, spell
from evomerge.zoo.tokenizer import build_tokenizer
from evomerge.zoo.train import new_model, one_thread, train

Progress = Callable[[str, int, int], None]

# A stream of random numbers of its own for each use of the seed.
_WEIGHTS, _BASE, _EXPERTS, _ITEMS = 0, 1, 100, 200
_STREAMS = 1000

_STUDY = """\
# An evomerge study: how to merge the experts of this folder into one model that does all tasks.
# Run it with `evomerge search study.yaml`. Paths are relative to this file.

# The experts were fine-tuned from the base, each on the one task that it is named after.
models:
  base: base
  experts:
{experts}

# Which merges to search: task arithmetic, base + sum of weight * (expert - base), with a weight
# of its own for every expert, layer and kind of weights.
space: per_layer

# What a merge should be good at. Each line of a data file is one item; the model reads the
# prompt and must go on with exactly the answer.
tasks:
{tasks}

# Items per task, drawn from the data files by the seed and never shared: the search sees the
# first, the second picks the winner among the finalists, and the last is scored once at the end.
splits: {{search: 128, select: 256, heldout: 1024}}

search: {{optimizer: cma_es, trials: 300, seed: 0}}
"""


def _silent(phase: str, done: int, total: int) -> None:
    pass


def build_zoo(
    directory: Path, *, seed: int = 0, progress: Progress = _silent, family: Family = FAMILY
) -> None:
    """Train the family and write models, items and a study file as one new folder.

    `progress` is told the phase, the optimizer steps done in it, and their total.
    """
    directory = Path(directory)
    _check_free(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = directory.parent / f".{directory.name}.building-{os.getpid()}"
    building.mkdir()
    try:
        with one_thread():
            _write_models(building, seed, progress, family)
        _write_items(building / "tasks", seed, family)
        (building / "study.yaml").write_text(_study_file(family), encoding="utf-8")
        # Renaming onto a folder that was filled meanwhile fails, so nothing is ever overwritten.
        os.rename(building, directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _check_free(directory: Path) -> None:
    if (directory / "study.yaml").exists():
        raise FileExistsError(
            f"expected a new folder for the model family, found one in {directory}"
        )
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise FileExistsError(f"expected a new or empty folder, found other files at {directory}")


def _write_models(folder: Path, seed: int, progress: Progress, family: Family) -> None:
    base, experts = train_models(seed, progress, family)
    _save(base, folder / "base")
    for name, expert in experts.items():
        _save(expert, folder / "experts" / name)


def train_models(
    seed: int, progress: Progress, family: Family
) -> tuple[LlamaForCausalLM, dict[str, LlamaForCausalLM]]:
    """Train the base and, from it, each expert."""
    base = new_model(_STREAMS * seed + _WEIGHTS)
    train(
        base,
        family.mixture,
        family.base,
        _STREAMS * seed + _BASE,
        partial(_report, progress, "training base", family.base.steps),
    )
    experts = {}
    for number, (name, expert) in enumerate(family.experts.items()):
        experts[name] = copy.deepcopy(base)
        train(
            experts[name],
            expert.mixture(name, family.tasks),
            expert.schedule,
            _STREAMS * seed + _EXPERTS + number,
            partial(_report, progress, f"training {name}", expert.schedule.steps),
        )
    return base, experts


def _report(progress: Progress, phase: str, total: int, done: int) -> None:
    progress(phase, done, total)


def _save(model: LlamaForCausalLM, folder: Path) -> None:
    # As save_pretrained would, but with no progress bar and no file that others cannot read.
    folder.mkdir(parents=True)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    model.config.save_pretrained(folder)
    assert model.generation_config is not None
    model.generation_config.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def _write_items(folder: Path, seed: int, family: Family) -> None:
    folder.mkdir()
    for number, name in enumerate(family.tasks):
        rows = draw_items(TASKS[name], family.items, Part.POOL, _STREAMS * seed + _ITEMS + number)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def draw_items(task: ToyTask, count: int, part: Part, seed: int) -> list[dict[str, str]]:
    """Draw distinct items of one part as rows of a data file."""
    words = draw_distinct_words(count, part, torch.Generator().manual_seed(seed))
    return [
        {"question": question(task, word), "answer": answer}
        for word, answer in zip(spell(words), spell(task.answer(words)), strict=True)
    ]


def _study_file(family: Family) -> str:
    experts = "\n".join(f"    {name}: experts/{name}" for name in family.tasks)
    tasks = "\n".join(
        f"  {name}: {{kind: generation, data: tasks/{name}.jsonl,"
        ' prompt: "{question}", answer: "{answer}"}'
        for name in family.tasks
    )
    return _STUDY.format(experts=experts, tasks=tasks)
