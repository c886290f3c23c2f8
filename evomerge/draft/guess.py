"""What kind of task some rows of data are, by their fields and values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.errors import Found, InputError, Place
from evomerge.proxy_tasks._files import Row

# Names of fields, as public data sets have them, the surest first.
_CONTEXTS = ("context", "passage", "article", "story", "support")
_QUESTIONS = ("question", "query", "problem", "instruction", "prompt", "question_stem", "stem",
              "goal", "premise", "input", "ctx", "sentence")  # fmt: skip
_OPTIONS = ("options", "choices", "endings", "candidates")
_ANSWERS = ("answer", "answerkey", "answer_key", "correct_answer", "target", "response", "output",
            "completion", "solution", "label", "gold", "answer_idx", "answer_index")  # fmt: skip
_TEXTS = ("text", "content", "document", "sentence", "body", "story", "passage")
_PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
          ("text_a", "text_b"), ("text1", "text2"), ("question", "sentence"))  # fmt: skip
_LABELS = ("label", "class", "category", "sentiment")
_COLUMN = re.compile(r"(?:(?:option|choice|ending|sol|op)[ _]?)?([a-h])|"
                     r"(?:option|choice|ending|sol)[ _]?(\d)", re.IGNORECASE)  # fmt: skip
_FEW = 5  # different answers that are taken for options
_REPEATED = 10  # rows for each of them
_OPEN_END = re.compile(r"[=:>→\]]\s*\Z|\s\Z")  # of a prompt that an answer follows directly
_HASHES = r"####\s*(-?[\d.,]+)"  # where GSM8K and its kin have the number


@dataclass(frozen=True)
class Guess:
    """A task's settings without its data, and what they were guessed from, in words."""

    kind: str
    why: str
    settings: dict[str, Any] = field(default_factory=dict)


def guess(rows: Sequence[Row], chat: bool, classifier: bool, place: Place) -> Guess:
    """Return a task for rows of data; raises the place's error where their fields fit none.

    `chat`: the models have chat templates, so prompts are messages. `classifier`: the models
    classify texts.
    """
    fields = [name for name in rows[0] if all(row.get(name) is not None for row in rows)]
    answer = _first(fields, _ANSWERS)
    question = _question(fields, answer)
    options = _options(fields, rows, answer)
    text = _first(fields, _TEXTS)
    if classifier:
        return _classification(fields, text, rows, place)
    if answer and question and options:
        why = f"{question}, {_shown(options)}, {answer}"
        return Guess("multiple_choice", why, {
            "prompt": _prompt(fields, question, rows, chat),
            "options": options,
            "answer": f"{{{answer}}}",
        } | _chat(chat))  # fmt: skip
    question = question or (text if answer else None)
    if answer and question:
        return _generation(fields, question, answer, rows, chat)
    if text:
        return Guess("perplexity", text, {"text": f"{{{text}}}"})
    raise _unknown(
        rows, "such as question and answer, question, options and answer, or text", place
    )


def _classification(
    fields: Sequence[str], text: str | None, rows: Sequence[Row], place: Place
) -> Guess:
    label = _first(fields, _LABELS)
    texts = next((pair for pair in _PAIRS if set(pair) <= set(fields)), (text,))
    if not texts[0] or not label:
        raise _unknown(rows, "text and label, which a classifier is asked about", place)
    chosen = dict(zip(("text", "pair"), texts, strict=False)) | {"label": label}
    settings = {key: f"{{{name}}}" for key, name in chosen.items()}
    return Guess("classification", ", ".join(map(str, chosen.values())), settings)


def _unknown(rows: Sequence[Row], what: str, place: Place) -> InputError:
    return place.fail(
        f"fields {what}",
        Found(f"the fields {', '.join(map(str, rows[0])) or 'none'}"),
        "rename them, or write the task by hand (docs/study-file.md)",
    )


def _first(fields: Sequence[str], known: Sequence[str]) -> str | None:
    by_name = {name.lower(): name for name in reversed(fields)}
    return next((by_name[name] for name in known if name in by_name), None)


def _question(fields: Sequence[str], answer: str | None) -> str | None:
    return _first([name for name in fields if name != answer], _QUESTIONS)


def _options(
    fields: Sequence[str], rows: Sequence[Row], answer: str | None
) -> str | list[str] | None:
    """Return the options: one field that holds a list, or a field for each."""
    name = _first(fields, _OPTIONS)
    if name and all(isinstance(row[name], (list, dict)) for row in rows):
        return f"{{{name}}}"
    columns = [one for one in fields if one != answer and _COLUMN.fullmatch(one)]
    return [f"{{{one}}}" for one in columns] if len(columns) > 1 else None


def _shown(options: str | list[str]) -> str:
    return (
        ", ".join([options] if isinstance(options, str) else options)
        .replace("{", "")
        .replace("}", "")
    )


def _generation(
    fields: Sequence[str], question: str, answer: str, rows: Sequence[Row], chat: bool
) -> Guess:
    values = [row[answer] for row in rows]
    answers = [str(value) for value in values]
    few = list(dict.fromkeys(answers))
    why = f"{question}, {answer}"
    prompt = _prompt(fields, question, rows, chat)
    if 2 <= len(few) <= _FEW and len(rows) >= _REPEATED * len(few):
        named = all(isinstance(one, str) and not one.strip().isdecimal() for one in values)
        if named and not any(len(one) == 1 for one in few):
            escaped = [one.replace("{", "{{").replace("}", "}}") for one in sorted(few)]
            return Guess("multiple_choice", f"{why}, of which there are {len(few)}", {
                "prompt": prompt, "options": escaped, "answer": f"{{{answer}}}",
            } | _chat(chat))  # fmt: skip
    direct = chat or prompt == f"{{{question}}}"
    settings: dict[str, Any] = {"prompt": prompt}
    lists = any(isinstance(value, list) for value in values)  # which stand in a template alone
    spaced = direct or lists or all(one[:1].isspace() for one in answers)
    settings["answer"] = f"{{{answer}}}" if spaced else f" {{{answer}}}"
    if all(re.search(_HASHES, one) for one in answers):
        settings["extract"] = _HASHES
    if not direct:
        lines = any("\n" in one for one in answers)
        settings["stop"] = [f"\n{_title(question)}:" if lines else "\n"]
    return Guess("generation", why, settings | _chat(chat))


def _prompt(fields: Sequence[str], question: str, rows: Sequence[Row], chat: bool) -> str:
    """Return the prompt's template: the field alone where an answer may follow it directly."""
    context = _first([one for one in fields if one != question], _CONTEXTS)
    asked = f"{{{question}}}"
    if question.lower() == "instruction" and "input" in fields:
        asked += "\n\n{input}"
    elif context is None and all(_OPEN_END.search(str(row[question])) for row in rows):
        return asked
    above = f"{{{context}}}\n\n" if context else ""
    return above + (asked if chat else f"{_title(question)}: {asked}\nAnswer:")


def _title(question: str) -> str:
    return "Instruction" if question.lower() == "instruction" else "Question"


def _chat(chat: bool) -> dict[str, Any]:
    return {"chat": True} if chat else {}
