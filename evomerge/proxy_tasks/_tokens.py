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
_DAY = {  # that of Llama 3.1's template where none is said
    "%d": "26", "%-d": "26", "%e": "26", "%m": "07", "%-m": "7", "%b": "Jul", "%B": "July",
    "%y": "24", "%Y": "2024", "%j": "208", "%a": "Fri", "%A": "Friday", "%F": "2024-07-26",
    "%H": "12", "%I": "12", "%p": "PM", "%M": "00", "%S": "00",
}  # fmt: skip
_MARK = "evomerge"  # stands for an answer, between tabs that show whether it is trimmed


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


def dated(tokenizer: Tokenizer) -> str | None:
    """Return a chat template whose today is always the same day, lest prompts change overnight.

    None where the tokenizer's own asks for no date.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str) or "strftime_now" not in template:
        return None  # its own, the default one where it has several
    said = "".join(f"|replace('{code}', '{text}')" for code, text in _DAY.items())
    head = f"{{%- macro strftime_now(form) -%}}{{{{ form{said} }}}}{{%- endmacro -%}}"
    return f"{head}{{{{ '' }}}}{template}"  # between them nothing is trimmed


def prompt_of(settings: PromptedSettings, example: Prompted) -> Prompt:
    """Return what an example asks, after the system prompt and the few-shot examples."""
    return Prompt(example.prompt, settings.system, example.shots, settings.delimiter)


@dataclass(frozen=True)
class Turn:
    """What an assistant's turn in a chat has around the answer, after what prompts it."""

    lead: str = ""  # white space
    trims: bool = False
    ending: str = ""  # up to the token that ends the turn

    def spelt(self, answer: str) -> str:
        """Return an answer as it stands in the turn, without the ending."""
        return self.lead + (answer.strip() if self.trims else answer)


def turn_of(tokenizer: Tokenizer) -> Turn:
    """Return what the chat template has around an assistant's answer.

    Nothing where the chat with the answer does not begin like the one that asks for it.
    """
    asked = Prompt("question").messages()
    answered = [*asked, {"role": "assistant", "content": f"\t{_MARK}\t"}]
    try:
        head: str = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, tokenize=False, chat_template=dated(tokenizer)
        )
        whole: str = tokenizer.apply_chat_template(
            answered, tokenize=False, chat_template=dated(tokenizer)
        )
    except Exception:  # a template raises whatever its author wrote
        return Turn()
    before, found, after = whole.removeprefix(head).partition(_MARK)
    if not found or not whole.startswith(head):
        return Turn()
    lead, ending = before.removesuffix("\t"), after.removeprefix("\t").rstrip()
    tokens = [one.content for one in tokenizer.added_tokens_decoder.values()]
    ends = [ending.find(one) + len(one) for one in tokens if one.strip() and one in ending]
    return Turn(
        lead if not lead.strip() else "",
        not before.endswith("\t"),
        ending[: min(ends)] if ends else ending,
    )


def encode_after(
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt | str],
    texts: Sequence[str],
    chat: bool,
    ending: str = "",
) -> list[TokenSequence]:
    """Return the token ids of each prompt followed by its text, of which the text is scored.

    The text's tokens are what the tokens of both together have after the prompt's. Where those do
    not begin with the prompt's, spaces that end the prompt go to its texts; where that does not
    help, as inside a word, the text's tokens are its own. In a chat a text is spelt as the template
    has an answer. After every text comes the ending. An empty prompt is the token that opens texts,
    or else the one that ends them. Raises DataError for a text without tokens, and where `chat`
    finds no template.
    """
    whole = [Prompt(one) if isinstance(one, str) else one for one in prompts]
    spelt = {
        one: _in_template(tokenizer, one) if chat else one.text() for one in dict.fromkeys(whole)
    }
    turn = turn_of(tokenizer) if chat else Turn()
    follow = [turn.spelt(text) + ending for text in texts]

    def encoded(texts: Sequence[str]) -> list[Ids]:
        return _encode(tokenizer, texts, special=not chat)

    heads = dict(zip(spelt, encoded(list(spelt.values())), strict=True))
    together = encoded([spelt[one] + text for one, text in zip(whole, follow, strict=True)])
    across = {
        one: spelt[one].rstrip(" ")
        for one, ids in zip(whole, together, strict=True)
        if ids[: len(heads[one])] != heads[one]
    }
    heads |= zip(across, encoded(list(across.values())), strict=True)
    found = []
    for one, text, ids in zip(whole, follow, together, strict=True):
        head = heads[one]
        tail = ids[len(head) :]
        if ids[: len(head)] != head or not tail:
            spaces = spelt[one][len(across[one]) :] if one in across else ""
            tail = _going_on(tokenizer, spaces + text)
        if not tail:
            raise DataError(f"expected a text of at least one token, got {text!r}")
        found.append(TokenSequence((head or _opening(tokenizer)) + tail, len(tail)))
    return found


def _going_on(tokenizer: Tokenizer, text: str) -> Ids:
    """Encode a text inside another, without the space that a tokenizer puts before a first word."""
    line, both, alone = _encode(tokenizer, ["\n", "\n" + text, text], special=False)
    return both[len(line) :] if both[: len(line)] == line else alone


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
            messages, add_generation_prompt=True, tokenize=False, chat_template=dated(tokenizer)
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
