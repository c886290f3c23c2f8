"""Public benchmarks, on whose own test items nothing is to be searched."""

from __future__ import annotations

import re

from evomerge.errors import Found, Place

Splits = tuple[str, ...]  # what the names of splits begin with
_TEST: Splits = ("test",)
_BOTH: Splits = ("test", "val")  # the test labels are hidden, so the validation split is scored
_ALL: Splits = ("",)  # whatever the split is called, every item is scored

# By the last part of the Hub id, in small letters without - and _: the splits that public scores of
# a benchmark are made on.
_SCORED: dict[str, Splits] = {
    "gsm8k": _TEST, "mgsm": _TEST, "svamp": _TEST, "math": _TEST, "competitionmath": _TEST,
    "hendrycksmath": _TEST, "mathlighteval": _TEST, "mathhard": _TEST, "math500": _ALL,
    "aime": _ALL, "aime24": _ALL, "aime25": _ALL, "aime2024": _ALL, "aime2025": _ALL,
    "gsm8kplatinum": _ALL,
    "mmlu": _TEST, "hendryckstest": _TEST, "mmlupro": _TEST, "mmluredux": _ALL, "mmluredux20": _ALL,
    "mmmlu": _TEST, "mmlunotrain": _TEST, "cmmlu": _TEST, "globalmmlu": _TEST, "anli": _TEST,
    "arc": _TEST, "ai2arc": _TEST, "arcchallenge": _TEST, "arceasy": _TEST,
    "openbookqa": _TEST, "sciq": _TEST, "race": _TEST, "lambada": _TEST, "lambadaopenai": _ALL,
    "wikitext": _TEST, "medqa": _TEST, "medqausmle4options": _TEST, "medqausmle4optionshf": _TEST,
    "pubmedqa": _TEST, "logiqa": _TEST, "agieval": _ALL,
    "hellaswag": _BOTH, "winogrande": _BOTH, "piqa": _BOTH, "boolq": _BOTH, "drop": _BOTH,
    "commonsenseqa": _BOTH, "siqa": _BOTH, "socialiqa": _BOTH, "squad": _BOTH, "squadv2": _BOTH,
    "triviaqa": _BOTH, "nqopen": _BOTH, "naturalquestions": _BOTH, "coqa": _BOTH, "glue": _BOTH,
    "superglue": _BOTH, "copa": _BOTH, "swag": _BOTH, "medmcqa": _BOTH, "ceval": _BOTH,
    "cevalexam": _BOTH,
    "truthfulqa": _ALL, "truthfulqamc": _ALL, "gpqa": _ALL, "gpqadiamond": _ALL, "musr": _ALL,
    "ifeval": _ALL, "bbh": _ALL, "bigbenchhard": _ALL, "simpleqa": _ALL, "hle": _ALL,
    "humaneval": _ALL, "openaihumaneval": _ALL, "humanevalplus": _ALL, "humanevalpack": _ALL,
    "mbpp": _TEST, "mbppplus": _ALL, "bigcodebench": _ALL, "livecodebench": _ALL,
    "codegenerationlite": _ALL, "swebench": _TEST, "swebenchverified": _ALL,
    "swebenchlite": _TEST,
    "mtbench": _ALL, "mtbenchprompts": _ALL, "alpacaeval": _ALL, "arenahard": _ALL,
    "arenahardauto": _ALL, "wildbench": _ALL,
}  # fmt: skip


def scored_splits(dataset: str) -> Splits | None:
    """Return what the splits begin with that a public benchmark is scored on.

    None for a data set that is no benchmark that this file knows. `dataset` is a Hub id; who holds
    it does not matter, nor do capitals, - and _.
    """
    return _SCORED.get(re.sub(r"[-_. ]", "", dataset.rstrip("/").rsplit("/", 1)[-1].lower()))


def refuse_benchmark(dataset: str, split: str, insists: bool, place: Place) -> None:
    """Raise the place's error where a split is what a public benchmark is scored on.

    `split` may be an expression of `datasets`, such as `train[:100]+test`. Nothing is refused where
    the user `insists` (`contaminates: true`).
    """
    scored = scored_splits(dataset)
    if scored is None or insists:
        return
    named = re.findall(r"[A-Za-z_]\w*", re.sub(r"\[.*?\]", "", split))
    if not any(name.startswith(scored) or name == "all" for name in named):
        return
    instead = "search on items of your own" if scored == _ALL else "use its train split"
    raise place.fail(
        "items that no public benchmark is scored on",
        Found(f"the split {split!r} of {dataset}"),
        f"results on this benchmark would no longer mean anything: {instead}, or set "
        "`contaminates: true` beside `dataset` to insist",
    )
