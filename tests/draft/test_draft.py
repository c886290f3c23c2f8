"""A drafted study is one that a search takes as it stands; what cannot be merged is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge import checking
from evomerge.checkpoints import Checkpoint
from evomerge.draft import draft
from evomerge.errors import CheckpointError, DataError, InputError, SpaceError
from evomerge.study.file import check_study, load_study_file
from evomerge.zoo.tokenizer import VOCABULARY, build_tokenizer
from tests.tiny_adapters import factors, write_adapter
from tests.tiny_models import CONFIG, expert_weights, llama_shapes, write_checkpoint

SMALL = CONFIG | {"vocab_size": len(VOCABULARY), "eos_token_id": 1}


def write_model(name: str, seed: int = 0, card: str = "", **changes: Any) -> Path:
    config = SMALL | changes
    zeros = {key: torch.zeros(shape) for key, shape in llama_shapes(config).items()}
    folder = write_checkpoint(Path(name), expert_weights(zeros, seed), config)
    build_tokenizer().save_pretrained(folder)
    if card:
        (folder / "README.md").write_text(f"---\nbase_model: {card}\n---\n")
    return folder


def write_items(name: str, count: int) -> Path:
    rows = [{"question": f"[sort]{n:b}=", "answer": f"{n:b}"} for n in range(count)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path(name)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def models() -> list[str]:
    write_model("base")
    for seed, name in enumerate("abcde"):
        write_model(f"experts/{name}", seed, "base")
    return ["base", *(f"experts/{name}" for name in "abcde")]


def drafted(models: list[str], files: list[Path], **options: Any) -> dict[str, Any]:
    path = options.pop("path", Path("study.yaml"))
    draft(models, files, path, **options)
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def test_the_file_says_what_was_found_and_is_a_study(
    models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Checkpoint, "read")  # headers are enough
    monkeypatch.delattr(Checkpoint, "map")
    found = drafted(models[:3], [write_items("sums.jsonl", 420)])
    assert found == {
        "models": {"base": "base", "experts": {"a": "experts/a", "b": "experts/b"}},
        "space": "task_arithmetic",
        "tasks": {
            "sums": {"kind": "generation", "data": "sums.jsonl", "prompt": "{question}",
                     "answer": "{answer}"}
        },
        "splits": {"search": 105, "select": 105, "heldout": 210},
        "search": {"optimizer": "auto", "trials": 150, "seed": 0},
    }  # fmt: skip
    sentence = checking.check(Path("study.yaml"))
    assert "2 experts, 1 tasks with 420 items, 14 dimensions and 150 trials" in sentence
    text = Path("study.yaml").read_text()
    assert all(len(line) <= 100 for line in text.splitlines())
    parameters = sum(torch.Size(shape).numel() for shape in llama_shapes(SMALL).values())
    assert f"{parameters / 1e6:.3g} million parameters" in text
    assert f"Memory: {3 * 4 * parameters / 1e3:.3g} kB of inputs" in text


def test_splits_are_a_quarter_a_quarter_and_a_half_of_the_least_task(models: list[str]) -> None:
    files = [write_items("many.jsonl", 3000), write_items("few.jsonl", 50)]
    with files[1].open("a") as file:  # what asks the same as the first counts once
        file.write('{"question": "[Sort]0=", "answer": "0"}\n')
    made = draft(models[:2], files, Path("one.yaml"))
    assert yaml.safe_load(Path("one.yaml").read_text())["splits"] == {
        "search": 12, "select": 12, "heldout": 25,
    }  # fmt: skip
    assert any("few has only 50 different items" in note for note in made.notes)
    found = drafted(models[:2], files[:1])
    assert found["splits"] == {"search": 128, "select": 256, "heldout": 512}
    with pytest.raises(DataError, match="at least 8 different items, got 7"):
        drafted(models[:2], [write_items("seven.jsonl", 7)], path=Path("two.yaml"))


def test_the_space_goes_by_the_models(models: list[str]) -> None:
    files = [write_items("sums.jsonl", 40)]
    five = drafted(models, files, path=Path("five.yaml"))
    assert (five["space"], five["search"]["trials"]) == ("ties", 250)  # 12 + 2 · 5 dimensions
    write_model("other", 9)
    two = drafted(["base", "other"], files, path=Path("two.yaml"))
    assert (two["space"], list(two["models"]["experts"])) == ("slerp", ["other"])
    check_study(load_study_file(Path("two.yaml")))
    asked = drafted(models[:2], files, path=Path("asked.yaml"), space="per_layer", trials=7)
    assert (asked["space"], asked["search"]["trials"]) == ("per_layer", 7)
    with pytest.raises(SpaceError, match="did you mean 'ties'"):
        drafted(models[:2], files, path=Path("wrong.yaml"), space="tise")
    assert not Path("wrong.yaml").exists()


def test_paths_below_the_file_are_relative_and_others_whole(models: list[str]) -> None:
    items = write_items("sums.jsonl", 40)
    Path("experts/studies").mkdir()
    found = drafted(models[:2], [items], path=Path("experts/study.yaml"))
    assert found["models"] == {"base": str(Path("base").resolve()), "experts": {"a": "a"}}
    assert found["tasks"]["sums"]["data"] == str(items.resolve())
    check_study(load_study_file(Path("experts/study.yaml")))


def test_line_breaks_of_prompts_stay_on_one_line(models: list[str]) -> None:
    rows = [{"question": f"What is ab{n}?", "answer": f"ab{n}"} for n in range(40)]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = drafted(models[:2], [Path("asked.jsonl")])
    assert found["tasks"]["asked"]["prompt"] == "Question: {question}\nAnswer:"
    text = Path("study.yaml").read_text()
    assert '    prompt: "Question: {question}\\nAnswer:"\n' in text
    assert '    stop: ["\\n"]\n' in text


def test_adapters_and_chat_templates_come_out_as_a_study(models: list[str]) -> None:
    for name in models[:2]:
        Path(name, "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    modules = {"model.layers.0.mlp.up_proj": (27, 20)}
    write_adapter(Path("lora"), factors(modules), base_model_name_or_path="org/base")
    found = drafted(["base", "experts/a", "lora"], [write_items("sums.jsonl", 40)])
    assert found["models"]["experts"] == {"a": "experts/a", "lora": "base+lora"}
    assert found["tasks"]["sums"]["chat"] is True
    checked = check_study(load_study_file(Path("study.yaml")))
    assert checked.checkpoints[2].adapter is not None


def test_a_file_that_exists_is_left_alone(models: list[str]) -> None:
    Path("study.yaml").write_text("mine")
    with pytest.raises(InputError, match=r"study\.yaml exists already"):
        drafted(models[:2], [write_items("sums.jsonl", 40)])
    assert Path("study.yaml").read_text() == "mine"


def test_models_that_cannot_be_merged_are_refused_with_what_to_do() -> None:
    files = [write_items("sums.jsonl", 40)]
    write_model("base")
    write_model("wide", hidden_size=24)
    write_model("deep", num_hidden_layers=4)
    write_model("words", vocab_size=40)
    write_model("other", architectures=["MistralForCausalLM"], hidden_size=24)
    cases = {
        "wide": r"one shape for .*, got \[\d+(, 20)?\].* and \[\d+(, 24)?\] in .*wide",
        "deep": r"got model\.layers\.3\..* in .*deep and not in .*base",
        "words": r"got 33 rows of lm_head.weight in .*base and 40 in .*words; .*passthrough",
        "other": "LlamaForCausalLM of 3 layers and MistralForCausalLM of 3 layers",
    }
    for name, message in cases.items():
        with pytest.raises(CheckpointError, match=message):
            drafted(["base", name], files)
    assert not Path("study.yaml").exists()


def test_the_recipe_that_a_refused_vocabulary_is_sent_to_helps() -> None:
    from evomerge.merger.write import merge_file

    write_model("base")
    larger = write_model("larger", vocab_size=40)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(larger)
    files = [write_items("sums.jsonl", 40)]
    with pytest.raises(CheckpointError) as refused:
        drafted(["base", "larger"], files)
    said = str(refused.value)
    recipe = said[said.index("{merge_method") : said.index(" and give init")]
    Path("recipe.yaml").write_text(recipe)
    silent: Any = lambda *_: None  # noqa: E731
    merge_file(Path("recipe.yaml"), Path("brought"), "cpu", 10**9, False, False, silent, silent)
    assert drafted(["base", "brought"], files)["models"]["experts"] == {"brought": "brought"}


def test_another_tokenizer_of_the_same_size_is_noted() -> None:
    write_model("base")
    tuned = write_model("tuned", 1, "base")
    text = (tuned / "tokenizer.json").read_text()
    (tuned / "tokenizer.json").write_text(text.replace('"z"', '"Z"'))
    made = draft(["base", "tuned"], [write_items("sums.jsonl", 40)], Path("study.yaml"))
    assert any("2 tokens differ, such as 'Z'" in note for note in made.notes)
