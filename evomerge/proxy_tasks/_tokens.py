"""Prompts and what follows them as token ids."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.decoding import TokenSequence
from evomerge.errors import DataError
from evomerge.tokenizer_files import Tokenizer

Ids = tuple[int, ...]


def encode_after(
    tokenizer: Tokenizer, prompts: Sequence[str], texts: Sequence[str], chat: bool
) -> list[TokenSequence]:
    """Return the token ids of each prompt followed by its text, of which the text is scored.

    The text's tokens are what the tokens of both together have after the prompt's; where they do
    not begin with the prompt's, as when a token spans the border, they are the text's own. An empty
    prompt is the token that opens texts, or else the one that ends them. Raises DataError for a
    text without tokens, and where `chat` finds no template.
    """
    if chat:
        prompts = [_in_template(tokenizer, prompt) for prompt in prompts]
    together = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    found = []
    for text, head, ids in zip(
        texts,
        _encode(tokenizer, prompts, special=not chat),
        _encode(tokenizer, together, special=not chat),
        strict=True,
    ):
        tail = ids[len(head) :]
        if ids[: len(head)] != head or not tail:
            (tail,) = _encode(tokenizer, [text], special=False)
        if not tail:
            raise DataError(f"expected a text of at least one token, got {text!r}")
        found.append(TokenSequence((head or _opening(tokenizer)) + tail, len(tail)))
    return found


def _encode(tokenizer: Tokenizer, texts: Sequence[str], special: bool) -> list[Ids]:
    """Encode texts; of the special tokens, those that open a text, for nothing is closed yet."""
    if not texts:
        return []
    encoded = tokenizer([*texts, "a"], add_special_tokens=special)["input_ids"]
    closing = 1 if encoded[-1][-1:] == [tokenizer.eos_token_id] else 0
    return [tuple(ids[: len(ids) - closing]) for ids in encoded[:-1]]


def _opening(tokenizer: Tokenizer) -> Ids:
    bos = tokenizer.bos_token_id
    return (tokenizer.eos_token_id if bos is None else bos,)


def _in_template(tokenizer: Tokenizer, prompt: str) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            "expected a chat template in the base model's tokenizer, which `chat: true` needs, got "
            "none; use a base with one or leave `chat` out"
        )
    messages = [{"role": "user", "content": prompt}]
    try:
        text: str = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
    except Exception as problem:  # a template raises whatever its author wrote
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        raise DataError(
            "expected a chat template for a single user message, got "
            f"{type(problem).__name__}: {reason}"
        ) from None
    return text
