"""A handful of items that the winner gets right and the best expert does not, and the reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.evaluator import Split, TaskItems
from evomerge.fitness import TaskScores

EACH = 3  # items won, and items lost, of every task
LONGEST = 600  # characters of a text


def examples(
    tasks: Sequence[TaskItems],
    split: Split,
    winner: TaskScores,
    experts: Mapping[str, TaskScores],
) -> list[dict[str, Any]]:
    """Return, for each task, how many items the winner has won and lost, and the first of them.

    Against the expert that is best in the task, all scored on the items of `split`. The first are
    those of the largest difference, in the order of the items: nobody has picked them.
    """
    found = []
    for task in tasks:
        own = winner[task.name].correct
        scores = {name: one[task.name].correct for name, one in experts.items()}
        expert = max(scores, key=lambda name: float(scores[name].mean()))
        gain = own - scores[expert]
        shown = {}
        for kind, lead in (("won", gain), ("lost", -gain)):
            order = np.argsort(-lead, kind="stable")[:EACH]
            shown[kind] = [
                {
                    **text_of(task.examples[task.splits[split][place]]),
                    "winner": float(own[place]),
                    "expert": float(scores[expert][place]),
                }
                for place in order.tolist()
                if lead[place] > 0
            ]
        counts = {"won": int((gain > 0).sum()), "lost": int((gain < 0).sum()), "items": len(gain)}
        found.append({"task": task.name, "expert": expert, "counts": counts, **shown})
    return found


def text_of(example: Any) -> dict[str, Any]:
    """Return an item as texts: its prompt, its options if it has any, the right answer.

    An example is of its task's own kind, so it is asked for what kinds of tasks call these.
    """

    def first(*names: str) -> Any:
        found = (getattr(example, name, None) for name in names)
        return next((one for one in found if one not in (None, "", ())), None)

    prompt, text = first("prompt", "requests", "key"), first("text")
    right = first("answers", "gold", "target", "label", "answer")
    if right is None:  # a text whose tokens are scored
        right = text
    elif prompt is None:  # a text to be classified
        prompt = text
    while isinstance(prompt, tuple):
        prompt = prompt[0]
    options = [str(one) for one in first("options", "choices") or ()]
    answers = [
        options[one] if options and isinstance(one, int) else str(one)
        for one in (right if isinstance(right, tuple) else (right,))
        if one is not None
    ]
    return {
        "prompt": _cut(str(prompt or "")),
        "options": [_cut(one) for one in options],
        "answer": _cut(" or ".join(answers)),
    }


def _cut(text: str) -> str:
    """Return a text that is not too long; of one that is, its end, where a question stands."""
    return text if len(text) <= LONGEST else "…" + text[-LONGEST + 1 :]
