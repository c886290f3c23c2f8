"""Times the merger against a plain copy, and against mergekit, on the same tensors in one process.

    python benchmarks/merger.py [--part bandwidth mergekit prepare memory tiny cuda] [--json FILE]

benchmarks/README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from llama_family import (
    CONSOLE,
    EXPERTS,
    LLAMA,
    SEVEN_B,
    TASK,
    TINY,
    interleaved,
    loaded,
    merger_of,
    recipe,
    shapes,
    show,
    write_family,
)

from evomerge.merger import Merger


def bandwidth(merger: Merger, folder: Path, rounds: int) -> dict[str, Any]:
    """Compare bytes over time with those of a copy: inputs read once, the output written once."""
    device = merger.device
    size = sum(one.nbytes for one in merger.output.values())
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    runs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    found: dict[str, Any] = {}
    for method in TASK:
        plan = recipe(folder, method)
        merger.materialize(plan)  # prepared and compiled
        seconds = interleaved(runs | {method: lambda plan=plan: merger.materialize(plan)}, rounds)
        moved = size * (len(plan.inputs) + 1)
        share = moved / seconds[method] / (2 * size / seconds["copy"])
        found[method] = {"ms": seconds[method] * 1e3, "of copy": share, "wanted": TASK[method][2]}
    rows = [
        [name, f"{one['ms']:.1f}", f"{one['of copy']:.2f}", f"{one['wanted'] or ''}"]
        for name, one in found.items()
    ]
    show(f"Share of a copy's bandwidth, {device}", ["method", "ms", "share", "wanted"], rows)
    return found


def mergekit(folder: Path, rounds: int) -> dict[str, Any]:
    """Compare with mergekit's in-memory call on the same tensors.

    Once as it comes, which computes in bfloat16 and rounds at every step, and once told to compute
    in float32 and to round once, which gives the same model.
    """
    from mergekit.merge_methods.api import merge_state_dicts
    from safetensors.torch import load_file

    states = {name: load_file(folder / name / "model.safetensors") for name in ("base", *EXPERTS)}
    merger = merger_of(folder, kernel="fused")
    found: dict[str, Any] = {}
    wanted = {"linear": 10, "task_arithmetic": 10, "ties": 250, "dare_ties": 250}
    for method, least in wanted.items():
        plan = recipe(folder, method)
        own, shared, _ = TASK[method]
        call = partial(
            merge_state_dicts,
            {name: one for name, one in states.items() if method != "linear" or name in EXPERTS},
            method,
            parameters=shared | {name: dict.fromkeys(EXPERTS, one) for name, one in own.items()},
            base=None if method == "linear" else "base",
        )
        exact = partial(call, dtype=torch.float32, out_dtype=torch.bfloat16)
        merger.materialize(plan)
        with torch.no_grad():
            seconds = interleaved(
                {"evomerge": partial(merger.materialize, plan), "mergekit": call, "float32": exact},
                rounds,
            )
        ratios = {
            f"times {name}": seconds[name] / seconds["evomerge"] for name in ("mergekit", "float32")
        }
        found[method] = {**seconds, **ratios, "wanted": least}
    rows = [
        [name, f"{one['evomerge'] * 1e3:.1f} ms",
         f"{one['mergekit']:.2f} s, {one['times mergekit']:.0f} times",
         f"{one['float32']:.2f} s, {one['times float32']:.0f} times", f"{one['wanted']}"]
        for name, one in found.items()
    ]  # fmt: skip
    columns = ["method", "evomerge", "mergekit", "mergekit in float32", "wanted"]
    show("Against mergekit 0.1.5, merge_state_dicts", columns, rows)
    return found


def prepare(folder: Path, theirs: float | None) -> dict[str, Any]:
    """Time what is computed once per set of models, and what of it a second study pays."""
    found: dict[str, Any] = {}
    for method in ("ties", "breadcrumbs", "dare_ties", "della", "sce", "slerp", "model_stock"):
        plan = recipe(folder, method)
        compile_for(method)
        steps = []
        with tempfile.TemporaryDirectory() as place:
            os.environ["EVOMERGE_CACHE"] = place
            for _ in range(2):
                merger = merger_of(folder, kernel="fused")
                start = time.perf_counter()
                merger.materialize(plan)
                first = time.perf_counter() - start
                start = time.perf_counter()
                merger.materialize(plan)
                steps.append(first - (time.perf_counter() - start))
        found[method] = {"first": steps[0], "from cache": steps[1]}
    rows = [
        [name, f"{one['first']:.2f}", f"{one['from cache']:.2f}"] for name, one in found.items()
    ]
    title = "Prepare, seconds"
    if theirs:
        title += f" (one TIES merge by mergekit: {theirs:.1f})"
    show(title, ["method", "first time", "from cache"], rows)
    return found


def compile_for(method: str) -> None:
    """Compile a method's kernel, on a small model."""
    with tempfile.TemporaryDirectory() as small:
        write_family(Path(small) / "f", TINY, torch.bfloat16)
        merger_of(Path(small) / "f", kernel="fused").materialize(recipe(Path(small) / "f", method))


def memory(folder: Path) -> dict[str, Any]:
    """Measure peak memory over inputs and output, each method in a process of its own."""
    found: dict[str, Any] = {}
    for method in ("linear", "ties", "dare_ties", "della", "karcher", "sce"):
        command = [sys.executable, __file__, "--peak", method, "--family", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[method] = json.loads(done.stdout.splitlines()[-1])
    rows = [
        [name, f"{one['models']:.0f}", f"{one['more']:.0f}", f"{one['more'] / one['models']:.1%}"]
        for name, one in found.items()
    ]  # fmt: skip
    show("Peak memory, MiB: inputs and output, and what came on top (wanted: 15 % or 256)",
         ["method", "inputs + output", "on top", ""], rows)  # fmt: skip
    return found


def peak(folder: Path, method: str) -> None:
    """Print the peak memory of preparing and merging, the imported libraries not counted."""
    compile_for(method)
    before = _status("VmRSS")
    merger = merger_of(folder, kernel="fused")
    merger.materialize(recipe(folder, method))
    output = sum(one.nbytes for one in merger.output.values())
    models = output * 5 / 2**20
    print(json.dumps({"models": models, "more": _status("VmHWM") - before - models}))


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def tiny(rounds: int) -> dict[str, Any]:
    """Time merges of half a million parameters, and of four times as many for what a byte costs.

    What is left at no bytes, on the line through the two, is the overhead.
    """
    found: dict[str, Any] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / "tiny", Path(place) / "wider"]
        write_family(folders[0], TINY, torch.float32)
        write_family(folders[1], {**TINY, "hidden": 192, "inner": 512}, torch.float32)
        for kernel in ("eager", "fused"):
            mergers = [merger_of(folder, kernel=kernel) for folder in folders]
            sizes = [sum(one.nbytes for one in merger.output.values()) for merger in mergers]
            for method in ("linear", "task_arithmetic", "ties", "dare_ties", "della"):
                plans = [recipe(folder, method) for folder in folders]
                half = torch.ones(sizes[0] * (len(plans[0].inputs) + 1) // 2, dtype=torch.uint8)
                copied = torch.empty_like(half)
                runs: dict[str, Callable[[], object]] = {"copy": partial(copied.copy_, half)}
                for name, merger, plan in zip(("merge", "wider"), mergers, plans, strict=True):
                    merger.materialize(plan)
                    runs[name] = lambda merger=merger, plan=plan: merger.materialize(plan)
                taken = {key: one * 1e3 for key, one in interleaved(runs, 10 * rounds).items()}
                per_byte = (taken["wider"] - taken["merge"]) / (sizes[1] - sizes[0])
                taken["overhead"] = taken["merge"] - per_byte * sizes[0]
                found[f"{method}, {kernel}"] = taken
    torch.set_num_threads(threads)
    rows = [
        [name, f"{one['merge']:.2f}", f"{one['copy']:.2f}", f"{one['overhead']:.2f}"]
        for name, one in found.items()
    ]
    show("Half a million parameters, one thread, ms (wanted: overhead < 1)",
         ["method", "merge", "a copy of its bytes", "overhead"], rows)  # fmt: skip
    return found


def cuda(rounds: int) -> dict[str, Any]:
    """Do the same on a GPU, stream from host memory, and compare the results with the CPU's."""
    folder = Path("seven_b")  # a name: nothing is written
    models = loaded(folder, SEVEN_B, "cuda")
    options: dict[str, Any] = {"device": "cuda", "kernel": "fused"}
    found: dict[str, Any] = {}
    found["device"] = bandwidth(Merger(models, memory="device", **options), folder, rounds)
    torch.cuda.empty_cache()
    found["host"] = streamed(Merger(models, memory="host", **options), folder, rounds)
    models = loaded(Path("small"), {**LLAMA, "layers": 2})
    worst: dict[str, int] = {}
    for method in TASK:
        plan = recipe(Path("small"), method)
        cpu, gpu = (Merger(models, device=one).materialize(plan) for one in ("cpu", "cuda"))
        worst[method] = max(
            int((_ordered(one) - _ordered(gpu[name].cpu())).abs().max())
            for name, one in cpu.items()
        )
    found["ulps between CPU and CUDA"] = worst
    rows = [[name, f"{ulps}"] for name, ulps in worst.items()]
    show("CPU and CUDA, bfloat16 ulps apart (wanted: 1)", ["method", "at most"], rows)
    return found


def streamed(merger: Merger, folder: Path, rounds: int) -> dict[str, float]:
    """Compare merging from host memory with copying the inputs over the link."""
    plan = recipe(folder, "ties")
    size = sum(one.nbytes for one in merger.output.values())
    part = torch.ones(1 << 28, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(part, device="cuda")
    runs = {
        "link": lambda: target.copy_(part, non_blocking=True),
        "ties": lambda: merger.materialize(plan),
    }
    seconds = interleaved(runs, rounds)
    bound = seconds["link"] * 4 * size / part.numel()
    found = {"seconds": seconds["ties"], "link": bound, "ratio": seconds["ties"] / bound}
    row = [f"{found['seconds']:.2f}", f"{bound:.2f}", f"{found['ratio']:.2f}"]
    show("Streamed from host memory", ["", "seconds", "link alone", "ratio (wanted: 1.2)"],
         [["ties", *row]])  # fmt: skip
    return found


def _ordered(tensor: torch.Tensor) -> torch.Tensor:
    """Return bfloat16 numbers as integers in the same order, one apart where they are one ulp."""
    bits = tensor.contiguous().view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def main() -> None:
    parts = ("bandwidth", "mergekit", "prepare", "memory", "tiny", "cuda")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=9, help="runs that the medians are of")
    parser.add_argument("--mergekit-rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--family", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["EVOMERGE_CACHE"] = str(Path(place) / "statistics")
        if chosen.peak:
            peak(chosen.family, chosen.peak)
            return
        folder = Path(place) / "llama"
        write_family(folder, LLAMA, torch.bfloat16)
        million = sum(map(math.prod, shapes(LLAMA).values())) / 1e6
        threads = torch.get_num_threads()
        CONSOLE.print(f"{threads} threads, torch {torch.__version__}, {million:.0f} M parameters")
        found: dict[str, Any] = {}
        if "bandwidth" in chosen.part:
            merger = merger_of(folder, kernel="fused")
            found["bandwidth"] = bandwidth(merger, folder, chosen.rounds)
        if "mergekit" in chosen.part:
            found["mergekit"] = mergekit(folder, chosen.mergekit_rounds)
        if "prepare" in chosen.part:
            theirs = found.get("mergekit", {}).get("ties", {}).get("mergekit")
            found["prepare"] = prepare(folder, theirs)
        if "memory" in chosen.part:
            found["memory"] = memory(folder)
        if "tiny" in chosen.part:
            found["tiny"] = tiny(chosen.rounds)
        if "cuda" in chosen.part and torch.cuda.is_available():
            found["cuda"] = cuda(chosen.rounds)
        elif "cuda" in chosen.part:
            CONSOLE.print("No GPU here: the part `cuda` was left out.")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
