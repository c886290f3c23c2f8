"""Scoring: against lm-evaluation-harness on one model and the same items, and the tool's own time.

    python benchmarks/evaluator.py [--part choice|generation|overhead] [--json FILE]

benchmarks/README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from llama_family import CONSOLE, show  # noqa: E402

from evomerge import batches  # noqa: E402
from evomerge.checkpoints import ModelRef, open_checkpoint  # noqa: E402
from evomerge.decoding import greedy, teacher_force  # noqa: E402
from evomerge.errors import InputError, Place  # noqa: E402
from evomerge.evaluator import Evaluator  # noqa: E402
from evomerge.models import LiveModel  # noqa: E402
from evomerge.proxy_tasks._tokens import encode_after  # noqa: E402
from evomerge.study import loop  # noqa: E402
from evomerge.study.file import check_study, load_study_file  # noqa: E402
from evomerge.zoo.build import build_zoo  # noqa: E402
from tests.architectures import byte_level_tokenizer  # noqa: E402
from tests.study.fake_study import Silent  # noqa: E402

CPU = torch.device("cpu")
VOCABULARY, CONTEXT = 8192, 1024
SHOTS, WORDS = 5, 25  # of a question
UNTIL = ["k", "\n\n"]
LONGEST = 128  # tokens of a generated answer
ITEMS = (24, 48, 256)  # of a task, whose scoring is timed apart from a study
BATCH = 64  # what "auto" finds on a CPU, whatever the length


@dataclass(frozen=True)
class Model:
    """A Llama of random weights, as evomerge and as lm-eval have it, and words to ask it."""

    live: LiveModel
    tokenizer: Any
    harness: Any
    words: list[str]
    parameters: int


def made(folder: Path, layers: int) -> Model:
    """Make a model with a tokenizer that is trained on the standard library's source."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:120]
    text = "".join(file.read_text(errors="ignore") for file in files)
    tokenizer = byte_level_tokenizer(text, VOCABULARY)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1408, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=CONTEXT,
        initializer_range=0.06, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    checkpoint = open_checkpoint(ModelRef(str(folder)), Place("benchmark", InputError))
    live = LiveModel(folder, dict(checkpoint.read(checkpoint.tensors)), CPU)
    harness: Any = HFLM(pretrained=live.module, tokenizer=tokenizer, batch_size="auto")
    harness._detect_batch_size = lambda *_, **__: BATCH  # minutes of runs of the longest rows
    words = [word for word in text.split() if word.isalpha()]
    return Model(live, tokenizer, harness, words, model.num_parameters())


@dataclass(frozen=True)
class Questions:
    """Prompts of few-shot items, and the options of each."""

    prompts: list[str]
    options: list[list[str]]


def questions(model: Model, count: int, shots: str, letters: bool, seed: int = 0) -> Questions:
    """Draw items of four options; the shots are the `same`, each item's `own`, or a `subject`'s."""
    draw = np.random.default_rng(seed)

    def some(least: int, most: int) -> str:
        return " ".join(draw.choice(model.words, draw.integers(least, most + 1)))

    def asked() -> tuple[str, list[str]]:
        choices = [some(1, 6) for _ in range(4)]
        listed = "".join(f"\n{letter}. {one}" for letter, one in zip("ABCD", choices, strict=True))
        text = f"Question: {some(WORDS - 8, WORDS + 8)}{listed if letters else ''}\nAnswer:"
        return text, [f" {letter}" for letter in "ABCD"] if letters else [f" {o}" for o in choices]

    def opening() -> str:
        shown = [asked() for _ in range(SHOTS)]
        return "".join(f"{text}{choices[draw.integers(4)]}\n\n" for text, choices in shown)

    kinds = {"same": 1, "subject": 4, "own": count}[shots]
    openings = [opening() for _ in range(kinds)]
    items = [asked() for _ in range(count)]
    return Questions(
        [openings[index % kinds] + text for index, (text, _) in enumerate(items)],
        [choices for _, choices in items],
    )


def in_turns(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median seconds of the processor of each, after one run that does not count.

    On one thread these are what a quiet machine takes, whatever else runs on this one.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            taken[name].append(time.process_time() - begun)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def quietly(run: Callable[[], Any]) -> Any:
    """Run without what lm-eval prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return run()


def chosen_by(model: Model, asked: Questions, rounds: int) -> dict[str, Any]:
    """Time the log-likelihoods of all options, and compare them."""
    flat = [
        (prompt, option)
        for prompt, options in zip(asked.prompts, asked.options, strict=True)
        for option in options
    ]
    found: dict[str, Any] = {}

    def ours() -> None:
        batches.kept_plan.cache_clear()
        prompts, options = map(list, zip(*flat, strict=True))
        sequences = encode_after(model.tokenizer, prompts, options, chat=False)
        forced = teacher_force(model.live, sequences)
        found["ours"] = forced.total(forced.log_probability)

    def theirs() -> None:
        requests = [Instance("loglikelihood", {}, pair, 0) for pair in flat]
        answers = quietly(lambda: model.harness.loglikelihood(requests, disable_tqdm=True))
        found["theirs"] = np.array([value for value, _ in answers])

    seconds = in_turns({"ours": ours, "theirs": theirs}, rounds)
    best = [np.split(found[one], len(asked.prompts)) for one in ("ours", "theirs")]
    pairs = zip(*best, strict=True)
    return {
        "ours": len(asked.prompts) / seconds["ours"],
        "theirs": len(asked.prompts) / seconds["theirs"],
        "ratio": seconds["theirs"] / seconds["ours"],
        "differ": float(np.abs(found["ours"] - found["theirs"]).max()),
        "other answers": sum(int(a.argmax() != b.argmax()) for a, b in pairs),
    }


def cut(text: str) -> str:
    """Return a text up to the first that ends it."""
    return text[: min((at for at in map(text.find, UNTIL) if at >= 0), default=None)]


def generated(model: Model, prompts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Time greedy decoding until a stop, and compare the texts."""
    found: dict[str, Any] = {}

    def text(tokens: list[int]) -> str:
        decoded: str = model.tokenizer.decode(tokens)
        return decoded

    def ours() -> None:
        encoded = [tuple(ids) for ids in model.tokenizer(list(prompts))["input_ids"]]
        tokens = greedy(
            model.live, encoded, [LONGEST] * len(encoded),
            lambda _, new: any(stop in text(new) for stop in UNTIL),
        )  # fmt: skip
        found["tokens"], found["ours"] = tokens, [cut(text(one)) for one in tokens]

    def theirs() -> None:
        settings = {"until": UNTIL, "max_gen_toks": LONGEST, "do_sample": False}
        requests = [
            Instance("generate_until", {}, (one, settings), number)
            for number, one in enumerate(prompts)
        ]
        found["theirs"] = quietly(lambda: model.harness.generate_until(requests, disable_tqdm=True))

    seconds = in_turns({"ours": ours, "theirs": theirs}, rounds)
    lengths = list(map(len, found["tokens"]))
    return {
        "ours": len(prompts) / seconds["ours"],
        "theirs": len(prompts) / seconds["theirs"],
        "ratio": seconds["theirs"] / seconds["ours"],
        "new tokens": f"{min(lengths)}, {statistics.median(lengths):.0f}, {max(lengths)}",
        "other answers": sum(a != b for a, b in zip(found["ours"], found["theirs"], strict=True)),
    }


def choice_part(model: Model, items: int, rounds: int) -> dict[str, Any]:
    rows = {}
    for shots in ("same", "subject", "own"):
        for letters in (False, True):
            name = f"{shots} shots, options are {'letters' if letters else 'texts'}"
            rows[name] = chosen_by(model, questions(model, items, shots, letters), rounds)
    table(f"Multiple choice, {items} items of four options, {SHOTS} shots", rows)
    return rows


def generation_part(model: Model, items: int, rounds: int) -> dict[str, Any]:
    draw = np.random.default_rng(1)
    mixed = [" ".join(draw.choice(model.words, draw.integers(4, 80))) for _ in range(items)]
    rows = {
        "prompts of 4 to 80 words": generated(model, mixed, rounds),
        "same shots": generated(model, questions(model, items, "same", False).prompts, rounds),
        "own shots": generated(model, questions(model, items, "own", False).prompts, rounds),
    }
    table(f"Generation, {items} prompts, at most {LONGEST} tokens", rows)
    return rows


def table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    names = list(next(iter(rows.values())))
    heads = {
        "ours": "items/s",
        "theirs": "lm-eval",
        "ratio": "times",
        "differ": "largest difference",
    }
    forms = {"ours": "{:.2f}", "theirs": "{:.2f}", "ratio": "{:.1f}", "differ": "{:.1e}"}
    body = [
        [name, *(forms.get(key, "{}").format(row[key]) for key in names)]
        for name, row in rows.items()
    ]
    show(title, ["", *(heads.get(name, name) for name in names)], body)


def overhead_part(zoo: Path | None, trials: int) -> dict[str, Any]:
    """Run the quickstart study and time the calls of the model within each scoring."""
    calls: list[float] = []
    taken: list[tuple[bool, float, float, int]] = []
    with contextlib.ExitStack() as patches, tempfile.TemporaryDirectory() as folder:
        for name in ("logits", "remember", "join", "step", "keep"):
            patched(patches, LiveModel, name, lambda run, *a, **k: timed(calls, run, *a, **k))

        def scores(run: Callable[..., Any], *given: Any, **named: Any) -> Any:
            calls.clear()
            whole: list[float] = []
            result = timed(whole, run, *given, **named)
            exact = named.get("exact", given[3] if len(given) > 3 else False)
            taken.append((bool(exact), whole[0], sum(calls), len(calls)))
            return result

        patched(patches, Evaluator, "scores", scores)
        family = Path(folder) / "zoo"
        if zoo is None:
            build_zoo(family, seed=0)
        else:
            family.symlink_to(zoo.resolve())
        patches.callback(os.chdir, Path.cwd())
        os.chdir(folder)
        study = yaml.safe_load((family / "study.yaml").read_text())
        file = family.resolve() / "overhead.yaml"
        file.write_text(yaml.safe_dump(study))
        patches.callback(file.unlink, missing_ok=True)  # with the folder it is gone
        loop.search(file, "overhead", trials=trials, seed=None, url=None, watcher=Silent())
        asked = {
            "trials, by margins": [one for one in taken if not one[0]],
            "finals, by generating": [one for one in taken if one[0]],
        }
        checked = check_study(load_study_file(file))
        evaluator = Evaluator(checked.tasks, checked.tokenizer)
        checkpoint = checked.checkpoints[1]
        expert = LiveModel(checkpoint.folder, dict(checkpoint.read(checkpoint.tensors)), CPU)
        for items in ITEMS:
            taken.clear()
            only = {task.name: range(items) for task in checked.tasks}
            for _ in range(30):
                evaluator.scores(expert, "heldout", False, only)
            asked[f"{items} items a task, by margins"] = taken[2:]
    rows = {}
    for name, these in asked.items():
        rows[name] = {
            "scorings": len(these),
            "calls of the model": statistics.median(one[3] for one in these),
            "ms": 1e3 * statistics.median(one[1] for one in these),
            "ms in the model": 1e3 * statistics.median(one[2] for one in these),
            "own share of the model's": statistics.median(one[1] / one[2] - 1 for one in these),
        }
    body = [[name, *(f"{value:.3g}" for value in row.values())] for name, row in rows.items()]
    show("The quickstart study's scoring", ["", *next(iter(rows.values()))], body)
    return rows


def timed(into: list[float], run: Callable[..., Any], *given: Any, **named: Any) -> Any:
    begun = time.process_time()
    result = run(*given, **named)
    into.append(time.process_time() - begun)
    return result


def patched(
    patches: contextlib.ExitStack, owner: Any, name: str, around: Callable[..., Any]
) -> None:
    """Put a function around a method until the end."""
    inner = getattr(owner, name)
    patches.callback(setattr, owner, name, inner)
    setattr(owner, name, lambda *given, **named: around(inner, *given, **named))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["choice", "generation", "overhead"])
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--layers", type=int, default=10, help="34 M parameters at 10, 130 at 42")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=100, help="of the quickstart study")
    parser.add_argument("--zoo", type=Path, help="a family that is built already")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    torch.set_num_threads(1)
    if given.part != "overhead":
        with tempfile.TemporaryDirectory() as folder:
            model = made(Path(folder), given.layers)
        CONSOLE.print(f"{model.parameters / 1e6:.0f} M parameters, float32; items per second")
        if given.part != "generation":
            found["choice"] = choice_part(model, given.items, given.rounds)
        if given.part != "choice":
            found["generation"] = generation_part(model, given.items, given.rounds)
    if given.part in (None, "overhead"):
        found["overhead"] = overhead_part(given.zoo, given.trials)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
