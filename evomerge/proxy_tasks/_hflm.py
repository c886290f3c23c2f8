"""How the lm-evaluation-harness asks its HFLM: the texts of items, and these as token ids."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import xxhash

from evomerge.decoding import TokenSequence
from evomerge.errors import DataError, Found, Place, first_line
from evomerge.headers import read_json
from evomerge.proxy_tasks._tokens import dated
from evomerge.tokenizer_files import Tokenizer


@dataclass(frozen=True)
class Example:
    """One item as lm-eval asks it: the texts of its requests, and what is right."""

    requests: tuple[tuple[str, ...], ...]
    prompt: str  # the question alone, which tells the item from others
    choices: tuple[str, ...]
    gold: tuple[int, ...]  # the numbers of the right choices
    target: str  # the right text to generate, empty where the task does not say
    document: str  # the item as JSON
    source: str  # a hash of the task's configuration
    doc: Any = field(compare=False, repr=False)

    @property
    def options(self) -> tuple[str, ...]:
        """The choices, as a report shows them."""
        return self.choices

    @property
    def answer(self) -> str | int:
        """What is right, as a report shows it: a text, or the number of a choice."""
        return self.gold[0] if self.gold else self.target or self.requests[0][-1]


def _digest(task: Any) -> str:
    """Return a hash of what the task's scores depend on besides its items."""
    config = {name: one for name, one in task.dump_config().items() if name != "metadata"}
    text = json.dumps(config, sort_keys=True, default=str)
    return xxhash.xxh3_128_hexdigest(re.sub(r" at 0x[0-9a-f]+", "", text).encode())


def examples_of(task: Any, chat: bool, place: Place) -> list[Example]:
    """Return all items that the task asks; raises the place's error where it fails to ask one."""
    source = _digest(task)
    found: list[Example] = []
    try:
        for doc in task.eval_docs:
            found.append(_example(task, doc, chat, source))
    except Exception as problem:  # templates and functions raise whatever their authors wrote
        what = Found(f"item {len(found) + 1} of {task.task_name}")
        here = place / "task"
        raise here.fail("items that lm-eval can ask", what, reason(problem)) from None
    if not found:
        raise (place / "docs").fail("items to ask", Found(f"none of {task.task_name}"))
    return found


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
    generates = task.OUTPUT_TYPE == "generate_until"
    texts = tuple(one.args[:1] if generates else one.args for one in each)
    for parts in texts:
        if not all(isinstance(one, str) for one in parts) or not parts[-1]:
            raise ValueError(f"expected texts that are not empty, got {list(parts)}")
    choices: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = tuple(map(str, task.doc_to_choice(doc)))
        right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        gold = _numbers(right, choices)
    target = _target(task, doc, chat) if generates else ""
    document = json.dumps(doc, sort_keys=True, default=repr)
    return Example(texts, _question(task, doc, texts), choices, gold, target, document, source, doc)


def _question(task: Any, doc: Any, texts: tuple[tuple[str, ...], ...]) -> str:
    """Return what an item asks without few-shot examples; where that is no text, what is scored."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling" or task.multiple_input:
        return texts[0][-1]
    question: str = task.doc_to_text(doc)
    return question if question or task.OUTPUT_TYPE == "multiple_choice" else texts[0][-1]


def _target(task: Any, doc: Any, chat: bool) -> str:
    """Return the right text to generate with what stands before it, empty where there is none.

    That is what lm-eval has before choices: nothing where an assistant's turn begins.
    """
    right = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None:
        right = task.doc_to_choice(doc)[right]
    if isinstance(right, list):
        right = right[0] if right else None
    prefix = task.doc_to_prefix(doc) or ""
    bare = prefix[-1:].isspace() or (chat and not prefix)
    return "" if right in (None, "") else f"{'' if bare else task.config.target_delimiter}{right}"


def _as_json(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """Keep the messages of a chat until there is a tokenizer with its template."""
    return json.dumps([messages, add_generation_prompt])


def _numbers(right: Any, choices: tuple[str, ...]) -> tuple[int, ...]:
    """Return the numbers of the right choices, which are given by number or text."""
    given = right if isinstance(right, list) else [right]
    found = [choices.index(one) if one in choices else one for one in given]
    numbers = tuple(one for one in found if isinstance(one, int) and 0 <= one < len(choices))
    if not numbers:
        raise ValueError(f"the right one, {right!r}, is none of the choices {list(choices)}")
    return numbers


def reason(problem: Exception) -> str:
    return f"{type(problem).__name__}: {first_line(problem)}"


class Coding:
    """How lm-eval's HFLM makes tokens of texts."""

    def __init__(self, tokenizer: Tokenizer, chat: bool) -> None:
        self._tokenizer, self._chat = tokenizer, chat
        bos = tokenizer.bos_token_id
        self.prefix: int = tokenizer.eos_token_id if bos is None else bos
        self._opening: str = tokenizer.decode(self.prefix)
        self._ends = _ends(tokenizer)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return a text's tokens, with those that open texts unless it has them."""
        special = {"add_special_tokens": False} if text.startswith(self._opening) else {}
        return tuple(self._tokenizer.encode(text, **special))

    def prompt(self, context: str) -> tuple[int, ...]:
        """Return the tokens of what precedes a text that is to be generated."""
        text = self._in_template(context)
        opened = self._tokenizer.bos_token is not None and text.startswith(
            self._tokenizer.bos_token
        )
        return tuple(self._tokenizer.encode(text, add_special_tokens=not opened))

    def pair(self, context: str, text: str) -> TokenSequence:
        """Return the tokens of a context and of a text that is scored after it.

        Spaces at the context's end go to the text, as lm-eval has it.
        """
        whole = self._in_template(context)
        if whole:
            bare = whole.rstrip()
            head, ids = self.encode(bare), self.encode(whole + text)
            head, tail = head or (self.prefix,), ids[len(head) :]
        else:
            tail = tuple(self._tokenizer.encode(text, add_special_tokens=False))
            head = (self.prefix,)
            if tail[:1] == head:
                tail = tail[1:]
        if not tail:
            raise DataError(f"expected a text of at least one token, got {text!r}")
        return TokenSequence(head + tail, len(tail))

    def ended(self, new: list[int]) -> bool:
        """Return whether the last of new tokens ends a text."""
        return new[-1] in self._ends

    def text(self, new: Sequence[int]) -> str:
        """Return the text of new tokens without special ones."""
        found: str = self._tokenizer.decode(new, skip_special_tokens=True)
        return found

    def spelt(self, new: Sequence[int]) -> str:
        """Return the text of new tokens, also of special ones."""
        found: str = self._tokenizer.decode(new)
        return found

    def _in_template(self, context: str) -> str:
        """Return the text of a context, which in a chat is a list of messages as JSON."""
        if not self._chat or not context:
            return context
        messages, opens = json.loads(context)
        try:
            try:
                return self._templated(messages, opens)
            except jinja2.TemplateError:  # as HFLM takes it: there is no system role
                return self._templated([one for one in messages if one["role"] != "system"], opens)
        except Exception as problem:  # a template raises whatever its author wrote
            raise DataError(
                "expected a chat template for the task's messages in the base model's tokenizer, "
                f"which `chat: true` needs, got {reason(problem)}"
            ) from None

    def _templated(self, messages: list[dict[str, str]], opens: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=opens,
            continue_final_message=not opens,
            chat_template=dated(self._tokenizer),
        )
        return text


def _ends(tokenizer: Tokenizer) -> set[int]:
    """Return the tokens that end a text: the tokenizer's, and those of the model beside it."""
    found = {int(tokenizer.eos_token_id)}
    for name in ("generation_config.json", "config.json"):
        file = Path(tokenizer.name_or_path, name)
        if tokenizer.name_or_path and file.is_file():
            said = read_json(file).get("eos_token_id")
            return found.union(said if isinstance(said, list) else [said])
    return found


def end_of(one: TokenSequence, context: int | None) -> TokenSequence:
    """Return the end of a sequence that is longer than the model's context."""
    if context is None or len(one.ids) <= context:
        return one
    return TokenSequence(one.ids[-context:], one.scored)
