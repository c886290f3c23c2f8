"""A family of tiny language models, a base and its experts, trained on the spot in a minute."""

from evomerge.zoo.build import build_zoo
from evomerge.zoo.family import FAMILY, Family
from evomerge.zoo.train import Schedule

__all__ = ["FAMILY", "Family", "Schedule", "build_zoo"]
