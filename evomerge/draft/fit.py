"""Whether models can be merged, and if not, what would help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from evomerge.checkpoints import Checkpoint
from evomerge.compatibility import check_alike
from evomerge.errors import CheckpointError
from evomerge.headers import read_json
from evomerge.module_groups import tensor_names_by_layer
from evomerge.tokenizer_files import has_tokenizer, read_tokenizer

_TEMPLATE = "chat_template"
_SETTINGS = "tokenizer_config.json"


def check_mergeable(checkpoints: Sequence[Checkpoint]) -> None:
    """Check the experts against the base, which comes first.

    Raises CheckpointError naming the tensor in which two models differ, and what to do.
    """
    base, *experts = checkpoints
    for one in experts:
        name = _vocabulary_tensor(base, one)
        if name is not None:
            mine, its = base.tensors[name].shape[0], one.tensors[name].shape[0]
            raise CheckpointError(
                f"expected one vocabulary, got {mine} rows of {name} in {base.ref} and {its} in "
                f"{one.ref}; bring the latter to the former's first: `evomerge merge` the recipe "
                f"{{merge_method: passthrough, models: [{{model: {one.ref}}}], tokenizer: "
                f"{{source: {base.ref}}}}} and give init the folder that it makes"
            )
        try:
            check_alike([base, one])
        except CheckpointError as problem:
            kinds = [kind_of(base), kind_of(one)]
            if kinds[0] == kinds[1]:
                raise
            raise CheckpointError(f"{problem}; they are {kinds[0]} and {kinds[1]}") from None
    check_alike(checkpoints)


def _vocabulary_tensor(base: Checkpoint, one: Checkpoint) -> str | None:
    """Return the first tensor that differs, where all that differ do so in their rows of tokens."""
    shared = [name for name in base.tensors if name in one.tensors]
    unlike = [name for name in shared if base.tensors[name].shape != one.tensors[name].shape]
    outside = all(where is None for where in tensor_names_by_layer(unlike).values())
    rows = all(base.tensors[name].shape[1:] == one.tensors[name].shape[1:] != () for name in unlike)
    return unlike[0] if unlike and outside and rows else None


def kind_of(checkpoint: Checkpoint) -> str:
    """Return a model's architecture in words."""
    config = checkpoint.config
    names = config.get("architectures") or [config.get("model_type", "a model of no known kind")]
    layers = config.get("num_hidden_layers")
    return f"{names[0]}" + (f" of {layers} layers" if layers is not None else "")


def has_template(folder: Path) -> bool:
    """Return whether a model's folder has a chat template."""
    if (folder / f"{_TEMPLATE}.jinja").is_file():
        return True
    return (folder / _SETTINGS).is_file() and bool(read_json(folder / _SETTINGS).get(_TEMPLATE))


def vocabulary_notes(checkpoints: Sequence[Checkpoint], trust: bool) -> Iterable[str]:
    """Yield a sentence for each expert whose tokens are not the base's."""
    base, *experts = checkpoints
    own = read_tokenizer(base.folder, trust).get_vocab()
    for one in experts:
        if one.folder == base.folder or not has_tokenizer(one.folder):
            continue
        its = read_tokenizer(one.folder, trust).get_vocab()
        unlike = [token for token in own.keys() | its if own.get(token) != its.get(token)]
        if unlike:
            yield (
                f"{one.ref} has another tokenizer than the base: {len(unlike)} tokens differ, such "
                f"as {min(unlike)!r}; items are put to all models in the base's tokens"
            )
