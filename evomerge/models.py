"""Hugging Face configuration, tokenizer and the live model whose parameters are views of buffers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from evomerge.errors import CheckpointError

_SMALL = 20_000_000  # parameters; below, more threads cost more than they bring

Tokenizer = PreTrainedTokenizerBase

transformers.utils.logging.disable_progress_bar()


class LanguageModel(Protocol):
    """What scoring asks of a model: next-token log-probabilities, with a cache."""

    device: torch.device
    vocabulary: int  # number of token ids, V

    def log_probabilities(
        self, ids: torch.Tensor, mask: torch.Tensor, keep: int, cache: object = None
    ) -> tuple[torch.Tensor, object]:
        """Run `ids` (int64 [B, T], padded on the left) after what `cache` has seen.

        `mask` int64 [B, past + T] is 0 on padding. Returns float32 [B, keep, V], the
        log-probabilities of the token that follows each of the last `keep` positions, and the
        cache for what comes next.
        """
        ...


class LiveModel:
    """A causal language model whose parameters are the given tensors, not copies of them.

    Writing into the tensors changes the model. `tensors` are named as in the checkpoint at
    `folder`, whose config.json says what the model is. Raises CheckpointError where the model class
    is unknown or does not take its parameters one to one from the tensors.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, torch.Tensor], device: torch.device
    ) -> None:
        self.device = device
        config = _config(folder)
        model_class = _model_class(config, folder)
        floating = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
        dtype = max(set(floating), key=floating.count)
        with torch.device("cpu"):
            model = model_class.from_pretrained(
                None, config=config, state_dict=dict(tensors), dtype=dtype
            )
        _bind(model, tensors, folder)
        self._model = model.to(device).eval()
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted

    @torch.inference_mode()
    def log_probabilities(
        self, ids: torch.Tensor, mask: torch.Tensor, keep: int, cache: object = None
    ) -> tuple[torch.Tensor, object]:
        """See LanguageModel."""
        extra: dict[str, Any] = {}
        if self._takes_positions:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            extra["position_ids"] = positions[:, -ids.shape[1] :]
        if self._takes_keep:
            extra["logits_to_keep"] = keep
        result = self._model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra
        )
        logits = result.logits[:, -keep:].float()
        return torch.log_softmax(logits, dim=-1), result.past_key_values


class Ensemble:
    """The probability ensemble: the mean of the members' next-token probabilities.

    Deep ensembles (Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4), token by token.
    """

    def __init__(self, members: Sequence[LanguageModel]) -> None:
        self.device = members[0].device
        self.vocabulary = members[0].vocabulary
        self._members = list(members)

    def log_probabilities(
        self, ids: torch.Tensor, mask: torch.Tensor, keep: int, cache: object = None
    ) -> tuple[torch.Tensor, object]:
        """See LanguageModel; the cache is the list of the members' caches."""
        caches = cache if isinstance(cache, list) else [None] * len(self._members)
        found = [
            member.log_probabilities(ids, mask, keep, past)
            for member, past in zip(self._members, caches, strict=True)
        ]
        total = found[0][0]
        for log_probabilities, _ in found[1:]:
            total = torch.logaddexp(total, log_probabilities)
        mean = total - torch.log(torch.tensor(float(len(found))))
        return mean, [past for _, past in found]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model's folder; raises CheckpointError where there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
    except Exception as problem:  # the library raises whatever its parsers raise
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        raise CheckpointError(
            f"expected a tokenizer, got {type(problem).__name__} in {folder}: {reason}"
        ) from None
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
        reason = str(problem).strip().splitlines()[0]
        raise CheckpointError(f"expected a device such as cpu or cuda, got {name}: {reason}") from None
    return device


def _config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(str(folder))
    except Exception as problem:  # the library raises whatever its parsers raise
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        raise CheckpointError(
            f"expected a configuration that transformers knows, got {type(problem).__name__} "
            f"in {folder}/config.json: {reason}"
        ) from None


def _model_class(config: Any, folder: Path) -> Any:
    names = config.architectures or []
    found = getattr(transformers, names[0], None) if names else None
    if found is None:
        raise CheckpointError(
            f"expected an architecture that transformers knows, got {names or 'none'} "
            f"in {folder}/config.json"
        )
    return found


def _bind(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Make every parameter the tensor of its name, and prove that none is anything else."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in tensors and tensors[name].shape == parameter.shape:
            parameter.data = tensors[name]
            parameter.requires_grad_(False)
    model.tie_weights()  # type: ignore[operator]
    addresses = {tensor.data_ptr() for tensor in tensors.values()}
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() not in addresses:
            raise CheckpointError(
                f"expected every parameter of {type(model).__name__} in the checkpoint, got none "
                f"for {name} in {folder}; such a model can be merged but not scored in memory"
            )
