"""Whether checkpoints can be merged with each other: names, shapes, ties, quantization."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError

_HEAD = "lm_head.weight"


def check_alike(checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Return the names of the tensors to merge, checked to be the same in every checkpoint.

    An output head that is tied to the embeddings is left to the tie, even where some of the inputs
    store it. Raises CheckpointError naming both sides of a difference, and for quantized weights.
    """
    first, *others = checkpoints
    for checkpoint in checkpoints:
        _refuse_quantized(checkpoint)
    left_out = {_HEAD} if _heads_are_tied(checkpoints) else set()
    names = [name for name in first.tensors if name not in left_out]
    for other in others:
        for missing in sorted((set(names) ^ set(other.tensors)) - left_out):
            holder, lacker = (first, other) if missing in first.tensors else (other, first)
            raise CheckpointError(
                f"expected the same tensors in every model, got {missing} in {holder.ref} "
                f"and not in {lacker.ref}; models to merge must share one architecture"
            )
        for name in names:
            mine, its = first.tensors[name], other.tensors[name]
            if mine.shape != its.shape:
                raise CheckpointError(
                    f"expected one shape for {name}, got {list(mine.shape)} in {first.ref} "
                    f"and {list(its.shape)} in {other.ref}"
                )
            if mine.floating != its.floating:
                raise CheckpointError(
                    f"expected floating-point numbers for {name} in both or in neither, "
                    f"got {mine.dtype} in {first.ref} and {its.dtype} in {other.ref}"
                )
    return tuple(names)


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    found = "quantization_config" if checkpoint.config.get("quantization_config") else None
    for name, info in checkpoint.tensors.items():
        if info.dtype.startswith(("F", "C")) and not info.floating:
            found = f"{info.dtype} for {name}"
            break
    if found:
        raise CheckpointError(
            f"expected float32, float16 or bfloat16 weights, got {found} in {checkpoint.ref}; "
            "merge the unquantized models"
        )


def _heads_are_tied(checkpoints: Sequence[Checkpoint]) -> bool:
    """Return whether the output heads are the embeddings; raises where models differ in that.

    A configuration that does not say so is read by what the checkpoint stores: without a head there
    must be a tie, with one it is as in the others.
    """
    said: dict[bool, Checkpoint] = {}
    if not any(_HEAD in checkpoint.tensors for checkpoint in checkpoints):
        return False
    for checkpoint in checkpoints:
        tied = checkpoint.config.get("tie_word_embeddings")
        if isinstance(tied, bool):
            said[tied] = checkpoint
        elif _HEAD not in checkpoint.tensors:
            said[True] = checkpoint
    if len(said) == 2:
        raise CheckpointError(
            f"expected {_HEAD} tied to the embeddings in every model or in none, got a tie in "
            f"{said[True].ref} and none in {said[False].ref}; models to merge must share one "
            "architecture"
        )
    return True in said
