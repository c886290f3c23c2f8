"""The constants of the family: which experts there are and how each one is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from evomerge.zoo.train import Schedule


@dataclass(frozen=True)
class Expert:
    """How one expert is trained: the task's name is the expert's."""

    schedule: Schedule
    replay: float  # the share of the other tasks' items in its batches

    def mixture(self, name: str, tasks: tuple[str, ...]) -> dict[str, float]:
        """Each task's share in the expert's batches."""
        others = [task for task in tasks if task != name]
        return {name: 1 - self.replay} | {task: self.replay / len(others) for task in others}


@dataclass(frozen=True)
class Family:
    """One base, trained on a mixture of all tasks, and an expert per task, trained on from it."""

    base: Schedule
    mixture: Mapping[str, float]  # each task's share in the base's batches
    experts: Mapping[str, Expert]
    items: int = 4096  # a task

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names, in the order of the experts."""
        return tuple(self.experts)


FAMILY = Family(
    base=Schedule(steps=76, adam=4e-3, muon=2e-2),
    mixture=MappingProxyType({"sort": 1.0, "reverse": 1.5, "caesar": 0.8}),
    experts=MappingProxyType(
        {
            "sort": Expert(Schedule(steps=80, adam=3e-4), replay=0.01),
            "reverse": Expert(Schedule(steps=80, adam=3e-4), replay=0.01),
            "caesar": Expert(Schedule(steps=80, adam=3e-4), replay=0.01),
        }
    ),
)
