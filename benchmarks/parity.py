"""Runs recipes in mergekit 0.1.5 and in evomerge and compares every tensor of the two results.

    python benchmarks/parity.py [--only TEXT ...] [--json FILE]

benchmarks/README.md says how to read the table. The exit status is 1 where a row is out of bounds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from parity_compare import (
    PLACE,
    Result,
    Tensors,
    compare_chance,
    compare_files,
    compare_live,
    compare_tokens,
    read,
)
from parity_models import placed, write_row_models
from parity_recipes import ROWS, Row
from rich.console import Console
from rich.table import Table

from evomerge.errors import EvomergeError
from evomerge.merger.write import write_model
from evomerge.slices import parse_any_recipe

LEAST = 40  # rows that must be compared in full
# mergekit's sums over a tensor or a row, in float32, put elements further from float64 than the
# bound on elements is; those are compared with what it makes in float64. So is all of Arcee Fusion,
# whose divergences are mostly rounding in float32, and decide what is kept.
SUMS = ("nuslerp", "multislerp", "karcher", "model_stock")
DECIDED_BY_SUMS = ("arcee_fusion",)
Found = Sequence[tuple[Row, Result]]


def run_mergekit(data: Mapping[str, Any], out: Path) -> Tensors:
    """Write a recipe's model with mergekit, in this process, and read it."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(
        copy_tokenizer=False,
        write_model_card=False,
        quiet=True,
        random_seed=0,
        lora_merge_cache=str(out.parent / "adapted"),
    )
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        run_merge(MergeConfiguration.model_validate(data), str(out), options)
    return read(out)


def run_evomerge(data: Mapping[str, Any], out: Path) -> Tensors:
    """Write a recipe's model with evomerge and read it."""
    write_model(parse_any_recipe(data, PLACE), out, "recipe.yaml", device=torch.device("cpu"))
    return read(out)


def compare_row(row: Row, root: Path) -> Result:
    """Run a row in both programs and compare what they write below a folder, with the models."""
    data = placed(row.data, write_row_models(row, root))
    out = Path(tempfile.mkdtemp(dir=root))
    try:
        theirs = run_mergekit(data, out / "theirs")
    except Exception as problem:  # whatever it raises, it does not make this model
        said = str(problem).replace(f"{root}/", "")
        return Result("refused", note=f"mergekit: {said.splitlines()[0]}")
    try:
        ours = run_evomerge(data, out / "ours")
        if row.kind == "chance":
            return compare_chance(data, ours, theirs)
        if row.kind == "tokens":
            return compare_tokens(data, (out / "ours", out / "theirs"), ours, theirs)
        if not set(theirs) <= set(ours):
            return compare_live(row.family, data, out / "ours", theirs)
        finer = theirs
        if data["merge_method"] in SUMS + DECIDED_BY_SUMS:
            more = {"dtype": "float64", "out_dtype": data.get("out_dtype", "float32")}
            finer = run_mergekit({**data, **more}, out / "finer")
        decided = data["merge_method"] in DECIDED_BY_SUMS
        return compare_files(data, ours, finer if decided else theirs, finer)
    except EvomergeError as problem:
        return Result("apart", note=f"evomerge: {problem}")


def dtype_of(row: Row) -> str:
    """Return the dtype of a row's result, as its recipe says."""
    return str(row.data.get("out_dtype", row.data["dtype"]))


def show(found: Found) -> None:
    """Print the table."""
    table = Table(title="evomerge against mergekit 0.1.5", title_justify="left")
    for name in ("recipe", "models", "result", "tensors", "worst tensor", "relative", "ulp", ""):
        right = name in ("tensors", "relative", "ulp")
        table.add_column(name, justify="right" if right else "left")
    for row, one in found:
        worst = one.worst if one.relative else "none: all are equal"
        numbers = (f"{one.tensors}", worst, f"{one.relative:.1e}", f"{one.ulps:.0f}")
        said = f"{one.verdict}: {one.note}" if one.note else one.verdict
        cells = numbers if one.tensors else ("", "", "", "")
        table.add_row(row.name, row.family, dtype_of(row), *cells, said)
    Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(table)


def conclude(found: Found, least: int) -> int:
    """Print what the table comes to; returns the exit status."""
    count = Counter(one.verdict for _, one in found)
    full = count["same"] + count["apart"]
    print(
        f"{full} recipes compared in full: {count['same']} within the bounds, {count['apart']} not."
        f" mergekit loses tensors of {count['less']} more and refuses {count['refused']}."
    )
    for dtype in ("float32", "bfloat16"):
        same = [one for row, one in found if one.verdict == "same" and dtype_of(row) == dtype]
        numbers = [one for one in same if not one.note.startswith("kept")]
        if numbers:
            relative, ulps = max(one.relative for one in numbers), max(one.ulps for one in numbers)
            print(
                f"{dtype}: {relative:.1e} relative and {ulps:.0f} ulp at most, {len(numbers)} rows"
            )
    return int(count["apart"] > 0 or full < least)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="rows with one of these texts in their name")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")  # mergekit's and transformers' own
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    rows = [row for row in ROWS if not chosen.only or any(one in row.name for one in chosen.only)]
    found = []
    with tempfile.TemporaryDirectory() as place:
        os.environ["EVOMERGE_CACHE"] = str(Path(place) / "statistics")
        for number, row in enumerate(rows, start=1):
            found.append((row, compare_row(row, Path(place))))
            print(f"{number}/{len(rows)} {row.name}: {found[-1][1].verdict}", file=sys.stderr)
    show(found)
    if chosen.json:
        data = [{"recipe": row.name, "models": row.family, **asdict(one)} for row, one in found]
        chosen.json.write_text(json.dumps(data, indent=2) + "\n")
    return conclude(found, 0 if chosen.only else LEAST)


if __name__ == "__main__":
    sys.exit(main())
