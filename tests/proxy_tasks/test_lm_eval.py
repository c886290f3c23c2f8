"""Tasks of the lm-evaluation-harness: our numbers are those of its own HFLM."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evomerge.errors import DataError, EvomergeError, Place, StudyFileError
from evomerge.evaluator import Evaluator
from evomerge.models import load_tokenizer
from evomerge.proxy_tasks import _harness as harness
from evomerge.proxy_tasks import lm_eval as kind
from evomerge.proxy_tasks._harness import Example
from evomerge.proxy_tasks.lm_eval import Settings, Task
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


def write_task(file: Path, own: Mapping[str, Any], files: Mapping[str, str]) -> None:
    file.write_text(yaml.safe_dump({**COMMON, "dataset_kwargs": {"data_files": files}, **own}))


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
    folder: Path, name: str, length: int = 63, tokenizer: Any = None, **options: Any
) -> list[dict[str, Any]]:
    """Return lm-eval's own samples of a task, in the order of its items."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(
        pretrained=reference(folder / "model"),
        tokenizer=tokenizer or load_tokenizer(folder / "model"),
        max_length=length,
        batch_size=5,
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


def test_a_chat_is_put_as_lm_eval_puts_it(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder / "model")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[:1] }}:{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    model = live(folder / "model")
    for name in ("choice", "generated"):
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
        all_tasks = ("arc_easy", "mmlu", "mmlu_law")
        all_subtasks = ("arc_easy", "mmlu_law")

    monkeypatch.setattr(harness, "_manager", lambda with_all: Manager)
    for name, words in (
        ("arc_esy", "did you mean 'arc_easy'"),
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
