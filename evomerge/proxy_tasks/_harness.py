"""Tasks of the lm-evaluation-harness: loaded, and what models answer to them judged."""

from __future__ import annotations

import copy
import functools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evomerge.errors import CandidateError, Found, InputError, Place, nearest
from evomerge.proxy_tasks._benchmarks import scored_splits
from evomerge.proxy_tasks._hflm import Example, reason

Docs = Literal["train", "validation", "test"]
FILES = (".yaml", ".yml")
_SEED = 1234  # of the few-shot examples, as lm-eval has it
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1, "no_repeat_ngram_size": 0}
_HARMLESS = {"until", "do_sample", "temperature", "top_p", "top_k"}  # nothing to greedy decoding
_MOST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NUMBER = "a metric that gives each item a number from 0 to 1"
_GROUP = re.compile(r"^group\s*:", re.MULTILINE)


def load(name: str, shots: int | None, place: Place) -> Any:
    """Return lm-eval's task of a name or a file, with so many few-shot examples, or its own number.

    Raises the place's error where there is none that can be scored.
    """
    here = place / "task"
    try:
        import datasets
        from lm_eval.api.task import ConfigurableTask
    except ImportError:
        hint = "install it with pip install 'evomerge[lm-eval]'"
        raise here.fail("the package lm-eval for tasks of this kind", Found("none"), hint) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # stderr is for what evomerge says
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    manager = _manager(not name.endswith(FILES))
    if not name.endswith(FILES) and name not in manager.all_subtasks:
        raise _no_task(manager, name, here)
    try:
        (task,) = manager.load(name)["tasks"].values()
    except Exception as problem:  # data sets and YAML raise whatever they raise
        if Path(name).is_file() and _GROUP.search(Path(name).read_text(errors="replace")):
            raise here.fail("a single task", Found(f"the group of tasks {name}")) from None
        raise here.fail("a task that lm-eval can load", name, _hint(problem)) from None
    if not isinstance(task, ConfigurableTask):
        raise here.fail("a task that is configured by YAML", name)
    for attribute, what in (("UNSAFE_CODE", "runs code"), ("MULTIMODAL", "has images or sound")):
        if getattr(task, attribute, False):
            raise here.fail("a task of texts", Found(f"{name}, which {what}"))
    if task.OUTPUT_TYPE == "generate_until":
        _check_decoding(name, task.config.generation_kwargs, here)
    if shots is not None:
        task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(seed=_SEED)
    return task


def _check_decoding(name: str, wanted: Mapping[str, Any], place: Place) -> None:
    """Raise the place's error for settings of lm-eval that make decoding another than greedy."""
    draws = wanted.get("do_sample")
    if draws or (draws is None and wanted.get("temperature")):
        raise place.fail("a task with greedy decoding", Found(f"{name}, which draws at random"))
    for key, value in wanted.items():
        if key in _MOST:
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**6:
                raise place.fail(f"{key} of {name} from 1 to 1000000", value)
        elif key not in _HARMLESS and value != _NEUTRAL.get(key):
            raise place.fail("a task with greedy decoding", Found(f"{name} with {key}: {value}"))


@functools.cache
def _manager(with_all: bool) -> Any:
    """Return lm-eval's index of its tasks, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_all)


def _no_task(manager: Any, name: str, place: Place) -> InputError:
    if name in manager.all_tasks:
        tagged = sorted(manager.task_index[name].tags)
        inner = tagged or [one for one in manager.all_subtasks if one.startswith(name)]
        return place.fail("a single task", Found(f"the group {name}"), f"such as {inner[:3]}")
    near = nearest(name, manager.all_subtasks)
    hint = f"did you mean {near!r}?" if near else "`lm-eval ls tasks` lists them"
    return place.fail("the name of a task of lm-eval, or a .yaml file", name, hint)


def _hint(problem: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and isinstance(problem, ConnectionError):
        return f"HF_HUB_OFFLINE=1 forbids downloading its data ({reason(problem)})"
    if isinstance(problem, KeyError) and problem.args == (None,):
        return "it names a metric that lm-eval does not know"
    if "must have valid or test docs" in str(problem):
        return "lm-eval asks for a `validation_split` or a `test_split` in it"
    return reason(problem)


def metric_of(
    task: Any, pipeline: Any, examples: Sequence[Example], asked: str | None, place: Place
) -> str:
    """Return the metric's name, once it has judged a made-up answer to the first example.

    Raises the place's error where the task gives none of that name, none that is better when
    higher or is a number from 0 to 1, and where its own filters or functions fail.
    """
    made_up = {"generate_until": examples[0].target, "loglikelihood_rolling": -1.0}
    answer = made_up.get(task.OUTPUT_TYPE, (-1.0, False))
    try:
        (found,) = _results(task, pipeline, examples[:1], [[answer] * len(examples[0].requests)])
    except Exception as problem:  # filters and functions raise whatever their authors wrote
        what = f"metrics of {task.task_name}"
        raise place.fail(what, Found(reason(problem)), "correct it there") from None
    better = task.higher_is_better()  # by now with the names that a function gives several by
    names = [one for one in better if one in found] + [one for one in found if one not in better]
    metric = asked or next(iter(names), None)
    if metric is None or metric not in names:
        raise place.unknown(
            metric or next(iter(better), None), f"metric of {task.task_name}", names
        )
    if not better.get(metric, True) and not metric.endswith(("perplexity", "per_byte")):
        raise place.fail("a metric that is better when higher", metric)
    if _number(task, metric, found[metric]) is None:
        what = Found(f"{found[metric]!r} for {metric} of {task.task_name}")
        raise place.fail(_NUMBER, what, "choose another `metric`")
    return metric


def filter_of(task: Any, asked: str | None, place: Place) -> Any:
    """Return one of the task's filters; raises the place's error where it has none of that name."""
    known = {one.name: one for one in task._filters}
    if asked is not None and asked not in known:
        raise place.unknown(asked, f"filter of {task.task_name}", known)
    return known[asked] if asked else next(iter(known.values()))


def choose_docs(task: Any, name: str, asked: Docs | None, insists: bool, place: Place) -> str:
    """Let the task ask the items of one of its splits; returns the split's name.

    Of few-shot examples that come from the same split, lm-eval leaves out the item itself. Raises
    the place's error for a split that the task lacks, and for one that public scores are made on.
    """
    config, here = task.config, place / "docs"
    splits: dict[Docs, str | None] = {
        "train": config.training_split,
        "validation": config.validation_split,
        "test": config.test_split,
    }
    known: list[Docs] = [name for name, split in splits.items() if split]
    own = [one for one in known if one != "test"]
    chosen: Docs = asked or (own[0] if own else "test")
    split = splits[chosen]
    if split is None:
        raise here.fail(f"one of {', '.join(known)}, which {name} has", chosen)
    native: Docs = "test" if config.test_split else "validation"
    scored = scored_splits(config.dataset_path or "") or ()
    public = chosen == native and not name.endswith(FILES)
    if not insists and (public or (scored and split.startswith(scored))):
        raise here.fail(
            "items that no public benchmark is scored on",
            Found(f"the split {split!r} of {name}"),
            "results on this benchmark would no longer mean anything: use `docs: train` where "
            "there is one or search on items of your own, or set `contaminates: true` to insist",
        )
    shots = task.fewshot_cfg
    if chosen != native and shots.split is None and shots.samples is None:
        shots.split = next(one for one in splits.values() if one)  # as lm-eval chooses it
    if chosen != native or shots.split == split:
        config.test_split = split
    return split


def judge(
    task: Any,
    pipeline: Any,
    metric: str,
    asked: Sequence[Example],
    answers: Sequence[Sequence[Any]],
) -> list[float]:
    """Return a metric of items, given what a model answers to the requests of each.

    An answer is (log-likelihood, whether it is greedy), a log-likelihood, or a text. Raises
    CandidateError where the task's own code fails or gives no number from 0 to 1.
    """
    name = task.task_name
    try:
        found = _results(task, pipeline, asked, answers)
    except Exception as problem:  # filters and functions raise whatever their authors wrote
        raise CandidateError(
            f"expected metrics of {name}, got {reason(problem)}; correct it there"
        ) from None
    numbers = []
    for one in found:
        number = _number(task, metric, one.get(metric))
        if number is None:
            raise CandidateError(
                f"expected {_NUMBER}, got {one.get(metric)!r} for {metric} of {name}; "
                "choose another `metric`"
            )
        numbers.append(number)
    return numbers


def _results(
    task: Any, pipeline: Any, asked: Sequence[Example], answers: Sequence[Sequence[Any]]
) -> list[dict[str, Any]]:
    """Return all metrics of items; raises whatever the task's own code raises."""
    from lm_eval.api.instance import Instance

    instances = [
        [
            Instance(task.OUTPUT_TYPE, copy.deepcopy(one.doc), (), number, resps=[answer] * repeats)
            for number, answer in enumerate(given)
        ]
        for one, given in zip(asked, answers, strict=True)
        for repeats in (task.config.repeats,)
    ]
    pipeline.apply([one for item in instances for one in item])
    return [
        task.process_results(item[0].doc, [one.filtered_resps[pipeline.name] for one in item])
        for item in instances
    ]


def _number(task: Any, metric: str, value: Any) -> float | None:
    """Return a metric's value as a number from 0 to 1, of a perplexity its inverse.

    None where it is no such number.
    """
    number = value
    try:
        if isinstance(value, tuple | list) and len(value) == 2:
            first, second = value
            if task.OUTPUT_TYPE == "loglikelihood_rolling":
                number = np.exp(first / second)  # of a log-likelihood and what it is divided by
            elif task.OUTPUT_TYPE == "multiple_choice" and np.ndim(second) == 0:
                number = second in first if isinstance(first, list) else second == first
        elif metric == "perplexity":
            number = np.exp(value)
        if isinstance(number, str):
            return None
        found = float(number)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return found if 0 <= found <= 1 or np.isnan(found) else None


def generation(task: Any, end: str) -> tuple[list[str], int]:
    """Return the texts that end an answer, and how many tokens it may have."""
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    wanted = normalize_gen_kwargs(task.config.generation_kwargs)
    return handle_stop_sequences(wanted["until"], eos=end), wanted["max_gen_toks"]


def windows(ids: list[int], prefix: int, size: int) -> list[tuple[list[int], list[int]]]:
    """Cut a text into pieces that a model reads one by one, each with what precedes it."""
    from lm_eval import utils

    cut = utils.get_rolling_token_windows(ids, prefix, size, context_len=1)
    return [utils.make_disjoint_window(pair) for pair in cut]
