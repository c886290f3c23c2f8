"""Tasks that are scored by a function of the user's."""

import json
import random
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from evomerge import Study
from evomerge.errors import CandidateError, DataError, Place, StudyFileError
from evomerge.language_model import Ensemble
from evomerge.models import load_tokenizer
from evomerge.proxy_tasks import python
from evomerge.proxy_tasks._data import Row, read_rows
from evomerge.proxy_tasks.python import Settings, Task
from evomerge.study.file import check_study, load_study_file, parse_study
from tests.architectures import live, reference, save_random
from tests.conftest import run_cli

PLACE = Place("study.yaml", DataError, "tasks.mine")
ROWS: list[Row] = [{"n": number, "words": ["a", "b"]} for number in range(8)]
LIKELIHOOD = """
    import torch

    def score(model, tokenizer, rows):
        found = []
        for row in rows:
            ids = tokenizer(row["question"] + row["answer"], return_tensors="pt")["input_ids"]
            logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            each = logits.gather(1, ids[0, 1:, None])[-len(row["answer"]):]
            found.append(each.mean().exp())
        scores = torch.stack(found)
        return scores, (scores > 0.02).float()
"""


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(textwrap.dedent(text))
    return folder / name


def task_of(folder: Path, text: str, rows: list[Row], name: str = "score") -> Task:
    """Return a task whose function is the one of a text."""
    file = write(folder, text)
    settings = Settings(kind="python", data="x.jsonl", function=f"{file}:{name}")
    return Task(settings, [python.render(row, settings, PLACE) for row in rows], None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("model"), "llama")


def test_the_function_gets_the_model_the_tokenizer_and_the_rows(
    trained_family: Path, tmp_path: Path
) -> None:
    rows = list(read_rows("tasks/sort.jsonl", trained_family, PLACE))[:12]
    task = task_of(tmp_path, LIKELIHOOD, rows)
    tokenizer = load_tokenizer(trained_family / "base")
    task._tokenizer = tokenizer
    found = task.scores(live(trained_family / "base"), [3, 1, 11], True)
    plain = reference(trained_family / "base")
    for item, score, correct in zip([3, 1, 11], found.score, found.correct, strict=True):
        text = rows[item]["question"] + rows[item]["answer"]
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            logits = plain(ids).logits[0].double().log_softmax(-1)
        each = [logits[at - 1, ids[0, at]] for at in range(ids.shape[1])][
            -len(rows[item]["answer"]) :
        ]
        assert score == pytest.approx(float(torch.stack(each).mean().exp()), rel=1e-5)
        assert correct == float(score > 0.02)


@pytest.mark.parametrize(
    ("returned", "score", "correct"),
    [
        ("[row['n'] / 8 for row in rows]", [0.25, 0.5], [0.25, 0.5]),
        ("(0.25, 1)", [0.25, 1.0], [0.25, 1.0]),
        ("([0.25, 1], [True, False])", [0.25, 1.0], [1.0, 0.0]),
        ("np.array([0.0, 1.0])", [0.0, 1.0], [0.0, 1.0]),
        ("torch.tensor([0.5, 1], dtype=torch.bfloat16)", [0.5, 1.0], [0.5, 1.0]),
        ("[torch.tensor(0.5), torch.tensor(1)]", [0.5, 1.0], [0.5, 1.0]),
        ("(torch.tensor([0.5, 1]), np.array([1, 0]))", [0.5, 1.0], [1.0, 0.0]),
    ],
)
def test_what_a_function_may_return(
    returned: str, score: list[float], correct: list[float], folder: Path, tmp_path: Path
) -> None:
    text = f"import numpy as np, torch\ndef score(model, tokenizer, rows): return {returned}"
    found = task_of(tmp_path, text, ROWS).scores(live(folder), [2, 4], True)
    assert found.score.tolist() == score
    assert found.correct.tolist() == correct
    assert found.score.dtype == found.correct.dtype == np.float64


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("[0.5]", r"2 numbers, got the shape \[1\]"),
        ("0.5", r"2 numbers, got the shape \[\]"),
        ("[[0.5], [0.5]]", r"got the shape \[2, 1\]"),
        ("[0.5, [1, 2]]", "got setting an array element"),
        ("None", "score from 0 to 1"),
        ("['a', 'b']", "got could not convert string to float"),
        ("[0.5, float('nan')]", r"got nan for item 1, \{'n': 4, 'words': \['a', 'b'\]\}"),
        ("[1.25, 0.5]", r"got 1.25 for item 0, \{'n': 2"),
        ("[-0.1, 0.5]", "got -0.1 for item 0"),
        ("([0.5, 1], [0, 2])", "a correctness from 0 to 1 .*, got 2.0 for item 1"),
        ("1 / 0", r"got ZeroDivisionError: division by zero at line 1 of .*mine\.py"),
        ("exit(3)", r"got SystemExit: 3 at line 1 of .*mine\.py"),
    ],
)
def test_what_fails_a_trial(returned: str, words: str, folder: Path, tmp_path: Path) -> None:
    task = task_of(tmp_path, f"def score(model, tokenizer, rows): return {returned}", ROWS)
    with pytest.raises(CandidateError, match=words) as caught:
        task.scores(live(folder), [2, 4], True)
    assert "tasks.mine" in str(caught.value)
    assert "mine.py:score" in str(caught.value)


def test_what_a_function_does_leaves_no_trace(folder: Path, tmp_path: Path) -> None:
    text = """
        import random, numpy as np, torch

        def score(model, tokenizer, rows):
            model.train()
            for row in rows:
                row["words"].clear()
            return [(random.random() + np.random.rand() + float(torch.rand(()))) / 3 for _ in rows]
    """
    task, model = task_of(tmp_path, text, ROWS), live(folder)
    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = task.scores(model, [0, 1], True)
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert np.array_equal(np.random.get_state()[1], streams[1])
    assert random.getstate() == streams[2]
    assert not model.module.training
    assert ROWS[0]["words"] == task._examples[0].row["words"] == ["a", "b"]
    random.seed(7)
    assert task.scores(model, [0, 1], True).score.tobytes() == first.score.tobytes()
    assert len(set(first.score.tolist())) == 2


def test_a_file_imports_those_beside_it_whenever_it_runs(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, "HALF = 0.5", "beside_it_first.py")
    write(tmp_path, "import sys\nsys.path.append('/its/own')\nQUARTER = 0.25", "beside_it_later.py")
    text = """
        from beside_it_first import HALF

        def score(model, tokenizer, rows):
            from beside_it_later import QUARTER
            return [HALF, QUARTER]
    """
    before = list(sys.path)
    try:
        found = task_of(tmp_path, text, ROWS).scores(live(folder), [0, 1], True)
        assert sys.path == [*before, "/its/own"]
    finally:
        sys.path[:] = before
    assert found.score.tolist() == [0.5, 0.25]


def test_files_beside_a_file_are_its_own(tmp_path: Path) -> None:
    """Another file may mean another by the same name; a change of either is one of the study."""
    text = "import aid\ndef score(model, tokenizer, rows): return [aid.SCORE] * len(rows)"
    digests, loaded = [], []
    for number, part in ((1, "a"), (2, "b"), (3, "a")):
        (tmp_path / part).mkdir(exist_ok=True)
        write(tmp_path / part, f"SCORE = {number}" + " " * number, "aid.py")
        write(tmp_path / part, "SCORE = 0", f"unused{number}.py")
        function = f"{write(tmp_path / part, text, 'score.py')}:score"
        loaded.append(python.load(function, PLACE)(None, None, [0]))
        digests.append(python._digest(function, PLACE))
    assert loaded == [[1], [2], [3]]
    assert len(set(digests)) == 3
    write(tmp_path / "a", "SCORE = 9", "unused1.py")
    python.load(function, PLACE)
    assert python._digest(function, PLACE) == digests[2]


def test_what_a_file_prints_goes_to_stderr(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "print('read')\ndef score(model, tokenizer, rows): print('run'); return [1] * len(rows)"
    task_of(tmp_path, text, ROWS).scores(live(folder), [0, 1], True)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.split() == ["read", "run"]


def test_an_ensemble_is_no_model_of_transformers(folder: Path, tmp_path: Path) -> None:
    task = task_of(tmp_path, "def score(model, tokenizer, rows): return [1] * len(rows)", ROWS)
    with pytest.raises(
        CandidateError, match=r"a model of transformers for tasks.mine, .* Ensemble"
    ):
        task.scores(Ensemble([live(folder)]), [0], True)


def test_functions_of_installed_modules() -> None:
    place = PLACE / "function"
    assert python.load("json:dumps", place) is json.dumps
    settings = Settings(kind="python", data="x.jsonl", function="json:dumps")
    assert python.absolute(settings, Path("/somewhere")) == settings
    first = python.render(ROWS[0], settings, PLACE)
    assert len(first.source) == 32
    assert first == python.render(dict(reversed(ROWS[0].items())), settings, PLACE)
    assert first != python.render(ROWS[1], settings, PLACE)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("mine.py:scores", "expected a function, .*did you mean 'score'"),
        ("mine.py:zebra", "there is no function zebra"),
        ("mine.py:number", "expected a function"),
        ("none.py:score", "there is no such file; did you mean .*/mine.py"),
        ("no_such_module:score", "No module named 'no_such_module'"),
        ("broken.py:score", r"SyntaxError"),
        ("fails.py:score", r"RuntimeError: not today at line 2 of .*fails\.py"),
        ("exits.py:score", r"SystemExit: usage: exits at line 2 of .*exits\.py"),
        ("parses.py:score", r"JSONDecodeError: .* at line 2 of .*parses\.py"),
    ],
)
def test_what_is_no_function(function: str, words: str, tmp_path: Path) -> None:
    write(tmp_path, "number = 3\ndef score(model, tokenizer, rows): ...")
    write(tmp_path, "def score(:", "broken.py")
    write(tmp_path, "def score(): ...\nraise RuntimeError('not today')", "fails.py")
    write(tmp_path, "import sys\nsys.exit('usage: exits')\ndef score(): ...", "exits.py")
    write(tmp_path, "import json\njson.loads('{')\ndef score(): ...", "parses.py")
    settings = Settings(kind="python", data="x.jsonl", function=function)
    given = python.absolute(settings, tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        python.rows(given, tmp_path, PLACE)
    assert "at tasks.mine.function in study.yaml" in str(caught.value)


@pytest.mark.parametrize("function", ["mine.py", ":score", "mine.py:", "mine.py:a b"])
def test_what_names_no_function(function: str) -> None:
    with pytest.raises(ValueError, match=r"file\.py:name or module:name"):
        Settings(kind="python", data="x.jsonl", function=function)


def prepared(family: Path, text: str) -> Path:
    """Make the family's study one of a single task with a function; returns its file."""
    file = family / "study.yaml"
    study = yaml.safe_load(file.read_text())
    study["tasks"] = {
        "mine": {"kind": "python", "data": "tasks/sort.jsonl", "function": "mine.py:score"}
    }
    study["splits"] = {"search": 8, "select": 8, "heldout": 8}
    study["search"] = {"optimizer": "random_search", "trials": 4}
    file.write_text(yaml.safe_dump(study))
    write(family, text)
    return file


def test_a_study_with_a_function(family: Path) -> None:
    unsure = LIKELIHOOD.replace(
        "found = []", "found = []\n        assert not Path('fail').exists(), 'item 57'"
    )
    prepared(family, "    from pathlib import Path\n" + unsure)
    run_cli("search", "study.yaml", "--name", "s", cwd=family)
    report = json.loads((family / "runs/s/report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert {"winner", "base", "sort", "TIES"} <= set(rows)
    assert "ensemble" not in rows
    assert 0 < rows["winner"]["heldout"]["tasks"]["mine"] <= 1

    (family / "fail").touch()
    done = run_cli("search", "study.yaml", "--name", "other", cwd=family, check=False)
    assert done.returncode == 2
    said = r"for tasks\.mine from .*mine\.py:score, got AssertionError: item 57 at line"
    assert re.search(said, done.stderr)
    run_cli("resume", "s", "--trials", "6", cwd=family, check=False)
    trials = Study.open("s", storage=f"sqlite:///{family}/runs/s/study.db").results()
    assert [trial.fitness is None for trial in trials] == [False] * 4 + [True] * 2
    assert re.search(said, trials[-1].error or "")


def test_a_changed_function_is_a_changed_study(family: Path) -> None:
    file = prepared(family, LIKELIHOOD)
    first = check_study(load_study_file(file))
    record = first.file.to_mapping()
    assert record["tasks"]["mine"]["function"] == f"{family / 'mine.py'}:score"
    place = Place("study.yaml", StudyFileError)
    again = check_study(parse_study(record, Path("/elsewhere"), place))
    assert again.tasks[0].fingerprint() == first.tasks[0].fingerprint()
    write(family, LIKELIHOOD + "\n    # something else\n")
    assert check_study(first.file).tasks[0].fingerprint() != first.tasks[0].fingerprint()
