"""The rows of embeddings and heads under another vocabulary, token by token."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evomerge.checkpoints import Checkpoint, ModelRef
from evomerge.errors import CheckpointError, Found
from evomerge.module_groups import tensor_names_by_layer
from evomerge.tokenizer_rules import TokenizerRules, TokenSource

if TYPE_CHECKING:
    import torch

_EMBEDDING = re.compile(r"embed_tokens|word_embedding|tok_embedding|token_embedding|embed_in|wte")
_OTHERS = re.compile(r"position|wpe|type|norm|vision|visual|image|audio|patch|dense", re.IGNORECASE)

_Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model by text, with their ids, and the number of rows of its embeddings."""

    ids: Mapping[str, int]
    rows: int

    def row(self, token: str) -> int:
        """Return a token's row; -1 where the model has no such token, or no row for it."""
        found = self.ids.get(token, -1)
        return found if found < self.rows else -1

    def named(self, source: TokenSource, token: str) -> int:
        """Return the row that a source names for a token: by id, by text, or the token's own."""
        if source.token_id is not None:
            return source.token_id
        return self.row(token if source.token is None else source.token)


def vocabulary_tensors(checkpoint: Checkpoint) -> tuple[int, frozenset[str]]:
    """Return how many rows a model's embeddings have, and the tensors with a row per token.

    These are outside the layers, and as long as the vocabulary is by the configuration or else by
    the embeddings. Raises CheckpointError where neither tells.
    """
    layers = tensor_names_by_layer(checkpoint.tensors)
    outside = {
        name: info.shape[0]
        for name, info in checkpoint.tensors.items()
        if layers[name] is None and info.floating and info.shape and not _OTHERS.search(name)
    }
    said = [size for size in said_sizes(checkpoint.config) if size in outside.values()]
    seen = [size for name, size in outside.items() if _EMBEDDING.search(name)]
    if not said and not seen:
        raise CheckpointError(
            f"expected vocab_size in {checkpoint.folder}/config.json, with embeddings of as many "
            "rows, got none; a tokenizer cannot be chosen for it"
        )
    rows = (said or seen)[0]
    return rows, frozenset(name for name, size in outside.items() if size == rows)


def said_sizes(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield each vocab_size of a configuration, the outermost first."""
    if type(config.get("vocab_size")) is int:
        yield config["vocab_size"]
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("config"):
            yield from said_sizes(value)


@dataclass(frozen=True)
class Alignment:
    """The vocabulary of a result: `ids` by token, `size` rows, and where each row comes from."""

    ids: Mapping[str, int]
    size: int
    rules: TokenizerRules
    vocabularies: Mapping[ModelRef, Vocabulary]

    def check(self) -> None:
        """Raise the rules' error where a token's source is no input or has no such row."""
        for token, rule in self.rules.tokens.items():
            source = rule.source
            if source is None or source.model is None:
                continue
            here = self.rules.place / "tokens" / repr(token) / "source"
            vocabulary = self.vocabularies.get(source.model)
            if vocabulary is None:
                known = ", ".join(map(str, self.vocabularies))
                raise here.fail(f"one of the recipe's models, {known}", str(source.model))
            if not 0 <= vocabulary.named(source, token) < vocabulary.rows:
                wanted = token if source.token is None else source.token
                what = repr(wanted) if source.token_id is None else f"id {source.token_id}"
                rows = f"{source.model}, which has {vocabulary.rows} rows"
                raise here.fail(f"a token of {rows}", Found(what))

    def without_source(self, models: Sequence[ModelRef]) -> list[str]:
        """Return the tokens that none of some models has and no rule gives a vector."""
        return [
            token
            for token in self.ids
            if token not in self.rules.tokens
            and all(self.vocabularies[model].row(token) < 0 for model in models)
        ]

    def rows_of(self, models: Sequence[ModelRef], base: ModelRef | None) -> list[RowPlan]:
        """Return, for each of the models that hold a tensor, where its rows come from.

        A row of a model is its own where it has the token. Else it is that of the one model which
        has it, of the base, or the mean of those which have it, in this order; zeros where none
        has. What the rules say of a token comes before that.
        """
        own = {model: self._own(model) for model in models}
        sources = {model: rows.copy() for model, rows in own.items()}
        holders = np.sum([rows >= 0 for rows in own.values()], axis=0)
        if base in own:
            taken = (holders > 1) & (own[base] >= 0)
            for model in models:
                if model != base:
                    sources[model][taken] = -1
        forced = np.zeros(self.size, dtype=bool)
        for token, rule in self.rules.tokens.items():
            row, source = self.ids[token], rule.source
            forced[row] = rule.force
            if source is None:
                continue
            for rows in sources.values():
                rows[row] = -1
            if source.model in sources:
                sources[source.model][row] = self.vocabularies[source.model].named(source, token)
        padding = np.ones(self.size, dtype=bool)
        padding[list(self.ids.values())] = False
        return [self._plan(np.where(forced, -1, own[model]), sources, padding) for model in models]

    def _plan(
        self, own: _Rows, sources: Mapping[ModelRef, _Rows], padding: npt.NDArray[np.bool_]
    ) -> RowPlan:
        missing = {ref: np.where(own < 0, rows, -1) for ref, rows in sources.items()}
        needed = {ref: rows for ref, rows in missing.items() if (rows >= 0).any()}
        return RowPlan(own, needed, padding, len(self.ids))

    @functools.cached_property
    def _in_order(self) -> tuple[list[str], _Rows]:
        return list(self.ids), np.array(list(self.ids.values()), dtype=np.int64)

    def _own(self, model: ModelRef) -> _Rows:
        tokens, places = self._in_order
        rows = np.full(self.size, -1, dtype=np.int64)
        vocabulary = self.vocabularies[model]
        rows[places] = [vocabulary.row(token) for token in tokens]
        return rows


@dataclass(frozen=True)
class RowPlan:
    """Where the rows of one model's tensor come from: int64 [size] each, -1 for none.

    `own` are its own rows; what has none is the mean over `sources`, by model. `padding`, bool
    [size], are the rows without a token: the mean of the others.
    """

    own: _Rows
    sources: Mapping[ModelRef, _Rows]
    padding: npt.NDArray[np.bool_]
    tokens: int

    @functools.cached_property
    def kept(self) -> bool:
        """Whether the tensor's first rows are the result, as they are."""
        return bool((self.own == np.arange(len(self.own))).all())

    @functools.cached_property
    def computed(self) -> bool:
        """Whether a row is the mean of several."""
        counts = np.sum([rows >= 0 for rows in self.sources.values()], axis=0)
        return bool(self.padding.any() or np.any(counts > 1))

    def apply(
        self,
        own: torch.Tensor,
        others: Mapping[ModelRef, torch.Tensor],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Return the rows of a tensor [old rows, …] in the new order, [size, …]."""
        import torch

        if self.kept:
            return own[: len(self.own)].to(dtype)
        found = torch.zeros(
            (len(self.own), *own.shape[1:]), dtype=torch.float32 if self.computed else dtype
        )
        counts = torch.zeros(len(self.own), dtype=torch.int64)
        for rows, tensor in [(self.own, own)] + [(r, others[m]) for m, r in self.sources.items()]:
            wanted = torch.from_numpy(rows >= 0)
            found[wanted] += tensor[torch.from_numpy(rows)[wanted]].to(found.dtype)
            counts[wanted] += 1
        several = counts > 1
        if several.any():
            found[several] /= counts[several].view(-1, *[1] * (own.ndim - 1))
        if self.padding.any():
            found[torch.from_numpy(self.padding)] = found.sum(dim=0) / self.tokens
        return found.to(dtype)
