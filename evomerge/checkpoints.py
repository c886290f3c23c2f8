"""Lazy, checked reading of checkpoints: a folder or a Hub id, with or without a LoRA adapter.

Opening a checkpoint reads headers only and imports no torch, except for `.bin` files, which have no
header of their own; tensors are read one by one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.adapter_reader import CONFIG, open_adapter
from evomerge.adapters import Adapter
from evomerge.errors import CheckpointError, Found, Place, first_line
from evomerge.files import beside, exists
from evomerge.headers import FLOATING, TensorInfo, context, read_json
from evomerge.tensor_files import (
    INDEX,
    PICKLED,
    PICKLED_INDEX,
    SINGLE,
    StoredTensors,
    TensorsByName,
    find_tensors,
    read_by_file,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "FLOATING",
    "HEAD",
    "INDEX",
    "SINGLE",
    "Checkpoint",
    "InMemory",
    "ModelRef",
    "TensorInfo",
    "locate",
    "open_checkpoint",
]

HEAD = "lm_head.weight"
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model*", "*.jinja", "*.tiktoken", "*.py",
              "*.bpe", "*.codes", "*.spm"]  # fmt: skip
_HUB_PICKLED = ["pytorch_model*.bin", "adapter_model.bin"]  # where there are no safetensors
# The same weights in other formats lie in folders; templates and generation code do too.
_HUB_COPIES = ["consolidated*", *(f"*/*.{kind}" for kind in ("safetensors", "bin", "json", "txt")),
               "*/*.model*"]  # fmt: skip
_WHOLE = {
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_REPOSITORY = re.compile(r"\w[\w.-]*(/[\w.-]+)?\Z")


@dataclass(frozen=True)
class ModelRef:
    """A reference to a model: a local folder or a Hub id, with a revision, with an adapter.

    Written `path`, `org/name`, `org/name@revision`, and each of these with `+` and an adapter in
    the same forms behind it.
    """

    path: str
    revision: str | None = None
    adapter: ModelRef | None = None

    @classmethod
    def parse(cls, value: object, place: Place) -> ModelRef:
        """Read a reference from a recipe or study file; raises the place's error.

        A `+` or an `@` in the name of a folder that exists belongs to the name.
        """
        if not isinstance(value, str) or not value.strip():
            raise place.fail("a model: a folder or a Hub id such as org/name@revision", value)
        text = value.strip()
        if "+" not in text or _there(text):
            return cls(*_with_revision(text, place))
        cuts = [(text[:at].strip(), text[at + 1 :].strip()) for at in _places("+", text)]
        for model, adapter in cuts:
            if all(part and ("+" not in part or _there(part)) for part in (model, adapter)):
                behind = cls(*_with_revision(adapter, place))
                return cls(*_with_revision(model, place), behind)
        raise place.fail(
            "model or model+adapter", text, "merge all adapters but one into the model first"
        )

    def __str__(self) -> str:
        text = f"{self.path}@{self.revision}" if self.revision else self.path
        return f"{text}+{self.adapter}" if self.adapter else text

    def resolved(self, folder: Path) -> ModelRef:
        """Return this reference with relative local paths made absolute against `folder`."""
        adapter = self.adapter.resolved(folder) if self.adapter else None
        local = folder / os.path.expanduser(self.path)
        if self.revision or not exists(local):
            return ModelRef(self.path, self.revision, adapter)
        return ModelRef(str(local.resolve()), None, adapter)


def _places(mark: str, text: str) -> list[int]:
    return [place for place, character in enumerate(text) if character == mark]


def _there(text: str) -> bool:
    return exists(Path(os.path.expanduser(text)))


def _with_revision(text: str, place: Place) -> tuple[str, str | None]:
    head, at, revision = text.rpartition("@")
    if not at or _there(text):
        return text, None
    if not head or not revision:
        raise place.fail("model@revision", text)
    return head, revision


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder whose headers have been read and checked; `tensors` is in sorted order.

    With an adapter, `folder`, `tensors` and `config` are the model's own: an adapter changes
    neither shapes nor dtypes. The tensors that `read` and `map` give are those with the adapter.
    """

    ref: ModelRef
    folder: Path
    tensors: Mapping[str, TensorInfo]
    adapter: Adapter | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json; raises CheckpointError where it is missing or broken."""
        return read_json(self.folder / "config.json")

    @property
    def context(self) -> int | None:
        """See `headers.context`."""
        return context(self.config)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors one by one in their storage dtype, each file opened once.

        Raises CheckpointError where a file has become unreadable since it was opened.
        """
        stored = StoredTensors(self.adapter.tensors) if self.adapter else {}
        for name, tensor in read_by_file(self.tensors, names):
            yield name, self.adapter.apply(name, tensor, stored) if self.adapter else tensor

    def map(self, names: Iterable[str]) -> Mapping[str, torch.Tensor]:
        """Return the same tensors as `read`, each got when it is asked for.

        All are contiguous. A tensor of a safetensors file or of a `.bin` file is mapped into
        memory: it is paged in as it is touched, and its pages are the system's to drop; files of
        before PyTorch 1.6 are held in memory. A tensor that an adapter changes is computed anew
        each time. Raises CheckpointError, on access, as `read`.
        """
        stored = StoredTensors({name: self.tensors[name] for name in names})
        if self.adapter is None:
            return stored
        own, apply = StoredTensors(self.adapter.tensors), self.adapter.apply
        return TensorsByName(stored, lambda name: apply(name, stored[name], own))


@dataclass(frozen=True)
class InMemory(Checkpoint):
    """A model whose tensors are in memory already; see `of`."""

    held: Mapping[str, torch.Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        tensors: Mapping[str, torch.Tensor],
        config: Mapping[str, Any] | None = None,
    ) -> InMemory:
        """Return a model that recipes call `name`; `tensors` may be a `state_dict()`.

        `config` is what config.json would say. Raises CheckpointError for a dtype that no
        checkpoint has.
        """
        infos = {
            key: TensorInfo(tuple(one.shape), _code(key, one), Path(name))
            for key, one in sorted(tensors.items())
        }
        return cls(ModelRef(name), Path(name), infos, None, tensors, config or {})

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration that the model was made with."""
        return dict(self.settings)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors one by one, as they are."""
        for name in names:
            yield name, self.held[name].detach()

    def map(self, names: Iterable[str]) -> Mapping[str, torch.Tensor]:
        """Return tensors as they are, where they are."""
        return {name: tensor.contiguous() for name, tensor in self.read(names)}


def _code(name: str, tensor: torch.Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    codes = {long: short for short, long in FLOATING.items()} | _WHOLE
    if kind not in codes:
        raise CheckpointError(f"expected one of {', '.join(codes)} for {name}, got {kind}")
    return codes[kind]


def locate(ref: ModelRef, place: Place) -> Path:
    """Return the local folder of a model, downloading a Hub model that is not in the cache.

    The adapter of `ref` has no part in it. Raises the place's error where there is neither a folder
    nor a model of that name in reach.
    """
    local = Path(os.path.expanduser(ref.path))
    if exists(local):
        if ref.revision:
            raise place.fail("a folder without a revision", str(ref), "drop what follows the @")
        if local.is_dir():
            return local.resolve()
        hint = (
            "merge the model's original weights" if local.suffix == ".gguf" else "name the folder"
        )
        raise place.fail("a folder with config.json and safetensors files", ref.path, hint)
    if not _REPOSITORY.fullmatch(ref.path):
        found = Found(f"{ref.path}, which does not exist")
        raise place.fail("a model's folder", found, beside(local))
    try:
        folder = _download(ref, _HUB_FILES)
        if not any(folder.glob("*.safetensors")):
            folder = _download(ref, _HUB_PICKLED)
    except Exception as problem:  # the library raises whatever its HTTP client raises
        name = str(ModelRef(ref.path, ref.revision))
        raise place.fail(
            "a model's folder or a Hub id",
            Found(f"{name!r}, for which there is no folder and the Hub gave none"),
            _out_of_reach(local, problem),
        ) from None
    return folder


def _out_of_reach(local: Path, problem: Exception) -> str:
    from huggingface_hub import constants

    near = beside(local.absolute())
    if near.startswith("did you mean"):
        return near
    if constants.HF_HUB_OFFLINE:
        return "check the spelling, or unset HF_HUB_OFFLINE, which forbids asking the Hub"
    reason = f"{type(problem).__name__}: {first_line(problem)}"
    return f"check the spelling, the network and your access ({reason})"


def _download(ref: ModelRef, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            ref.path,
            revision=ref.revision,
            allow_patterns=patterns,
            ignore_patterns=_HUB_COPIES,
        )
    ).resolve()


def open_checkpoint(ref: ModelRef, place: Place) -> Checkpoint:
    """Open a model's folder and read the headers of its weights, and of its adapter's.

    Raises the place's error where a folder cannot be found, and CheckpointError where files are
    missing or damaged, or where model and adapter do not fit each other.
    """
    folder = locate(ref, place)
    tensors = find_tensors(folder)
    if tensors is None:
        raise _no_weights(folder)
    if not tensors:
        raise CheckpointError(f"expected tensors, got none in {folder}; save the model again")
    checkpoint = Checkpoint(ref, folder, dict(sorted(tensors.items())))
    if not checkpoint.config:
        raise CheckpointError(
            f"expected a model's configuration, got an empty {folder}/config.json"
        )
    if ref.adapter is None:
        return checkpoint
    tied = checkpoint.config.get("tie_word_embeddings")
    tied = tied if isinstance(tied, bool) else HEAD not in tensors
    adapter = open_adapter(locate(ref.adapter, place), checkpoint.tensors, tied)
    return Checkpoint(ref, folder, checkpoint.tensors, adapter)


def _no_weights(folder: Path) -> CheckpointError:
    if (folder / CONFIG).is_file():
        return CheckpointError(
            f"expected a model, got the adapter {folder}; write it behind its model: model+adapter"
        )
    quantized = sorted(folder.glob("*.gguf"))
    found, hint = "none of them", "write the weights there by one of these names"
    if quantized:
        found, hint = quantized[0].name, "GGUF is not read; merge the model's original weights"
    return CheckpointError(
        f"expected {SINGLE}, {INDEX}, {PICKLED} or {PICKLED_INDEX} in {folder}, got {found}; {hint}"
    )
