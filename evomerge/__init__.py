"""Evolutionary search for the best recipe to merge fine-tuned language models."""

__version__ = "0.1.0"
