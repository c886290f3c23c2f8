"""Reads a LoRA adapter's folder and checks it against its model, headers only."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from evomerge.adapters import Adapter, LowRank
from evomerge.errors import CheckpointError
from evomerge.headers import TensorInfo, read_json
from evomerge.tensor_files import describe

_Number = TypeVar("_Number", int, float)

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_LINEAR = ("lora_A", "lora_B")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
_MAGNITUDE = "lora_magnitude_vector"
_PARTS = (*_LINEAR, *_EMBEDDING, _MAGNITUDE)
_SHARED = {"embed_tokens", "wte", "word_embeddings", "lm_head"}  # where embeddings are tied
_UNPREFIXED = ("transformer.", "model.")  # which some files of a model leave out of their names
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")  # others change the base
_RIGHT_MODEL = "use the adapter with the model it was trained on"
_MERGE_FIRST = "merge such an adapter into its model with PEFT first"
_UNTIE = "merge it into its model with PEFT, untied, first"
_VARIANTS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)


@dataclass(frozen=True)
class _Config:
    """What an adapter's configuration says of its scales."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]  # by a pattern of the module's name
    alphas: Mapping[str, float]
    rank_stabilized: bool
    transposed: bool
    dora: bool

    def rank_of(self, module: str) -> int:
        return _matched(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        rank = self.rank_of(module)
        alpha = _matched(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


@dataclass(frozen=True)
class _Source:
    """An adapter's file and the model that it is for."""

    file: Path
    config: _Config
    own: Mapping[str, TensorInfo]
    model: Mapping[str, TensorInfo]

    def expected(self, what: str, found: str, hint: str = "") -> CheckpointError:
        return CheckpointError(f"expected {what}, got {found} in {self.file}{hint and '; '}{hint}")

    def unfit(self, name: str, *keys: str) -> CheckpointError:
        said = [f"{self.own[key].dtype} {list(self.own[key].shape)} for {key}" for key in keys]
        info = self.model[name]
        return self.expected(
            f"what fits {name}, {info.dtype} {list(info.shape)}", " and ".join(said), _RIGHT_MODEL
        )

    def target(self, name: str, key: str) -> str:
        """Return the model's tensor that the adapter means by `name`."""
        for prefix in ("", *_UNPREFIXED):
            if name.removeprefix(prefix) in self.model:
                return name.removeprefix(prefix)
        what = f"{key}, which fits none of them,"
        raise self.expected("an adapter of the model's tensors", what, _RIGHT_MODEL)

    def put(self, found: dict[str, str], name: str, key: str) -> None:
        if name in found:
            raise self.expected(f"one of {found[name]} and {key}", "both")
        found[name] = key


def open_adapter(folder: Path, model: Mapping[str, TensorInfo], tied: bool) -> Adapter:
    """Read an adapter's configuration and header for a model of these tensors.

    `tied` says whether the model's output head is its embeddings. Raises CheckpointError where the
    adapter is damaged, of a kind that cannot be added to weights, or made for another model.
    """
    config = _read_config(folder / CONFIG)
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"expected {' or '.join(_WEIGHTS)} in {folder}, got neither")
    source = _Source(file, config, describe(file), model)
    modules: dict[str, dict[str, str]] = {}  # module → part → the adapter's tensor
    replaced: dict[str, str] = {}
    for key, info in source.own.items():
        module, part = _parse(key)
        if part:
            source.put(modules.setdefault(module, {}), part, key)
        elif module:
            name = source.target(module, key)
            source.put(replaced, name, key)
            if info.shape != model[name].shape or not info.floating or not model[name].floating:
                raise source.unfit(name, key)
    low_rank = _low_rank(source, modules)
    if not low_rank and not replaced:
        raise source.expected("LoRA tensors", "none")
    for name in [*replaced, *low_rank] if tied else []:
        if _SHARED & set(name.split(".")):
            what = f"one that changes {name}"
            raise source.expected("an adapter that leaves tied embeddings alone", what, _UNTIE)
    return Adapter(folder, source.own, replaced, low_rank)


def _parse(key: str) -> tuple[str, str]:
    """Return the module and the part of it that a key names, or a tensor to replace and "".

    Both are empty for PEFT's copy of what the adapter replaces.
    """
    segments = [one for one in key.removeprefix(_PREFIX).split(".") if one != "default"]
    for place, segment in enumerate(segments):
        if segment in _PARTS and segments[place + 1 :] in ([], ["weight"]):
            return ".".join(segments[:place]), segment
    if "original_module" in segments:
        return "", ""
    return ".".join(one for one in segments if one not in ("base_layer", "modules_to_save")), ""


def _low_rank(source: _Source, modules: Mapping[str, Mapping[str, str]]) -> dict[str, LowRank]:
    """Return the updates by the model's tensors.

    PEFT asks a layer's class whether it is stored transposed, as a configuration with
    `fan_in_fan_out` has some. Here the shapes say which; a square one is as the others, or, where
    all are square, transposed. Embeddings are transposed always.
    """
    found: dict[str, LowRank] = {}
    square: list[str] = []
    said: list[bool] = []  # by the shapes that are not square
    for module, keys in modules.items():
        name = source.target(f"{module}.weight", next(iter(keys.values())))
        if name in found:
            raise source.expected(f"one update of {name}", "two")
        a, b = _factors(source, module, keys)
        embedding = _EMBEDDING[0] in keys
        plain = _plain_shape(source, module, name, a, b, keys.get(_MAGNITUDE))
        shape = source.model[name].shape
        transposed = embedding or (source.config.transposed and shape != plain)
        if shape != (plain[::-1] if transposed else plain):
            raise source.unfit(name, a, b)
        found[name] = LowRank(
            a, b, keys.get(_MAGNITUDE), source.config.scale_of(module), transposed
        )
        if not embedding and plain == plain[::-1]:
            square.append(name)
        elif not embedding:
            said.append(transposed)
    transposed = source.config.transposed and (any(said) or not said)
    return found | {name: replace(found[name], transposed=transposed) for name in square}


def _factors(source: _Source, module: str, keys: Mapping[str, str]) -> tuple[str, str]:
    """Return the adapter's tensors A and B of a module, checked to be there, and no part else."""
    pair = _EMBEDDING if set(keys) & set(_EMBEDDING) else _LINEAR
    wanted = {*pair, _MAGNITUDE} if source.config.dora else {*pair}
    if set(keys) != wanted:
        got = ", ".join(sorted(keys))
        raise source.expected(f"{', '.join(sorted(wanted))} for {module}", got)
    if pair == _EMBEDDING and source.config.dora:
        raise source.expected("DoRA of linear layers alone", keys[pair[0]], _MERGE_FIRST)
    return keys[pair[0]], keys[pair[1]]


def _plain_shape(
    source: _Source, module: str, name: str, a: str, b: str, magnitude: str | None
) -> tuple[int, ...]:
    """Return the shape [out, in] of what is added, from A [r, in], B [out, r] and m [out]."""
    left, right = source.own[b], source.own[a]
    rank = source.config.rank_of(module)
    infos = [left, right, source.model[name]]
    if len(left.shape) != 2 or len(right.shape) != 2 or not all(one.floating for one in infos):
        raise source.unfit(name, a, b)
    if not left.shape[1] == right.shape[0] == rank:
        found = f"{list(right.shape)} for {a} and {list(left.shape)} for {b}"
        raise source.expected(f"rank {rank} for {module} as {CONFIG} says", found)
    if magnitude and source.own[magnitude].shape not in (left.shape[:1], (left.shape[0], 1)):
        raise source.unfit(name, magnitude)
    return (left.shape[0], right.shape[1])


def _read_config(file: Path) -> _Config:
    content = read_json(file)
    kind, bias = content.get("peft_type"), content.get("bias", "none")
    if kind != "LORA":
        raise _bad(file, "a LoRA adapter", f"peft_type {kind!r}")
    for key in _VARIANTS:
        if content.get(key):
            raise _bad(file, "plain LoRA or DoRA", f"{key}: {content[key]}")
    if bias not in (None, "none"):
        raise _bad(file, "an adapter without biases", f"bias: {bias}")
    start = content.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise _bad(
            file,
            "an adapter of the model's own weights",
            f"init_lora_weights: {start}, which changed them",
            "save it again with PEFT's path_initial_model_for_weight_conversion",
        )
    return _Config(
        rank=_number(content.get("r"), "r", file, whole=True),
        alpha=_number(content.get("lora_alpha"), "lora_alpha", file),
        ranks=_patterns(content, "rank_pattern", file, whole=True),
        alphas=_patterns(content, "alpha_pattern", file),
        rank_stabilized=_switch(content, "use_rslora", file),
        transposed=_switch(content, "fan_in_fan_out", file),
        dora=_switch(content, "use_dora", file),
    )


def _patterns(content: dict[str, Any], key: str, file: Path, whole: bool = False) -> dict[str, Any]:
    found = content.get(key) or {}
    if not isinstance(found, dict):
        raise _bad(file, f"a mapping as {key}", found)
    for pattern, value in found.items():
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, RecursionError, OverflowError) as problem:
            raise _bad(file, f"regular expressions in {key}", f"{pattern!r} ({problem})") from None
        _number(value, f"{key}[{pattern!r}]", file, whole)
    return found


def _number(value: object, key: str, file: Path, whole: bool = False) -> Any:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
    if not good or (whole and not (isinstance(value, int) and value > 0)):
        raise _bad(file, f"a {'whole number from 1' if whole else 'number'} as {key}", value)
    return value


def _switch(content: dict[str, Any], key: str, file: Path) -> bool:
    value = content.get(key) or False
    if not isinstance(value, bool):
        raise _bad(file, f"true or false as {key}", value)
    return value


def _matched(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    """Return the value of the first pattern that fits the end of a module's name, as in PEFT."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _bad(file: Path, expected: str, found: object, hint: str = _MERGE_FIRST) -> CheckpointError:
    shown = found if isinstance(found, str) and found.isprintable() else ascii(found)
    return CheckpointError(f"expected {expected}, got {shown[:120]} in {file}; {hint}")
