"""Tasks of the lm-evaluation-harness: loaded, asked item by item, and their answers judged."""

from __future__ import annotations

import copy
import functools
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import xxhash

from evomerge.errors import Found, InputError, Place, first_line, nearest
from evomerge.proxy_tasks._benchmarks import scored_splits

Docs = Literal["train", "validation", "test"]
FILES = (".yaml", ".yml")
_SEED = 1234  # of the few-shot examples, as lm-eval has it


@dataclass(frozen=True)
class Example:
    """One item as lm-eval asks it: the texts of its requests, and what is right."""

    requests: tuple[tuple[str, ...], ...]
    choices: tuple[str, ...]
    gold: tuple[int, ...]  # the numbers of the right choices
    target: str  # the right text to generate, empty where the task does not say
    key: str  # the item as JSON
    source: str  # a hash of the task's configuration
    doc: Any = field(compare=False, repr=False)

    @property
    def prompt(self) -> str:
        """What precedes what is scored, as a report shows it."""
        return self.requests[0][0]

    @property
    def options(self) -> tuple[str, ...]:
        """The choices, as a report shows them."""
        return self.choices

    @property
    def answer(self) -> str | int:
        """What is right, as a report shows it: a text, or the number of a choice."""
        return self.gold[0] if self.gold else self.target or self.requests[0][-1]


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
        raise here.fail("a task that lm-eval can load", name, _hint(problem)) from None
    if not isinstance(task, ConfigurableTask):
        raise here.fail("a task that is configured by YAML", name)
    for attribute, what in (("UNSAFE_CODE", "runs code"), ("MULTIMODAL", "has images or sound")):
        if getattr(task, attribute, False):
            raise here.fail("a task of texts", Found(f"{name}, which {what}"))
    wanted = task.config.generation_kwargs or {}
    if wanted.get("do_sample") or wanted.get("temperature"):
        raise here.fail("a task with greedy decoding", Found(f"{name}, which draws at random"))
    if shots is not None:
        task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(seed=_SEED)
    return task


@functools.cache
def _manager(with_all: bool) -> Any:
    """Return lm-eval's index of its tasks, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_all)


def _no_task(manager: Any, name: str, place: Place) -> InputError:
    if name in manager.all_tasks:
        inner = [one for one in manager.all_subtasks if one.startswith(name)]
        return place.fail("a single task", Found(f"the group {name}"), f"such as {inner[:3]}")
    near = nearest(name, manager.all_subtasks)
    hint = f"did you mean {near!r}?" if near else "`lm-eval ls tasks` lists them"
    return place.fail("the name of a task of lm-eval, or a .yaml file", name, hint)


def _reason(problem: Exception) -> str:
    return f"{type(problem).__name__}: {first_line(problem)}"


def _hint(problem: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and isinstance(problem, OSError):
        return f"HF_HUB_OFFLINE=1 forbids downloading its data ({_reason(problem)})"
    return _reason(problem)


def metric_of(task: Any, asked: str | None, place: Place) -> str:
    """Return the metric's name; raises the place's error where the task has none of that name."""
    names = list(task.higher_is_better())
    metric = asked or names[0]
    if metric not in names:
        raise place.unknown(metric, f"metric of {task.task_name}", names)
    if not task.higher_is_better()[metric] and not metric.endswith(("perplexity", "per_byte")):
        raise place.fail("a metric that is better when higher", metric)
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


def _digest(task: Any) -> str:
    """Return a hash of what the task's scores depend on besides its items."""
    config = {name: one for name, one in task.dump_config().items() if name != "metadata"}
    text = json.dumps(config, sort_keys=True, default=str)
    return xxhash.xxh3_128_hexdigest(re.sub(r" at 0x[0-9a-f]+", "", text).encode())


def examples(task: Any, chat: bool, place: Place) -> list[Example]:
    """Return all items that the task asks; raises the place's error where it fails to ask one."""
    source = _digest(task)
    try:
        return [_example(task, doc, chat, source) for doc in task.eval_docs]
    except Exception as problem:  # templates and functions raise whatever their authors wrote
        what = "items that lm-eval can ask"
        raise (place / "task").fail(what, task.task_name, _reason(problem)) from None


def _example(task: Any, doc: Any, chat: bool, source: str) -> Example:
    context = task.fewshot_context(
        doc,
        num_fewshot=task.config.num_fewshot or 0,
        apply_chat_template=chat,
        fewshot_as_multiturn=True,
        chat_template=_as_json if chat else None,
        gen_prefix=task.doc_to_prefix(doc),
    )
    asked = task.construct_requests(
        doc=doc, ctx=context, apply_chat_template=chat, metadata=(None, None, 1)
    )
    each = asked if isinstance(asked, list) else [asked]
    texts = tuple(tuple(part for part in one.args if isinstance(part, str)) for one in each)
    choices: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    target = ""
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = tuple(map(str, task.doc_to_choice(doc)))
        right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        gold = _numbers(right, choices)
    elif task.OUTPUT_TYPE == "generate_until":
        target = _target(task, doc)
    key = json.dumps(doc, sort_keys=True, default=repr)
    return Example(texts, choices, gold, target, key, source, doc)


def _target(task: Any, doc: Any) -> str:
    """Return the right text to generate with what stands before it, empty where there is none."""
    right = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None:
        right = task.doc_to_choice(doc)[right]
    if isinstance(right, list):
        right = right[0] if right else None
    return "" if right in (None, "") else f"{task.config.target_delimiter}{right}"


def _as_json(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """Keep the messages of a chat until there is a tokenizer with its template."""
    return json.dumps([messages, add_generation_prompt])


def _numbers(right: Any, choices: tuple[str, ...]) -> tuple[int, ...]:
    """Return the numbers of the right choices, which are given by number or text."""
    given = right if isinstance(right, list) else [right]
    found = [choices.index(one) if one in choices else one for one in given]
    return tuple(one for one in found if isinstance(one, int) and 0 <= one < len(choices))


def judge(
    task: Any, pipeline: Any, asked: Sequence[Example], answers: Sequence[Sequence[Any]]
) -> list[dict[str, Any]]:
    """Return the task's metrics of items, given what a model answers to the requests of each.

    An answer is (log-likelihood, whether it is greedy), a log-likelihood, or a text.
    """
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
