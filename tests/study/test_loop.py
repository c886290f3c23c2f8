"""The study loop: starting points, refusals, reproducibility, what the database holds."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from evomerge import checking
from evomerge.errors import EvomergeError, StudyError
from evomerge.evaluator import SPLITS
from evomerge.study import loop
from evomerge.study.export import exported
from evomerge.study.item_scores import pack, unpack
from evomerge.study.store import Store, only_writer, studies
from evomerge.study.summary import status, stored_report
from tests.conftest import copy_family
from tests.study.test_crash import Silent, recorded


@pytest.fixture
def options() -> dict[str, Any]:
    return {"url": None, "device": "cpu", "watcher": Silent()}


@pytest.fixture(scope="module")
def once(trained_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a family and a finished study `s` of 12 trials on it."""
    folder = tmp_path_factory.mktemp("once")
    copy_family(trained_family, folder / "family")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        loop.search(
            folder / "family/study.yaml",
            "s",
            trials=None,
            seed=None,
            url=None,
            device="cpu",
            watcher=Silent(),
        )
    return folder


@pytest.fixture
def finished(once: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The report of that study, in the working directory; what a test changes is undone."""
    with tempfile.TemporaryDirectory() as kept:
        for part in ("family", "runs"):
            shutil.copytree(once / part, Path(kept) / part)
        monkeypatch.chdir(once)
        yield Store.open("s", None).get("report")
        for part in ("family", "runs"):
            shutil.rmtree(once / part)
            shutil.copytree(Path(kept) / part, once / part)


def test_same_seed_same_study(
    once: Path, finished: dict[str, Any], options: dict[str, Any]
) -> None:
    family = once / "family"
    again = loop.search(family / "study.yaml", "t", trials=None, seed=0, **options)
    assert again == finished
    assert recorded(once, "t") == recorded(once, "s")
    other = loop.search(family / "study.yaml", "u", trials=None, seed=1, **options)
    assert other["winner"] != finished["winner"]


def test_the_global_random_streams_are_left_alone(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    import random

    import torch

    monkeypatch.chdir(tmp_path)
    np.random.seed(5)
    torch.manual_seed(5)
    random.seed(5)
    expected = (np.random.rand(), torch.rand(1).item(), random.random())
    np.random.seed(5)
    torch.manual_seed(5)
    random.seed(5)
    loop.search(family / "study.yaml", "s", trials=None, seed=None, **options)
    assert (np.random.rand(), torch.rand(1).item(), random.random()) == expected


def test_first_slots_are_the_init_and_the_baselines(once: Path, finished: dict[str, Any]) -> None:
    first = [row[2] for row in recorded(once, "s")[:3]]
    assert set(first[0].values()) == {0.4}
    line = next(row for row in finished["rows"] if row["name"] == "task arithmetic")
    assert set(first[1].values()) == {float(line["detail"].removeprefix("scale "))}
    assert set(first[2].values()) == {1 / 3}


def test_the_line_in_the_space_scores_as_the_baseline(once: Path, finished: dict[str, Any]) -> None:
    store = Store.open("s", None)
    row = next(row for row in finished["rows"] if row["name"] == "task arithmetic")
    scale = row["detail"].removeprefix("scale ")
    baseline = unpack(store.get(f"row:task arithmetic {scale}:search")["items"])
    trial = unpack(recorded(once, "s")[1][4]["metrics"]["items"])
    for task, items in baseline.items():
        np.testing.assert_allclose(trial[task].score, items.score, atol=1e-5)


def test_recorded_fitness_is_the_normalized_mean_of_recorded_items(
    once: Path, finished: dict[str, Any]
) -> None:
    store = Store.open("s", None)
    experts = ("sort", "reverse", "caesar")
    by_expert = [unpack(store.get(f"row:{name}:search")["items"]) for name in experts]
    best = {task: max(one[task].score.mean() for one in by_expert) for task in experts}
    for _, _, _, values, attributes in recorded(once, "s"):
        items = unpack(attributes["metrics"]["items"])
        assert all(len(one.score) == 16 for one in items.values())
        expected = np.mean([items[task].score.mean() / best[task] for task in experts])
        assert values[0] == pytest.approx(expected, abs=1e-12)


def test_report_has_every_row_on_every_split(finished: dict[str, Any]) -> None:
    kinds = {row["name"]: row["kind"] for row in finished["rows"]}
    assert kinds == {
        "winner": "winner",
        "base": "baseline",
        "sort": "baseline",
        "reverse": "baseline",
        "caesar": "baseline",
        "uniform soup": "baseline",
        "greedy soup": "baseline",
        "task arithmetic": "baseline",
        "TIES": "baseline",
        "DARE-TIES": "baseline",
        "ensemble": "reference",
    }
    for row in finished["rows"]:
        for split in SPLITS:
            part = row[split]
            assert part["low"] <= part["normalized"] <= part["high"] or part["normalized"] == 0
            assert set(part["tasks"]) == {"sort", "reverse", "caesar"}


def test_the_winner_is_the_best_finalist_on_the_select_split(finished: dict[str, Any]) -> None:
    best = max(one["select"] for one in finished["finalists"])
    assert finished["winner"]["select"] == best
    row = finished["rows"][0]
    assert row["select"]["normalized"] == pytest.approx(best)
    assert row["detail"] == finished["winner"]["name"]


def test_a_second_study_of_the_name_is_refused(
    once: Path, finished: dict[str, Any], options: dict[str, Any]
) -> None:
    with pytest.raises(StudyError, match="the study s exists; go on with `evomerge resume s`"):
        loop.search(once / "family/study.yaml", "s", trials=None, seed=None, **options)


def test_a_second_process_is_refused(finished: dict[str, Any], options: dict[str, Any]) -> None:
    with (
        only_writer("s", None),
        pytest.raises(StudyError, match="the study s is being run by another process"),
    ):
        loop.resume("s", trials=20, **options)


def test_changed_weights_are_refused(
    once: Path, finished: dict[str, Any], options: dict[str, Any]
) -> None:
    family = once / "family"
    weights = family / "experts/sort/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1  # a low bit of the last number
    weights.write_bytes(data)
    with pytest.raises(StudyError, match=r"the weights of .*experts/sort are not those"):
        loop.resume("s", trials=20, **options)
    assert stored_report("s", None) == finished  # a refusal changes nothing
    assert status("s", None)["total"] == 12
    shutil.copyfile(family / "experts/reverse/model.safetensors", weights)
    with pytest.raises(StudyError, match=r"the weights of .*experts/sort are not those"):
        loop.resume("s", trials=20, **options)


def test_changed_items_are_refused(
    once: Path, finished: dict[str, Any], options: dict[str, Any]
) -> None:
    data = once / "family/tasks/sort.jsonl"
    lines = data.read_text().splitlines()
    data.write_text("\n".join(lines[1:] + lines[:1]))
    with pytest.raises(StudyError, match=r"the items of sort are not those that s began with"):
        loop.resume("s", trials=20, **options)


def test_a_smaller_total_is_refused(finished: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="expected a total of at least the 12 trials done, got 5"):
        loop.resume("s", trials=5, **options)


@pytest.mark.parametrize("name", ["nothing", "a/b", "..", "", " ", "what?", "50%25", "-x"])
def test_unknown_names_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    for action in (
        lambda: loop.resume(name, trials=None, **options),
        lambda: status(name, None),
        lambda: exported(name, None, None),
        lambda: stored_report(name, None),
    ):
        with pytest.raises(EvomergeError) as caught:
            action()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()  # looking makes nothing


def test_another_database_by_url(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    options["url"] = f"sqlite:///{tmp_path}/elsewhere.db"
    for name in ("one", "two"):
        loop.search(family / "study.yaml", name, trials=5, seed=None, **options)
    names = optuna.get_all_study_names(options["url"])
    assert sorted(names) == ["one", "two"]
    assert studies(options["url"]) == ["one", "two"]
    with only_writer("one", options["url"]):
        monkeypatch.chdir(family)  # the lock belongs to the database, not to the folder
        with pytest.raises(StudyError, match="another process"):
            loop.resume("one", trials=9, **options)
    monkeypatch.chdir(tmp_path)
    assert status("two", options["url"])["trials"]["complete"] == 5
    assert not Path("runs/one/study.db").exists()


def test_export_needs_the_database_alone(once: Path, finished: dict[str, Any]) -> None:
    winner, third = exported("s", None, None), exported("s", None, 3)
    shutil.move(once / "family", once / "gone")
    assert exported("s", None, None) == winner
    assert exported("s", None, 3) == third
    shutil.move(once / "gone", once / "family")


def test_what_cannot_be_scored_is_found_before_anything_is_written(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = (family / "experts/sort/config.json").read_text()

    def refusal() -> str:
        for action in (
            lambda: checking.check(family / "study.yaml"),
            lambda: loop.search(family / "study.yaml", "s", trials=None, seed=None, **options),
        ):
            with pytest.raises(EvomergeError) as caught:
                action()
        assert not Path("runs/s/study.db").exists()
        return str(caught.value)

    for wrong, message in (
        (config.replace('"hidden_size": 96', '"hidden_size": 48'), "got [33, 96] in the weights"),
        (config.replace('"llama"', '"lama"'), "expected a configuration that transformers knows"),
        (config.replace("LlamaForCausalLM", "LamaForCausalLM"), "expected an architecture"),
    ):
        assert wrong != config
        (family / "experts/sort/config.json").write_text(wrong)
        assert message in refusal()
    (family / "experts/sort/config.json").write_text(config)
    (family / "base/tokenizer.json").write_text("{}")
    assert "expected a tokenizer" in refusal()
    (family / "base/tokenizer.json").unlink()
    assert "got none of tokenizer.json" in refusal()


def test_a_text_file_as_database_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "no.db").write_text("not a database, not at all" * 50)
    with pytest.raises(StudyError, match="cannot open the database"):
        status("s", f"sqlite:///{tmp_path}/no.db")


def test_item_scores_survive_packing() -> None:
    from evomerge.proxy_tasks import ItemScores

    numbers = np.random.default_rng(0).random((2, 7)).astype(np.float32).astype(np.float64)
    back = unpack(pack({"t": ItemScores(numbers[0], numbers[1])}))
    np.testing.assert_array_equal(back["t"].score, numbers[0])
    np.testing.assert_array_equal(back["t"].correct, numbers[1])


def test_export_while_running_gives_the_best_so_far(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    class Stop(BaseException):
        pass

    class Stopping(Silent):
        def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
            if done == 7:
                raise Stop

    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stop):
        loop.search(
            family / "study.yaml", "s", trials=None, seed=None, **{**options, "watcher": Stopping()}
        )
    done = [row for row in recorded(tmp_path, "s") if row[1] == "COMPLETE"]
    best = max(done, key=lambda row: row[3][0])
    assert f"the best so far, trial {best[0]}" in exported("s", None, None)
    assert exported("s", None, 2) != exported("s", None, 3)
    with pytest.raises(StudyError, match=r"expected a trial from 0 to \d+, got 99"):
        exported("s", None, 99)
    with pytest.raises(StudyError, match="7 of its 12 trials are done"):
        stored_report("s", None)
    state = status("s", None)
    assert state["trials"] == {"complete": 7, "failed": 0, "running": 0}
    assert not state["finished"]
