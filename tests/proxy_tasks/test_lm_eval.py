"""Tasks of the lm-evaluation-harness: our numbers are those of its own HFLM."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml

from evomerge.decoding import greedy
from evomerge.errors import CandidateError, DataError, EvomergeError, Place, StudyFileError
from evomerge.evaluator import Evaluator
from evomerge.models import load_tokenizer
from evomerge.proxy_tasks import _harness as harness
from evomerge.proxy_tasks import lm_eval as kind
from evomerge.proxy_tasks._hflm import Example
from evomerge.proxy_tasks.lm_eval import Settings, Task
from evomerge.splits import content
from evomerge.study.file import check_study, parse_study
from tests.architectures import byte_level_tokenizer, live, reference, save_random

PLACE = Place("study.yaml", DataError, "tasks.one")
WORDS = [
    "one", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "eleven", "twelve",
]  # fmt: skip
COUNT = 16


def items(start: int) -> list[dict[str, Any]]:
    """Sums in words, with four answers, the right one of which is named in several ways."""
    found = []
    for number in range(start, start + COUNT):
        first, second = number % 5, number // 5 % 6
        options = [WORDS[(first + second + 1 + shift) % 12] for shift in (0, 3, 5, 8)]
        gold = number % 4
        options[0], options[gold] = options[gold], options[0]
        found.append(
            {
                "id": number,
                "question": f"{WORDS[first]} and {WORDS[second]} make ",
                "options": options,
                "gold": gold,
                "answer": options[gold],
                "text": f"{WORDS[first]} and {WORDS[second]} make {options[gold]}, no. {number}.",
            }
        )
    return found


COMMON = {
    "dataset_path": "json",
    "training_split": "train",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "answer",
}
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "num_fewshot": 2,
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "exact_match")],
    },
    "mutual": {
        "output_type": "multiple_choice",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc_mutual_info"}, {"metric": "mcc"}],
    },
    "inputs": {  # as Winogrande: the choices are in the question
        "output_type": "multiple_choice",
        "doc_to_choice": "options",
        "doc_to_text": "gold",
        "doc_to_target": "question",
        "metric_list": [{"metric": "acc"}],
    },
    "likelihood": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question.strip()}}",
        "doc_to_target": " {{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": name} for name in ("byte_perplexity", "word_perplexity", "bits_per_byte")
        ],
    },
    "generated": {
        "output_type": "generate_until",
        "description": "Sums.\n",
        "doc_to_target": "{{'' if id % 2 else answer}}",
        "num_fewshot": 1,
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 8},
        "filter_list": [
            {"name": "first", "filter": [{"function": "take_first"}]},
            {
                "name": "letter",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-z])"},
                    {"function": "take_first"},
                ],
            },
        ],
        "metric_list": [{"metric": "exact_match", "regexes_to_ignore": ["[^a-z]"]}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a byte-level tokenizer, and task files over local data."""
    found = tmp_path_factory.mktemp("harness")
    text = " ".join(row["text"] for row in [*items(0), *items(100)])
    tokenizer = byte_level_tokenizer(text, 290)
    save_random(found / "model", "llama", vocabulary=len(tokenizer))
    tokenizer.save_pretrained(found / "model")
    for split, start in (("train", 0), ("test", 100)):
        lines = map(json.dumps, items(start))
        (found / f"{split}.jsonl").write_text("\n".join(lines))
    files = {split: str(found / f"{split}.jsonl") for split in ("train", "test")}
    for name, own in TASKS.items():
        write_task(found / f"{name}.yaml", own | {"task": name}, files)
    return found


class Function(str):
    """A function of a file beside a task's."""


class Dumper(yaml.SafeDumper):
    pass


Dumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", name))


def write_task(file: Path, own: Mapping[str, Any], files: Mapping[str, str]) -> None:
    data = {"dataset_kwargs": {"data_files": dict(files)}}
    file.write_text(yaml.dump({**COMMON, **data, **own}, Dumper=Dumper))


def write_own(folder: Path, name: str, own: Mapping[str, Any]) -> None:
    """Write a task file of a test's own beside the others."""
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    write_task(folder / f"{name}.yaml", {**own, "task": name}, files)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def examples_of(folder: Path, name: str, **settings: Any) -> tuple[Settings, list[Example]]:
    given = Settings(kind="lm_eval", task=f"{name}.yaml", **settings)
    given = kind.absolute(given, folder)
    return given, [kind.render(row, given, PLACE) for row in kind.rows(given, folder, PLACE)]


def ours(folder: Path, name: str, **settings: Any) -> tuple[list[Example], Task]:
    given, examples = examples_of(folder, name, **settings)
    return examples, Task(given, examples, load_tokenizer(folder / "model"))


def theirs(
    folder: Path,
    name: str,
    length: int = 63,
    tokenizer: Any = None,
    model: Any = None,
    batch: int = 5,
    **options: Any,
) -> list[dict[str, Any]]:
    """Return lm-eval's own samples of a task, in the order of its items."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(
        pretrained=model or reference(folder / "model"),
        tokenizer=tokenizer or load_tokenizer(folder / "model"),
        max_length=length,
        batch_size=batch,
    )
    found = simple_evaluate(
        model,
        tasks=[str(folder / f"{name}.yaml")],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
    samples: list[dict[str, Any]] = sorted(found["samples"][name], key=lambda one: one["doc_id"])
    return samples


class Heard:
    """Keeps what a task hands to lm-eval's judgement."""

    def __init__(self, task: Task) -> None:
        self.answers: list[list[Any]] = []
        self._judge = task._judged
        task._judged = self  # type: ignore[assignment]

    def __call__(self, rows: Any, answers: Any) -> Any:
        self.answers += answers
        return self._judge(rows, answers)


@pytest.mark.parametrize("name", ["choice", "mutual", "inputs", "likelihood"])
def test_likelihoods_and_metrics_are_those_of_lm_eval(name: str, folder: Path) -> None:
    model = live(folder / "model")
    samples = theirs(folder, name)
    for metric in [one["metric"] for one in TASKS[name]["metric_list"]]:
        examples, task = ours(folder, name, docs="test", metric=metric)
        assert [one.doc["id"] for one in examples] == [one["doc"]["id"] for one in samples]
        heard = Heard(task)
        found = task.scores(model, range(COUNT), True)
        for row, sample in enumerate(samples):
            each = [one[0] for one in sample["resps"]]
            mine = heard.answers[row]
            assert [one[0] for one in mine] == pytest.approx([one[0] for one in each], abs=1e-4)
            assert [one[1] for one in mine] == [one[1] for one in each]
            value = sample[metric]
            if metric == "perplexity":
                assert found.correct[row] == pytest.approx(np.exp(value), rel=1e-4)
            elif metric == "mcc":
                assert found.correct[row] == (value[0] == value[1])
            else:
                assert found.correct[row] == value


def test_margins_of_choices(folder: Path) -> None:
    model = live(folder / "model")
    samples = theirs(folder, "choice")
    for metric, temperature in (("acc", 1.0), ("acc_norm", 0.1)):
        _, task = ours(folder, "choice", docs="test", metric=metric)
        found = task.scores(model, range(COUNT), False)
        for row, sample in enumerate(samples):
            values = [one[0][0] for one in sample["resps"]]
            if metric == "acc_norm":
                sizes = map(len, sample["doc"]["options"])
                values = [value / size for value, size in zip(values, sizes, strict=True)]
            gold = values.pop(sample["doc"]["gold"])
            margin = (gold - max(values)) / temperature
            assert found.score[row] == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-4)
            assert found.correct[row] == float(margin > 0)


def test_texts_that_are_longer_than_the_context(folder: Path) -> None:
    """Both read a long text in pieces, and only the end of a long context."""
    model = live(folder / "model")
    model.context = 13
    for name in ("rolling", "choice"):
        samples = theirs(folder, name, 12)
        for metric in [one["metric"] for one in TASKS[name]["metric_list"]]:
            _, task = ours(folder, name, docs="test", metric=metric)
            heard = Heard(task)
            found = task.scores(model, [5, 2], False)
            for row, item in enumerate((5, 2)):
                each = [one[0] for one in samples[item]["resps"]]
                if name == "rolling":
                    assert heard.answers[row] == pytest.approx(each, abs=1e-4)
                    likelihood, count = samples[item][metric]
                    expected = np.exp(likelihood / count)
                    assert found.score[row] == pytest.approx(expected, rel=1e-4)
                    assert found.correct[row] == found.score[row]
                else:
                    mine = [one[0] for one in heard.answers[row]]
                    assert mine == pytest.approx([one[0] for one in each], abs=1e-4)
                    assert found.correct[row] == samples[item][metric]


def test_answers_that_are_generated(folder: Path) -> None:
    model = live(folder / "model")
    samples = theirs(folder, "generated")
    for name in ("first", "letter"):
        _, task = ours(folder, "generated", docs="test", filter=name)
        heard = Heard(task)
        found = task.scores(model, range(COUNT), True)
        own = [one for one in samples if one["filter"] == name]
        assert [one[0] for one in heard.answers] == [one["resps"][0][0] for one in own]
        assert found.correct.tolist() == [one["exact_match"] for one in own]
        assert (
            found.score[1::2].tolist() == found.correct[1::2].tolist()
        )  # no text is the right one
        assert 0 < found.score[::2].min() < found.score[::2].max() < 1
        fast = task.scores(model, range(COUNT), False)
        assert fast.score.tobytes() == found.score.tobytes()
        assert len(heard.answers) == COUNT + COUNT // 2  # only those were generated
    answers = [one["resps"][0][0] for one in samples]
    assert len(set(answers)) > 2
    assert not any("e" in one for one in answers)


FUNCTIONS = """
def results(doc, results):
    return {"mine": 0.25 + 0.5 * (len(results[0]) % 2)}

def odd(references, predictions, **_):
    return float(len(predictions[0]) % 2)

def both(references, predictions, **_):
    return {"odd@1": float(len(predictions[0]) % 2), "odd@2": 1.0}

def mean(values):
    return sum(values) / len(values)

calls = []

def late(doc, results):
    calls.append(doc)
    if len(calls) > 9:
        raise ValueError("no more")
    return {"mine": 0.5}
"""


def of_function(name: str) -> dict[str, Any]:
    one = {"metric": Function(f"functions.{name}"), "aggregation": Function("functions.mean")}
    return {"metric_list": [one | {"higher_is_better": True}]}


OWN_RESULTS = {
    "process_results": Function("functions.results"),
    "metric_list": [{"metric": "mine", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.mark.parametrize(
    ("own", "metric", "asked"),
    [
        (OWN_RESULTS, "mine", None),
        (of_function("odd"), "odd", None),
        (of_function("both"), "odd@1", None),
        (of_function("both"), "odd@1", "odd@1"),
    ],
)
def test_a_metric_of_the_task_s_own_is_the_score(
    own: Mapping[str, Any], metric: str, asked: str | None, folder: Path
) -> None:
    """Also where a text is the right one, and where correctness may be read from margins."""
    (folder / "functions.py").write_text(FUNCTIONS)
    plain = TASKS["generated"] | {"doc_to_target": "answer", "filter_list": None}
    write_own(folder, "functional", plain | own)
    expected = [one[metric] for one in theirs(folder, "functional")]
    assert len(set(expected)) == 2
    model = live(folder / "model")
    for exact in (True, False):
        _, task = ours(folder, "functional", docs="test", metric=asked)
        found = task.scores(model, range(COUNT), exact)
        assert found.score.tolist() == found.correct.tolist() == expected


def test_a_function_that_fails_fails_the_trial(folder: Path) -> None:
    (folder / "functions.py").write_text(FUNCTIONS)
    late = OWN_RESULTS | {"process_results": Function("functions.late")}
    write_own(folder, "late", TASKS["choice"] | late)
    _, task = ours(folder, "late", docs="test")
    with pytest.raises(CandidateError) as caught:
        task.scores(live(folder / "model"), range(COUNT), False)
    assert str(caught.value) == (
        "expected metrics of late, got ValueError: no more; correct it there"
    )


def test_special_tokens_end_answers(folder: Path, tmp_path: Path) -> None:
    """As stops, and as further tokens that the model's generation config names."""
    plain = TASKS["generated"] | {"filter_list": None}
    write_own(folder, "free", plain | {"generation_kwargs": {"until": [], "max_gen_toks": 12}})
    tokenizer, model = load_tokenizer(folder / "model"), live(folder / "model")
    given, examples = examples_of(folder, "free", docs="test")
    task = Task(given, examples, tokenizer)
    free = task._texts(model, range(COUNT))
    tokens = greedy(model, task._prompts, [12] * COUNT, lambda *_: False)
    counts = Counter(one for new in tokens for one in set(new[1:]))
    names = [tokenizer.convert_ids_to_tokens(one) for one, _ in counts.most_common()]
    stop = next(one for one in names if one.isascii() and one.isalpha())
    tokenizer.add_special_tokens({"additional_special_tokens": [stop]})
    assert len(tokenizer) == len(load_tokenizer(folder / "model"))  # one that it had
    until = {"generation_kwargs": {"until": [stop], "max_gen_toks": 12}}
    write_own(folder, "stopped", plain | until)
    expected = [
        one["resps"][0][0] for one in theirs(folder, "stopped", tokenizer=tokenizer, batch=1)
    ]
    given, examples = examples_of(folder, "stopped", docs="test")
    found = Task(given, examples, tokenizer)._texts(model, range(COUNT))
    assert found == expected != free

    shutil.copytree(folder / "model", tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(stop)]
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    tokenizer = load_tokenizer(tmp_path / "model")
    both = theirs(folder, "free", tokenizer=tokenizer, model=reference(tmp_path / "model"), batch=1)
    given, examples = examples_of(folder, "free", docs="test")
    found = Task(given, examples, tokenizer)._texts(model, range(COUNT))
    assert found == [one["resps"][0][0] for one in both] == expected


@pytest.mark.parametrize(
    ("chat", "prefix", "expected"),
    [
        (False, None, " four"),
        (True, None, "four"),
        (False, "So:", " four"),
        (True, "So:", " four"),
        (False, "So: ", "four"),
        (True, "So: ", "four"),
    ],
)
def test_what_stands_before_the_right_text(
    chat: bool, prefix: str | None, expected: str, folder: Path
) -> None:
    own = {"doc_to_target": "answer", "gen_prefix": prefix}
    write_own(folder, "prefixed", TASKS["generated"] | own)
    example = examples_of(folder, "prefixed", docs="test", chat=chat)[1][0]
    assert example.target == expected
    assert example.prompt == example.doc["question"]


def test_the_same_question_is_one_item(folder: Path, tmp_path: Path) -> None:
    """Whatever else is in its document, and whatever few-shot examples come before it."""
    rows = [row | {"id": 2 * row["id"] + copy} for row in items(0) for copy in range(2)]
    rows.append(rows[0] | {"options": rows[2]["options"], "gold": rows[2]["gold"]})
    (tmp_path / "twice.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {"train": str(tmp_path / "twice.jsonl"), "test": str(folder / "test.jsonl")}
    write_task(tmp_path / "twice.yaml", TASKS["choice"] | {"task": "twice"}, files)
    _, examples = examples_of(tmp_path, "twice", num_fewshot=2)
    assert len(set(examples)) == 2 * COUNT + 1
    assert len({content(one) for one in examples}) == COUNT + 1
    for name, count in (("inputs", COUNT), ("likelihood", COUNT), ("rolling", COUNT)):
        assert len({content(one) for one in examples_of(folder, name)[1]}) == count


TEMPLATE = (
    "{% for m in messages %}{{ m.role[:1] }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def test_a_chat_is_put_as_lm_eval_puts_it(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder / "model")
    own = "{{ raise_exception('no system') if messages[0].role == 'system' }}"
    model = live(folder / "model")
    for name, before in (("choice", ""), ("generated", ""), ("generated", own)):
        tokenizer.chat_template = before + TEMPLATE
        samples = theirs(folder, name, tokenizer=tokenizer, apply_chat_template=True)
        samples = [one for one in samples if one["filter"] in ("none", "first")]
        given, examples = examples_of(folder, name, docs="test", chat=True)
        task = Task(given, examples, tokenizer)
        heard = Heard(task)
        task.scores(model, range(COUNT), True)
        for row, mine in enumerate(heard.answers):
            each = [one[0] for one in samples[row]["resps"]]
            if name == "choice":
                assert [one[0] for one in mine] == pytest.approx([one[0] for one in each], abs=1e-4)
            else:
                assert mine == each
    with pytest.raises(DataError, match="expected a chat template for the task's messages"):
        Task(given, examples, load_tokenizer(folder / "model"))


def test_an_item_is_not_shown_before_itself(folder: Path) -> None:
    """Few-shot examples of a training split leave out the item that is asked."""
    _, examples = examples_of(folder, "choice", num_fewshot=12)
    for one in examples:
        shown = one.requests[0][0]
        assert shown.count(" make ") == 13
        assert shown.count(one.doc["question"]) == 1
    assert examples_of(folder, "choice", num_fewshot=0)[1][3].requests[0] == (
        "four and one make ", f" {items(0)[3]['options'][0]}"
    )  # fmt: skip


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    def refusal(name: str, own: Mapping[str, Any] | None = None, **settings: Any) -> str:
        place = folder
        if own is not None:
            files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
            write_task(tmp_path / f"{name}.yaml", TASKS["choice"] | {"task": name} | own, files)
            place = tmp_path
        with pytest.raises(EvomergeError) as caught:
            examples_of(place, name, **settings)
        return str(caught.value)

    assert "unknown metric of choice 'acc_nrm' at tasks.one.metric" in refusal(
        "choice", metric="acc_nrm"
    )
    assert "unknown filter of generated 'letters' at tasks" in refusal(
        "generated", filter="letters"
    )
    assert "expected one of train, test, which" in refusal("choice", docs="validation")
    assert "expected a task that lm-eval can load" in refusal("nowhere")
    assert "TemplateSyntaxError" in refusal("braces", {"doc_to_text": "{{question"})
    (tmp_path / "many.yaml").write_text("group: many\ntask: [one, other]\n")
    with pytest.raises(DataError, match=r"a single task, got the group of tasks .*many\.yaml at"):
        examples_of(tmp_path, "many")
    assert "which runs code" in refusal("code", {"unsafe_code": True})
    assert "a right choice and a wrong one" in refusal(
        "gold", {"doc_to_target": "{{[0, 1, 2, 3]}}", "num_fewshot": 0}
    )
    given = {"output_type": "generate_until", "generation_kwargs": {"do_sample": True}}
    drawn = {"doc_to_choice": None, "metric_list": [{"metric": "exact_match"}]}
    assert "which draws at random" in refusal("drawn", given | drawn)
    worse = {"metric_list": [{"metric": "brier_score"}]}
    assert "a metric that is better when higher" in refusal("brier", worse)
    arc = {"dataset_path": "allenai/ai2_arc", "dataset_name": "ARC-Easy", "dataset_kwargs": None}
    assert "HF_HUB_OFFLINE=1 forbids downloading its data" in refusal("arc", arc)
    with pytest.raises(ValueError, match="a task of lm-eval brings its data"):
        Settings(kind="lm_eval", task="choice", data="items.jsonl")


LIKELIHOOD = TASKS["likelihood"] | {"metric_list": [{"metric": "acc"}]}
GENERATED = TASKS["generated"] | {"filter_list": None, "doc_to_target": "answer"}
BRIER = {"metric": "brier_score", "higher_is_better": True, "aggregation": "brier_score"}


def filtered(**function: Any) -> dict[str, Any]:
    return {"filter_list": [{"name": "one", "filter": [function, {"function": "take_first"}]}]}


def decoded(**wanted: Any) -> dict[str, Any]:
    return GENERATED | {"generation_kwargs": {"until": ["e"], **wanted}}


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (
            TASKS["choice"] | {"process_results": Function("functions.fails")},
            "expected metrics of wrong, got KeyError: 'oops' at tasks.one.metric in study.yaml; "
            "correct it there",
        ),
        (
            GENERATED | filtered(function="regex", regex_pattern="("),
            "expected metrics of wrong, got error: missing ), unterminated subpattern at "
            "position 0 at tasks.one.metric in study.yaml; correct it there",
        ),
        (
            TASKS["choice"] | {"metric_list": [BRIER]},
            "expected a metric that gives each item a number from 0 to 1, got (0, array([0.25, "
            "0.25, 0.25, 0.25])) for brier_score of wrong at tasks.one.metric in study.yaml; "
            "choose another `metric`",
        ),
        (
            TASKS["choice"] | {"metric_list": [{"metric": "likelihood"}]},
            "expected a metric that gives each item a number from 0 to 1, got (0, (-1.0, -1.0, "
            "-1.0, -1.0)) for likelihood of wrong at tasks.one.metric in study.yaml; choose "
            "another `metric`",
        ),
        (
            LIKELIHOOD | {"metric_list": [{"metric": "exact_match"}]},
            "unknown metric of wrong 'exact_match' at tasks.one.metric in study.yaml; known: none",
        ),
        (
            GENERATED | {"metric_list": [{"metric": "exat_match"}]},
            "expected a task that lm-eval can load, got 'wrong.yaml' at tasks.one.task in "
            "study.yaml; it names a metric that lm-eval does not know",
        ),
        (
            TASKS["rolling"] | {"doc_to_target": "{{'' if id == 103 else text}}"},
            "expected items that lm-eval can ask, got item 4 of wrong at tasks.one.task in "
            "study.yaml; ValueError: expected texts that are not empty, got ['']",
        ),
        (
            LIKELIHOOD | {"doc_to_target": "gold"},
            "expected items that lm-eval can ask, got item 1 of wrong at tasks.one.task in "
            "study.yaml; ValueError: expected texts that are not empty, got "
            "['one and three make', 0]",
        ),
        (
            TASKS["choice"] | {"doc_to_target": "{{'one' if id == 102 else gold}}"},
            "expected items that lm-eval can ask, got item 3 of wrong at tasks.one.task in "
            "study.yaml; ValueError: the right one, 'one', is none of the choices "
            "['eleven', 'nine', 'six', 'two']",
        ),
        (
            decoded(max_gen_toks="many"),
            "expected max_gen_toks of wrong.yaml from 1 to 1000000, got 'many' at tasks.one.task "
            "in study.yaml",
        ),
        (
            decoded(max_new_tokens=0),
            "expected max_new_tokens of wrong.yaml from 1 to 1000000, got 0 at tasks.one.task "
            "in study.yaml",
        ),
        (
            decoded(do_sample=False, num_beams=3),
            "expected a task with greedy decoding, got wrong.yaml with num_beams: 3 at "
            "tasks.one.task in study.yaml",
        ),
        (
            decoded(max_length=30),
            "expected a task with greedy decoding, got wrong.yaml with max_length: 30 at "
            "tasks.one.task in study.yaml",
        ),
        (
            decoded(do_sample=None, temperature=0.5),
            "expected a task with greedy decoding, got wrong.yaml, which draws at random at "
            "tasks.one.task in study.yaml",
        ),
        (
            TASKS["choice"] | {"test_split": None},
            "expected a task that lm-eval can load, got 'wrong.yaml' at tasks.one.task in "
            "study.yaml; lm-eval asks for a `validation_split` or a `test_split` in it",
        ),
        (
            TASKS["choice"] | {"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}},
            "expected a task that lm-eval can load, got 'wrong.yaml' at tasks.one.task in "
            "study.yaml; FileNotFoundError: Unable to find 'FOLDER/nowhere.jsonl'",
        ),
        (
            TASKS["choice"] | {"process_docs": Function("functions.nothing")},
            "expected items to ask, got none of wrong at tasks.one.docs in study.yaml",
        ),
    ],
)
def test_sentences(
    own: Mapping[str, Any], sentence: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "functions.py").write_text(
        "def fails(doc, results):\n    raise KeyError('oops')\n\n"
        "def nothing(docs):\n    return docs if docs[0]['id'] == 100 else docs.select([])\n"
    )
    write_own(folder, "wrong", {"num_fewshot": 0} | own)
    docs = None if "process_docs" in own or own.get("test_split", "test") is None else "test"
    with pytest.raises(EvomergeError) as caught:
        examples_of(folder, "wrong", docs=docs)
    said = str(caught.value).replace(f"{folder}/wrong.yaml", "wrong.yaml")
    assert said == sentence.replace("FOLDER", str(folder))


def test_settings_of_decoding_that_are_greedy(folder: Path) -> None:
    for wanted in (
        {"do_sample": False, "temperature": 1.0, "top_p": 0.9, "num_beams": 1},
        {"temperature": 0.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
    ):
        write_own(folder, "fine", decoded(**wanted))
        assert len(examples_of(folder, "fine", docs="test")[1]) == COUNT


def test_the_items_that_a_benchmark_is_scored_on(folder: Path) -> None:
    """The split of a known benchmark's test items is refused, also in a file of one's own."""
    own = tuple(harness.load(str(folder / "choice.yaml"), None, PLACE) for _ in range(3))
    own[0].config.dataset_path = own[1].config.dataset_path = "allenai/ai2_arc"
    with pytest.raises(DataError, match=r"got the split 'test' of mine\.yaml at tasks.one.docs"):
        harness.choose_docs(own[0], "mine.yaml", "test", False, PLACE)
    assert harness.choose_docs(own[1], "mine.yaml", "test", True, PLACE) == "test"
    assert harness.choose_docs(own[0], "arc_easy", None, False, PLACE) == "train"
    with pytest.raises(DataError, match="that no public benchmark is scored on"):
        harness.choose_docs(own[2], "any_task_by_name", "test", False, PLACE)


def test_tasks_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager:
        all_tasks = ("ai2_arc", "arc_easy", "mmlu", "mmlu_law")
        all_subtasks = ("arc_easy", "mmlu_law")
        task_index: ClassVar = {
            "mmlu": SimpleNamespace(tags=set()),
            "ai2_arc": SimpleNamespace(tags={"arc_hard", "arc_easy"}),
        }

    monkeypatch.setattr(harness, "_manager", lambda with_all: Manager)
    for name, words in (
        ("arc_esy", "did you mean 'arc_easy'"),
        ("ai2_arc", r"the group ai2_arc .*such as \['arc_easy', 'arc_hard'\]"),
        ("mmlu", "expected a single task, got the group mmlu .*such as .*mmlu_law"),
    ):
        with pytest.raises(DataError, match=words):
            harness.load(name, None, PLACE)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", None)
    with pytest.raises(DataError, match=r"the package lm-eval .*pip install 'evomerge\[lm-eval\]'"):
        harness.load("arc_easy", None, PLACE)


def test_a_changed_task_is_another(folder: Path, tmp_path: Path) -> None:
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    sources = []
    for metrics in (["acc"], ["acc"], ["acc_norm"]):
        own = TASKS["choice"] | {
            "task": "same",
            "metric_list": [{"metric": one} for one in metrics],
        }
        write_task(tmp_path / "same.yaml", own, files)
        sources.append(examples_of(tmp_path, "same")[1][0].source)
    assert sources[0] == sources[1] != sources[2]


def test_a_study_s_record_says_the_same_as_its_file(folder: Path) -> None:
    """A study is resumed from absolute paths: the same items, with the same fingerprints."""
    for seed, name in enumerate(("base", "one", "two")):
        save_random(folder / name, "llama", seed, vocabulary=290)
    load_tokenizer(folder / "model").save_pretrained(folder / "base")
    study = {
        "models": {"base": "base", "experts": {"one": "one", "two": "two"}},
        "space": "task_arithmetic",
        "tasks": {
            "sums": {"kind": "lm_eval", "task": "choice.yaml"},
            "read": {"kind": "lm_eval", "task": "rolling.yaml", "docs": "test"},
        },
        "splits": {"search": 5, "select": 5, "heldout": 6},
    }
    place = Place("study.yaml", StudyFileError)
    first = check_study(parse_study(study, folder, place))
    record = first.file.to_mapping()
    assert record["tasks"]["sums"] == {"kind": "lm_eval", "task": str(folder / "choice.yaml")}
    second = check_study(parse_study(record, Path("/elsewhere"), place))
    for one, other in zip(first.tasks, second.tasks, strict=True):
        assert one.fingerprint() == other.fingerprint()
        assert one.examples == other.examples
    evaluator = Evaluator(second.tasks, second.tokenizer)
    found = evaluator.scores(live(folder / "one"), "heldout", exact=True)
    assert {name: len(one.score) for name, one in found.items()} == {"sums": 6, "read": 6}
