"""Texts as token ids as the HFLM of the lm-evaluation-harness has them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from evomerge.decoding import TokenSequence
from evomerge.errors import DataError, first_line
from evomerge.tokenizer_files import Tokenizer


class Coding:
    """How lm-eval's HFLM makes tokens of texts."""

    def __init__(self, tokenizer: Tokenizer, chat: bool) -> None:
        self._tokenizer, self._chat = tokenizer, chat
        bos = tokenizer.bos_token_id
        self.prefix: int = tokenizer.eos_token_id if bos is None else bos
        self._opening: str = tokenizer.decode(self.prefix)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return a text's tokens, with those that open texts unless it has them."""
        special = {"add_special_tokens": False} if text.startswith(self._opening) else {}
        return tuple(self._tokenizer.encode(text, **special))

    def prompt(self, context: str) -> tuple[int, ...]:
        """Return the tokens of what precedes a text that is to be generated."""
        text = self._spelt(context)
        opened = self._tokenizer.bos_token is not None and text.startswith(
            self._tokenizer.bos_token
        )
        return tuple(self._tokenizer.encode(text, add_special_tokens=not opened))

    def pair(self, context: str, text: str) -> TokenSequence:
        """Return the tokens of a context and of a text that is scored after it.

        Spaces at the context's end go to the text, as lm-eval has it.
        """
        whole = self._spelt(context)
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
        return bool(new[-1] == self._tokenizer.eos_token_id)

    def text(self, new: Sequence[int]) -> str:
        """Return the text of new tokens."""
        found: str = self._tokenizer.decode(new, skip_special_tokens=True)
        return found

    def _spelt(self, context: str) -> str:
        """Return the text of a context, which in a chat is a list of messages as JSON."""
        if not self._chat or not context:
            return context
        messages, opens = json.loads(context)
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=opens,
                continue_final_message=not opens,
            )
        except Exception as problem:  # a template raises whatever its author wrote
            raise DataError(
                "expected a chat template for the task's messages in the base model's tokenizer, "
                f"which `chat: true` needs, got {type(problem).__name__}: {first_line(problem)}"
            ) from None
        return text


def end_of(one: TokenSequence, context: int | None) -> TokenSequence:
    """Return the end of a sequence that is longer than the model's context."""
    if context is None or len(one.ids) <= context:
        return one
    return TokenSequence(one.ids[-context:], one.scored)
