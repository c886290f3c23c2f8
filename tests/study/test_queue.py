"""The queue of a study: what any process may put there, and that a resume takes it alike."""

import os
import shutil
import subprocess
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import RecipeError, SpaceError, StudyError
from evomerge.study import loop
from evomerge.study.export import exported
from evomerge.study.queue import enqueue_file
from evomerge.study.store import Store
from tests.study.fake_study import Silent, contents, faked, go_on, mapping, write_study
from tests.study.test_every_commit import commits
from tests.study.test_two_processes import processes, url

__all__ = ["commits", "processes", "url"]  # fixtures
WEIGHTS = (0.15, 0.35, 1.05)  # of the recipes that tests enqueue


def write_recipe(weight: float) -> Path:
    """A recipe by hand, of the study's space."""
    models = [{"model": f"/m/{name}", "parameters": {"weight": weight}} for name in ("two", "one")]
    recipe = {
        "merge_method": "ties",
        "base_model": "/m/base",
        "models": models,
        "parameters": {"normalize": False, "density": 0.5},
    }
    path = Path(f"recipe-{weight}.yaml")
    path.write_text(yaml.safe_dump(recipe))
    return path


class Enqueuing(Silent):
    """Puts recipes into the study's own queue after its fifth and its eighth trial."""

    done = 0  # of the study that last ran

    def __init__(self, name: str, place: str | None = None) -> None:
        super().__init__()
        self.name, self.place = name, place

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
        Enqueuing.done = done
        store = Store.open(self.name, self.place)
        for number, (after, weight) in enumerate(zip((5, 5, 8), WEIGHTS, strict=True)):
            if done >= after and store.get(f"queue:{number}") is None:
                enqueue_file(self.name, self.place, write_recipe(weight))


def go_on_enqueuing(study: Path, name: str, place: str | None = None) -> None:
    options: dict[str, Any] = {"url": place, "watcher": Enqueuing(name, place), "trials": None}
    if name in loop.studies(place):
        loop.resume(name, **options)
    else:
        loop.search(study, name, seed=None, **options)


def images_of_commits(fake: Path, images: Path, commits: Any, trials: Container[int]) -> list[Path]:
    """Copies of a study with a queue, taken after each commit while so many trials are done."""

    def keep(moment: str) -> None:
        if moment == "after" and Enqueuing.done in trials:
            count = len(list(images.iterdir())) if images.exists() else 0
            shutil.copytree("runs", images / f"{count:04d}")

    Enqueuing.done = 0
    commits(keep)
    go_on_enqueuing(fake, "s")
    commits(lambda moment: None)
    return sorted(images.iterdir())


def queued(name: str, place: str | None = None) -> dict[int, int]:
    """The entry of the queue that each slot took."""
    records = Store.open(name, place).trials()
    return {one.slot: one.queued for one in records if one.queued is not None}


def values(name: str, slots: Sequence[int]) -> list[Any]:
    records = Store.open(name, None).trials()
    return [records[slot].values for slot in slots]


@pytest.mark.parametrize("optimizer", ["cma_es", "random_search", "gp", "nsga2"])
def test_a_queue_takes_slots_and_moves_the_others(
    optimizer: str, fake: Path, tmp_path: Path
) -> None:
    data = mapping(optimizer)
    data["search"] |= {"population": 4} if optimizer == "nsga2" else {}
    write_study(tmp_path, data)
    go_on(fake, "alone")
    go_on_enqueuing(fake, "s")
    assert queued("s") == {5: 0, 6: 1, 8: 2}
    for slot, weight in zip((5, 6, 8), WEIGHTS, strict=True):
        (found,) = values("s", [slot])
        assert found == {"density": 0.5, "one.weight": weight, "two.weight": weight}
    own = [slot for slot in range(len(contents("s")["trials"])) if slot not in (5, 6, 8)]
    moved = values("s", own) == values("alone", range(len(own)))
    if optimizer in ("cma_es", "random_search"):
        assert moved
    if optimizer == "gp":  # which learns from the queue
        assert not moved
    assert values("s", own[:5]) == values("alone", range(5))


@pytest.mark.parametrize("optimizer", ["cma_es", "tpe"])
def test_death_at_every_single_commit(
    optimizer: str, fake: Path, tmp_path: Path, commits: Any
) -> None:
    """Before or after an entry is written, and before or after it is proposed."""
    write_study(tmp_path, mapping(optimizer))
    kept = images_of_commits(fake, tmp_path / "images", commits, range(5, 10))
    expected = contents("s")
    assert queued("s") == {5: 0, 6: 1, 8: 2}
    assert len(kept) >= 3 + 2 * 4  # entries, proposals and results
    for image in kept:
        shutil.rmtree("runs")
        shutil.copytree(image, "runs")
        go_on_enqueuing(fake, "s")
        assert contents("s") == expected, image.name


def hold(folder: str, study: Path, place: str, talk: Any) -> None:
    """Run a study that waits after its fifth trial, in a process of its own."""

    class Waiting(Silent):
        def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
            if done == 5 and seconds is not None:
                talk.send("here")
                talk.recv()

    os.chdir(folder)
    with faked():
        loop.search(study, "held", trials=None, seed=None, url=place, watcher=Waiting())


@pytest.mark.parametrize("end", ["go", "kill"])
def test_a_running_study_takes_what_another_process_enqueues(
    end: str, fake: Path, tmp_path: Path, url: str, processes: Any
) -> None:
    here, there = processes.Pipe()
    process = processes.Process(target=hold, args=(tmp_path, fake, url, there))
    process.start()
    there.close()  # so that its death is seen
    assert here.recv() == "here"
    files = [write_recipe(weight) for weight in WEIGHTS[:2]]
    for file in files:
        words = [sys.executable, "-m", "evomerge", "enqueue", "held", file, "--storage", url]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout == f"{file} waits in the queue of held behind 1 other\n"
    for file in files:
        file.unlink()  # the study needs them no more
    if end == "kill":
        process.kill()
    else:
        here.send("go")
    process.join()
    if end == "kill":
        go_on(fake, "held", url)
    assert queued("held", url) == {5: 0, 6: 1}

    class Twice(Enqueuing):
        def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
            if done == 5:
                super().trial(done, total, best, seconds)

    loop.search(fake, "alone", trials=None, seed=None, url=url, watcher=Twice("alone", url))
    assert contents("held", url) == contents("alone", url)


def add(folder: str, place: str, weight: float, talk: Any) -> None:
    os.chdir(folder)
    with faked():
        talk.send("here")
        talk.recv()
        enqueue_file("s", place, Path(f"recipe-{weight}.yaml"))


def test_two_processes_that_enqueue_at_once(
    fake: Path, tmp_path: Path, url: str, processes: Any
) -> None:
    go_on(fake, "s", url)
    started = []
    for weight in WEIGHTS:
        write_recipe(weight)
        here, there = processes.Pipe()
        process = processes.Process(target=add, args=(tmp_path, url, weight, there))
        process.start()
        there.close()  # so that its death is seen
        started.append((process, here))
    for _, here in started:
        assert here.recv() == "here"
    for _, here in started:
        here.send("go")
    for process, _ in started:
        process.join()
        assert process.exitcode == 0
    loop.resume("s", trials=18, url=url, watcher=Silent())
    assert queued("s", url) == {14: 0, 15: 1, 16: 2}
    taken = {one.values["one.weight"] for one in Store.open("s", url).trials()[14:17]}
    assert taken == set(WEIGHTS)


def test_a_finished_study_is_made_longer(fake: Path) -> None:
    go_on(fake, "s")
    path = write_recipe(0.15)
    assert enqueue_file("s", None, path) == (
        f"{path} waits in the queue of s; `evomerge resume s --trials 15` makes room for it"
    )
    again = enqueue_file("s", None, path)
    assert "behind 1 other; `evomerge resume s --trials 16`" in again
    go_on(fake, "s")  # changes nothing
    assert queued("s") == {}
    loop.resume("s", trials=16, url=None, watcher=Silent())
    assert queued("s") == {14: 0, 15: 1}


def test_any_trial_can_be_tried_again(fake: Path) -> None:
    go_on(fake, "s")
    Path("again.yaml").write_text(exported("s", None, 11))
    enqueue_file("s", None, Path("again.yaml"))
    loop.resume("s", trials=15, url=None, watcher=Silent())
    assert values("s", [14]) == values("s", [11])


def test_what_a_stage_does_not_hold_blocks_nothing(fake: Path, tmp_path: Path) -> None:
    """It was enqueued in the stage before, and waits; the next in the queue goes first."""
    data = mapping()
    data["search"]["stages"] = [{"after": 6, "narrow": 0.2}]
    write_study(tmp_path, data)

    class AtTheEnd(Silent):
        def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
            if done == 6 and Store.open("s", None).get("queue:0") is None:
                best_so_far = Path("best.yaml")
                best_so_far.write_text(exported("s", None, None))
                for file in (write_recipe(1.5), best_so_far):
                    enqueue_file("s", None, file)

    watcher = AtTheEnd()
    loop.search(fake, "s", trials=9, seed=None, url=None, watcher=watcher)
    assert queued("s") == {6: 1}
    (note,) = [one for one in watcher.notes if "queue" in one]
    assert "got weight 1.5 of /m/one, where the nearest of the space has" in note
    assert note.endswith("; it stays in the queue")
    loop.resume("s", trials=14, url=None, watcher=Silent())
    assert queued("s") == {6: 1}
    with pytest.raises(SpaceError, match=r"got weight 1\.5"):  # as the stage is narrow still
        enqueue_file("s", None, write_recipe(1.5))


def test_what_cannot_be_enqueued(fake: Path) -> None:
    go_on(fake, "s")
    with pytest.raises(StudyError, match="there is no study 't'"):
        enqueue_file("t", None, write_recipe(0.15))
    words = r"got weight 1\.7 of /m/one, .* nearest of the space has 1\.5 at the top of recipe-1\.7"
    with pytest.raises(SpaceError, match=words):
        enqueue_file("s", None, write_recipe(1.7))
    Path("sliced.yaml").write_text("merge_method: passthrough\nslices: []\n")
    with pytest.raises(RecipeError, match="expected a recipe of models, got slices"):
        enqueue_file("s", None, Path("sliced.yaml"))
    assert not [key for key in contents("s")["attributes"] if "queue" in key]
