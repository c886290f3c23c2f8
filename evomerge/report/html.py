"""The report as one self-contained page: a template, filled from plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from evomerge.citations import bibtex
from evomerge.files import dump_yaml, write_text
from evomerge.merge_methods import get
from evomerge.report.charts import bars, course, intervals, parallel, plane
from evomerge.report.heat import heat_maps

_HOLES = 12  # that are shown; of the others, their sum
_LABELS = 6  # layers at most that have their number above a heat map of many
_EVERY = (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 100)
_THREADS = 12  # trials of a front that are drawn as lines


def write_html(
    path: Path, name: str, report: Mapping[str, Any], background: Mapping[str, Any]
) -> None:
    """Write the page, whole or not at all; it loads nothing from elsewhere.

    `background` is what evomerge.study.background returns of the study.
    """
    write_text(path, page(name, report, background))


def page(name: str, report: Mapping[str, Any], background: Mapping[str, Any]) -> str:
    """Return the page as text."""
    environment = Environment(
        loader=PackageLoader("evomerge", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    filters: dict[str, Any] = {
        "three": lambda value: f"{value:.3f}",
        "figures": lambda values: ", ".join(f"{key} {one:.3f}" for key, one in values.items()),
        "right": _right,
        "short": lambda text: {"embeddings": "emb", "norms": "norm"}.get(text, text),
        "sentence": _sentence,
    }
    environment.filters.update(filters)
    rows = report["rows"]
    tasks = list(rows[0]["heldout"]["tasks"])
    parts = {
        "name": name,
        "report": report,
        "rows": rows,
        "winner": {"trial": None, "recipe": None, **report["winner"]},
        "headline": _headline(report),
        "levels_of": _levels(report),
        "summary": _summary(report, background),
        "heldout": intervals(rows),
        "tasks": bars(rows),
        **_front(report.get("front") or [], tasks, report["winner"].get("trial")),
        **_winner(report, background),
        **_search(report, background),
        "optimism": _optimism(rows[0].get("optimism")),
        "fidelity": _fidelity(report.get("fidelity")),
        "calibration": _calibration(report),
        "examples": report.get("examples") or [],
        **_repeat(report, background),
    }
    parts["contents"] = [
        (anchor, title)
        for anchor, title, there in (
            ("heldout", "Held-out items", True),
            ("tasks", "Tasks", True),
            ("front", "Trade-offs", parts["front"]),
            ("winner", "The winner", parts["heat"]),
            ("search", "The search", True),
            ("trust", "Trust", any(parts[one] for one in ("optimism", "fidelity", "calibration"))),
            ("items", "Items", parts["examples"]),
            ("use", "Use it", parts["recipe"]),
            ("repeat", "Repeat it", parts["study"]),
        )
        if there
    ]
    return environment.get_template("page.html.jinja").render(parts)


def _right(share: float) -> str:
    return {1.0: "right", 0.0: "wrong"}.get(share, f"{100 * share:.0f}\u00a0% right")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _percent(part: Mapping[str, float]) -> str:
    value, low, high = (100 * part[key] for key in ("normalized", "low", "high"))
    return f"{value:.1f}\u00a0% [{low:.1f}, {high:.1f}]"


def _best_baseline(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    others = [row for row in report["rows"] if row["kind"] == "baseline"]
    return max(others, key=lambda row: row["heldout"]["normalized"]) if others else None


def _headline(report: Mapping[str, Any]) -> str:
    """Return one sentence: the winner against the best baseline on held-out items."""
    if report.get("gain"):
        return _sentence(report["gain"]["sentence"])
    best = _best_baseline(report)
    own = report["rows"][0]["heldout"]
    if best is None:
        return f"The winner reaches {_percent(own)} of the best experts’ accuracy."
    return (
        f"The winner reaches {_percent(own)} of the best experts’ accuracy on held-out items, "
        f"the best baseline ({best['name']}) {_percent(best['heldout'])}."
    )


def _levels(report: Mapping[str, Any]) -> str:
    """Return what winner and best baseline reach, where the headline is their difference."""
    if not report.get("gain"):
        return ""
    best, own = _best_baseline(report), report["rows"][0]["heldout"]
    text = (
        f"The winner, {report['winner']['name']}, reaches {_percent(own)} of the best experts’ "
        "accuracy, mean of the tasks"
    )
    return text + (f"; {best['name']} {_percent(best['heldout'])}." if best else ".")


def _summary(report: Mapping[str, Any], background: Mapping[str, Any]) -> str:
    record = background.get("record")
    if record is None:
        return ""
    study = record["study"]
    experts, tasks = study["models"]["experts"], study["tasks"]
    done = sum(one["state"] != "running" for one in background["trials"])
    dimensions = len(record["holes"])
    return (
        f"{len(experts)} expert{'s' * (len(experts) != 1)} ({', '.join(experts)}), "
        f"{len(tasks)} task{'s' * (len(tasks) != 1)}, {done} trials of {record['optimizer']} in "
        f"{dimensions} dimension{'s' * (dimensions != 1)}; {study['splits']['heldout']} held-out "
        "items a task. In brackets: 95\u00a0% intervals."
    )


def _front(
    front: Sequence[Mapping[str, Any]], tasks: Sequence[str], winner: int | None
) -> dict[str, Any]:
    ordered = sorted(front, key=lambda one: -one["normalized"])
    few = ordered[:_THREADS]
    return {
        "chosen_in_front": winner in [one["trial"] for one in few],
        "front": ordered,
        "front_tasks": tasks if not front else list(front[0]["select"]),
        "plane": plane(ordered, tasks) if front and len(tasks) == 2 else None,
        "threads": parallel(few, tasks) if front and len(tasks) > 2 else None,
    }


def _winner(report: Mapping[str, Any], background: Mapping[str, Any]) -> dict[str, Any]:
    recipe, record = report["winner"].get("recipe"), background.get("record")
    if recipe is None or record is None:
        return {"heat": None, "paper": ""}
    models = record["study"]["models"]
    names = {ref: name for name, ref in [("base", models["base"]), *models["experts"].items()]}
    heat = heat_maps(recipe, record["tensors"], names)
    for one in heat["maps"] if heat else ():
        one["every"] = next(n for n in _EVERY if n * _LABELS >= one["layers"] or n == _EVERY[-1])
    return {"heat": heat, "paper": _method(recipe["merge_method"]).paper}


def _method(name: str) -> Any:
    from evomerge.errors import Place, RecipeError

    return get(name, Place("the recipe", RecipeError))


def _search(report: Mapping[str, Any], background: Mapping[str, Any]) -> dict[str, Any]:
    trials = background.get("trials") or []
    stages = report["search"].get("stages") or []
    found = course(trials, background.get("baselines") or {}, stages)
    label = ""
    if found is not None:
        values = [one["fitness"] for one in trials if one["fitness"] is not None]
        label = (
            f"Fitness of {len(trials)} trials, from {min(values):.3f} to {max(values):.3f}, and "
            "the best so far"
        )
        points = [one["trial"] for one in found["points"]]
        found["below"] = any(one["below"] for one in found["points"])
        found["early"] = any(one["seen"] is not None for one in points)
        found["chosen"] = report["winner"].get("trial") in [one["number"] for one in points]
    references = [row["name"] for row in report["rows"] if row["kind"] == "reference"]
    return {
        "course": found,
        "course_label": label,
        "references": references,
        "importance": _importance(background.get("importance")),
    }


def _importance(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the holes that a regression on the trials makes most of, and what it is worth."""
    if found is None or len(found["holes"]) < 2:
        return None
    shown, others = found["holes"][:_HOLES], found["holes"][_HOLES:]
    most = shown[0]["share"] or 1.0
    worth = max(0.0, found["explained"])
    doubt = (
        "so the shares below are a good guide to what moved the fitness."
        if worth >= 0.5
        else "so take the shares below as a hint at best."
    )
    return {
        "sentence": (
            "Each hole’s share of what a quadratic ridge regression on "
            f"{found['trials']} trials explains. It foresees {100 * worth:.0f}\u00a0% of the "
            f"variance of the rank of a trial that it has not seen, {doubt} The trials are those "
            "that the search has chosen, and holes may act together: shares prove no cause."
        ),
        "shown": [{**one, "width": round(100 * one["share"] / most, 2)} for one in shown],
        "rest": (
            f"The other {len(others)} holes together: "
            f"{100 * sum(one['share'] for one in others):.1f}\u00a0%."
            if others
            else ""
        ),
    }


def _optimism(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    text = (
        "The winner’s normalized accuracy on the search items less that on the held-out items is "
        f"{value:+.1f} points [{low:.1f}, {high:.1f}]"
    )
    if low > 0:
        return f"{text}: that is what choosing by the search items has flattered it by."
    return f"{text}, so choosing by the search items has not flattered it measurably."


def _fidelity(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    last = found.get("after") or found.get("before")
    figures = []
    if last is not None:
        figures = [
            ("Expected correlation of measured and true fitness", f"{last['correlation']:.2f}"),
            ("Noise of a trial’s fitness", f"{100 * last['noise']:.1f} points"),
            ("Spread of the trials’ fitness", f"{100 * last['spread']:.1f} points"),
            ("Least difference that is not noise", f"{100 * last['resolved']:.1f} points"),
        ]
    sentences = found.get("sentences") or []
    return {"sentences": sentences, "figures": figures} if sentences or figures else None


def _calibration(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    kinds = {row["name"]: row["kind"] for row in report["rows"]}
    return [
        {"name": name, "kind": kinds.get(name, "baseline"), "task": task, **figures}
        for name, tasks in (report.get("calibration") or {}).items()
        for task, figures in tasks.items()
    ]


def _repeat(report: Mapping[str, Any], background: Mapping[str, Any]) -> dict[str, Any]:
    record, recipe = background.get("record"), background.get("recipe")
    if record is None:
        return {"study": None, "recipe": recipe, "ignored": "", "citations": ""}
    study, origin = record["study"], record.get("origin")
    lines = [line for line in (recipe or "").splitlines() if line.startswith("# mergekit ignores")]
    inputs = background.get("inputs") or {}
    items = record["items"]
    return {
        "recipe": recipe,
        "ignored": lines[0].removeprefix("# mergekit ").removesuffix(".") if lines else "",
        "citations": bibtex(report["winner"]["recipe"]["merge_method"], record["optimizer"]),
        "study": dump_yaml(study),
        "optimizer": record["optimizer"],
        "seed": study["search"]["seed"],
        "seconds": background.get("seconds"),
        "origin": None if origin is None else origin["study"],
        "versions": list(record["versions"].items()),
        "fingerprints": [
            *((f"weights of {ref}", digest) for ref, digest in inputs.items()),
            *((f"items of {task}", digest) for task, digest in items.items()),
            ("merged weights", report["winner"].get("weights", "")),
        ],
    }
