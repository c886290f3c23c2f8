"""Hugging Face configuration and tokenizer, and the live model whose parameters are views."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from evomerge.errors import CheckpointError, first_line
from evomerge.language_model import Past
from evomerge.tokenizer_files import Tokenizer, brings_code, read_tokenizer, untrusted

_SMALL = 20_000_000  # parameters; below, more threads cost more than they bring

# Attention that sees all before it, or a window of it; states of other kinds go on token by token.
_PLAIN_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer"}


class LiveModel:
    """A causal language model whose parameters are the given tensors, not copies of them.

    Writing into the tensors changes the model. `tensors` are named as in the checkpoint at
    `folder`, whose config.json says what the model is. Code that comes with the checkpoint is run
    only where `trust` is set. Raises CheckpointError where the model class is unknown or such code,
    does not take its parameters one to one from the tensors, or does not run.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, torch.Tensor],
        device: torch.device,
        trust: bool = False,
    ) -> None:
        self.device = device
        config = _config(folder, trust)
        model_class = _model_class(config, folder, trust)
        try:
            model = _bound(model_class, config, tensors)
        except Exception as problem:  # the library raises whatever its classes raise
            raise _unfit(model_class, folder, problem) from None
        _prove_bound(model, tensors, folder)
        self._model = model.to(device).eval()
        text = config.get_text_config()
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        self._takes_cache = "past_key_values" in accepted
        try:
            one = self.logits(torch.zeros((1, 1), dtype=torch.int64, device=device), 1)
        except Exception as problem:
            raise _unfit(model_class, folder, problem) from None
        self.vocabulary: int = one.shape[-1]

    def _run(self, ids: torch.Tensor, keep: int, **given: Any) -> Any:
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
        if not self._takes_cache:
            return None
        state = self._run(ids, 1, **_continued(past) | {"use_cache": True}).past_key_values
        layers = {type(layer).__name__ for layer in getattr(state, "layers", [None])}
        return state if layers <= _PLAIN_LAYERS else None

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


def _continued(past: Past | None) -> dict[str, Any]:
    if past is None:
        return {"use_cache": False}
    cache: Any = copy.deepcopy(past.state)
    cache.reorder_cache(past.rows)
    return {"use_cache": True, "past_key_values": cache}


def load_tokenizer(folder: Path, trust: bool = False) -> Tokenizer:
    """Return the tokenizer of a model's folder, to score with; its code may run with `trust`.

    Raises CheckpointError where there is none, or none that says where a text ends.
    """
    tokenizer = read_tokenizer(folder, trust)
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"expected a tokenizer with an eos token, got none in {folder}")
    return tokenizer


def check_runnable(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], trust: bool = False
) -> None:
    """Check that config.json describes a known model of these tensors; reads no weights.

    Where `trust` is set, the checkpoint's own code may run and say so. Raises CheckpointError where
    it does not, naming the first tensor whose shape differs.
    """
    config = _config(folder, trust)
    model_class = _model_class(config, folder, trust)
    try:
        with torch.device("meta"):
            model = model_class(config)
    except Exception as problem:  # the library raises whatever its classes raise
        raise _unfit(model_class, folder, problem) from None
    for name, parameter in model.named_parameters():
        if name in shapes and tuple(parameter.shape) != shapes[name]:
            raise CheckpointError(
                f"expected {name} of shape {list(parameter.shape)} as {folder}/config.json says, "
                f"got {list(shapes[name])} in the weights"
            )


def use_threads(parameters: int) -> None:
    """Set torch's thread count for a model of this size: one where threads would only wait.

    An explicit OMP_NUM_THREADS is left alone.
    """
    if "OMP_NUM_THREADS" not in os.environ and parameters < _SMALL:
        torch.set_num_threads(1)


def _reason(problem: Exception) -> str:
    return f"{type(problem).__name__}: {first_line(problem)}"


def _config(folder: Path, trust: bool) -> Any:
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=trust)
    except Exception as problem:  # the library raises whatever its parsers raise
        if not trust and brings_code(folder / "config.json"):
            raise untrusted("a model", folder / "config.json") from None
        raise CheckpointError(
            f"expected a configuration that transformers knows, got {_reason(problem)} "
            f"in {folder}/config.json"
        ) from None


def _model_class(config: Any, folder: Path, trust: bool) -> Any:
    names = config.architectures or ["none"]
    own = _reference(config, names[0])
    if own and trust:
        try:
            return get_class_from_dynamic_module(own, str(folder))
        except Exception as problem:  # the checkpoint's code raises whatever it raises
            raise CheckpointError(
                f"expected the code of {own}, got {_reason(problem)} in {folder}"
            ) from None
    found = getattr(transformers, names[0], None) if isinstance(names[0], str) else None
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    if own:
        raise untrusted("a model", folder / "config.json")
    raise CheckpointError(
        f"expected an architecture that transformers knows, got {names[0]} in {folder}/config.json"
    )


def _reference(config: Any, architecture: object) -> str | None:
    """Return where a checkpoint's own code has its architecture, `module.Class`, if it has any."""
    listed = getattr(config, "auto_map", None)
    if not isinstance(listed, dict):
        return None
    own = {name: one for name, one in listed.items() if isinstance(one, str)}
    named = [one for one in own.values() if one.rpartition(".")[2] == architecture]
    return named[0] if named else own.get("AutoModelForCausalLM")


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
