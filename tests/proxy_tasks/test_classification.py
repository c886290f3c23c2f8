"""Classification against plain transformers, and a whole study over encoders."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from evomerge.checking import check
from evomerge.errors import DataError, EvomergeError, Place, StudyFileError
from evomerge.evaluator import Evaluator, draw_items
from evomerge.language_model import Ensemble
from evomerge.models import load_tokenizer
from evomerge.proxy_tasks import classification
from evomerge.proxy_tasks._data import Label
from evomerge.proxy_tasks.classification import Example, Settings, Task
from evomerge.study.file import check_study, load_study_file, parse_study
from evomerge.zoo.tokenizer import build_tokenizer
from tests.architectures import live, save_random
from tests.conftest import run_cli

PLACE = Place("study.yaml", DataError, "tasks.one")
WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz")
LABELS = ("bad", "fine", "good")
_SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "initializer_range": 0.5,
    "id2label": dict(enumerate(LABELS)),
    "label2id": {name: number for number, name in enumerate(LABELS)},
}
_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
CONFIGS = {
    "bert": transformers.BertConfig(**_SIZES),
    "roberta": transformers.RobertaConfig(**_SIZES | _ENDS, type_vocab_size=2),
    "distilbert": transformers.DistilBertConfig(
        dim=16, hidden_dim=24, n_layers=2, n_heads=2,
        **{key: _SIZES[key] for key in ("vocab_size", "initializer_range", "id2label", "label2id")},
    ),
    "deberta": transformers.DebertaV2Config(**_SIZES | {"type_vocab_size": 2}),
    "modernbert": transformers.ModernBertConfig(
        **_SIZES | _ENDS | {"cls_token_id": 1, "sep_token_id": 2}, reference_compile=False
    ),
    "fnet": transformers.FNetConfig(  # which mixes all places
        **{key: one for key, one in _SIZES.items() if key != "num_attention_heads"}
    ),
    "llama": transformers.LlamaConfig(**_SIZES | _ENDS, num_key_value_heads=1),
    "llama without padding": transformers.LlamaConfig(**_SIZES | _ENDS | {"pad_token_id": None}),
    "gpt2": transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=24, **_ENDS,
        **{key: _SIZES[key] for key in ("vocab_size", "initializer_range", "id2label", "label2id")},
    ),
}  # fmt: skip
_BART = transformers.BartConfig(  # reads with an encoder
    vocab_size=300,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    max_position_embeddings=24,
)
TEXTS = ["a", "b c d", "a b c d e f g h i j k l", "z z", "q w e r t y", "m n o p", "x y z a b c d"]


def save(folder: Path, config: Any, seed: int = 0) -> Path:
    """Write a random classifier with a tokenizer of letters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = transformers.AutoModelForSequenceClassification
        kind.from_config(copy.deepcopy(config)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",  # noqa: S106
        unk_token="[UNK]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],  # noqa: S106
    ).save_pretrained(folder)  # fmt: skip
    return folder


def plain(folder: Path, texts: list[str], pairs: list[str] | None = None) -> torch.Tensor:
    """Return the logits as any user of transformers gets them, one text at a time."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    found = []
    for row, text in enumerate(texts):
        given = tokenizer(text, *([] if pairs is None else [pairs[row]]), return_tensors="pt")
        if model.config.model_type not in ("bert", "roberta", "deberta-v2", "gpt2", "fnet"):
            given.pop("token_type_ids", None)
        with torch.no_grad():
            found.append(model(**given).logits[0])
    return torch.stack(found).double()


def task_of(folder: Path, examples: list[Example], **settings: Any) -> Task:
    given = Settings(kind="classification", data="x.jsonl", text="{t}", label="{l}", **settings)
    return Task(given, examples, load_tokenizer(folder))


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_plain_transformers_in_any_batch(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path, CONFIGS[name])
    gold = [row % 3 for row in range(len(TEXTS))]
    task = task_of(
        folder, [Example(text, None, LABELS[one]) for text, one in zip(TEXTS, gold, strict=True)]
    )
    logits = plain(folder, TEXTS)
    rest = torch.stack(
        [torch.cat([row[:one], row[one + 1 :]]) for row, one in zip(logits, gold, strict=True)]
    )
    chosen = logits[range(len(gold)), gold]
    probabilities = torch.softmax(logits, dim=1)
    model = live(folder)
    whole = task.scores(model, range(len(TEXTS)), True)
    assert whole.score == pytest.approx(
        torch.sigmoid((chosen - rest.amax(1)) / 0.5).numpy(), abs=1e-5
    )
    assert whole.correct.tolist() == [
        float(one == best) for one, best in zip(gold, logits.argmax(1), strict=True)
    ]
    assert whole.probabilities is not None
    assert whole.probabilities.gold == pytest.approx(
        probabilities[range(len(gold)), gold].numpy(), abs=1e-5
    )
    assert whole.probabilities.confidence == pytest.approx(probabilities.amax(1).numpy(), abs=1e-5)
    for items in ([2], [6, 0], [4, 1, 4]):
        part = task.scores(model, items, False)
        assert part.score == pytest.approx(whole.score[items], abs=1e-5)
    assert np.ptp(whole.score) > 0.05


def test_a_tokenizer_that_tells_no_types(tmp_path: Path) -> None:
    """Its models are given none: to GPT-2 a type is a word of its vocabulary, added to each."""
    folder = save(tmp_path, CONFIGS["gpt2"])
    with_types = plain(folder, TEXTS)
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text()) | {"model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps(said))
    logits = plain(folder, TEXTS)
    assert (logits - with_types).abs().max() > 0.1
    found = task_of(folder, [Example(text, None, 1) for text in TEXTS])
    scores = found.scores(live(folder), range(len(TEXTS)), True)
    assert scores.probabilities is not None
    expected = torch.softmax(logits, dim=1)[:, 1].numpy()
    assert scores.probabilities.gold == pytest.approx(expected, abs=1e-5)


def test_a_pair_is_read_as_two_texts(tmp_path: Path) -> None:
    folder = save(tmp_path, CONFIGS["bert"])
    pairs = [*TEXTS[1:], "b b"]
    examples = [Example(text, pair, 1) for text, pair in zip(TEXTS, pairs, strict=True)]
    found = task_of(folder, examples, pair="{p}").scores(live(folder), range(len(TEXTS)), True)
    logits = plain(folder, TEXTS, pairs)
    assert found.probabilities is not None
    assert found.probabilities.gold == pytest.approx(
        torch.softmax(logits, dim=1)[:, 1].numpy(), abs=1e-5
    )


def test_an_ensemble_is_the_mean_of_probabilities(tmp_path: Path) -> None:
    folders = [save(tmp_path / str(seed), CONFIGS["bert"], seed) for seed in range(3)]
    task = task_of(folders[0], [Example(text, None, "good") for text in TEXTS])
    found = task.scores(Ensemble([live(one) for one in folders]), range(len(TEXTS)), True)
    each = [torch.softmax(plain(one, TEXTS), dim=1) for one in folders]
    mean = torch.stack(each).mean(0)
    assert found.probabilities is not None
    assert found.probabilities.gold == pytest.approx(mean[:, 2].numpy(), abs=1e-5)
    margins = mean[:, 2].log() - mean[:, :2].amax(1).log()
    assert found.score == pytest.approx(torch.sigmoid(margins / 0.5).numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("label", "names", "number"),
    [
        ("good", LABELS, 2), (2, LABELS, 2), ("2", LABELS, 2), (0, LABELS, 0),
        ("2", ("5", "2", "1"), 1), (2, ("5", "2", "1"), 2),
        ("Good", LABELS, None), (3, LABELS, None), ("-1", LABELS, None), (-1, LABELS, None),
    ],
)  # fmt: skip
def test_what_a_label_says(label: str | int, names: tuple[str, ...], number: int | None) -> None:
    assert Example("a", None, label).number(names) == number


def test_render() -> None:
    asked = Settings(kind="classification", data="x.jsonl", text="{a}!", pair="{b}", label="{l}")
    row = {"a": "x", "b": "y", "l": 1}
    assert classification.render(row, asked, PLACE) == Example("x!", "y", 1)
    assert classification.render(row | {"l": " good "}, asked, PLACE) == Example("x!", "y", "good")
    fixed = asked.model_copy(update={"label": "LABEL_{l}", "pair": None})
    assert classification.render(row, fixed, PLACE) == Example("x!", None, "LABEL_1")
    for lacking, words in (("a", "text"), ("b", "pair"), ("l", "label")):
        with pytest.raises(DataError, match=rf"at tasks\.one\.{words} in study\.yaml"):
            classification.render({k: v for k, v in row.items() if k != lacking}, asked, PLACE)
    with pytest.raises(DataError, match="a text that is not empty"):
        classification.render({"t": " "}, asked.model_copy(update={"text": "{t}"}), PLACE)


def test_long_texts(tmp_path: Path) -> None:
    """RoBERTa counts positions from the one after padding's, so it has fewer than it says."""
    folder = save(tmp_path, CONFIGS["roberta"])
    model = live(folder)
    assert model.context == 24 - 1
    text = " ".join("abcdefghijklmnopqrstuvwxyz")
    assert task_of(folder, [Example(text, None, 0)], max_tokens=23).lengths == [23]
    row = [{"t": text, "l": 0}]
    settings = Settings(kind="classification", data="x.jsonl", text="{t}", label="{l}")
    sizes: Any = {"search": 1}
    items = draw_items("one", classification, settings, row, sizes, 0, PLACE)
    evaluator = Evaluator([items], load_tokenizer(folder))
    with pytest.raises(DataError, match=r"at most 23 tokens, .* got 1 longer .*, the first of 28"):
        evaluator.scores(model, "search", exact=True)
    short = task_of(folder, [Example(text, None, 0)], max_tokens=23)
    assert 0 < short.scores(model, [0], True).score[0] < 1


def test_models_that_are_asked_what_they_are_not_made_for(tmp_path: Path) -> None:
    classifier = save(tmp_path / "bert", CONFIGS["bert"])
    causal = save_random(tmp_path / "llama", "llama")
    with pytest.raises(DataError, match="got BertForSequenceClassification; ask it in a task of"):
        live(classifier).logits(torch.zeros((1, 2), dtype=torch.int64), 1)
    task = task_of(classifier, [Example("a", None, 0)])
    with pytest.raises(DataError, match="none: it is no classifier"):
        task.scores(live(causal), [0], True)
    one = torch.zeros((1, 2), dtype=torch.int64)
    with pytest.raises(DataError, match="got LlamaForCausalLM; ask it in a task of another kind"):
        live(causal).classes(one, one)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two experts trained for a few steps: each knows two of the classes."""
    folder = tmp_path_factory.mktemp("encoders")
    base = save(folder / "base", CONFIGS["bert"])
    draw = np.random.default_rng(0)
    rows = []
    for number in range(240):
        letters = draw.choice(list("defghijkl"), size=int(draw.integers(2, 7))).tolist()
        kind = number % 3
        letters.insert(int(draw.integers(len(letters) + 1)), "abc"[kind])
        rows.append({"text": " ".join(letters), "label": LABELS[kind]})
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, kinds in (("one", ("bad", "fine")), ("two", ("fine", "good"))):
        train(base, folder / name, [row for row in rows if row["label"] in kinds])
    study = {
        "models": {"base": "base", "experts": {"one": "one", "two": "two"}},
        "space": "task_arithmetic",
        "tasks": {
            "mood": {
                "kind": "classification", "data": "items.jsonl", "text": "{text}",
                "label": "{label}",
            }
        },
        "splits": {"search": 48, "select": 48, "heldout": 96},
        "search": {"trials": 6, "optimizer": "random_search"},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder


def train(base: Path, folder: Path, rows: list[dict[str, str]]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    given = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    gold = torch.tensor([LABELS.index(row["label"]) for row in rows])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base).eval()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(**given).logits, gold).backward()
            optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_study_over_encoders(family: Path) -> None:
    run_cli("search", "study.yaml", "--name", "s", cwd=family)
    report = json.loads((family / "runs/s/report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert {"winner", "base", "one", "two", "uniform soup", "TIES", "ensemble"} <= set(rows)
    run_cli("merge", "runs/s/recipe.yaml", "merged", cwd=family)
    (task,) = check_study(load_study_file(family / "study.yaml")).tasks
    asked = [task.examples[item] for item in task.splits["heldout"]]
    best = plain(family / "merged", [one.text for one in asked]).argmax(1)
    right = [LABELS[found] == one.label for found, one in zip(best, asked, strict=True)]
    assert rows["winner"]["heldout"]["tasks"]["mood"] == pytest.approx(np.mean(right))
    assert np.mean(right) > 0.5
    assert report["examples"][0]["won"][0]["prompt"]


def refusal(folder: Path, **tasks: Any) -> str:
    data = yaml.safe_load((folder / "study.yaml").read_text())
    data["tasks"]["mood"] |= tasks
    with pytest.raises(EvomergeError) as caught:
        check_study(parse_study(data, folder, Place("study.yaml", StudyFileError)))
    return str(caught.value)


def test_what_check_finds(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family, tmp_path / "f")
    folder = tmp_path / "f"
    text = refusal(folder, label="{text}")
    assert text.startswith("expected one of the models' classes (bad, fine, good) or its number")
    assert "at tasks.mood.label in study.yaml (line " in text
    assert "false or nothing: a classifier" in refusal(folder, chat=True)
    change(folder / "two", id2label={"0": "good", "1": "fine", "2": "bad"})
    text = refusal(folder)
    assert text.startswith("expected the classes bad, fine, good of ")
    assert "got good, fine, bad in " in text
    for name in ("base", "one", "two"):
        change(folder / name, id2label={"0": "x"})
    found = refusal(folder)
    assert "classifier.weight of shape [1, 16]" in found


def test_classes_of_a_data_set_are_known_by_name() -> None:
    names = ("entailment", "neutral", "contradiction")
    model = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")
    examples = [Example("a", None, Label(number, names)) for number in (0, 1, 2, -1)]
    assert [one.number(model) for one in examples] == [2, 1, 0, None]
    assert [one.number(names) for one in examples] == [0, 1, 2, None]
    assert [one.number(("LABEL_0", "LABEL_1", "LABEL_2")) for one in examples[:3]] == [0, 1, 2]
    assert Example("a", None, 0).number(model) == 0
    assert Example("a", None, Label(1, ("entailment", "other"))).number(model) is None


def test_kinds_and_models_that_do_not_suit_each_other(family: Path, tmp_path: Path) -> None:
    text = refusal(family, kind="perplexity", label=None)
    assert "unknown key 'label'" in text
    data = yaml.safe_load((family / "study.yaml").read_text())
    data["tasks"]["mood"] = {"kind": "perplexity", "data": "items.jsonl", "text": "{text}"}
    with pytest.raises(EvomergeError, match="expected the kind classification, or causal language"):
        check_study(parse_study(data, family, Place("study.yaml", StudyFileError)))
    for model, words in (
        (transformers.BartForConditionalGeneration(_BART), "encoder-decoders (BartForCond"),
        (transformers.BertForMaskedLM(CONFIGS["bert"]), "BertForMaskedLM as models"),
    ):
        for name in ("base", "one", "two"):
            model.save_pretrained(family / "other" / name)
        build_tokenizer().save_pretrained(family / "other" / "base")
        names = {"base": "other/base", "experts": {"one": "other/one", "two": "other/two"}}
        with pytest.raises(EvomergeError, match=re.escape(words)):
            check_study(parse_study(data | {"models": names}, family,
                                    Place("study.yaml", StudyFileError)))  # fmt: skip
    for seed, name in enumerate(("base", "one", "two")):
        save_random(tmp_path / name, "llama", seed)
    build_tokenizer().save_pretrained(tmp_path / "base")
    for file in ("items.jsonl", "study.yaml"):
        shutil.copy(family / file, tmp_path)
    assert "expected models with a classifier's head" in refusal(tmp_path)


def test_check_counts_positions_and_says_what_it_saw(family: Path, tmp_path: Path) -> None:
    """Of RoBERTa's 24 positions the first is padding's: a text has 23."""
    shutil.copytree(family, tmp_path / "f")
    folder = tmp_path / "f"
    config = CONFIGS["roberta"]
    for seed, name in enumerate(("base", "one", "two")):
        save(folder / name, config, seed)
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    rows = [{"text": f"{row['text']} {'jkl'[number % 3]} {number}", "label": row["label"]}
            for number, row in enumerate(rows[:192])]  # fmt: skip
    rows.append(rows[1] | {"text": rows[1]["text"] + " "})
    for length, fits in ((21, True), (22, False)):
        rows[0]["text"] = " ".join("ab" * 20)[: 2 * length - 1]
        (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
        if fits:
            assert "note: a row of mood asks what another asks" in check(folder / "study.yaml")
        else:
            with pytest.raises(EvomergeError, match="at most 23 tokens, the context of the models"):
                check(folder / "study.yaml")


def change(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
