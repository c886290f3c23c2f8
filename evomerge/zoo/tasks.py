"""The toy tasks: what an item is, how it is drawn, and which items may be used for what."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

import torch
from torch import Tensor

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORD_LENGTH = 6
CAESAR_SHIFT = 4

_BUCKETS = 16


class Part(IntEnum):
    """The three disjoint parts of all words: what models learn, what we tune on, what users see."""

    TRAIN = 0
    DEVELOPMENT = 1
    POOL = 2


@dataclass(frozen=True)
class ToyTask:
    """A function from words to words; a word is a row of letter numbers, 0 for "a"."""

    name: str
    answer: Callable[[Tensor], Tensor]

    @property
    def tag(self) -> str:
        """The one token that tells a model which task is asked of it."""
        return f"[{self.name}]"


def _sort(words: Tensor) -> Tensor:
    return words.sort(dim=1).values


def _reverse(words: Tensor) -> Tensor:
    return words.flip(dims=(1,))


def _caesar(words: Tensor) -> Tensor:
    return (words + CAESAR_SHIFT) % len(LETTERS)


TASKS = MappingProxyType(
    {
        task.name: task
        for task in (
            ToyTask("sort", _sort),
            ToyTask("reverse", _reverse),
            ToyTask("caesar", _caesar),
        )
    }
)


def parts(words: Tensor) -> Tensor:
    """Tell which part each word belongs to, by a hash of the word alone.

    So no two parts can share a word, whatever the task, the seed or the number of items drawn.
    """
    number = torch.zeros(words.shape[0], dtype=torch.int64)
    for position in range(WORD_LENGTH):
        number = number * len(LETTERS) + words[:, position]
    # Knuth's multiplicative hash. A word's number is below 2^29, so the product fits in 63 bits.
    bucket = ((number * 2_654_435_761) >> 20) % _BUCKETS
    return torch.where(
        bucket == 0, Part.POOL, torch.where(bucket == 1, Part.DEVELOPMENT, Part.TRAIN)
    )


def draw_words(count: int, part: Part, generator: torch.Generator) -> Tensor:
    """Draw `count` words of one part, repeats possible."""
    kept = torch.empty(0, WORD_LENGTH, dtype=torch.int64)
    while len(kept) < count:
        # One draw suffices for training, where the part is 14 of 16 buckets and most calls are.
        drawn = torch.randint(
            len(LETTERS), (count + count // 2 + 64, WORD_LENGTH), generator=generator
        )
        kept = torch.cat([kept, drawn[parts(drawn) == part]])
    return kept[:count]


def draw_distinct_words(count: int, part: Part, generator: torch.Generator) -> Tensor:
    """Draw `count` different words of one part, in the order drawn."""
    seen: dict[tuple[int, ...], None] = {}
    while len(seen) < count:
        for word in draw_words(count, part, generator).tolist():
            seen.setdefault(tuple(word))
    return torch.tensor(list(seen)[:count])


def spell(words: Tensor) -> list[str]:
    """Write the words as text."""
    return ["".join(LETTERS[letter] for letter in word) for word in words.tolist()]


def question(task: ToyTask, word: str) -> str:
    """Ask a task of a word; the answer is what follows."""
    return f"{task.tag}{word}="
