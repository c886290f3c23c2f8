"""The commands as a user runs them, each in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from evomerge import cli
from evomerge.checkpoints import open_checkpoint
from evomerge.errors import CheckpointError, Place
from evomerge.merger import Merger
from evomerge.recipe import load_recipe
from tests.conftest import run_cli


def with_space(family: Path, space: object, experts: tuple[str, ...] | None = None) -> Path:
    study = yaml.safe_load((family / "study.yaml").read_text())
    study["space"] = space
    if experts:
        study["models"]["experts"] = {name: f"experts/{name}" for name in experts}
    path = family / "other.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def merged_in_memory(recipe_path: Path) -> dict[str, torch.Tensor]:
    recipe = load_recipe(recipe_path)
    place = Place("test", CheckpointError)
    opened = [open_checkpoint(ref, place) for ref in recipe.inputs]
    return dict(Merger(opened, result_dtype=recipe.result_dtype).materialize(recipe))


@pytest.mark.parametrize("space", ["dare_ties", "per_layer"])
def test_what_was_scored_is_what_you_get(family: Path, tmp_path: Path, space: str) -> None:
    study = with_space(family, space)
    found = run_cli("search", study, "--name", "s", cwd=tmp_path)
    report = json.loads((tmp_path / "runs/s/report.json").read_text())
    digest = report["winner"]["weights"]
    assert digest in found.stdout

    done = run_cli("merge", "runs/s/recipe.yaml", "merged", cwd=tmp_path)
    assert digest in done.stdout
    written = load_file(tmp_path / "merged/model.safetensors")
    in_memory = merged_in_memory(tmp_path / "runs/s/recipe.yaml")
    assert set(written) == set(in_memory)
    assert all(torch.equal(written[name], in_memory[name]) for name in written)

    # The score of any trial is the score of its exported recipe and of the model on disk.
    status = json.loads(run_cli("status", "s", "--json", cwd=tmp_path).stdout)
    best = status["best"]
    run_cli("export", "s", "--trial", best["trial"], "-o", "best.yaml", cwd=tmp_path)
    text = (tmp_path / "best.yaml").read_text()
    assert ("# mergekit ignores seed and gives another model." in text) == ("  seed:" in text)
    run_cli("merge", "best.yaml", "best", cwd=tmp_path)
    for what in ("best.yaml", "best"):
        scores = json.loads(run_cli("evaluate", what, study, "--json", cwd=tmp_path).stdout)
        assert scores["fitness"] == best["fitness"]
    for split in ("select", "heldout"):
        arguments = ["evaluate", "merged", study, "--split", split, "--json"]
        scores = json.loads(run_cli(*arguments, cwd=tmp_path).stdout)
        row = report["rows"][0][split]
        assert scores["normalized"] == pytest.approx(row["normalized"], abs=1e-12)
        accuracy = {task: one["accuracy"] for task, one in scores["tasks"].items()}
        assert accuracy == row["tasks"]


@pytest.mark.parametrize("space", ["linear", "task_arithmetic", "ties", "slerp"])
def test_mergekit_runs_the_exported_recipe(family: Path, tmp_path: Path, space: str) -> None:
    study = with_space(family, space, ("sort", "caesar") if space == "slerp" else None)
    run_cli("search", study, "--name", "s", "--trials", 8, cwd=tmp_path)
    # A trial that the optimizer proposed, so that no two numbers of the recipe are alike.
    run_cli("export", "s", "--trial", 7, "-o", "recipe.yaml", cwd=tmp_path)
    run_cli("merge", "recipe.yaml", "ours", cwd=tmp_path)
    command = [Path(sys.executable).parent / "mergekit-yaml", "recipe.yaml", "theirs", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = load_file(tmp_path / "ours/model.safetensors")
    theirs: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "theirs").glob("*.safetensors"):
        theirs |= load_file(file)
    assert set(ours) == set(theirs)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    inputs = [load_file(Path(ref.path) / "model.safetensors") for ref in recipe.inputs]
    for name, mine in ours.items():
        its = theirs[name].double()
        off = (mine.double() - its).abs()
        if space == "ties":
            off[~_clear_of_thresholds(recipe, name, inputs)] = 0
        largest = torch.stack([one[name].abs() for one in inputs]).amax(dim=0)
        ulp = torch.from_numpy(np.spacing(largest.numpy())).double()
        assert off.norm() <= 1e-6 * its.norm(), name
        assert (off <= 4 * ulp).all(), (name, (off / ulp).max())


def _clear_of_thresholds(recipe: Any, name: str, inputs: list[dict[str, torch.Tensor]]) -> Any:
    """Where no task vector's magnitude equals its threshold, of which mergekit keeps any."""
    clear = torch.ones_like(inputs[0][name], dtype=torch.bool)
    for entry, model in zip(recipe.entries, inputs[1:], strict=True):
        magnitude = (model[name] - inputs[0][name]).abs().flatten()
        density = float(entry.parameters["density"])
        kept = max(1, int(density * magnitude.numel()))
        threshold = magnitude.sort(descending=True).values[kept - 1]
        clear &= (magnitude != threshold).view_as(clear)
    return clear


def test_a_written_model_loads_and_generates(family: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": str(family / "experts/sort"), "parameters": {"weight": 1}},
            {"model": str(family / "experts/sort/../caesar"), "parameters": {"weight": 0}},
        ],
        "dtype": "float32",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_cli("merge", "recipe.yaml", "out", cwd=tmp_path)
    original = AutoModelForCausalLM.from_pretrained(family / "experts/sort")
    loaded, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    question = json.loads((family / "tasks/sort.jsonl").read_text().splitlines()[0])["question"]
    ids = tokenizer(question, return_tensors="pt")["input_ids"]
    assert torch.equal(original(ids).logits, loaded(ids).logits)


def test_errors_are_one_sentence_and_status_2(
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    study = family / "study.yaml"
    (tmp_path / "taken").mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("merge_method: tise\nmodels: []\n")
    cases = {
        ("search", "nowhere.yaml"): "there is no file nowhere.yaml",
        ("check", recipe): "unknown merge method 'tise' at merge_method in",
        ("merge", recipe, "out"): "did you mean 'ties'?",
        ("resume", "nothing"): "there is no study 'nothing'",
        ("export", "nothing"): "there is no study 'nothing'",
        ("report", "nothing"): "there is no study 'nothing'",
        ("status", "nothing"): "there is no study 'nothing'",
        ("evaluate", "nowhere", study): "got 'nowhere'",
        ("evaluate", family / "base", study, "--split", "test"): "expected a split among",
        ("zoo", family): "expected no zoo",
        ("search", study, "--name", "../x"): "expected a study's name",
        ("search", study, "--storage", "mysq://x"): "cannot open the database",
        ("search", study, "--device", "cud"): "expected a device",
    }
    for arguments, message in cases.items():
        monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert end.value.code == 2, (arguments, printed.err)
        assert message in printed.err, (arguments, printed.err)
        assert printed.out == ""
        assert printed.err.count("\n") == 1, printed.err
    assert not (tmp_path / "out").exists()


def test_results_go_to_stdout_and_nothing_is_overwritten(family: Path, tmp_path: Path) -> None:
    run_cli("search", family / "study.yaml", "--name", "s", "--trials", 4, cwd=tmp_path)
    status = json.loads(run_cli("status", "--json", cwd=tmp_path).stdout)
    assert [(one["name"], one["trials"]["complete"], one["total"]) for one in status] == [
        ("s", 4, 4)
    ]
    report = json.loads(run_cli("report", "s", "--json", cwd=tmp_path).stdout)
    assert report == json.loads((tmp_path / "runs/s/report.json").read_text())
    table = run_cli("report", "s", cwd=tmp_path).stdout
    for row in report["rows"]:
        assert row["name"] in table
        assert f"{row['heldout']['normalized']:.3f}" in table
    text = run_cli("export", "s", cwd=tmp_path).stdout
    assert text == (tmp_path / "runs/s/recipe.yaml").read_text()
    run_cli("export", "s", "-o", "kept.yaml", cwd=tmp_path)
    again = run_cli("export", "s", "-o", "kept.yaml", "--trial", 0, cwd=tmp_path, check=False)
    assert again.returncode == 2
    assert (tmp_path / "kept.yaml").read_text() == text
    checked = run_cli("check", "kept.yaml", cwd=tmp_path).stdout
    assert "task_arithmetic recipe of 4 models" in checked
    checked = run_cli("check", family / "study.yaml", cwd=tmp_path).stdout
    assert "3 experts, 3 tasks with 144 items, 36 dimensions and 12 trials of cma_es" in checked


def test_list_names_everything(tmp_path: Path) -> None:
    from evomerge import merge_methods, optimizers, plugins, proxy_tasks
    from evomerge.space_reader import space_names

    lines = run_cli("list", cwd=tmp_path).stdout.splitlines()
    names = {line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "}
    folders = [plugins.names(one) for one in (merge_methods, optimizers, proxy_tasks)]
    assert names == set().union(*folders, space_names(), {"auto"})


def test_an_installed_package_finds_its_spaces() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["search_spaces"] == "evomerge/search_spaces"
