"""The model card of a merge, README.md, in the Hub's format: models, method, recipe, study."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.checkpoints import ModelRef
from evomerge.citations import bibtex
from evomerge.files import dump_yaml, exists
from evomerge.recipe import Recipe
from evomerge.slices import SlicedRecipe

_HUB = "https://huggingface.co/"
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def model_card(
    recipe: Recipe | SlicedRecipe,
    name: str,
    config: Mapping[str, Any],
    tokenizer: bool,
    history: Sequence[str] = (),
) -> str:
    """Return the card of a model of some name; `history` says where the recipe is from.

    `tokenizer` says whether it has one. The metadata name models of the Hub alone: a folder of
    this machine means nothing there.
    """
    title = " ".join(name.split())
    refs = list(dict.fromkeys(recipe.inputs))
    ids = list(dict.fromkeys(one.path for ref in refs for one in _models(ref) if _on_hub(one)))
    data: dict[str, Any] = {"base_model": ids, "base_model_relation": "merge"} if ids else {}
    data["library_name"] = "transformers"
    pipeline = _pipeline(config)
    data |= {"pipeline_tag": pipeline} if pipeline else {}
    data["tags"] = ["merge", "evomerge", recipe.merge_method]
    method = _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", recipe.method.paper)
    models = [f"- {_named(ref)}" for ref in refs]
    parts = [
        f"---\n{dump_yaml(data)}---\n# {title}",
        f"A merge by the method `{recipe.merge_method}` ({method}) of",
        "\n".join(models),
        f"with the configuration of {_named(recipe.donor)}, made by evomerge from this recipe:",
        f"```yaml\n{recipe.to_yaml()}```",
    ]
    if history:
        parts += ["## Where the recipe is from", "\n".join(history)]
    cite = f"```bibtex\n{bibtex(recipe.merge_method)}\n```"
    parts += ["## Use", _use(title, config, tokenizer), "## Cite", cite]
    return "\n\n".join(parts) + "\n"


def _pipeline(config: Mapping[str, Any]) -> str:
    """Return what the Hub calls the use of a model, where its architecture says so."""
    uses = {
        "ForCausalLM": "text-generation",
        "ForSequenceClassification": "text-classification",
        "ForTokenClassification": "token-classification",
        "ForMaskedLM": "fill-mask",
    }
    architectures = config.get("architectures")
    kind = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return next((use for end, use in uses.items() if kind.endswith(end)), "")


def recipe_history(file: Path) -> list[str]:
    """Return what the comment at the head of a recipe file tells of the study that it is from.

    None of it where it is not from a study.
    """
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    if not lines or not lines[0].startswith("Study "):
        return []
    table = [index for index, line in enumerate(lines) if line.startswith("|")]
    if not table:
        return lines[:1]
    first, end = table[0], table[-1] + 1
    caption = lines[max(1, first - 1) : first]
    return [lines[0], *caption, "", *lines[first:end]]


def _models(ref: ModelRef) -> Iterator[ModelRef]:
    yield ref
    if ref.adapter:
        yield from _models(ref.adapter)


def _on_hub(ref: ModelRef) -> bool:
    return not exists(Path(os.path.expanduser(ref.path)))


def _named(ref: ModelRef) -> str:
    names = []
    for one in _models(ref):
        own = ModelRef(one.path, one.revision)
        where = f"{_HUB}{one.path}" + (f"/tree/{one.revision}" if one.revision else "")
        names.append(f"[{own}]({where})" if _on_hub(one) else f"`{own}`")
    return " with the adapter ".join(names)


def _use(title: str, config: Mapping[str, Any], tokenizer: bool) -> str:
    architectures = config.get("architectures")
    kind = architectures[0] if isinstance(architectures, list) and architectures else ""
    own = bool(config.get("auto_map"))
    if str(kind).endswith("ForCausalLM"):
        kind = "AutoModelForCausalLM"
    elif own or not str(kind).isidentifier():
        kind = "AutoModel"
    where = json.dumps(title) + (", trust_remote_code=True" if own else "")
    lines = [
        f"from transformers import {kind}" + (", AutoTokenizer" if tokenizer else ""),
        "",
        f'model = {kind}.from_pretrained({where}, dtype="auto")',
        *([f"tokenizer = AutoTokenizer.from_pretrained({where})"] if tokenizer else []),
    ]
    return "\n".join(["```python", *lines, "```"])
