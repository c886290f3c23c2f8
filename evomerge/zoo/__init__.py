"""A family of tiny language models, one base and its experts, trained on the spot."""

from evomerge.zoo.build import build_zoo
from evomerge.zoo.family import FAMILY, Expert, Family

__all__ = ["FAMILY", "Expert", "Family", "build_zoo"]
