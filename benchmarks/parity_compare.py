"""How benchmarks/parity.py compares two models: by name, live, by token, by what masks keep."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from evomerge.assembly import Part, assemble
from evomerge.checkpoints import open_checkpoint
from evomerge.compatibility import check_alike
from evomerge.errors import InputError, Place
from evomerge.recipe import Recipe
from evomerge.slices import parse_any_recipe
from tests.families import FAMILIES, load
from tests.mergekit_oracle import MOST_RELATIVE, MOST_ULPS, relative_error, steps, ulps_of
from tests.reference import expected

PLACE = Place("recipe.yaml", InputError)
SIGMAS = 5.0
_BY_TOKEN = re.compile(r"embed_tokens|lm_head")
Tensors = dict[str, torch.Tensor]
Data = Mapping[str, Any]


@dataclass(frozen=True)
class Apart:
    """How far two tensors are apart: relatively, and in ulps where they are furthest."""

    name: str
    relative: float
    ulps: float
    good: bool


@dataclass(frozen=True)
class Result:
    """What comparing a row found; `less` is that mergekit lost tensors of the model."""

    verdict: Literal["same", "apart", "less", "refused"]
    tensors: int = 0
    worst: str = ""
    relative: float = 0.0
    ulps: float = 0.0
    note: str = ""


def read(folder: Path) -> Tensors:
    """Read the tensors of a folder."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def compare_files(data: Data, ours: Tensors, theirs: Tensors, finer: Tensors) -> Result:
    """Compare tensors by name, where the formula and not rounding decides: see tests/reference.py.

    Elements are compared with those of `finer`, the whole of a tensor with that of `theirs`.
    """
    compared, skipped = [], 0
    for part in _parts(data):
        models = {str(one.ref): dict(one.read(part.names)) for one in part.checkpoints}
        exact = expected(part.recipe, models)
        for name in part.names:
            if name not in theirs:
                continue
            inputs = [one[name].float().abs() for one in models.values() if name in one]
            scale = torch.stack(inputs).amax(dim=0)
            decided = torch.from_numpy(~exact[name].open).reshape(scale.shape)
            skipped += int((~decided).sum())
            pair = [one[name] for one in (ours, theirs, finer)]
            compared.append(_apart(name, *(_where(one, decided) for one in (*pair, scale))))
    notes = [f"{skipped} elements at a threshold"] if skipped else []
    return _summed(compared, len(set(ours) - set(theirs)), notes)


def _where(tensor: torch.Tensor, decided: torch.Tensor) -> torch.Tensor:
    return tensor if bool(decided.all()) else tensor[decided]


def _parts(data: Data) -> list[Part]:
    recipe = parse_any_recipe(data, PLACE)
    opened = [open_checkpoint(ref, PLACE) for ref in dict.fromkeys([recipe.donor, *recipe.inputs])]
    if not isinstance(recipe, Recipe):
        return assemble(recipe, opened)
    return [Part(recipe, tuple(opened), check_alike(opened))]


def _apart(
    name: str, ours: torch.Tensor, theirs: torch.Tensor, near: torch.Tensor, scale: torch.Tensor
) -> Apart:
    """Measure in ulps of the largest input; of 16 bits, by the numbers of the dtype between.

    Where the terms cancel to about 0, numbers of 16 bits are finer than the rounding of any term.
    """
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return Apart(name, float("inf"), float("inf"), good=False)
    if not ours.numel():
        return Apart(name, 0.0, 0.0, good=True)
    relative = relative_error(ours, theirs)
    ulps = ulps_of(ours.double() - near.double(), scale)
    if ours.dtype == torch.float32:
        most = float(ulps.max())
        return Apart(name, relative, most, relative <= MOST_RELATIVE and most <= MOST_ULPS)
    between = torch.where(ulps <= MOST_ULPS, 0, steps(ours.contiguous(), near.contiguous()))
    return Apart(name, relative, float(between.max()), int(between.max()) <= 1)


def _summed(compared: Sequence[Apart], lost: int = 0, notes: Sequence[str] = ()) -> Result:
    worst = max(compared, key=lambda one: (not one.good, one.ulps, one.relative))
    relative = max(one.relative for one in compared)
    verdict: Literal["same", "apart", "less"] = "less" if lost else "same"
    if not all(one.good for one in compared):
        verdict = "apart"
    said = "; ".join([*([f"mergekit lost {lost} tensors"] if lost else []), *notes])
    return Result(verdict, len(compared), worst.name, relative, worst.ulps, said)


def compare_live(family: str, data: Data, folder: Path, theirs: Tensors) -> Result:
    """Compare by the names of the live model, by which mergekit writes some families.

    What `folder` holds of ours is loaded, and the inputs for the scale.
    """
    made = FAMILIES[family]
    ours = load(folder, made)[0].state_dict()
    inputs = [load(Path(one["model"]), made)[0].state_dict() for one in data["models"]]
    once = {tensor.data_ptr(): name for name, tensor in reversed(ours.items())}  # ties once
    compared = []
    for name in sorted(set(theirs) & set(ours)):
        scale = torch.stack([one[name].abs() for one in inputs]).amax(dim=0)
        mine = ours[name].to(theirs[name].dtype)
        compared.append(_apart(name, mine, theirs[name], theirs[name], scale))
    return _summed(compared, len(set(once.values()) - set(theirs)), ["by the live model's names"])


def compare_chance(data: Data, ours: Tensors, theirs: Tensors) -> Result:
    """Compare the share of entries that random masks keep, and the L1 mass of the task vector.

    The share must be the density within five standard deviations, the mass that of the expert.
    """
    base, expert = (read(Path(path)) for path in (data["base_model"], data["models"][0]["model"]))
    density = data["models"][0]["parameters"]["density"]
    total = sum(one.numel() for one in base.values())
    shares, compared = [], []
    for found in (ours, theirs):
        kept = sum(int((found[name] != base[name]).sum()) for name in base)
        shares.append(kept / total)
        near = abs(shares[-1] - density) <= SIGMAS * (density * (1 - density) / total) ** 0.5
        for name in base:
            left, whole = (
                float((one[name].double() - base[name].double()).abs().sum())
                for one in (found, expert)
            )
            error = abs(left / whole - 1)
            compared.append(Apart(name, error, 0.0, near and error <= 1e-4))
    note = f"kept {shares[0]:.4f} and {shares[1]:.4f} of {density}"
    return replace(_summed(compared, notes=[note]), tensors=len(base))


def compare_tokens(data: Data, folders: Sequence[Path], ours: Tensors, theirs: Tensors) -> Result:
    """Compare embeddings and head token by token, by the tokens' texts, the rest by name.

    The ids of a union may be in another order. `folders` are what the two programs have written.
    """
    words = [vocabulary(folder) for folder in folders]
    odd = sorted(set(words[0]) ^ set(words[1]))
    if odd:
        return Result("apart", note=f"{len(odd)} tokens of one alone, such as {odd[0]!r}")
    sizes = [json.loads((folder / "config.json").read_text())["vocab_size"] for folder in folders]
    if sizes[0] != sizes[1] or set(ours) != set(theirs):
        return Result(
            "apart", note=f"vocabularies of {sizes}, {len(ours)} and {len(theirs)} tensors"
        )
    names = dict.fromkeys([data.get("base_model"), *(one["model"] for one in data["models"])])
    inputs = {name: (vocabulary(Path(name)), read(Path(name))) for name in names if name}
    compared = []
    for name in sorted(ours):
        pair = (ours[name], theirs[name])
        scale = torch.zeros(1)
        if _BY_TOKEN.search(name):
            if len(pair[0]) != len(pair[1]) or len(pair[0]) != sizes[0]:
                return Result("apart", note=f"{len(pair[0])} and {len(pair[1])} rows of {name}")
            pair = tuple(_by_token(*one) for one in zip(pair, words, strict=True))
            scale = _scale(name, sorted(words[0]), inputs, pair[1])
        else:
            scale = torch.stack([one[name].abs() for _, one in inputs.values()]).amax(dim=0)
        compared.append(_apart(name, *pair, pair[1], scale))
    return _summed(compared, notes=[f"{len(words[0])} tokens in {sizes[0]} rows"])


def vocabulary(folder: Path) -> dict[str, int]:
    """Return the id of each token of a folder's tokenizer, added ones too."""
    found: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return found


def _by_token(rows: torch.Tensor, ids: Mapping[str, int]) -> torch.Tensor:
    """Return the rows in the order of the tokens' texts, those without a token last."""
    named = [ids[token] for token in sorted(ids)]
    rest = sorted(set(range(len(rows))) - set(named))
    return rows[torch.tensor([*named, *rest])]


def _scale(
    name: str,
    tokens: Sequence[str],
    inputs: Mapping[str, tuple[Mapping[str, int], Tensors]],
    theirs: torch.Tensor,
) -> torch.Tensor:
    """Return the largest of what the inputs have for a token; of rows without one, of them all."""
    scale = theirs.float().abs()
    scale[len(tokens) :] = torch.cat([one[name].abs() for _, one in inputs.values()]).amax(dim=0)
    for ids, tensors in inputs.values():
        rows = tensors[name].abs()
        for at, token in enumerate(tokens):
            if token in ids and ids[token] < len(rows):
                scale[at] = torch.maximum(scale[at], rows[ids[token]])
    return scale
