"""What config.json says that a model is, and the transformers model of given tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from evomerge.adjacent import whole
from evomerge.errors import CheckpointError, first_line
from evomerge.fused import fused_parameters
from evomerge.headers import read_json
from evomerge.tokenizer_files import brings_code, untrusted


def bound_model(
    folder: Path, tensors: Mapping[str, torch.Tensor], trust: bool = False
) -> PreTrainedModel:
    """Return the model that config.json in `folder` describes, its parameters the given tensors.

    They are not copied; those of a fused parameter lie end to end. Buffers that are not stored lie
    on the CPU. Raises CheckpointError where the model class is unknown or its code not trusted, or
    where it does not take its parameters one to one from the tensors.
    """
    config = _config(folder, trust)
    model_class = _model_class(config, folder, trust)
    try:
        tensors = _joined(_blueprint(model_class, config), tensors)
        model = _bound(model_class, config, tensors)
    except Exception as problem:  # the library raises whatever its classes raise
        raise unfit(model_class, folder, problem) from None
    _prove_bound(model, tensors, folder)
    return model


def check_runnable(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], trust: bool = False
) -> None:
    """Check that config.json describes a known model of these tensors; reads no weights.

    Where `trust` is set, the checkpoint's own code may run and say so. Raises CheckpointError where
    it does not, naming the first tensor whose shape differs.
    """
    for name, parameter in _described(folder, trust).named_parameters():
        if name in shapes and tuple(parameter.shape) != shapes[name]:
            raise CheckpointError(
                f"expected {name} of shape {list(parameter.shape)} as {folder}/config.json says, "
                f"got {list(shapes[name])} in the weights; copy both from the model's source again"
            )


def end_to_end(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], trust: bool = False
) -> list[tuple[str, ...]]:
    """Return which of a checkpoint's tensors are to lie end to end, to be one parameter each run.

    `shapes` are the tensors', by name. Raises as `check_runnable`.
    """
    model = _described(folder, trust)
    try:
        return [*fused_parameters(model, shapes).values()]
    except Exception as problem:  # the library raises whatever its conversions raise
        raise unfit(type(model), folder, problem) from None


def learned_positions(model: torch.nn.Module) -> tuple[int | None, int]:
    """Return for how many tokens a model like BERT has positions, and how many of padding precede.

    None and 0 for other models.
    """
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, torch.nn.Embedding):
            first = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - first, first
    return None, 0


def learned_context(folder: Path, trust: bool = False) -> int | None:
    """Return for how many tokens the model of a folder has positions, where it learned them.

    Raises as `check_runnable`.
    """
    return learned_positions(_described(folder, trust))[0]


def unasked(folder: Path, trust: bool = False) -> str | None:
    """Return what a model is that says nothing of the next token; None for a language model."""
    if is_classifier(folder):
        return "classifiers"
    config = _config(folder, trust)
    model_class = _model_class(config, folder, trust)
    if config.is_encoder_decoder:
        return f"encoder-decoders ({model_class.__name__})"
    known = model_class.__module__.startswith("transformers.")
    return model_class.__name__ if known and not model_class.can_generate() else None


def is_classifier(folder: Path) -> bool:
    """Return whether a model's folder says that it classifies texts."""
    file = folder / "config.json"
    names = read_json(file).get("architectures") if file.is_file() else None
    return isinstance(names, list) and any(is_classifier_name(str(one)) for one in names[:1])


def is_classifier_name(architecture: str) -> bool:
    """Return whether models of a class classify texts."""
    return architecture.endswith("ForSequenceClassification")


def _reason(problem: Exception) -> str:
    return f"{type(problem).__name__}: {first_line(problem)}"


def _config(folder: Path, trust: bool) -> Any:
    try:
        config: Any = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust)
    except Exception as problem:  # the library raises whatever its parsers raise
        if not trust and brings_code(folder / "config.json"):
            raise untrusted("a model", folder / "config.json") from None
        raise CheckpointError(
            f"expected a configuration that transformers knows, got {_reason(problem)} "
            f"in {folder}/config.json; correct it, or install a transformers that knows it"
        ) from None
    if getattr(config, "rescale_every", 0):
        config.rescale_every = 0  # RWKV would divide its weights, which are not its own, as it runs
    return config


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
        "; correct it, or install a transformers that knows it"
    )


def _reference(config: Any, architecture: object) -> str | None:
    """Return where a checkpoint's own code has its architecture, `module.Class`, if it has any."""
    listed = getattr(config, "auto_map", None)
    if not isinstance(listed, dict):
        return None
    own = {name: one for name, one in listed.items() if isinstance(one, str)}
    named = [one for one in own.values() if one.rpartition(".")[2] == architecture]
    return named[0] if named else own.get("AutoModelForCausalLM")


def _described(folder: Path, trust: bool) -> PreTrainedModel:
    """Return the model that a folder describes, without memory; raises CheckpointError."""
    config = _config(folder, trust)
    model_class = _model_class(config, folder, trust)
    try:
        return _blueprint(model_class, config)
    except Exception as problem:  # the library raises whatever its classes raise
        raise unfit(model_class, folder, problem) from None


def _blueprint(model_class: Any, config: Any) -> PreTrainedModel:
    """Return a model without memory."""
    with torch.device("meta"):
        model: PreTrainedModel = model_class(copy.deepcopy(config))
    return model


def _joined(
    blueprint: PreTrainedModel, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return tensors with those that are one parameter as one, by its name."""
    found = dict(tensors)
    shapes = {name: tuple(one.shape) for name, one in tensors.items()}
    for parameter, names in fused_parameters(blueprint, shapes).items():
        joined = whole([found.pop(name) for name in names], blueprint.state_dict()[parameter].shape)
        if joined is None:
            raise ValueError(f"the tensors of {parameter} do not lie end to end")
        found[parameter] = joined
    return found


def _bound(model_class: Any, config: Any, tensors: Mapping[str, torch.Tensor]) -> PreTrainedModel:
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
        model: PreTrainedModel = model_class.from_pretrained(
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
    return model


def _prove_bound(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    addresses = {tensor.data_ptr() for tensor in tensors.values()}
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() not in addresses:
            raise CheckpointError(
                f"expected every parameter of {type(model).__name__} in the checkpoint, got none "
                f"for {name} in {folder}; such a model can be merged but not scored in memory"
            )


def unfit(
    model_class: type,
    folder: Path,
    problem: Exception,
    hint: str = "such a model can be merged but not scored in memory",
) -> CheckpointError:
    """Return the error of a model that cannot be made or run."""
    return CheckpointError(
        f"expected a model that {model_class.__name__} can run, got {_reason(problem)} "
        f"in {folder}; {hint}"
    )
