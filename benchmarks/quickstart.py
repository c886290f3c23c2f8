"""The quickstart study over several seeds: winner, best task-arithmetic scale and ensemble.

Each seed draws its own items and its own search. The scale of the line is chosen on the search
split, the winner on the search and select splits; what is printed is measured on held-out items.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml


def evomerge(*arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-m", "evomerge", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def one_seed(zoo: Path, work: Path, seed: int, space: str | None) -> dict[str, Any]:
    study = yaml.safe_load((zoo / "study.yaml").read_text())
    study["splits"]["seed"] = study["search"]["seed"] = seed
    if space:
        study["space"] = space
    path = zoo / f"study-{seed}.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    began = time.perf_counter()
    evomerge("search", path, "--name", f"seed-{seed}", cwd=work)
    seconds = time.perf_counter() - began
    report = json.loads(evomerge("report", f"seed-{seed}", "--json", cwd=work))
    status = json.loads(evomerge("status", f"seed-{seed}", "--json", cwd=work))
    rows = {row["name"]: row for row in report["rows"]}
    held = {name: row["heldout"]["normalized"] for name, row in rows.items()}
    return {
        "seed": seed,
        "winner": held["winner"],
        "line": held["task arithmetic"],
        "scale": rows["task arithmetic"]["detail"],
        "best baseline": max(held[name] for name, row in rows.items() if row["kind"] == "baseline"),
        "ensemble": held["ensemble"],
        "gain": held["winner"] - held["task arithmetic"],
        "gap to ensemble": held["ensemble"] - held["winner"],
        "study seconds": seconds,
        "seconds per trial": status["seconds_per_trial"],
        "picked": report["winner"]["name"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--space", help="another search space than the study's")
    parser.add_argument("--zoo", type=Path, help="a family that is built already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        zoo = work / "zoo"
        if options.zoo:
            zoo.symlink_to(options.zoo.resolve())
        else:
            evomerge("zoo", zoo, cwd=work)
        rows = []
        print("normalized held-out accuracy (merged over best expert, mean of the tasks)")
        print("seed  winner   line  (chosen)    best baseline  ensemble    gain  s/trial  study s")
        for seed in range(options.seeds):
            row = one_seed(zoo, work, seed, options.space)
            rows.append(row)
            print(
                f"{seed:>4}  {row['winner']:.3f}   {row['line']:.3f}  {row['scale']:<10}  "
                f"{row['best baseline']:.3f}          {row['ensemble']:.3f}     "
                f"{row['gain']:+.3f}  {row['seconds per trial']:.3f}    {row['study seconds']:.0f}",
                flush=True,
            )
    gains = [row["gain"] for row in rows]
    summary = {
        "median gain": statistics.median(gains),
        "least gain": min(gains),
        "median gap to ensemble": statistics.median(row["gap to ensemble"] for row in rows),
    }
    print(
        f"gain over the line: median {summary['median gain']:+.3f}, "
        f"least {summary['least gain']:+.3f}"
        f" · gap to the ensemble: median {summary['median gap to ensemble']:+.3f}"
    )
    print("A gain above 0 means that the search found what no single scale gives.")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, **summary}, indent=2) + "\n")


if __name__ == "__main__":
    main()
