"""What may not change while a study goes on, and the new study that is offered instead."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import StudyError
from evomerge.study import changes, loop, summary
from evomerge.study.baselines import carried_over
from tests.study.fake_study import (
    FakeItems,
    FakeScorer,
    Silent,
    contents,
    fake_check,
    go_on,
    mapping,
    write_study,
)

LIBRARIES = ("evomerge", "torch", "transformers", "optuna", "cma", "cmaes", "scipy", "numpy")
FORK = "`evomerge resume s --fork NEW`"


def resume(name: str = "s", **options: Any) -> Silent:
    watcher = Silent()
    loop.resume(name, **{"trials": None, "url": None, "watcher": watcher, **options})
    of_items = ("with 20 items a task", "the search items")  # what these can tell
    watcher.notes = [one for one in watcher.notes if not one.startswith(of_items)]
    return watcher


def refusal(**options: Any) -> str:
    before = contents("s")
    with pytest.raises(StudyError) as caught:
        resume(**options)
    assert contents("s") == before  # a refusal changes nothing
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_other_libraries_are_refused(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on(fake, "s")
    real = importlib.metadata.version
    for library in LIBRARIES:
        monkeypatch.setattr(
            importlib.metadata,
            "version",
            lambda name, it=library: "9.9" if name == it else real(name),
        )
        expected = f"s began with {library} {real(library)}, now 9.9, which may change its results"
        assert (
            refusal()
            == f"{expected}; install what it began with or begin a new study from it with {FORK}"
        )


def test_other_items_and_weights_are_refused(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on(fake, "s")
    monkeypatch.setattr(FakeItems, "fingerprints", {"words": "others"})
    text = refusal()
    assert text.startswith("the items of words are not those that s began with; restore ")
    assert text.endswith(FORK)
    monkeypatch.setattr(FakeItems, "fingerprints", {})
    monkeypatch.setattr(FakeScorer, "weights", {"two": "others"})
    text = refusal()
    assert text.startswith("the weights of /m/two are not those that s began with; restore them")
    assert text.endswith(FORK)


def test_another_tokenizer_or_chat_template_is_refused(fake: Path, tmp_path: Path) -> None:
    source = fake.read_text()
    base = tmp_path / "words"
    base.mkdir()
    fake.write_text(source.replace("/m/base", str(base)))
    (base / "tokenizer.json").write_text("{}")
    go_on(fake, "s")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt"):
        kept = (base / name).read_text() if (base / name).exists() else None
        (base / name).write_text("other")
        text = refusal()
        assert text.startswith(f"the tokenizer or chat template of {base} is not that which s ")
        assert text.endswith(FORK)
        (base / name).unlink()
        if kept is not None:
            (base / name).write_text(kept)
    resume()


def test_another_study_file_is_refused(fake: Path, tmp_path: Path) -> None:
    go_on(fake, "s")
    data = mapping()
    data["search"]["seed"] = 4
    data["splits"]["heldout"] = 8
    data["fitness"] = {}
    write_study(tmp_path, data)
    words = "splits.heldout was 7, is 8, search.seed was 3, is 4, fitness.worst was 0.25, is 0.0"
    assert refusal() == (
        f"{fake} is not what s began with: {words}; undo that, or begin a new study from s with "
        f"`evomerge resume s --fork NEW --study {fake}`"
    )
    with pytest.raises(StudyError) as caught:
        loop.search(fake, "s", trials=None, seed=None, url=None, watcher=Silent())
    assert str(caught.value) == (
        f"the study s exists and was another: {words}; "
        "go on with `evomerge resume s`, or choose another name"
    )


def test_a_study_needs_its_file_no_more(fake: Path, tmp_path: Path) -> None:
    data = mapping()
    loop.search(fake, "s", trials=12, seed=5, url=None, watcher=Silent())
    assert resume().notes == []  # what the command line changed is no change of the file
    data["search"]["trials"] = 20
    data["search"]["seed"] = 99  # still 5 for this study
    write_study(tmp_path, data)
    assert resume().notes == []
    fake.write_text("models: [")
    (note,) = resume().notes
    assert note.endswith("s goes on as it began")
    fake.unlink()
    assert resume().notes == []


def test_more_trials_in_the_file_are_said(fake: Path, tmp_path: Path) -> None:
    go_on(fake, "s")
    data = mapping()
    data["search"]["trials"] = 20
    write_study(tmp_path, data)
    assert resume().notes == [f"{fake} asks for 20 trials now; --trials 20 makes s as long"]
    assert len(contents("s")["trials"]) == 14


def test_a_fork_starts_from_the_best_and_leaves_the_old_alone(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(fake, "s")
    old = contents("s")
    monkeypatch.setattr(FakeScorer, "weights", {"two": "others"})
    resume(fork="new")
    assert contents("s") == old
    new = contents("new")
    values = sorted(old["values"], key=lambda row: -row[2])
    best = [number for number, _, _ in values][:5]
    origin = new["attributes"]["evomerge:study"]["origin"]
    assert (origin["study"], origin["trials"]) == ("s", best)
    points = {
        number: {name: value for one, name, value, _ in new["params"] if one == number}
        for number in range(14)
    }
    assert [point for point in origin["points"] if point not in points.values()] == []
    assert summary.status("new", None)["forked_from"] == "s"
    assert summary.status_line(summary.status("new", None)).endswith("forked from s")
    assert new["attributes"]["evomerge:inputs"]["/m/two"] == "others"
    with pytest.raises(StudyError, match="the study new exists"):
        resume(fork="new")


def test_a_fork_resumes_exactly(fake: Path) -> None:
    class Stop(BaseException):
        pass

    class Stopping(Silent):
        def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
            if done == at:
                raise Stop

    go_on(fake, "s")
    resume(fork="whole", trials=20)
    for at in (1, 4, 7, 13):
        name = f"cut-{at}"
        with pytest.raises(Stop):
            resume(fork=name, trials=20, watcher=Stopping())
        resume(name)
        assert contents(name) == contents("whole")


def test_a_fork_of_another_study_file(fake: Path, tmp_path: Path) -> None:
    go_on(fake, "s")
    data = mapping("tpe")
    data["search"]["seed"] = 8
    (tmp_path / "other").mkdir()
    other = write_study(tmp_path / "other", data)
    resume(fork="new", study=other)
    assert contents("new")["attributes"]["evomerge:study"]["optimizer"] == "tpe"
    assert len(contents("new")["trials"]) == 12
    assert resume("new").notes == []
    with pytest.raises(StudyError, match="expected --fork NEW with --study"):
        resume(study=other)


def test_points_of_another_space(fake: Path) -> None:
    data = mapping()
    data["space"] = {
        **data["space"],
        "holes": {"density": {"range": [0.5, 0.9], "step": 0.01, "init": 0.7}},
    }
    write_study(fake.parent, data)
    holes = fake_check(loop.load_study_file(fake)).space.holes
    inits = {hole.name: hole.init for hole in holes}
    first, second = (name for name in inits if name != "density")
    density = "density"
    assert carried_over([{first: 0.25, "gone": 3, density: 0.123}], holes, []) == [
        {first: 0.25, second: inits[second], density: 0.5}
    ]
    assert carried_over([{"gone": 3}], holes, []) == []
    assert carried_over([{first: True}], holes, [inits]) == []
    assert carried_over([{first: 0.25}, {first: 0.25}], holes, []) == [{**inits, first: 0.25}]


def test_a_shorter_total_is_said_and_can_be_undone(fake: Path) -> None:
    go_on(fake, "whole")

    class Stop(BaseException):
        pass

    class Stopping(Silent):
        def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
            if done == 6:
                raise Stop

    with pytest.raises(Stop):
        loop.search(fake, "s", trials=None, seed=None, url=None, watcher=Stopping())
    assert refusal(trials=5) == (
        "expected a total of at least the 6 trials done, got 5; give more, or leave --trials out"
    )
    note = "s ends after 9 trials, not 14, unless --trials asks for more"
    assert resume(trials=9).notes == [note]
    assert len(contents("s")["trials"]) == 9
    assert summary.status("s", None)["total"] == 9
    assert resume(trials=14).notes == []
    one, other = contents("s"), contents("whole")
    for part in ("trials", "params", "values", "metrics"):
        assert one[part] == other[part]
    assert one["attributes"]["evomerge:report"] == other["attributes"]["evomerge:report"]


def test_differences_are_told_in_words() -> None:
    then = {"a": {"b": 1, "c": [1, 2]}, "search": {"trials": 5}, "d": "x" * 99}
    now = {"a": {"b": 2, "c": (1, 2)}, "search": {"trials": 6}, "e": {}}
    assert changes.differences(then, then) == []
    assert changes.differences(then, now) == [
        "a.b was 1, is 2",
        f"d was '{'x' * 56}..., is none",
        "e was none, is {}",
    ]
