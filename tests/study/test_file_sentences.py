"""What a study file's mistakes read like, word for word; and mistakes in a space."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from tests.study.small_study import SPACE, folder, no_weights, put, refusal, study

__all__ = ["folder", "no_weights"]  # fixtures

SENTENCES: list[tuple[str, Any, str]] = [
    (
        "search.trials",
        "x",
        "expected a whole number from 1 to 1000000 (candidates to evaluate in all), got 'x' "
        "at search.trials in study.yaml",
    ),
    (
        "search.trials",
        2.0,
        "expected a whole number from 1 to 1000000 (candidates to evaluate in all), got 2.0 "
        "at search.trials in study.yaml",
    ),
    (
        "search.optimizer",
        "cma",
        "unknown optimizer 'cma' at search.optimizer in study.yaml; did you mean 'cma_es'?",
    ),
    (
        "search.sigma",
        0.1,
        "expected a setting of the optimizer auto, got sigma, which is one of cma_es and "
        "cma_mixed at search in study.yaml; take it out, or choose its optimizer",
    ),
    (
        "search.zebra",
        1,
        "unknown key 'zebra' at search in study.yaml; known: give_up, min_gain, objectives, "
        "optimizer, patience, racing, seed, stages, start, trials",
    ),
    (
        "search.objectives",
        "task",
        "expected one of fitness, tasks (the one fitness, or every task's score for itself), got "
        "'task' at search.objectives in study.yaml; did you mean 'tasks'?",
    ),
    (
        "splits.seed",
        -1,
        "expected a whole number from 0 to 4294967295 (seed of the draw), got -1 at "
        "splits.seed in study.yaml",
    ),
    (
        "splits",
        None,
        "expected a mapping, got nothing at splits in study.yaml",
    ),
    (
        "fitness.worst",
        1.5,
        "expected a number from 0 to 1 (weight of the worst task, the rest on the mean), got "
        "1.5 at fitness.worst in study.yaml",
    ),
    (
        "models.base",
        None,
        "expected a text (folder or Hub id of the base model), got nothing at models.base in "
        "study.yaml",
    ),
    (
        "models.experts",
        {},
        "expected a mapping of names to texts that is not empty (folder or Hub id of each "
        "expert), got {} at models.experts in study.yaml",
    ),
    (
        "models.experts.math",
        3,
        "expected a text (folder or Hub id of each expert), got 3 at models.experts.math in "
        "study.yaml",
    ),
    (
        "models.experts",
        {3: "x"},
        "expected texts as the keys, got 3 at models.experts in study.yaml",
    ),
    (
        "models.experts.base",
        "x",
        "expected a name of the expert's own, got 'base' at models.experts in study.yaml; "
        "`base` is the base model's name",
    ),
    (
        "models.experts.the best",
        "x",
        "expected a name of letters, digits, - and _ that begins with a letter, got 'the "
        "best' at models.experts in study.yaml",
    ),
    (
        "tasks",
        {},
        "expected at least one task, got {} at tasks in study.yaml",
    ),
    (
        "tasks.2",
        {},
        "expected a name of letters, digits, - and _ that begins with a letter, got '2' at "
        "tasks in study.yaml",
    ),
    (
        "tasks.generation.kind",
        "generaton",
        "unknown kind of task 'generaton' at tasks.generation.kind in study.yaml; did you "
        "mean 'generation'?",
    ),
    (
        "tasks.generation",
        {"data": "x"},
        "expected the key kind (one of classification, generation, lm_eval, multiple_choice, "
        "perplexity, python), got none at tasks.generation in study.yaml",
    ),
    (
        "tasks.generation.data",
        3,
        "expected a text or a mapping with dataset, name, split, revision, contaminates (a JSONL, "
        "JSON, CSV, TSV or Parquet file, or {dataset, name, split, revision}), got 3 at "
        "tasks.generation.data in study.yaml",
    ),
    (
        "tasks.generation.data",
        {"datset": "x"},
        "unknown key 'datset' at tasks.generation.data in study.yaml; did you mean 'dataset'?",
    ),
    (
        "tasks.generation.data",
        {"split": "test"},
        "expected the key dataset (Hub id or folder of the data set), got none at "
        "tasks.generation.data in study.yaml",
    ),
    (
        "tasks.generation.data",
        {"dataset": "x", "split": 3},
        "expected a text (split of the data set), got 3 at tasks.generation.data.split in "
        "study.yaml",
    ),
    (
        "tasks.generation.stop",
        "\n",
        "expected a list of texts (texts that end the answer, besides the end-of-text token; "
        "the first ends targets (default: in a chat what ends a turn, else with few-shot examples "
        "the delimiter)), got '\\n' at tasks.generation.stop in study.yaml",
    ),
    (
        "tasks.generation.stop",
        ["x", ""],
        "expected a text that is not empty (texts that end the answer, besides the "
        "end-of-text token; the first ends targets (default: in a chat what ends a turn, else with "
        "few-shot examples the delimiter)), got '' at tasks.generation.stop[1] in study.yaml",
    ),
    (
        "tasks.generation.extract",
        "a(",
        "expected a regular expression (missing ), unterminated subpattern at position 1), "
        "got 'a(' at tasks.generation.extract in study.yaml",
    ),
    (
        "tasks.generation.max_new_tokens",
        0,
        "expected a whole number from 1 to 1000000 (most tokens to generate (default: those of "
        "the longest target or answer and a few)), got 0 at tasks.generation.max_new_tokens in "
        "study.yaml",
    ),
    (
        "tasks.generation.temperature",
        0,
        "expected a number > 0 (τ of sigmoid(margin/τ) (default: by the experts' margins)), "
        "got 0 at tasks.generation.temperature in study.yaml",
    ),
    (
        "tasks.generation.chat",
        "yes",
        "expected true or false (wrap the prompt in the tokenizer's chat template), got 'yes'"
        " at tasks.generation.chat in study.yaml",
    ),
    (
        "tasks.multiple_choice.options",
        ["x", 3],
        "expected a text (one template per option, or {field} of a field that holds a list), "
        "got 3 at tasks.multiple_choice.options[1] in study.yaml",
    ),
    (
        "tasks.multiple_choice.options",
        3,
        "expected a text or a list of texts (one template per option, or {field} of a field "
        "that holds a list), got 3 at tasks.multiple_choice.options in study.yaml",
    ),
    (
        "tasks.multiple_choice.normalize",
        "token",
        "expected one of tokens, characters, bytes, none (divide an option's log-likelihood by "
        "its length in these), got 'token' at tasks.multiple_choice.normalize in study.yaml; did "
        "you mean 'tokens'?",
    ),
    (
        "space",
        "task_aritmetic",
        "unknown search space 'task_aritmetic' at space in study.yaml; did you mean "
        "'task_arithmetic'?",
    ),
    (
        "spce",
        "ties",
        "unknown key 'spce' at the top of study.yaml; did you mean 'space'?",
    ),
]


@pytest.mark.parametrize(
    ("path", "value", "sentence"), SENTENCES, ids=[one[0] for one in SENTENCES]
)
def test_sentences(path: str, value: Any, sentence: str, folder: Path) -> None:
    *before, name = path.split(".")
    assert refusal(put(study(), tuple(before), name, value), folder) == sentence


MODEL = ("models", 0)
WEIGHT = (*MODEL, "parameters", "weight", "product")
DENSITY = (*MODEL, "parameters", "density")
HOLE = ("holes", "depth")


def in_space(
    path: tuple[Any, ...], key: Any, value: Any, rename: str | None = None
) -> dict[str, Any]:
    """Return the study with one key of its space set or renamed."""
    data = study()
    data["space"] = copy.deepcopy(SPACE)
    inner: Any = data["space"]
    for part in path:
        inner = inner[part]
    if rename is None:
        inner[key] = value
    else:
        inner[rename] = inner.pop(key)
    return data


def spelt(path: tuple[Any, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "space" + "".join(parts)


@pytest.mark.parametrize(
    ("path", "right", "wrong", "what"),
    [
        ((), "merge_method", "merge_methd", "key"),
        ((), "parameters", "parameter", "key"),
        (MODEL, "each", "eahc", "key"),
        (MODEL, "parameters", "params", "key"),
        ((*MODEL, "parameters"), "weight", "weigth", "parameter"),
        (("parameters",), "normalize", "normalise", "parameter"),
        (DENSITY, "range", "rang", "key"),
        (DENSITY, "init", "initial", "key"),
        (DENSITY, "step", "steps", "key"),
        (HOLE, "range", "ragne", "key"),
        (HOLE, "over", "ovr", "key"),
    ],
)
def test_misspelt_keys_of_a_space(
    path: tuple[Any, ...], right: str, wrong: str, what: str, folder: Path
) -> None:
    text = refusal(in_space(path, right, None, rename=wrong), folder)
    assert text == (
        f"unknown {what} '{wrong}' at {spelt(path)} in study.yaml; did you mean '{right}'?"
    )


@pytest.mark.parametrize(
    ("path", "key", "value", "words"),
    [
        ((), "merge_method", "tie", "unknown merge method 'tie' at .*; did you mean 'ties'"),
        ((), "base_model", "bse", "unknown model 'bse' at .*; did you mean 'base'"),
        (WEIGHT, 1, "dept", "unknown hole 'dept' at .*; did you mean 'depth'"),
        (HOLE, "curve", 0, "expected .*, got 0 at"),
        (DENSITY, "range", [0, 1], "expected density .*, got what can be 0.0 at"),
        (DENSITY, "init", 2, "expected .*, got 2 at"),
        (DENSITY, "step", 0, "expected .*, got 0 at"),
        ((*WEIGHT, 0), "range", [2, 0], r"expected .*, got \[2, 0\] at"),
        (("parameters",), "lambda", [], r"expected .*, got \[\] at"),
        (("parameters",), "normalize", 3, "expected .*, got 3 at"),
        (("holes",), "unused", {"range": [0, 1]}, "expected a hole that is used"),
    ],
)
def test_values_of_a_space(
    path: tuple[Any, ...], key: Any, value: Any, words: str, folder: Path
) -> None:
    text = refusal(in_space(path, key, value), folder)
    assert re.match(words, text)
    assert f" at {spelt(path)}" in text
