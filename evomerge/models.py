"""The live model, whose parameters are given tensors, and the tokenizer that it is scored with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge import key_values
from evomerge.architectures import (
    bound_model,
    is_classifier,
    is_classifier_name,
    learned_positions,
    unfit,
)
from evomerge.errors import CheckpointError, DataError
from evomerge.graphs import Graphs, Held, same_logits, suits
from evomerge.language_model import Past
from evomerge.spread import connect
from evomerge.tokenizer_files import Tokenizer, read_tokenizer

_PROBE = 12  # tokens by which it is found out whether padding changes something


class LiveModel:
    """A causal language model, or a classifier of texts, whose parameters are the given tensors.

    They are not copied: writing into the tensors changes the model. `tensors` are named as in the
    checkpoint at `folder`, whose config.json says what the model is. They lie on `device`, or as
    spread.py has them on several, of which it is the first. Code that comes with the checkpoint is
    run only where `trust` is set. Raises CheckpointError where the model class is unknown or such
    code, does not take its parameters one to one from the tensors, or does not run.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, torch.Tensor],
        device: torch.device,
        trust: bool = False,
    ) -> None:
        model, self.device = bound_model(folder, tensors, trust), device
        spread_out = len({one.device for one in tensors.values()}) > 1
        if spread_out:
            connect(model, device)
        else:
            model.to(device)
        config, model_class = model.config, type(model)
        self._model: torch.nn.Module = model.eval()
        text = config.get_text_config()
        longest: int | None = getattr(text, "max_position_embeddings", None)
        longest = None if longest == -1 else longest  # XLNet's word for no limit
        own, self._first = learned_positions(model)
        self.context = own or longest
        self._dtype = model.dtype
        self._pad: int | None = getattr(text, "pad_token_id", None)
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        self._takes_types = "token_type_ids" in accepted
        self._takes_mask = "attention_mask" in accepted
        labels = config.id2label if is_classifier_name(model_class.__name__) else {}
        self.labels: tuple[str, ...] = tuple(str(labels[index]) for index in sorted(labels))
        self._takes_cache = "past_key_values" in accepted and not labels
        self._graphs: Graphs | None = None
        self._pads: bool | None = None
        self.pads_by: Callable[[], bool] | None = None
        self._windows = False
        # Without an end, an encoder-decoder classifies nothing.
        end = getattr(text, "eos_token_id", None)
        one = torch.full((1, 1), end if isinstance(end, int) else 0, device=device)
        try:
            found = self.classes(one, torch.ones_like(one)) if labels else self._probed(one)
        except Exception as problem:
            if spread_out:
                hint = "over several devices it may be what cannot run: name one"
                raise unfit(model_class, folder, problem, hint) from None
            raise unfit(model_class, folder, problem) from None
        self._remembers = self._takes_cache
        rows = model.get_input_embeddings() if labels else None
        self.vocabulary: int = found.shape[-1] if rows is None else rows.weight.shape[0]
        if suits(model):
            self._step_in_graphs()

    def _step_in_graphs(self) -> None:
        if self._takes_cache and self._takes_positions and not self._windows:
            given = {"logits_to_keep": 1} if self._takes_keep else {}
            self._graphs = Graphs(self._model, self.device, **given)

    @torch.inference_mode()
    def _probed(self, one: torch.Tensor) -> torch.Tensor:
        """Return the logits of a token; a cache is asked for again where a known one comes back."""
        result = self._run(one, 1, **({"use_cache": True} if self._takes_cache else {}))
        state = result.get("past_key_values")
        self._takes_cache = self._takes_cache and key_values.is_known(state)
        self._windows = key_values.has_windows(state)
        found: torch.Tensor = result.logits
        return found

    def _begun(self) -> dict[str, Any]:
        """Return the state to begin with, where it is not the model's own."""
        return {"past_key_values": key_values.empty()} if self._windows else {}

    @property
    def module(self) -> torch.nn.Module:
        """The transformers model itself."""
        return self._model

    def _run(self, ids: torch.Tensor, keep: int, **given: Any) -> Any:
        if self.labels:
            raise DataError(
                f"expected a language model for a task that predicts tokens, got "
                f"{type(self._model).__name__}; ask it in a task of the kind classification"
            )
        if self._takes_keep:
            given["logits_to_keep"] = keep
        return self._model(input_ids=ids, **given)

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, keep: int, past: Past | None = None) -> torch.Tensor:
        """See LanguageModel."""
        found: torch.Tensor = self._run(ids, keep, **_continued(past)).logits
        return found[:, -keep:]

    @torch.inference_mode()
    def remember(self, ids: torch.Tensor, past: Past | None = None) -> object:
        """See LanguageModel."""
        if not self._remembers:
            return None
        given = self._begun() if past is None else _continued(past)
        state = self._run(ids, 1, **given | {"use_cache": True}).past_key_values
        self._remembers = key_values.goes_on(state)  # so that it is tried once
        return state if self._remembers else None

    @torch.inference_mode()
    def join(self, parts: Sequence[Past], lengths: Sequence[int]) -> object:
        """See LanguageModel."""
        return key_values.joined([(part.state, part.rows) for part in parts], lengths)

    @torch.inference_mode()
    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: object
    ) -> tuple[torch.Tensor, object]:
        """See LanguageModel. A model without a key-value cache runs all tokens again."""
        if self._graphs is None:
            return self._plain(ids, mask, cache)
        return self._graphs.step(ids, mask, cache, self._plain)

    def _plain(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: object
    ) -> tuple[torch.Tensor, object]:
        given: dict[str, Any] = {"attention_mask": mask, "use_cache": self._takes_cache}
        if self._takes_cache:
            given |= self._begun() if cache is None else {"past_key_values": cache}
        elif isinstance(cache, torch.Tensor):
            ids = torch.cat([cache, ids], dim=1)
        if self._takes_positions:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0) + self._first
            given["position_ids"] = positions[:, -ids.shape[1] :]
        result = self._run(ids, 1, **given)
        if not self._takes_cache:
            return result.logits[:, -1], ids
        return result.logits[:, -1], key_values.with_room(result.past_key_values)

    @torch.inference_mode()
    def keep(self, cache: Any, rows: torch.Tensor) -> object:
        """See LanguageModel."""
        if isinstance(cache, torch.Tensor):
            return cache[rows]
        if isinstance(cache, Held):
            return cache.leave(rows)
        cache.reorder_cache(rows)
        return cache

    @torch.inference_mode()
    def pads(self) -> bool:
        """See LanguageModel; it is found out once, as soon as weights give finite numbers.

        Of a candidate, whose weights may be without sense, `pads_by` says it.
        """
        if self.pads_by is not None:
            return self.pads_by()
        if self._pads is None:
            size = min(_PROBE, self.context or _PROBE)
            ids = torch.arange(size, device=self.device)[None] % self.vocabulary
            half = size // 2
            mask = (torch.arange(size, device=self.device)[None] >= half // 2).long()
            found = self._steps(ids, mask, half)
            expected = self._steps(ids[:, half // 2 :], mask[:, half // 2 :], half - half // 2)
            if not expected.isfinite().all():
                return False
            self._pads = same_logits(found, expected, self._dtype)
        return self._pads

    def _steps(self, ids: torch.Tensor, mask: torch.Tensor, first: int) -> torch.Tensor:
        """Return the logits [T - first + 1, V] of steps: the first tokens, then each other one."""
        logits, cache = self._plain(ids[:, :first], mask[:, :first], None)
        found = [logits]
        for end in range(first + 1, ids.shape[1] + 1):
            logits, cache = self._plain(ids[:, end - 1 : end], mask[:, :end], cache)
            found.append(logits)
        return torch.cat(found)

    @torch.inference_mode()
    def classes(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See LanguageModel. Sequences run one by one where padding is unknown or would be seen."""
        if not self.labels:
            raise DataError(
                f"expected a classifier for a task of the kind classification, got "
                f"{type(self._model).__name__}; ask it in a task of another kind"
            )
        if (self._pad is None or not self._takes_mask) and len(ids) > 1:
            lengths = mask.sum(dim=1).tolist()
            each = [
                self.classes(
                    ids[row, None, :end],
                    mask[row, None, :end],
                    None if types is None else types[row, None, :end],
                )
                for row, end in enumerate(lengths)
            ]
            return torch.cat(each)
        if self._pad is not None:  # by which the library finds the last token
            ids = torch.where(mask.bool(), ids, self._pad)
        given = {"token_type_ids": types} if self._takes_types and types is not None else {}
        found: torch.Tensor = self._model(input_ids=ids, attention_mask=mask, **given).logits
        return found


def _continued(past: Past | None) -> dict[str, Any]:
    if past is None:
        return {"use_cache": False}
    return {"use_cache": True, "past_key_values": key_values.followed(past.state, past.rows)}


def load_tokenizer(folder: Path, trust: bool = False) -> Tokenizer:
    """Return the tokenizer of a model's folder, to score with; its code may run with `trust`.

    Raises CheckpointError where there is none, or none that says where a text ends, unless the
    model is a classifier.
    """
    tokenizer = read_tokenizer(folder, trust)
    if tokenizer.eos_token_id is None and not is_classifier(folder):
        raise CheckpointError(f"expected a tokenizer with an eos token, got none in {folder}")
    return tokenizer
