"""Prompts and what follows them as token ids, and what ends a generated text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evomerge.decoding import TokenSequence
from evomerge.errors import DataError
from evomerge.proxy_tasks import Prompted, PromptedSettings, Shot
from evomerge.tokenizer_files import Tokenizer

Ids = tuple[int, ...]
_BORDER = 4  # tokens whose text may be another without those before them


@dataclass(frozen=True)
class Stops:
    """Texts that end what is generated."""

    texts: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def cut(self, tokens: Sequence[int]) -> tuple[str, bool]:
        """Return the text of tokens before the first stop, and whether there is one."""
        text = self.decode(tokens)
        places = [found for found in map(text.find, self.texts) if found >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def came(self, tokens: Sequence[int]) -> bool:
        """Return whether the last token has brought a stop; reads no more than shows it."""
        reach = max((len(text.encode()) for text in self.texts), default=0) + _BORDER
        return bool(self.texts) and self.cut(tokens[-reach:])[1] and self.cut(tokens)[1]


@dataclass(frozen=True)
class Prompt:
    """A question and what stands before it."""

    question: str
    system: str = ""
    shots: tuple[Shot, ...] = ()
    delimiter: str = ""

    def text(self) -> str:
        """Return everything as one text, for a model that is not in a chat."""
        shown = [shot.prompt + shot.answer for shot in self.shots]
        return self.delimiter.join([*([self.system] if self.system else []), *shown, self.question])

    def messages(self) -> list[dict[str, str]]:
        """Return everything as the messages of a chat."""
        found = [("system", self.system)] if self.system else []
        for shot in self.shots:
            found += [("user", shot.prompt), ("assistant", shot.answer)]
        return [{"role": role, "content": text} for role, text in [*found, ("user", self.question)]]


def prompt_of(settings: PromptedSettings, example: Prompted) -> Prompt:
    """Return what an example asks, after the system prompt and the few-shot examples."""
    return Prompt(example.prompt, settings.system, example.shots, settings.delimiter)


def encode_after(
    tokenizer: Tokenizer, prompts: Sequence[Prompt | str], texts: Sequence[str], chat: bool
) -> list[TokenSequence]:
    """Return the token ids of each prompt followed by its text, of which the text is scored.

    The text's tokens are what the tokens of both together have after the prompt's; where they do
    not begin with the prompt's, as when a token spans the border, they are the text's own. An empty
    prompt is the token that opens texts, or else the one that ends them. Raises DataError for a
    text without tokens, and where `chat` finds no template.
    """
    whole = [Prompt(one) if isinstance(one, str) else one for one in prompts]
    spelt = {
        one: _in_template(tokenizer, one) if chat else one.text() for one in dict.fromkeys(whole)
    }
    heads = dict(
        zip(spelt, _encode(tokenizer, list(spelt.values()), special=not chat), strict=True)
    )
    together = [spelt[one] + text for one, text in zip(whole, texts, strict=True)]
    found = []
    for text, head, ids in zip(
        texts,
        (heads[one] for one in whole),
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


def _in_template(tokenizer: Tokenizer, prompt: Prompt) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            "expected a chat template in the base model's tokenizer, which `chat: true` needs, got "
            "none; use a base with one or leave `chat` out"
        )
    messages = prompt.messages()
    try:
        text: str = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
    except Exception as problem:  # a template raises whatever its author wrote
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        roles = " and ".join(dict.fromkeys(message["role"] for message in messages))
        hint = "; leave `system` out" if prompt.system else ""
        raise DataError(
            f"expected a chat template for messages of {roles}, got "
            f"{type(problem).__name__}: {reason}{hint}"
        ) from None
    return text
