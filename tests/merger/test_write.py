"""Writing a merged model: shards, configuration, tokenizer files, whole or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from evomerge import cli
from evomerge.checkpoints import ModelRef, open_checkpoint
from evomerge.errors import CandidateError, CheckpointError, InputError, RecipeError
from evomerge.merger import Merger
from evomerge.merger import write as writing
from evomerge.merger.write import write_model
from tests.tiny_models import (
    CONFIG,
    PLACE,
    base_weights,
    expert_weights,
    merged,
    opened,
    parsed,
    recipe_of,
    weights,
    write_checkpoint,
    write_family,
)

CPU = torch.device("cpu")


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return write_family(tmp_path / "family", torch.bfloat16)


def dare(folder: Path, **fields: Any) -> dict[str, Any]:
    own = {"weight": [0.2, 0.9], "density": 0.3}
    models = dict.fromkeys("abc", own)
    return recipe_of(folder, "dare_ties", base_model="base", models=models, **fields)


def write(data: dict[str, Any], out: Path, **options: Any) -> str:
    return write_model(parsed(data), out, "test.yaml", device=CPU, **options)


def read(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def test_the_digest_is_that_of_the_candidate_in_memory(family: Path, tmp_path: Path) -> None:
    data = dare(family, out_dtype="bfloat16")
    digest = write(data, tmp_path / "out")
    merger = Merger(opened(family, "c", "base", "b", "a"), result_dtype="bfloat16")
    in_memory = merger.materialize(parsed(data))
    assert merger.digest() == digest
    on_disk = read(tmp_path / "out")
    assert set(on_disk) == set(in_memory)
    assert all(torch.equal(on_disk[name], in_memory[name]) for name in on_disk)


def test_shards(family: Path, tmp_path: Path) -> None:
    data = dare(family, out_dtype="bfloat16")
    steps: list[tuple[str, int, int]] = []
    whole = write(data, tmp_path / "one")
    split = write(
        data, tmp_path / "many", shard_bytes=8000,
        progress=lambda text, done, total: steps.append((text, done, total)),
    )  # fmt: skip
    assert split == whole
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) >= 4
    assert files[1] == f"model-00002-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    one = read(tmp_path / "one")
    merging = [(done, total) for text, done, total in steps if text == "merging"]
    assert merging == [(done, len(one)) for done in range(len(one) + 1)]
    assert set(index["weight_map"]) == set(one)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "many" / file)[name], one[name])
    sizes = [(tmp_path / "many" / file).stat().st_size for file in files]
    assert max(sizes) < 8000 + 2000  # with headers; a tensor larger than a shard stands alone
    reopened = open_checkpoint(ModelRef(str(tmp_path / "many")), PLACE)
    assert list(reopened.tensors) == sorted(one)


def test_transformers_load_it(family: Path, tmp_path: Path) -> None:
    data = dare(family, out_dtype="bfloat16")
    write(data, tmp_path / "one")
    write(data, tmp_path / "many", shard_bytes=8000)
    expected = merged(data)
    for name in ("one", "many"):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert model.dtype == torch.bfloat16
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize(
    ("fields", "written"),
    [({"out_dtype": "float16"}, "float16"), ({"dtype": "bfloat16"}, "bfloat16"), ({}, "float32"),
     ({"dtype": None}, "bfloat16")],
)  # fmt: skip
def test_the_configuration_says_the_dtype_of_the_file(
    family: Path, tmp_path: Path, fields: dict[str, Any], written: str
) -> None:
    write(dare(family, **fields), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == CONFIG | {"dtype": written}
    assert {tensor.dtype for tensor in read(tmp_path / "out").values()} == {getattr(torch, written)}


def test_an_older_configuration_keeps_its_spelling(family: Path, tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "dtype"}
    (family / "base" / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    write(dare(family, out_dtype="bfloat16"), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["torch_dtype"] == "bfloat16"
    assert "dtype" not in found


def test_files_of_the_donor_are_carried(family: Path, tmp_path: Path) -> None:
    (family / "base" / "tokenizer.json").write_text("{}")
    (family / "base" / "chat_template.jinja").write_text("hi")
    (family / "base" / "secret.txt").write_text("no")
    (family / "a" / "merges.txt").write_text("of another model")
    write(dare(family), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "model.safetensors", "config.json", "README.md", "tokenizer.json", "chat_template.jinja",
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "dare_ties" in card
    assert "arXiv:2311.03099" in card
    assert parsed(dare(family)).to_yaml() in card


def test_the_base_is_the_donor_also_where_it_is_not_merged(family: Path, tmp_path: Path) -> None:
    (family / "c" / "tokenizer.json").write_text('"of c"')
    models = {name: {"weight": 1} for name in "ab"}
    write(recipe_of(family, "linear", base_model="c", models=models), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '"of c"'


def test_a_tied_head_is_left_to_the_tie(tmp_path: Path) -> None:
    """Whether the inputs store it or not; transformers see one tensor."""
    base = base_weights()
    config = CONFIG | {"tie_word_embeddings": True}
    headless = {name: one for name, one in base.items() if name != "lm_head.weight"}
    stored = expert_weights(base, 0)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    write_checkpoint(tmp_path / "base", headless, config)
    write_checkpoint(tmp_path / "a", stored, config)
    for first, second in (("base", "a"), ("a", "base")):
        data = recipe_of(tmp_path, "linear", models={first: {"weight": 1}, second: {"weight": 3}})
        out = tmp_path / f"out_{first}"
        write(data, out)
        assert "lm_head.weight" not in read(out)
        model = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_folder_that_exists_is_refused(family: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="out exists already; choose another name"):
        write(dare(family), tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="link exists already"):
        write(dare(family), tmp_path / "link")
    assert list((tmp_path / "out").iterdir()) == []


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"family"}


def test_failures_leave_nothing_behind(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero = {name: {"weight": [{"filter": "lm_head", "value": 1}, {"value": 0}]} for name in "ab"}
    with pytest.raises(CandidateError, match="sum of 0"):
        write(recipe_of(family, "linear", models=zero), tmp_path / "out", shard_bytes=100)
    gaps = {name: {"weight": [{"filter": "lm_head", "value": 1}]} for name in "ab"}
    with pytest.raises(RecipeError, match="every tensor"):
        write(recipe_of(family, "linear", models=gaps), tmp_path / "out")
    assert leftovers(tmp_path) == set()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    for module, name in ((os, "fsync"), (os, "replace")):
        (family / "base" / "tokenizer.json").write_text("{}")
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(InputError, match="No space left on device"):
                write(dare(family), tmp_path / "out")
        assert leftovers(tmp_path) == set()


def test_a_killed_merge_leaves_no_folder_of_that_name(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: object, **options: object) -> None:
        assert leftovers(tmp_path) == {".out.partial"}
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "write_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(dare(family), tmp_path / "out")
    assert leftovers(tmp_path) == set()


def test_a_place_that_cannot_be_written_is_named(family: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*/file/out: "):
        write(dare(family), tmp_path / "file" / "out")


def test_results_that_overflow_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, {"x": torch.full((4,), 60000.0)})
    models = {name: {"weight": 1} for name in "ab"}
    data = recipe_of(tmp_path, "linear", models=models, parameters={"normalize": False})
    with pytest.raises(CandidateError, match="NaN or infinity in the merged x"):
        write(data | {"out_dtype": "float16"}, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    assert weights(tmp_path, "a")["x"][0] == 60000


def test_the_command(
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Shards of a chosen size, the study's table in the card; a wrong size before anything else."""
    recipe = tmp_path / "recipe.yaml"
    text = parsed(dare(family)).to_yaml("Study s: the winner, trial 2.\nOf it.\n| model |\n| --- |")
    recipe.write_text(text)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["evomerge", "merge", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    out = str(tmp_path / "out")
    assert run("nowhere.yaml", out, "--shard-size", "big") == 2
    message = "expected a size such as 4GB, 500MB, 2GiB or 1000000, got 'big' at --shard-size"
    assert capsys.readouterr().err == f"evomerge: {message} in the command line\n"
    assert run(str(recipe), out, "--shard-size", "8kB", "--device", "cpu", "--resume") == 0
    digest = write(dare(family), tmp_path / "again", shard_bytes=8000)
    assert capsys.readouterr().out == f"{out} holds the merged model, weights {digest}\n"
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (tmp_path / "again" / index).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\nStudy s: the winner, trial 2.\nOf it.\n\n| model |\n| --- |\n\n" in card
    assert run(str(recipe), out) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_a_merge_imports(family: Path, tmp_path: Path) -> None:
    """Starting is most of the time of a small merge."""
    (tmp_path / "recipe.yaml").write_text(parsed(dare(family)).to_yaml())
    code = (
        "import sys\nfrom evomerge import cli\n"
        "sys.argv = ['evomerge', 'merge', 'recipe.yaml', 'out']\ncli.main()\n"
    )
    heavy = ("transformers", "optuna", "torch._dynamo")
    show = f"print([one for one in {heavy} if one in sys.modules])"
    code = f"import atexit, sys\natexit.register(lambda: {show})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_tensors_may_be_chosen(family: Path) -> None:
    merger = Merger(opened(family, "base", "a", "b", "c"), memory="disk")
    recipe = parsed(dare(family))
    whole = dict(merger.stream(recipe))
    some = sorted(whole)[3::5]
    found = dict(merger.stream(recipe, set(some)))
    assert list(found) == some
    assert all(torch.equal(found[name], whole[name]) for name in some)
