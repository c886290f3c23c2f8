"""The family: one base, weak at every task, and an expert for each task; its constants."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from transformers import LlamaForCausalLM

from evomerge.threads import one_thread
from evomerge.zoo.train import Schedule, new_model, train

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Family:
    """A base trained on a mixture of tasks; each expert is trained on, on its own task.

    `replay` is the share of an expert's training that is the other tasks', alike: the more of it,
    the less the experts forget, and the nearer to each other are merges of them.
    """

    shares: Mapping[str, float]  # of each task in the base's training
    base: Schedule
    expert: Schedule
    items: int = 4096  # a task, in the data files
    replay: float = 0.0

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names, which are the experts' names too."""
        return tuple(self.shares)

    def mixture(self, name: str) -> dict[str, float]:
        """Return the shares of the tasks in the training of one expert."""
        others = [other for other in self.tasks if other != name]
        if not self.replay or not others:
            return {name: 1.0}
        return {name: 1 - self.replay} | dict.fromkeys(others, self.replay / len(others))


# Chosen on the development part, so that merging is a problem worth searching: with no other task
# in its training an expert forgets them all, so that no single scale suits the three task vectors;
# and Caesar, which the base has hardly begun to learn, needs more of its expert than the others do.
FAMILY = Family(
    shares=MappingProxyType({"sort": 1.0, "reverse": 2.5, "caesar": 0.5}),
    base=Schedule(steps=100, adam=4e-3, muon=2e-2),
    expert=Schedule(steps=100, adam=3e-4),
)


def train_family(
    family: Family, seed: int, progress: Progress
) -> tuple[LlamaForCausalLM, dict[str, LlamaForCausalLM]]:
    """Train the base and, from it, the experts, each with random numbers of its own."""
    with one_thread():
        base = new_model(stream(seed, "weights"))
        report = partial(_report, progress, "training base", family.base.steps)
        train(base, family.shares, family.base, stream(seed, "base"), report)
        experts = {}
        for name in family.tasks:
            expert = copy.deepcopy(base)
            report = partial(_report, progress, f"training {name}", family.expert.steps)
            train(expert, family.mixture(name), family.expert, stream(seed, name), report)
            experts[name] = expert
    return base, experts


def stream(seed: int, use: str) -> int:
    """Derive the seed of one use, so that no two uses of a family's seed share random numbers."""
    digest = hashlib.sha256(f"{seed} {use}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # generators take 63 bits


def _report(progress: Progress, phase: str, total: int, done: int) -> None:
    progress(phase, done, total)
