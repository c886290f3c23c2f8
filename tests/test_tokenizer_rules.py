"""What recipes say of tokenizers and chat templates is read, checked and written as in mergekit."""

from typing import Any

import pytest

from evomerge.checkpoints import ModelRef
from evomerge.errors import Place, RecipeError
from evomerge.slices import parse_any_recipe
from evomerge.tokenizer_rules import TextRules, TokenRule, TokenSource, parse_text_rules

PLACE = Place("r.yaml", RecipeError)
A = ModelRef("a")


def test_nothing_said() -> None:
    assert parse_text_rules({"tokenizer": None, "chat_template": None}, PLACE) == TextRules()
    assert TextRules().to_mapping() == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("union", "union"), ("base", "base"), ("a", A), ({"model": {"path": "a"}}, A)],
)
def test_the_older_spelling(value: Any, expected: Any) -> None:
    old = parse_text_rules({"tokenizer_source": value}, PLACE).tokenizer
    new = parse_text_rules({"tokenizer": {"source": value}}, PLACE).tokenizer
    assert old
    assert new
    assert old.source == new.source == expected
    assert old == new


def test_every_kind_of_source() -> None:
    data = {
        "tokens": {
            "<zero>": {"source": {"kind": "zero"}, "force": True},
            "<text>": {"source": {"kind": "model_token", "model": "a", "token": "x"}},
            "<id>": {"source": {"kind": "model_token", "model": {"model": "a"}, "token_id": 0}},
            "<same>": {"source": "a"},
            "<none>": {},
        },
        "pad_to_multiple_of": 64,
    }
    rules = parse_text_rules({"tokenizer": data}, PLACE).tokenizer
    assert rules
    assert (rules.source, rules.pad_to_multiple_of) == ("union", 64)
    assert rules.tokens == {
        "<zero>": TokenRule(TokenSource(None), True),
        "<text>": TokenRule(TokenSource(A, "x")),
        "<id>": TokenRule(TokenSource(A, None, 0)),
        "<same>": TokenRule(TokenSource(A)),
        "<none>": TokenRule(None),
    }
    again = parse_text_rules({"tokenizer": rules.to_data()}, PLACE).tokenizer
    assert again == rules


@pytest.mark.parametrize("form", ["models", "slices"])
def test_a_recipe_keeps_them(form: str) -> None:
    model = {"model": "a", "parameters": {"weight": 1}}
    given = [model] if form == "models" else [{"sources": [model | {"layer_range": [0, 1]}]}]
    data = {
        "merge_method": "linear", form: given, "chat_template": "chatml",
        "tokenizer": {"source": "a", "tokens": {"<x>": {"source": {"kind": "zero"}}}},
    }  # fmt: skip
    recipe = parse_any_recipe(data, PLACE)
    assert recipe.to_mapping() == data
    assert parse_any_recipe(recipe.to_mapping(), PLACE) == recipe


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"tokenizer": {}, "tokenizer_source": "base"},
         "expected tokenizer or tokenizer_source, got both at the top of r.yaml"),
        ({"tokenizer": "union"}, "expected a mapping, got 'union' at tokenizer in r.yaml"),
        ({"tokenizer": {"sorce": "union"}}, "unknown key 'sorce' at tokenizer in r.yaml; did you"),
        ({"tokenizer_source": 3}, "expected a model: a folder or a Hub id"),
        ({"tokenizer_source": "a+b"}, "expected union, base or a model without an adapter"),
        ({"tokenizer": {"pad_to_multiple_of": 0}},
         "expected a whole number from 1, got 0 at tokenizer.pad_to_multiple_of in r.yaml"),
        ({"tokenizer": {"pad_to_multiple_of": True}}, "expected a whole number from 1, got True"),
        ({"tokenizer": {"tokens": ["<x>"]}}, "expected a mapping, got ['<x>'] at tokenizer.tokens"),
        ({"tokenizer": {"tokens": {3: {}}}}, "expected a text as the key, got 3"),
        ({"tokenizer": {"tokens": {"<x>": {"force": True}}}},
         "expected a source to force, got nothing at tokenizer.tokens.'<x>' in r.yaml"),
        ({"tokenizer": {"tokens": {"<x>": {"source": "a", "force": 1}}}},
         "expected true or false, got 1 at tokenizer.tokens.'<x>'.force"),
        ({"tokenizer": {"tokens": {"<x>": {"source": {"kind": "one"}}}}},
         "expected one of zero, model_token, got 'one' at tokenizer.tokens.'<x>'.source.kind"),
        ({"tokenizer": {"tokens": {"<x>": {"source": {"kind": "zero", "model": "a"}}}}},
         "unknown key 'model' at tokenizer.tokens.'<x>'.source"),
        ({"tokenizer": {"tokens": {"<x>": {"source": {"kind": "model_token", "model": "a"}}}}},
         "expected either token or token_id, got neither at tokenizer.tokens.'<x>'.source"),
        ({"tokenizer": {"tokens": {"<x>": {"source": {
            "kind": "model_token", "model": "a", "token_id": -1}}}}},
         "expected a whole number from 0, got -1"),
        ({"tokenizer": {"tokens": {"<x>": {"source": {
            "kind": "model_token", "model": "a", "token": 1}}}}}, "expected a text, got 1"),
        ({"chat_template": 3}, "expected auto, a name or a Jinja template, got 3 at chat_template"),
        ({"chat_template": " "}, "expected auto, a name or a Jinja template, got ' '"),
    ],
)  # fmt: skip
def test_mistakes(data: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_text_rules(data, PLACE)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
