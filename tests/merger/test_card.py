"""The model card: metadata that the Hub reads, models and papers as links, the study's table."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from evomerge.checkpoints import ModelRef
from evomerge.citations import bibtex
from evomerge.merger.card import model_card, recipe_history
from evomerge.slices import parse_any_recipe
from evomerge.study.markdown import CAPTION, report_lines
from tests.tiny_models import CONFIG, PLACE

HUB = ("org/base", "org/math@v2", "org/code+org/lora@main")


def card(*models: str, config: dict[str, Any] = CONFIG, **options: Any) -> str:
    data = {
        "merge_method": "ties",
        "base_model": models[0],
        "models": [{"model": one, "parameters": {"weight": 0.5}} for one in models[1:]],
    }
    recipe = parse_any_recipe(data, PLACE)
    found = model_card(recipe, "my model", config, **{"tokenizer": True} | options)
    assert recipe.to_yaml() in found
    return found


def test_the_metadata_name_models_of_the_hub() -> None:
    text = card(*HUB)
    data = ModelCard(text).data.to_dict()
    assert data == {
        "base_model": ["org/base", "org/math", "org/code", "org/lora"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "evomerge", "ties"],
    }
    assert "\n# my model\n" in text
    assert "- [org/math@v2](https://huggingface.co/org/math/tree/v2)\n" in text
    assert (
        "- [org/code](https://huggingface.co/org/code) with the adapter "
        "[org/lora@main](https://huggingface.co/org/lora/tree/main)\n"
    ) in text
    assert "[arXiv:2306.01708](https://arxiv.org/abs/2306.01708)" in text


def test_folders_are_no_models_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local" / "model").mkdir(parents=True)
    text = card("local/model", "org/math", str(tmp_path / "local"))
    assert ModelCard(text).data.to_dict()["base_model"] == ["org/math"]
    assert f"- `local/model`\n- [org/math](https://huggingface.co/org/math)\n- `{tmp_path}" in text
    assert str(ModelRef(str(tmp_path / "local"))) not in text.split("---")[1]
    data = ModelCard(card("local/model", "local", "local/model/.")).data.to_dict()
    assert data.keys() == {"library_name", "pipeline_tag", "tags"}


@pytest.mark.parametrize(
    ("config", "tokenizer", "lines"),
    [
        (CONFIG, True,
         ["from transformers import AutoModelForCausalLM, AutoTokenizer", "",
          'model = AutoModelForCausalLM.from_pretrained("my model", dtype="auto")',
          'tokenizer = AutoTokenizer.from_pretrained("my model")']),
        ({"architectures": ["T5ForConditionalGeneration"]}, False,
         ["from transformers import T5ForConditionalGeneration", "",
          'model = T5ForConditionalGeneration.from_pretrained("my model", dtype="auto")']),
        ({"auto_map": {"AutoModel": "m.M"}, "architectures": ["M"]}, False,
         ["from transformers import AutoModel", "",
          'model = AutoModel.from_pretrained("my model", trust_remote_code=True, dtype="auto")']),
        ({"architectures": "odd"}, False,
         ["from transformers import AutoModel", "",
          'model = AutoModel.from_pretrained("my model", dtype="auto")']),
    ],
)  # fmt: skip
def test_how_to_load_it(config: dict[str, Any], tokenizer: bool, lines: list[str]) -> None:
    text = card(*HUB, config=config, tokenizer=tokenizer)
    code = text.split("```python\n")[1].split("\n```")[0]
    assert code.splitlines() == lines
    compile(code, "card", "exec")


def split(value: float) -> dict[str, Any]:
    return {"normalized": value, "low": value - 0.01, "high": value + 0.02, "tasks": {"sort": 0.5}}


def row(name: str, kind: str, detail: str, *values: float) -> dict[str, Any]:
    parts = zip(("search", "select", "heldout"), map(split, values), strict=True)
    return {"name": name, "kind": kind, "detail": detail, **dict(parts)}


def test_the_table_of_the_study(tmp_path: Path) -> None:
    rows = [row("winner", "winner", "trial 7", 0.9, 0.8, 0.7), row("a|b", "input", "", 0.6, 0.5, 1)]
    lines = ["Study s: the winner, trial 7.", "Merge with: x", *report_lines({"rows": rows})]
    file = tmp_path / "recipe.yaml"
    file.write_text("".join(f"# {line}\n" for line in lines) + "merge_method: ties\n# | no |\n")
    wanted = [
        "Study s: the winner, trial 7.",
        CAPTION,
        "",
        "| model | search | select | held-out | 95 % | sort |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| **winner (trial 7)** | 0.900 | 0.800 | 0.700 | 0.690 – 0.720 | 0.500 |",
        "| a\\|b | 0.600 | 0.500 | 1.000 | 0.990 – 1.020 | 0.500 |",
    ]
    assert recipe_history(file) == wanted
    text = card(*HUB, history=wanted)
    assert "\n\n## Where the recipe is from\n\n" + "\n".join(wanted) + "\n\n## Use\n" in text


def test_comments_that_are_of_no_study(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for comment in ("", "# mine\n# | a |\n", "merge_method: x\n# Study s: y.\n"):
        file.write_text(comment + "dtype: float32\n")
        assert recipe_history(file) == []
    file.write_text("# Study s: the best so far, trial 3.\n# Merge with: x\nmerge_method: ties\n")
    assert recipe_history(file) == ["Study s: the best so far, trial 3."]
    assert "Where the recipe" not in card(*HUB)


@pytest.mark.parametrize(
    ("architectures", "use"),
    [
        (["LlamaForCausalLM"], "text-generation"),
        (["BertForSequenceClassification"], "text-classification"),
        (["BertForTokenClassification"], "token-classification"),
        (["BertForMaskedLM"], "fill-mask"),
        (["T5ForConditionalGeneration"], None),
        ([], None),
        ("odd", None),
    ],
)
def test_what_the_hub_calls_its_use(architectures: Any, use: str | None) -> None:
    data = ModelCard(card(*HUB, config={"architectures": architectures})).data
    assert data.to_dict().get("pipeline_tag") == use


def test_what_to_cite() -> None:
    cited = card(*HUB).split("## Cite\n\n```bibtex\n")[1]
    assert cited == f"{bibtex('ties')}\n```\n"


def test_the_gain_stands_before_the_table() -> None:
    report = {"rows": [row("winner", "winner", "trial 7", 0.9, 0.8, 0.7)]}
    report |= {"gain": {"sentence": "the winner beats the best baseline"}}
    assert report_lines(report)[0] == f"The winner beats the best baseline. {CAPTION}"
