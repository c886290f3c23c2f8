"""Times the merger against a plain copy, and against mergekit, on the same tensors in one process.

    python benchmarks/merger.py [--part bandwidth mergekit prepare memory tiny cuda] [--json FILE]

benchmarks/README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from evomerge.checkpoints import ModelRef, open_checkpoint
from evomerge.errors import InputError, Place
from evomerge.merger import Merger
from evomerge.recipe import Recipe, parse_recipe

PLACE = Place("benchmark", InputError)
EXPERTS = ("a", "b", "c")
LLAMA = {"hidden": 576, "inner": 1536, "layers": 30, "heads": 9, "kv": 3, "vocab": 49152}
TINY = {"hidden": 96, "inner": 256, "layers": 4, "heads": 4, "kv": 4, "vocab": 33}
SEVEN_B = {"hidden": 4096, "inner": 11008, "layers": 32, "heads": 32, "kv": 32, "vocab": 32000}
CONSOLE = Console()

# What each method must reach of a copy's bandwidth on two CPU cores.
WEIGHTS = {"weight": 0.4}
TASK: dict[str, tuple[dict[str, float], dict[str, Any], float]] = {
    "linear": (WEIGHTS, {}, 0.9),
    "task_arithmetic": (WEIGHTS, {}, 0.9),
    "nuslerp": (WEIGHTS, {}, 0.9),
    "multislerp": (WEIGHTS, {}, 0.9),
    "karcher": ({}, {}, 0.9),
    "model_stock": ({}, {}, 0.9),
    "slerp": ({}, {"t": 0.3}, 0.9),
    "ties": ({"weight": 0.4, "density": 0.3}, {}, 0.6),
    "breadcrumbs": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "breadcrumbs_ties": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "dare_linear": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "dare_ties": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "della": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "della_linear": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "sce": ({}, {"select_topk": 0.3}, 0.0),
    "nearswap": ({}, {"t": 0.001}, 0.0),
    "passthrough": ({}, {}, 0.0),
    "arcee_fusion": ({}, {}, 0.0),
}
FEWER = {"slerp": 1, "nuslerp": 2, "nearswap": 1, "passthrough": 1, "arcee_fusion": 1}
BASELESS = ("linear", "multislerp", "karcher", "passthrough")


def shapes(size: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a Llama with tied embeddings."""
    hidden, inner = size["hidden"], size["inner"]
    narrow = hidden // size["heads"] * size["kv"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size["vocab"], hidden)}
    parts = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    for layer in range(size["layers"]):
        found |= {f"model.layers.{layer}.{name}.weight": one for name, one in parts.items()}
    return found | {"model.norm.weight": (hidden,)}


def write_family(
    folder: Path, size: Mapping[str, int], dtype: torch.dtype, device: str = "cpu"
) -> None:
    """Write a base of random weights and three experts that are near it."""
    generator = torch.Generator(device).manual_seed(0)
    own = {name: torch.Generator(device).manual_seed(n) for n, name in enumerate(EXPERTS, 1)}
    models: dict[str, dict[str, torch.Tensor]] = {name: {} for name in ("base", *EXPERTS)}
    for name, shape in shapes(size).items():
        base = torch.randn(shape, generator=generator, device=device) * 0.02
        models["base"][name] = base.to(dtype).cpu()
        for expert, stream in own.items():
            delta = torch.randn(shape, generator=stream, device=device) * 0.003
            models[expert][name] = (base + delta).to(dtype).cpu()
    for name, tensors in models.items():
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text('{"tie_word_embeddings": true}')


def recipe(folder: Path, method: str) -> Recipe:
    """Return a recipe of a method for the family in a folder."""
    own, shared, _ = TASK[method]
    experts = EXPERTS[: FEWER.get(method, 3)]
    data: dict[str, Any] = {"merge_method": method, "parameters": shared}
    data["models"] = [{"model": str(folder / name), "parameters": own} for name in experts]
    if method not in BASELESS:
        data["base_model"] = str(folder / "base")
    return parse_recipe(data, PLACE)


def merger_of(folder: Path, **options: Any) -> Merger:
    """Return a merger with the family of a folder loaded."""
    refs = [ModelRef(str(folder / name)) for name in ("base", *EXPERTS)]
    return Merger([open_checkpoint(ref, PLACE) for ref in refs], **options)


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, run in turns after one run that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            synchronize()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if not index else "right")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)


def bandwidth(folder: Path, rounds: int, **options: Any) -> dict[str, Any]:
    """Compare bytes over time with those of a copy: inputs read once, the output written once."""
    merger = merger_of(folder, kernel="fused", **options)
    device = merger.device
    size = sum(one.nbytes for one in merger.output.values())
    source = torch.zeros(size, dtype=torch.uint8, device=device)
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
    """Compare with mergekit's in-memory call on the same tensors."""
    from mergekit.merge_methods.api import merge_state_dicts
    from safetensors.torch import load_file

    states = {name: load_file(folder / name / "model.safetensors") for name in ("base", *EXPERTS)}
    merger = merger_of(folder, kernel="fused")
    found: dict[str, Any] = {}
    for method, wanted in {
        "linear": 10,
        "task_arithmetic": 10,
        "ties": 250,
        "dare_ties": 250,
    }.items():
        plan = recipe(folder, method)
        own, shared, _ = TASK[method]
        models = states if method != "linear" else {name: states[name] for name in EXPERTS}
        parameters = shared | {name: dict.fromkeys(EXPERTS, value) for name, value in own.items()}
        base = None if method == "linear" else "base"

        def theirs(
            models: Any = models,
            method: str = method,
            parameters: Any = parameters,
            base: Any = base,
        ) -> object:
            with torch.no_grad():
                return merge_state_dicts(models, method, parameters=parameters, base=base)

        merger.materialize(plan)
        runs = {"evomerge": lambda plan=plan: merger.materialize(plan), "mergekit": theirs}
        seconds = interleaved(runs, rounds)
        ratio = seconds["mergekit"] / seconds["evomerge"]
        found[method] = {**seconds, "times faster": ratio, "wanted": wanted}
    rows = [
        [name, f"{one['evomerge'] * 1e3:.1f} ms", f"{one['mergekit']:.2f} s",
         f"{one['times faster']:.0f}", f"{one['wanted']}"]
        for name, one in found.items()
    ]  # fmt: skip
    show("Against mergekit 0.1.5, merge_state_dicts",
         ["method", "evomerge", "mergekit", "times faster", "wanted"], rows)  # fmt: skip
    return found


def prepare(folder: Path, theirs: float | None) -> dict[str, Any]:
    """Time what is computed once per set of models, and what of it a second study pays."""
    found: dict[str, Any] = {}
    for method in ("ties", "breadcrumbs", "dare_ties", "della", "sce", "slerp", "model_stock"):
        plan = recipe(folder, method)
        steps = []
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
    with tempfile.TemporaryDirectory() as small:
        write_family(Path(small) / "f", TINY, torch.bfloat16)
        merger_of(Path(small) / "f", kernel="fused").materialize(recipe(Path(small) / "f", method))
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
                source = torch.zeros(sizes[0] * (len(plans[0].inputs) + 1) // 2, dtype=torch.uint8)
                target = torch.empty_like(source)
                runs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
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


def cuda(folder: Path, rounds: int) -> dict[str, Any]:
    """Do the same on a GPU, stream from host memory, and compare the results with the CPU's."""
    small = folder.parent / "small"
    large = folder.parent / "seven_b"
    write_family(large, SEVEN_B, torch.bfloat16, "cuda")
    found: dict[str, Any] = {"device": bandwidth(large, rounds, device="cuda", memory="device")}
    torch.cuda.empty_cache()
    found["host"] = streamed(large, rounds)
    write_family(small, {**LLAMA, "layers": 2}, torch.bfloat16)
    worst: dict[str, int] = {}
    for method in TASK:
        results = [
            merger_of(small, device=device).materialize(recipe(small, method))
            for device in ("cpu", "cuda")
        ]
        worst[method] = max(
            int((_ordered(one) - _ordered(results[1][name].cpu())).abs().max())
            for name, one in results[0].items()
        )
    found["ulps between CPU and CUDA"] = worst
    rows = [[name, f"{ulps}"] for name, ulps in worst.items()]
    show("CPU and CUDA, bfloat16 ulps apart (wanted: 1)", ["method", "at most"], rows)
    return found


def streamed(folder: Path, rounds: int) -> dict[str, float]:
    """Compare merging from host memory with copying the inputs over the link."""
    merger = merger_of(folder, device="cuda", memory="host", kernel="fused")
    plan = recipe(folder, "ties")
    size = sum(one.nbytes for one in merger.output.values())
    part = torch.zeros(1 << 28, dtype=torch.uint8, pin_memory=True)
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
        CONSOLE.print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
                      f"{sum(map(_count, shapes(LLAMA).values())) / 1e6:.0f} M parameters")  # fmt: skip
        found: dict[str, Any] = {}
        if "bandwidth" in chosen.part:
            found["bandwidth"] = bandwidth(folder, chosen.rounds)
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
            found["cuda"] = cuda(folder, chosen.rounds)
        elif "cuda" in chosen.part:
            CONSOLE.print("No GPU here: the part `cuda` was left out.")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


if __name__ == "__main__":
    main()
