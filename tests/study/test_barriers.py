"""Lines between models: their ends are the models, their middle a plain average."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.fitness import Fitness, best_of, mean_correct, mean_scores
from evomerge.inspection import inspect
from evomerge.study.barriers import HALF, STEPS, barrier, score_lines
from evomerge.study.file import check_study, load_study_file
from evomerge.study.scorer import Scorer


def test_a_barrier_is_the_fall_below_the_straight_line() -> None:
    assert barrier((0, 0.5, 1), (1.0, 0.4, 0.8)) == pytest.approx(0.5)
    assert barrier((0, 0.25, 1), (0.0, 0.2, 1.0)) == pytest.approx(0.05)
    assert barrier((0, 0.5, 1), (0.2, 0.9, 0.4)) == 0.0


def test_lines_go_through_the_models_and_their_averages(family: Path) -> None:
    checked = check_study(load_study_file(family / "study.yaml"))
    scorer = Scorer(checked.checkpoints, checked.tasks, checked.tokenizer)
    lines = score_lines(scorer, checked.refs, 0.0, lambda *_: None)
    base, *experts = checked.refs
    assert [line.ends for line in lines] == [
        *((base, one) for one in experts), *combinations(experts, 2),
    ]  # fmt: skip
    own = {name: scorer.model(ref, "search", exact=False) for name, ref in checked.refs.items()}
    fitness = Fitness(best_of([mean_scores(own[one]) for one in experts]))
    for line in lines:
        assert line.steps == (STEPS if line.ends[0] == base else HALF)
        for end, name in ((0, line.ends[0]), (-1, line.ends[1])):
            assert line.fitness[end] == fitness.of(mean_scores(own[name]))
            for task, accuracy in mean_correct(own[name]).items():
                assert line.accuracies[task][end] == accuracy
    # The middle of the last line, against a model that is averaged here.
    first, second = lines[-1].ends
    weights = [load_file(family / "experts" / one / "model.safetensors") for one in (first, second)]
    middle = {name: torch.lerp(one, weights[1][name], 0.5) for name, one in weights[0].items()}
    save_file(middle, family / "experts" / first / "model.safetensors", {"format": "pt"})
    again = check_study(load_study_file(family / "study.yaml"))
    averaged = Scorer(again.checkpoints, again.tasks, again.tokenizer)
    averaged.set_temperatures(scorer.fit_temperatures())
    scores = mean_scores(averaged.model(again.refs[first], "search", exact=False))
    for task, score in scores.items():
        assert lines[-1].scores[task][1] == pytest.approx(score, rel=1e-4)


def test_inspecting_without_scores_reads_no_items(family: Path) -> None:
    for file in (family / "tasks").iterdir():
        file.unlink()
    found = inspect(family / "study.yaml")
    assert found["lines"] is None
    assert list(found["overall"]["experts"]) == ["sort", "reverse", "caesar"]
    assert found["expect"]
