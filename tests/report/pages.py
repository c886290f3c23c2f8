"""Reports and backgrounds of studies that nobody has run, as data."""

from typing import Any

import numpy as np

NASTY = "<script>alert(1)</script> \"a\" & 'b' {{ c }}"
PARTS = ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")


def row(name: str, kind: str, value: float, tasks: tuple[str, ...], detail: str = "") -> Any:
    part = {
        "normalized": value,
        "low": value - 0.05,
        "high": value + 0.05,
        "tasks": {task: value / (index + 1) for index, task in enumerate(tasks)},
    }
    splits = dict.fromkeys(("search", "select", "heldout"), part)
    return {"name": name, "kind": kind, "detail": detail} | splits


def small() -> tuple[dict[str, Any], dict[str, Any]]:
    """A report that has only what every report has, and nothing of the trials."""
    tasks = ("a&b",)
    rows = [
        row("winner", "winner", 0.8125, tasks, "trial 7"),
        row(NASTY, "baseline", 0.5, tasks),
        row("ensemble", "reference", 0.875, tasks),
    ]
    report = {"rows": rows, "winner": {"name": "trial 7"}, "search": {"ended": None}}
    return report, {"trials": []}


def recipe(layers: int) -> dict[str, Any]:
    ramp = [round(n / max(1, layers - 1) - 0.25, 6) for n in range(layers)]
    weights = [
        [{"filter": "mlp", "value": ramp}, {"value": 0.5}],
        [{"value": ramp[::-1]}],
    ]
    return {
        "merge_method": "ties",
        "base_model": "org/base",
        "models": [
            {"model": f"org/{name}", "parameters": {"weight": weight, "density": 0.25}}
            for name, weight in zip(("math", "code"), weights, strict=True)
        ],
        "parameters": {"normalize": False, "lambda": 1.0},
    }


def tensors(layers: int) -> list[str]:
    names = [f"model.layers.{n}.{part}.weight" for n in range(layers) for part in PARTS]
    return ["model.embed_tokens.weight", *names, "model.norm.weight", "lm_head.weight"]


def member(trial: int, tasks: tuple[str, ...], holds: bool) -> dict[str, Any]:
    search = {task: 0.5 + 0.01 * trial * (-1) ** n for n, task in enumerate(tasks)}
    select = {task: value - 0.02 for task, value in search.items()}
    return {"trial": trial, "search": search, "select": select, "normalized": 0.6, "holds": holds}


def full(
    tasks: tuple[str, ...] = ("maths", "code", "chat"), layers: int = 4, trials: int = 60
) -> Any:
    """A report with everything that a report may have."""
    report, _ = small()
    generator = np.random.default_rng(0)
    rows = [
        row("winner", "winner", 0.81, tasks, "trial 7"),
        row("base", "baseline", 0.4, tasks),
        row("math", "baseline", 0.5, tasks),
        row("code", "baseline", 0.62, tasks),
        row("task arithmetic", "baseline", 0.7, tasks, "scale 0.4"),
        row("ensemble", "reference", 0.9, tasks),
    ]
    gain = {"name": "task arithmetic", "value": 0.11, "low": 0.02, "high": 0.2}
    rows[0]["optimism"] = {"value": 0.03, "low": 0.01, "high": 0.05}
    figures = {"items": 8, "rows": 9, "noise": 0.01, "spread": 0.05, "resolved": 0.03,
               "correlation": 0.98, "needed": 4}  # fmt: skip
    item = {"prompt": NASTY, "options": [], "answer": "42", "winner": 1.0, "expert": 0.0}
    choice = {**item, "options": ["x", "42"], "winner": 0.0, "expert": 0.5}
    report |= {
        "rows": rows,
        "winner": {"name": "trial 7", "trial": 7, "recipe": recipe(layers), "weights": "f00d"},
        "search": {
            "ended": "The search ended after 59 of 60 trials.",
            "stages": [{"first": 0, "dimensions": 3, "start": None},
                       {"first": 30, "dimensions": 6, "start": 7}],
        },
        "front": [member(trial, tasks, trial == 7) for trial in (3, 7, 9)],
        "gain": {"baseline": gain, "line": gain, "sentence": "the winner beats the best baseline"},
        "fidelity": {"before": figures, "after": figures, "sentences": ["items rank the trials"]},
        "calibration": {"winner": {tasks[0]: {"error": 0.1, "brier": 0.2, "likelihood": 0.3}}},
        "examples": [
            {"task": tasks[0], "expert": "math", "counts": {"won": 1, "lost": 1, "items": 9},
             "won": [item], "lost": [choice]},
        ],
    }  # fmt: skip
    history = [
        {"number": n, "state": "complete", "fitness": float(value), "error": None, "seen": None}
        for n, value in enumerate(np.sort(generator.random(trials)) * 0.3 + 0.5)
    ]
    history[5] |= {"state": "failed", "fitness": None, "error": NASTY}
    history[6] |= {"seen": 12, "fitness": 2.0}  # what it has not finished is no best
    history[8]["fitness"] = -9.0
    experts = {"math": "org/math", "code": "org/code"}
    study = {
        "models": {"base": "org/base", "experts": experts},
        "space": {"merge_method": "ties"},
        "tasks": {task: {"kind": "generation"} for task in tasks},
        "splits": {"search": 8, "select": 8, "heldout": 16},
        "search": {"seed": 3},
    }
    background = {
        "record": {
            "study": study, "optimizer": "cma_es", "tensors": tensors(layers), "origin": None,
            "holes": [{"name": "x"}] * 3, "items": dict.fromkeys(tasks, "beef"),
            "versions": {"evomerge": "0.0.0", "torch": "2"},
        },
        "inputs": {"org/base": "b0", "org/math": "a1"},
        "trials": history,
        "baselines": {"base": 0.3, "task arithmetic": 0.7, "code": 0.701, "ensemble": 0.75},
        "importance": {
            "trials": 50, "explained": 0.62,
            "holes": [{"name": f"hole.{n}", "share": 0.4 / (n + 1)} for n in range(15)],
        },
        "seconds": 0.25,
        "recipe": "# mergekit ignores seed and gives another model.\nmerge_method: ties\n",
    }  # fmt: skip
    return report, background
