"""Hugging Face configuration and tokenizer, and the live model whose parameters are views."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from evomerge.errors import CheckpointError

_SMALL = 20_000_000  # parameters; below, more threads cost more than they bring

Tokenizer: TypeAlias = PreTrainedTokenizerBase

transformers.utils.logging.disable_progress_bar()
if "TRANSFORMERS_VERBOSITY" not in os.environ:
    transformers.utils.logging.set_verbosity_error()  # stderr is for what evomerge says


class LanguageModel(Protocol):
    """What scoring asks of a model: logits, each position's up to a constant of its own."""

    device: torch.device
    vocabulary: int  # number of token ids, V
    context: int | None  # most tokens of a sequence, where the model has a limit

    def logits(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Run whole sequences: int64 [B, T], padded on the right with any token.

        Returns floating [B, keep, V], what follows each of the last `keep` positions. A causal
        model never sees the padding from the positions before it, so none is masked.
        """
        ...

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: object
    ) -> tuple[torch.Tensor, object]:
        """Run int64 [B, T], padded on the left, after what `cache` has seen (None: nothing).

        `mask` int64 [B, past + T] is 0 on padding. Returns floating [B, V], what follows the last
        position, and the cache for the next step.
        """
        ...


class LiveModel:
    """A causal language model whose parameters are the given tensors, not copies of them.

    Writing into the tensors changes the model. `tensors` are named as in the checkpoint at
    `folder`, whose config.json says what the model is. Raises CheckpointError where the model class
    is unknown, does not take its parameters one to one from the tensors, or does not run.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, torch.Tensor], device: torch.device
    ) -> None:
        self.device = device
        config = _config(folder)
        model_class = _model_class(config, folder)
        try:
            model = _bound(model_class, config, tensors)
        except Exception as problem:  # the library raises whatever its classes raise
            raise _unfit(model_class, folder, problem) from None
        _prove_bound(model, tensors, folder)
        self._model = model.to(device).eval()
        text = config.get_text_config()
        self.vocabulary: int = text.vocab_size
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        self._takes_cache = "past_key_values" in accepted
        try:
            self.logits(torch.zeros((1, 1), dtype=torch.int64, device=device), 1)
        except Exception as problem:
            raise _unfit(model_class, folder, problem) from None

    def _run(self, ids: torch.Tensor, keep: int, **given: Any) -> Any:
        if self._takes_keep:
            given["logits_to_keep"] = keep
        return self._model(input_ids=ids, **given)

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """See LanguageModel."""
        found: torch.Tensor = self._run(ids, keep, use_cache=False).logits
        return found[:, -keep:]

    @torch.inference_mode()
    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: object
    ) -> tuple[torch.Tensor, object]:
        """See LanguageModel. A model without a key-value cache runs all tokens again."""
        given: dict[str, Any] = {"attention_mask": mask, "use_cache": self._takes_cache}
        if self._takes_cache:
            given["past_key_values"] = cache
        elif isinstance(cache, torch.Tensor):
            ids = torch.cat([cache, ids], dim=1)
        if self._takes_positions:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            given["position_ids"] = positions[:, -ids.shape[1] :]
        result = self._run(ids, 1, **given)
        return result.logits[:, -1], result.past_key_values if self._takes_cache else ids


class Ensemble:
    """The probability ensemble: the mean of the members' next-token probabilities.

    Deep ensembles (Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4), token by token.
    Its logits are log-probabilities, float32.
    """

    def __init__(self, members: Sequence[LanguageModel]) -> None:
        self._members = list(members)
        self.device = members[0].device
        self.vocabulary = members[0].vocabulary
        self.context = members[0].context

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """See LanguageModel."""
        return _log_mean((one.logits(ids, keep) for one in self._members), len(self._members))

    @torch.inference_mode()
    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: object
    ) -> tuple[torch.Tensor, object]:
        """See LanguageModel; the cache is the list of the members' caches."""
        caches = cache if isinstance(cache, list) else [None] * len(self._members)
        found = [
            member.step(ids, mask, past) for member, past in zip(self._members, caches, strict=True)
        ]
        return _log_mean((logits for logits, _ in found), len(found)), [past for _, past in found]


def _log_mean(members: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """Return the logarithm of the mean of softmax(logits), float32, over members of [..., V]."""
    each = (torch.log_softmax(logits.float(), dim=-1) for logits in members)
    return functools.reduce(torch.logaddexp, each) - math.log(count)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a model's folder; raises CheckpointError where there is none."""
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except Exception as problem:  # the library raises whatever its parsers raise
        raise CheckpointError(f"expected a tokenizer, got {_reason(problem)} in {folder}") from None
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"expected a tokenizer with an eos token, got none in {folder}")
    return tokenizer


def use_threads(parameters: int) -> None:
    """Set torch's thread count for a model of this size: one where threads would only wait.

    An explicit OMP_NUM_THREADS is left alone.
    """
    if "OMP_NUM_THREADS" not in os.environ and parameters < _SMALL:
        torch.set_num_threads(1)


def best_device(name: str | None) -> torch.device:
    """Return the device to work on: the one named, else CUDA where there is one, else the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise CheckpointError(
            f"expected a device such as cpu or cuda, got {name!r}: {_reason(problem)}"
        ) from None
    return device


def _reason(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__


def _config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(str(folder))
    except Exception as problem:  # the library raises whatever its parsers raise
        raise CheckpointError(
            f"expected a configuration that transformers knows, got {_reason(problem)} "
            f"in {folder}/config.json"
        ) from None


def _model_class(config: Any, folder: Path) -> Any:
    names = config.architectures or []
    found = getattr(transformers, names[0], None) if names else None
    if found is None:
        raise CheckpointError(
            f"expected an architecture that transformers knows, got "
            f"{names[0] if names else 'none'} in {folder}/config.json"
        )
    return found


def _bound(model_class: Any, config: Any, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Return the model with every parameter and stored buffer being the tensor loaded into it.

    The library renames as it loads, so it is given memory that nobody touches, and the addresses
    say afterwards what went where; what it converts is found by name.
    """
    blanks = {
        name: torch.empty(one.shape, dtype=one.dtype, device="cpu") for name, one in tensors.items()
    }
    origin = {blank.data_ptr(): tensors[name] for name, blank in blanks.items() if blank.numel()}
    floating = [one.dtype for one in tensors.values() if one.is_floating_point()]
    dtype = max(dict.fromkeys(floating), key=floating.count)
    with torch.device("cpu"):
        model: torch.nn.Module = model_class.from_pretrained(
            None, config=config, state_dict=blanks, dtype=dtype
        )
    for name, place in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        tensor = origin.get(place.data_ptr(), tensors.get(name))
        if tensor is not None and tensor.shape == place.shape:
            place.data = tensor
            place.requires_grad_(False)
    model.tie_weights()  # type: ignore[operator]
    return model


def _prove_bound(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    addresses = {tensor.data_ptr() for tensor in tensors.values()}
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() not in addresses:
            raise CheckpointError(
                f"expected every parameter of {type(model).__name__} in the checkpoint, got none "
                f"for {name} in {folder}; such a model can be merged but not scored in memory"
            )


def _unfit(model_class: type, folder: Path, problem: Exception) -> CheckpointError:
    return CheckpointError(
        f"expected a model that {model_class.__name__} can run, got {_reason(problem)} "
        f"in {folder}; such a model can be merged but not scored in memory"
    )
