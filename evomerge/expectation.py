"""What to expect of a merge, in plain sentences, by rules on what was measured before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from evomerge.merge_methods import Array
from evomerge.mergeability import Mergeability, Sums

SAME = 1e-10  # of ‖δᵢ − δⱼ‖² over ‖δᵢ‖² + ‖δⱼ‖², below which two experts are one model
# Two models of one norm that share no training are at right angles, √2 of that norm apart; what
# is further than 1 from the base has less than half of a right angle in common with it.
UNRELATED, FAR = 1.0, 0.3
CENTRAL = 0.9  # of the base's distances to all others, below which an expert is more of a base
# Ilharco et al. 2023 (arXiv:2212.04089, section 5): task vectors of unlike tasks are nearly
# orthogonal, which lets them be added with little interference; those of like tasks are not.
ORTHOGONAL, ALIKE = 0.1, 0.5
# Yadav et al. 2023 (arXiv:2306.01708, section 4): what merging loses, it loses where large entries
# have unlike signs. Signs that know nothing of each other are unlike in a half of the entries.
AGREEING = 0.25
# Frankle et al. 2020 (arXiv:1912.05671, section 2) take barriers below 2 % for noise: no barrier.
NO_BARRIER = 0.02

Barrier = tuple[tuple[str, str], float]  # names of the ends, the fall over the ends' mean fitness


def expectation(found: Mergeability, barriers: Sequence[Barrier] = ()) -> list[str]:
    """Return sentences on what merging these experts is likely to bring, the conclusion last.

    `barriers` are those on the lines that were scored, if any.
    """
    overall, names = found.overall, found.experts
    sentences = [*_distances(overall, names)]
    sentences += _central(overall, names)
    moved = [i for i in range(len(names)) if overall.changed[i]]
    pairs = [(i, j) for i in moved for j in moved if i < j]
    same = [pair for pair in pairs if _same(overall.gram, *pair)]
    sentences += [f"{names[i]} and {names[j]} are the same model: drop one." for i, j in same]
    pairs = [pair for pair in pairs if pair not in same]
    if pairs:
        sentences.append(_between(overall, pairs))
    if barriers:
        sentences.append(_scored(barriers))
    elif pairs:
        sentences.append(_unscored(overall, pairs))
    elif moved:
        sentences.append(
            "With one expert a merge is a way between the base and it: what a search can find is "
            "how far to go, layer by layer."
        )
    return sentences


def _distances(overall: Sums, names: Sequence[str]) -> Iterable[str]:
    for name, norm, changed in zip(names, overall.relative_norms, overall.changed, strict=True):
        if not changed:
            yield f"{name} is the base itself: drop it."
        elif norm >= UNRELATED:
            yield (
                f"{name} is as far from the base as a model that was never trained from it "
                f"(relative norm {norm:.2g}): is it the right base?"
            )
        elif norm >= FAR:
            yield (
                f"{name} is far from the base (relative norm {norm:.2g}), as after long training: "
                "a barrier may lie between them, which --score shows."
            )


def _central(overall: Sums, names: Sequence[str]) -> Iterable[str]:
    """Yield a question where the others' task vectors start at an expert rather than at the base.

    If expert i is the base of expert j, δⱼ = δᵢ + τⱼ with τⱼ nearly orthogonal to δᵢ.
    """
    squares = np.diag(overall.gram)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * overall.gram, 0))
    for i, name in enumerate(names):
        others = [j for j in range(len(names)) if j != i]
        along = overall.gram[i, others] / squares[i] if squares[i] else np.zeros(len(others))
        total = np.sqrt(squares[i]) + apart[i].sum()
        nearer = total <= CENTRAL * np.sqrt(squares).sum()
        if others and nearer and np.all(np.abs(along - 1) < 0.2) and not _same_any(overall, i):
            yield f"{name} lies nearer to the others than the base does: is it their base?"


def _same_any(overall: Sums, i: int) -> bool:
    return any(_same(overall.gram, i, j) for j in range(len(overall.gram)) if j != i)


def _same(gram: Array, i: int, j: int) -> bool:
    apart = gram[i, i] + gram[j, j] - 2 * gram[i, j]
    return bool(apart <= SAME * (gram[i, i] + gram[j, j]))


def _between(overall: Sums, pairs: Sequence[tuple[int, int]]) -> str:
    cosines = [float(overall.cosines[pair]) for pair in pairs]
    conflicts = [float(overall.large_conflicts[pair]) for pair in pairs]
    low, high = min(cosines), max(cosines)
    if low <= -ORTHOGONAL:
        kind = "pull against each other"
    elif high < ORTHOGONAL:
        kind = "are nearly orthogonal"
    elif low >= ALIKE:
        kind = "are much alike"
    else:
        kind = "overlap in part"
    text = f"The experts' task vectors {kind} (cosine {_range(low, high, '.2f')})"
    known = [one for one in conflicts if not np.isnan(one)]
    if not known:
        return f"{text}; no entry is large in two of them."
    shown = _range(min(known), max(known), ".0%").replace("%", " %")
    return f"{text}; of the entries that are large in two of them, {shown} have unlike signs."


def _range(low: float, high: float, form: str) -> str:
    first, last = format(low, form), format(high, form)
    return first if first == last else f"{first.removesuffix('%')} to {last}"


def _unscored(overall: Sums, pairs: Sequence[tuple[int, int]]) -> str:
    cosines = np.array([overall.cosines[pair] for pair in pairs])
    conflicts = np.array([overall.large_conflicts[pair] for pair in pairs])
    if cosines.min() <= -ORTHOGONAL:
        return (
            "What one expert has learned another takes back: expect a sum to lose, and a search to "
            "choose between them; fewer experts may be better."
        )
    if cosines.min() >= ALIKE:
        return (
            "They have learned much of the same: expect their average to be safe and the gain of "
            "a search to be small; weights should sum to about 1."
        )
    if np.nanmax(conflicts, initial=0.0) < AGREEING:
        return (
            "They seldom contradict each other where it matters: merging is likely to lose little; "
            "expect task_arithmetic to do, with weights that a search finds."
        )
    if cosines.max() < ORTHOGONAL:
        return (
            "They contradict each other no more than chance would have it: expect a sum to keep "
            "most of each, and a search over their weights, or over what TIES drops, to gain."
        )
    return (
        "Some of what they have in common is contradicted: expect a plain average to lose some of "
        "each, and a search to be worth it; try the space ties beside task_arithmetic."
    )


def _scored(barriers: Sequence[Barrier]) -> str:
    (first, second), height = max(barriers, key=lambda one: one[1])
    if height <= NO_BARRIER:
        return (
            "On no line does the fitness fall more than 2 % below its ends: there is no barrier "
            "between these models, so expect averages to hold, and a search to find better ones."
        )
    return (
        f"Between {first} and {second} the fitness falls {height:.0%} below its ends': there "
        "is a barrier, so expect averages to lose, and good merges, if any, to be small steps."
    ).replace("%", " %", 1)
