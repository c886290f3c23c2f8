"""Every recipe in docs/recipes.md merges as it stands, on models of the names it gives."""

import re
from pathlib import Path

import pytest
import yaml

from tests.sliced_recipes import read, write
from tests.tiny_adapters import factors, write_adapter
from tests.word_models import write_word_model

PAGE = Path(__file__).parents[1] / "docs/recipes.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
WORDS = [f"w{number}" for number in range(12)]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_recipe(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "math", "code")):
        write_word_model(tmp_path / "org" / name, WORDS, seed)
    write_word_model(tmp_path / "org/chat", WORDS, 3, added=["<|end|>", "<unused>"])
    write_adapter(
        tmp_path / "org/chat-lora",
        factors({"model.layers.0.mlp.up_proj": (27, 20)}, 2), r=2, target_modules=["up_proj"],
    )  # fmt: skip
    text = EXAMPLES[number].replace("@v2", "")  # revisions are for the Hub
    write(yaml.safe_load(text), tmp_path / "out")
    assert read(tmp_path / "out")


def test_all_forms_are_there() -> None:
    keys = {key for example in EXAMPLES for key in yaml.safe_load(example)}
    assert {"models", "slices", "modules", "tokenizer", "chat_template"} <= keys
