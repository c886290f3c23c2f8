"""Models of different vocabularies merge token by token, by the recipe's rules, as in mergekit."""

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from evomerge.checking import check, explained
from evomerge.errors import CheckpointError, EvomergeError, RecipeError
from tests.mergekit_oracle import run_mergekit
from tests.mutation import ODD, mutated
from tests.mutation import refusal as refusal_of
from tests.sliced_recipes import read, source, write
from tests.tiny_models import CONFIG, Tensors
from tests.word_models import EMBEDDING, LM_HEAD, words_of, write_word_model, write_words

WORDS = [f"w{number}" for number in range(12)]
VOCABULARIES = {  # base and b share ids; a and c have others
    "base": WORDS[:8],
    "a": ["w2", "w1", "w0", *WORDS[3:9], "only-a"],
    "b": [*WORDS[:8], "w8", "both", "only-b"],
    "c": ["w5", "both", "only-c", *WORDS[:4]],
}
Family = dict[str, Tensors]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Family]:
    folder = tmp_path_factory.mktemp("words")
    found = {
        name: write_word_model(folder / name, words, seed)
        for seed, (name, words) in enumerate(VOCABULARIES.items())
    }
    return folder, found


def recipe(folder: Path, tokenizer: Any, models: Sequence[str] = "abc", **fields: Any) -> Any:
    """A linear merge with weights 1, 2, 3 …; `tokenizer` is a source or the whole mapping."""
    listed = ["base", *models]
    return {
        "merge_method": "linear",
        "base_model": str(folder / "base"),
        "models": [
            {"model": str(folder / name), "parameters": {"weight": number}}
            for number, name in enumerate(listed, start=1)
        ],
        "dtype": "float32",
        ("tokenizer" if isinstance(tokenizer, dict) else "tokenizer_source"): tokenizer,
    } | fields


def by_word(tensor: torch.Tensor, ids: Mapping[str, int]) -> dict[str, torch.Tensor]:
    return {word: tensor[number] for word, number in ids.items()}


def expected_row(
    word: str,
    name: str,
    family: Family,
    vocabularies: Mapping[str, Sequence[str]],
    rules: Mapping[str, tuple[str, bool, tuple[str, str] | None]],
) -> torch.Tensor:
    """The linear merge of the rows of one word, by the rules as mergekit's documentation has them.

    `rules` are word → (kind, force, (model, word)), of kind zero or model.
    """
    has = {model: words.index(word) for model, words in vocabularies.items() if word in words}

    def of(model: str, wanted: str) -> torch.Tensor:
        return family[model][name][vocabularies[model].index(wanted)].double()

    rule = rules.get(word)
    if rule is not None:
        default = torch.zeros(family["base"][name].shape[1]).double()
        if rule[2]:
            default = of(*rule[2])
    elif len(has) == 1:
        default = of(next(iter(has)), word)
    elif "base" in has:
        default = of("base", word)
    elif has:
        default = torch.stack([of(model, word) for model in has]).mean(dim=0)
    else:
        default = torch.zeros(family["base"][name].shape[1]).double()
    rows = [
        of(model, word) if model in has and not (rule and rule[1]) else default
        for model in vocabularies
    ]
    weights = range(1, len(rows) + 1)
    return sum(weight * row for weight, row in zip(weights, rows, strict=True)) / sum(weights)


@pytest.mark.parametrize("which", ["union", "base", "a", "b", "c"])
def test_each_source(family: tuple[Path, Family], which: str, tmp_path: Path) -> None:
    folder, tensors = family
    chosen = which if which in ("union", "base") else str(folder / which)
    write(recipe(folder, chosen), tmp_path / "out")
    ids, merged = words_of(tmp_path / "out"), read(tmp_path / "out")
    everything = {word for words in VOCABULARIES.values() for word in words}
    assert set(ids) == (everything if which == "union" else set(VOCABULARIES[which]))
    if which != "union":
        assert sorted(ids, key=ids.__getitem__) == VOCABULARIES[which]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["vocab_size"] == len(ids) == len(set(ids.values()))
    for name in (EMBEDDING, LM_HEAD):
        assert merged[name].shape == (len(ids), CONFIG["hidden_size"])
        for word, row in by_word(merged[name], ids).items():
            wanted = expected_row(word, name, tensors, VOCABULARIES, {})
            torch.testing.assert_close(row.double(), wanted, rtol=1e-6, atol=1e-6)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_union_keeps_the_ids_of_the_base(family: tuple[Path, Family], tmp_path: Path) -> None:
    """New words follow in the order of the models and of their ids, run after run."""
    folder, _ = family
    for out in ("one", "two"):
        write(recipe(folder, "union"), tmp_path / out)
    new = ["w8", "only-a", "both", "only-b", "only-c"]
    assert sorted(words_of(tmp_path / "one"), key=words_of(tmp_path / "one").__getitem__) == [
        *VOCABULARIES["base"], *new,
    ]  # fmt: skip
    one, two = ((tmp_path / out / "tokenizer.json").read_bytes() for out in ("one", "two"))
    assert one == two


@pytest.mark.filterwarnings("ignore")  # mergekit's own
@pytest.mark.parametrize("seed", range(12))
def test_random_vocabularies(seed: int, tmp_path: Path) -> None:
    """Random words in random order, random rules, as the rules say and as mergekit does it."""
    draw = random.Random(seed)
    vocabularies = {
        name: draw.sample([*WORDS, *"pqrstuv"], draw.randint(5, 18)) for name in ("base", "a", "b")
    }
    family = {
        name: write_word_model(tmp_path / name, words, seed + number)
        for number, (name, words) in enumerate(vocabularies.items())
    }
    tokens: dict[str, Any] = {}
    rules: dict[str, tuple[str, bool, tuple[str, str] | None]] = {}
    for word in draw.sample([*WORDS, "new"], 4):
        force = draw.random() < 0.5
        if draw.random() < 0.3:
            rules[word] = "zero", force, None
            tokens[word] = {"source": {"kind": "zero"}, "force": force}
            continue
        model = draw.choice(list(vocabularies))
        other = draw.choice(vocabularies[model])
        number = vocabularies[model].index(other)
        which = draw.choice([{"token": other}, {"token_id": number}])
        own = {"kind": "model_token", "model": str(tmp_path / model)} | which
        rules[word] = "model", force, (model, other)
        tokens[word] = {"source": own, "force": force}
    chosen = draw.choice(["union", "base", str(tmp_path / "b")])
    multiple = draw.choice([None, 8])
    data = recipe(
        tmp_path, {"source": chosen, "tokens": tokens, "pad_to_multiple_of": multiple}, "ab"
    )
    write(data, tmp_path / "ours")
    ours, ids = read(tmp_path / "ours"), words_of(tmp_path / "ours")
    theirs, others = ours, ids
    if chosen != "base" or set(rules) <= set(vocabularies["base"]):  # mergekit's own KeyError
        theirs = run_mergekit(data, tmp_path / "theirs")
        others = words_of(tmp_path / "theirs")
    assert set(ids) == set(others)
    rows = len(ids) if multiple is None else -(-len(ids) // 8) * 8
    for name in (EMBEDDING, LM_HEAD):
        assert len(ours[name]) == len(theirs[name]) == rows
        for word, row in by_word(ours[name], ids).items():
            wanted = expected_row(word, name, family, vocabularies, rules)
            torch.testing.assert_close(row.double(), wanted, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(row, theirs[name][others[word]], rtol=1e-6, atol=1e-6)
        for row in ours[name][len(ids) :]:
            mean = ours[name][: len(ids)].double().mean(dim=0)
            torch.testing.assert_close(row.double(), mean, rtol=1e-5, atol=1e-6)


def test_a_row_without_a_token_is_dropped_or_padding(tmp_path: Path) -> None:
    """A model whose embeddings are longer than its vocabulary loses the rows that no token has."""
    base = write_word_model(tmp_path / "base", WORDS[:5], 0, rows=8)
    other = write_word_model(tmp_path / "a", WORDS[:6], 1, rows=6)
    write(recipe(tmp_path, "union", "a"), tmp_path / "out")
    found = read(tmp_path / "out")[EMBEDDING]
    assert found.shape[0] == 6
    torch.testing.assert_close(found[:5], (base[EMBEDDING][:5] + 2 * other[EMBEDDING][:5]) / 3)
    torch.testing.assert_close(found[5], other[EMBEDDING][5])


def test_a_token_without_a_row_is_no_token(tmp_path: Path) -> None:
    """What a tokenizer has beyond its model's embeddings leaves the base's tokenizer."""
    write_word_model(tmp_path / "base", WORDS[:5], 0)
    write_words(tmp_path / "base", WORDS[:7], ["<s>"])
    write_word_model(tmp_path / "a", WORDS[:5], 1)
    write(recipe(tmp_path, "union", "a"), tmp_path / "out")
    assert set(words_of(tmp_path / "out")) == set(WORDS[:5])
    assert len(read(tmp_path / "out")[EMBEDDING]) == 5


def test_special_tokens_stay_special(tmp_path: Path) -> None:
    write_word_model(tmp_path / "base", WORDS[:5], 0)
    write_word_model(tmp_path / "a", WORDS[:5], 1, added=["<call>", "<end>"])
    write(recipe(tmp_path, "union", "a"), tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("w1<call>w2")["input_ids"] == [1, 5, 2]
    assert tokenizer.decode([1, 5, 2], skip_special_tokens=True) == "w1 w2"


def test_the_files_of_a_tokenizer_that_is_an_input_s_are_copied(tmp_path: Path) -> None:
    write_word_model(tmp_path / "base", WORDS[:5], 0)
    write_word_model(tmp_path / "a", WORDS[:6], 1)
    (tmp_path / "a/tokenizer_config.json").write_text('{"model_max_length": 77}')
    write(recipe(tmp_path, str(tmp_path / "a"), "a"), tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_a_tokenizer_of_a_model_that_is_not_merged(tmp_path: Path) -> None:
    base = write_word_model(tmp_path / "base", WORDS[:5], 0)
    other = write_word_model(tmp_path / "a", WORDS[:6], 1)
    write_word_model(tmp_path / "c", ["x", *WORDS[:6]], 2)
    write(recipe(tmp_path, str(tmp_path / "c"), "a"), tmp_path / "out")
    found = read(tmp_path / "out")[EMBEDDING]
    assert words_of(tmp_path / "out") == words_of(tmp_path / "c")
    assert not found[0].any()
    torch.testing.assert_close(found[1:6], (base[EMBEDDING] + 2 * other[EMBEDDING][:5]) / 3)


def test_token_ids_follow_their_tokens(tmp_path: Path) -> None:
    """Ids in config.json and generation_config.json mean what they meant in the donor."""
    write_word_model(
        tmp_path / "base", WORDS[:5], 0, eos_token_id=[4, 3], bos_token_id=0, pad_token_id=None,
        text_config={"vocab_size": 5, "image_token_index": 1}, other_id=4,
    )  # fmt: skip
    generation = {"eos_token_id": [4, 99], "max_length": 4}
    (tmp_path / "base/generation_config.json").write_text(json.dumps(generation))
    write_word_model(tmp_path / "a", [*reversed(WORDS[:5]), "new"], 1)
    write(recipe(tmp_path, str(tmp_path / "a"), "a"), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    wanted = {"eos_token_id": [0, 1], "bos_token_id": 4, "pad_token_id": None, "vocab_size": 6}
    assert {key: config[key] for key in wanted} == wanted
    assert config["text_config"] == {"vocab_size": 6, "image_token_index": 3}
    assert config["other_id"] == 4
    found = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert found == {"eos_token_id": [0, 99], "max_length": 4}


def test_tied_embeddings(tmp_path: Path) -> None:
    """One model stores the tied head: it is left to the tie, and the embeddings are aligned."""
    base = write_word_model(tmp_path / "base", WORDS[:5], 0, tied=True)
    other = write_word_model(tmp_path / "a", WORDS[2:7], 1, tied=True)
    data = recipe(tmp_path, {"source": "union", "tokens": {"w6": {"source": "a"}}}, "a")
    data["tokenizer"]["tokens"]["w6"]["source"] = str(tmp_path / "a")
    write(data, tmp_path / "out")
    found = read(tmp_path / "out")
    assert LM_HEAD not in found
    rows = by_word(found[EMBEDDING], words_of(tmp_path / "out"))
    torch.testing.assert_close(rows["w0"], base[EMBEDDING][0])
    torch.testing.assert_close(rows["w6"], other[EMBEDDING][4])
    torch.testing.assert_close(rows["w2"], (base[EMBEDDING][2] + 2 * other[EMBEDDING][0]) / 3)


@pytest.mark.filterwarnings("ignore")  # mergekit's own
def test_slices_take_rows_from_their_own_sources(tmp_path: Path) -> None:
    """Embeddings belong to the first slice, the head to the last; what neither has is zeros."""
    folder = tmp_path
    base = write_word_model(folder / "base", WORDS[:5], 0)
    other = write_word_model(folder / "a", WORDS[2:8], 1)
    slices = [
        {"sources": [source(folder, "base", 0, 2)]}, {"sources": [source(folder, "a", 1, 3)]},
    ]  # fmt: skip
    data = {
        "merge_method": "passthrough", "dtype": "float32", "slices": slices,
        "base_model": str(folder / "base"), "tokenizer_source": "union",
    }  # fmt: skip
    del data["base_model"]
    notes: list[str] = []
    write(data, tmp_path / "out", note=notes.append)
    theirs = run_mergekit(data, tmp_path / "theirs")
    found, ids = read(tmp_path / "out"), words_of(tmp_path / "out")
    others = words_of(tmp_path / "theirs")
    for name, tensor in found.items():
        rows = [others[word] for word in sorted(ids, key=ids.__getitem__)]
        wanted = theirs[name][rows] if name in (EMBEDDING, LM_HEAD) else theirs[name]
        assert torch.equal(tensor, wanted), name
    assert torch.equal(found[EMBEDDING][:5], base[EMBEDDING])
    assert not found[EMBEDDING][5:].any()
    assert torch.equal(found[LM_HEAD][ids["w7"]], other[LM_HEAD][5])
    assert notes == [
        f"none of the models merged into {LM_HEAD} has 'w0' and 1 more tokens: its row is zeros",
        f"none of the models merged into {EMBEDDING} has 'w5' and 2 more tokens: its row is zeros",
    ]


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    """A mean of rows is no number of 16 bits until it is written."""
    dtype = torch.bfloat16
    write_word_model(tmp_path / "base", WORDS[:5], 0, dtype=dtype)
    a = write_word_model(tmp_path / "a", WORDS[:7], 1, dtype=dtype)[EMBEDDING].double()
    b = write_word_model(tmp_path / "b", WORDS[:6], 2, dtype=dtype)[EMBEDDING].double()
    data = recipe(tmp_path, "union", "ab", out_dtype="bfloat16")
    write(data, tmp_path / "out")
    found = read(tmp_path / "out")[EMBEDDING]
    assert found.dtype == dtype
    wanted = ((a[5] + b[5]) / 2 + 2 * a[5] + 3 * b[5]) / 6
    assert torch.equal(found[5], wanted.to(dtype))
    del data["dtype"], data["out_dtype"]
    write(data, tmp_path / "stored")
    assert read(tmp_path / "stored")[EMBEDDING].dtype == dtype


def test_an_input_without_a_tokenizer_has_the_base_s(tmp_path: Path) -> None:
    base = write_word_model(tmp_path / "base", WORDS[:5], 0)
    other = write_word_model(tmp_path / "a", WORDS[:5], 1)
    for file in (tmp_path / "a").glob("tokenizer*"):
        file.unlink()
    notes: list[str] = []
    write(recipe(tmp_path, "union", "a"), tmp_path / "out", note=notes.append)
    assert notes == [
        f"{tmp_path / 'a'} has no tokenizer: taken to have that of {tmp_path / 'base'}"
    ]
    found = read(tmp_path / "out")[EMBEDDING]
    torch.testing.assert_close(found, (base[EMBEDDING] + 2 * other[EMBEDDING]) / 3)


def test_check_and_explain(family: tuple[Path, Family], tmp_path: Path) -> None:
    folder, _ = family
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe(folder, {"source": "union", "pad_to_multiple_of": 8})))
    assert "its tokenizer has 13 tokens, its embeddings 16 rows" in check(file)
    assert EMBEDDING in explained(file, False)


def refusal(data: Any, out: Path) -> EvomergeError:
    with pytest.raises(EvomergeError) as caught:
        write(data, out)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return caught.value


def test_mistakes(family: tuple[Path, Family], tmp_path: Path) -> None:
    folder, _ = family

    def said(**rule: Any) -> str:
        return str(refusal(recipe(folder, {"tokens": {"w0": rule}}), tmp_path / "out"))

    assert "expected one of the recipe's models, " in said(source="elsewhere")
    token = {"kind": "model_token", "model": str(folder / "a")}
    assert "a, which has 10 rows, got id 10 at tokenizer.tokens.'w0'.source" in said(
        source=token | {"token_id": 10}
    )
    assert "got 'w99'" in said(source=token | {"token": "w99"})
    different = refusal(
        {key: one for key, one in recipe(folder, "union").items() if key != "tokenizer_source"},
        tmp_path / "out",
    )
    assert isinstance(different, CheckpointError)
    assert "for vocabularies that differ, say tokenizer_source in a recipe" in str(different)


def test_no_tokenizer_to_take(tmp_path: Path) -> None:
    write_word_model(tmp_path / "base", WORDS[:5], 0)
    write_word_model(tmp_path / "a", WORDS[:5], 1)
    for file in (tmp_path / "base").glob("tokenizer*"):
        file.unlink()
    found = refusal(recipe(tmp_path, "union", "a"), tmp_path / "out")
    assert f"expected a tokenizer in {tmp_path / 'base'}, got none of tokenizer.json" in str(found)
    found = refusal(recipe(tmp_path, None, "a", chat_template="chatml"), tmp_path / "out")
    assert "to have the chat template, got none" in str(found)


def test_a_tokenizer_with_code_of_its_own_is_not_run(tmp_path: Path, own_modules: None) -> None:
    write_word_model(tmp_path / "base", WORDS[:5], 0)
    (tmp_path / "base/tokenizer.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'canary')!r}).touch()\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class Own(PreTrainedTokenizerFast): pass\n"
    )
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenizer.Own", None]}}
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "base/tokenizer.json").unlink()
    (tmp_path / "base/vocab.txt").write_text("\n".join(WORDS[:5]))
    write_word_model(tmp_path / "a", WORDS[:5], 1)
    found = refusal(recipe(tmp_path, "union", "a"), tmp_path / "out")
    assert "got one with code of its own, none of which was run" in str(found)
    assert not (tmp_path / "canary").exists()
    write_words(tmp_path / "base", WORDS[:5])
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(settings))
    write(recipe(tmp_path, "union", "a"), tmp_path / "trusted", trust=True)
    assert (tmp_path / "canary").exists()


def template_of(folder: Path) -> object:
    return transformers.AutoTokenizer.from_pretrained(folder).chat_template


def test_chat_templates(tmp_path: Path) -> None:
    """A name, a template, or the one that most inputs have, in place of the donor's."""
    for name in ("base", "a", "b", "c"):
        write_word_model(tmp_path / name, WORDS[:5], 0)
    settings = json.loads((tmp_path / "base/tokenizer_config.json").read_text())
    (tmp_path / "base/tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": "of {{ base }}"})
    )
    for name in "ab":
        (tmp_path / name / "chat_template.jinja").write_text("of {{ experts }}\n")
    given = {
        None: "of {{ base }}",
        "auto": "of {{ experts }}",
        "own {{ messages }}": "own {{ messages }}",
    }
    for number, (chosen, wanted) in enumerate(given.items()):
        for chooser in (None, "union"):
            out = tmp_path / f"out-{number}-{chooser}"
            write(recipe(tmp_path, chooser, "abc", chat_template=chosen), out)
            assert template_of(out) == wanted, (chosen, chooser)
    write(recipe(tmp_path, None, "abc", chat_template="chatml"), tmp_path / "named")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "named")
    told = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    found = refusal(recipe(tmp_path, None, "a", chat_template="chatlm"), tmp_path / "no")
    assert isinstance(found, RecipeError)
    assert "unknown chat template 'chatlm'" in str(found)
    assert "did you mean 'chatml'?" in str(found)
    found = refusal(recipe(tmp_path, None, "a", chat_template="{% if %}"), tmp_path / "no")
    assert "expected a Jinja template, got '{% if %}' at chat_template" in str(found)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_recipes_are_merged_or_refused(seed: int, tmp_path: Path) -> None:
    """Whatever stands in a recipe's rules ends in a model or in one sentence and nothing."""
    write_word_model(tmp_path / "base", WORDS[:5], 0)
    write_word_model(tmp_path / "a", WORDS[2:8], 1)
    draw = random.Random(seed)
    tokens = {
        "w0": {"source": str(tmp_path / "base"), "force": False},
        "w1": {"source": {"kind": "model_token", "model": str(tmp_path / "a"), "token": "w7"}},
        "new": {"source": {"kind": "zero"}, "force": True},
    }
    rules = {"source": "union", "tokens": tokens, "pad_to_multiple_of": 4}
    merged = 0
    for case in range(60):
        data = recipe(tmp_path, rules, "a", chat_template="{{ messages }}")
        part = draw.choice(["tokens", "tokenizer", "chat_template"])
        if part == "chat_template":
            data[part] = draw.choice([*ODD, "{{", "{% raw %}", "auto"])
        elif part == "tokens":
            data["tokenizer"] = rules | {"tokens": mutated(tokens, draw)}
        else:
            data["tokenizer"] = mutated(rules, draw)
        out = tmp_path / f"out-{case}"
        said = refusal_of(lambda data=data, out=out: write(data, out))
        if said is None:
            merged += 1
            found, ids = read(out), words_of(out)
            assert len(found[EMBEDDING]) >= max(ids.values()) + 1
            assert all(torch.isfinite(one).all() for one in found.values())
            shutil.rmtree(out)
        else:
            assert "\n" not in said
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]
    assert 1 <= merged <= 50
