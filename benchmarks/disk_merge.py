"""Times `evomerge merge` against `mergekit-yaml`, from start to exit, and measures their memory.

    python benchmarks/disk_merge.py [--part speed memory] [--rounds 5] [--folder DIR] [--json FILE]

benchmarks/README.md says how to read the tables. The exit status is 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from llama_family import EXPERTS, LLAMA, show, write_family

TIMES = {"ties": 5.0, "linear": 2.0}  # how many times faster than mergekit
LAYERS = (12, 48)
PARTS = ("speed", "memory")
GROWTH = 32  # MiB that are not counted as growth: the allocator's and the kernel's
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Run:
    """What a process took: seconds, and MiB resident and of its own at their peaks if sampled."""

    seconds: float
    resident: float
    own: float


def family(folder: Path, layers: int) -> Path:
    """Return a family of Llamas with so many layers, in bfloat16, made where it is not there."""
    place = folder / f"llama-{layers}"
    if not place.exists():
        size = LLAMA | {"layers": layers}
        write_family(place, size, torch.bfloat16)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": size["hidden"],
            "intermediate_size": size["inner"],
            "num_hidden_layers": layers,
            "num_attention_heads": size["heads"],
            "num_key_value_heads": size["kv"],
            "vocab_size": size["vocab"],
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
        }
        for model in place.iterdir():
            (model / "config.json").write_text(json.dumps(config))
    return place


def recipe(place: Path, method: str) -> Path:
    """Write a recipe for three experts; returns its file."""
    own = {"weight": 0.4} | ({"density": 0.3} if method == "ties" else {})
    data: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    data["models"] = [{"model": str(place / name), "parameters": own} for name in EXPERTS]
    if method == "ties":
        data["base_model"] = str(place / "base")
    file = place.parent / f"{place.name}-{method}.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def run(tool: str, file: Path, sampled: bool = False) -> Run:
    """Run a tool on a recipe, in an empty cache, and throw away what it writes."""
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        out = str(Path(scratch) / "out")
        command = {
            "evomerge": [str(BIN / "evomerge"), "merge", str(file), out],
            "mergekit": [str(BIN / "mergekit-yaml"), str(file), out, "--no-copy-tokenizer"],
        }[tool]
        cache = str(Path(scratch) / "cache")
        environment = os.environ | {"EVOMERGE_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        with (Path(scratch) / "told").open("w+") as told:
            start = time.perf_counter()
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=told
            )
            resident, own = sample(process) if sampled else (0.0, 0.0)
            process.wait()
            seconds = time.perf_counter() - start
            told.seek(0)
            if process.returncode or not (Path(out) / "config.json").exists():
                sys.exit(f"{' '.join(command)} failed:\n{told.read()[-2000:]}")
    return Run(seconds, resident, own)


def sample(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Return the peaks of a process's memory until it ends, in MiB: resident, and no file's.

    What the system says of a process that has ended counts the memory of this one, its parent.
    """
    peaks = [0, 0]
    status = Path(f"/proc/{process.pid}/status")
    while True:
        found = re.search(r"VmHWM:\s+(\d+) kB(?:.*\n)+?RssAnon:\s+(\d+) kB", status.read_text())
        if not found:  # it has ended
            return peaks[0] / 1024, peaks[1] / 1024
        peaks = [max(pair) for pair in zip(peaks, map(int, found.groups()), strict=True)]
        time.sleep(0.005)


def speed(place: Path, rounds: int) -> tuple[dict[str, Any], list[str]]:
    """Time both tools in turns, after one run each that reads the models into memory."""
    found: dict[str, Any] = {}
    for method, wanted in TIMES.items():
        file = recipe(place, method)
        taken: dict[str, list[float]] = {"evomerge": [], "mergekit": []}
        for turn in range(rounds + 1):
            for tool, seconds in taken.items():
                one = run(tool, file)
                if turn:
                    seconds.append(one.seconds)
        ratios = [
            theirs / ours for ours, theirs in zip(taken["evomerge"], taken["mergekit"], strict=True)
        ]
        medians = {tool: statistics.median(seconds) for tool, seconds in taken.items()}
        found[method] = {
            **medians, "times": medians["mergekit"] / medians["evomerge"], "least": min(ratios),
            "wanted": wanted, "all": taken,
        }  # fmt: skip
    rows = [
        [method, f"{one['evomerge']:.2f} s", f"{one['mergekit']:.2f} s", f"{one['times']:.1f}",
         f"{one['least']:.1f}", f"{one['wanted']:g}"]
        for method, one in found.items()
    ]  # fmt: skip
    columns = ["method", "evomerge merge", "mergekit-yaml", "times faster", "worst turn", "wanted"]
    show("From start to exit, 134 M parameters, three experts", columns, rows)
    failed = [
        f"{method} is {one['times']:.1f} times faster, not {one['wanted']:g}"
        for method, one in found.items()
        if one["times"] < one["wanted"]
    ]
    return found, failed


def memory(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Measure the peak memory of both tools for models of few and of many layers."""
    found: dict[str, dict[str, Run]] = {}
    for method in TIMES:
        for layers in LAYERS:
            file = recipe(family(folder, layers), method)
            found[f"{method}, {layers} layers"] = {
                tool: run(tool, file, sampled=True) for tool in ("evomerge", "mergekit")
            }
    show("Peak memory, MiB: resident (of its own)", ["", "evomerge merge", "mergekit-yaml"], [
        [name, *(f"{one.resident:.0f} ({one.own:.0f})" for one in runs.values())]
        for name, runs in found.items()
    ])  # fmt: skip
    return {name: as_data(runs) for name, runs in found.items()}, excess(found)


def as_data(runs: Mapping[str, Run]) -> dict[str, Any]:
    """Return runs as plain data."""
    return {tool: {"resident": one.resident, "own": one.own} for tool, one in runs.items()}


def excess(found: Mapping[str, Mapping[str, Run]]) -> list[str]:
    """Return in words where memory is more than it may be."""
    failed = [
        f"{name}: {runs['evomerge'].resident:.0f} MiB, mergekit {runs['mergekit'].resident:.0f}"
        for name, runs in found.items()
        if runs["evomerge"].resident >= runs["mergekit"].resident
    ]
    for method in TIMES:
        few, many = (found[f"{method}, {layers} layers"]["evomerge"] for layers in LAYERS)
        if many.resident > few.resident + GROWTH:
            failed.append(f"{method}: {few.resident:.0f} MiB grow to {many.resident:.0f}")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the models are made, and kept")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    found: dict[str, Any] = {}
    failed: list[str] = []
    try:
        if "speed" in arguments.part:
            found["speed"], slow = speed(family(folder, LLAMA["layers"]), arguments.rounds)
            failed += slow
        if "memory" in arguments.part:
            found["memory"], large = memory(folder)
            failed += large
    finally:
        if not arguments.folder:
            shutil.rmtree(folder)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    if failed:
        sys.exit("\n".join(["These claims do not hold:", *failed]))


if __name__ == "__main__":
    main()
