"""What a recipe says of the result's tokenizer and chat template, checked, as in mergekit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.checkpoints import ModelRef
from evomerge.errors import Found, Place
from evomerge.recipe_fields import parse_ref

KEYS = ("tokenizer_source", "tokenizer", "chat_template")
_MOST_MULTIPLE = 2**20
_KINDS = ("zero", "model_token")

TokenizerSource = Literal["union", "base"] | ModelRef


@dataclass(frozen=True)
class TokenSource:
    """Where the vector of a token comes from: zeros where `model` is None.

    Of a model, the vector is that of the same token, unless `token` or `token_id` says another.
    """

    model: ModelRef | None
    token: str | None = None
    token_id: int | None = None

    def to_data(self) -> Any:
        """Return the source as plain data."""
        if self.model is None:
            return {"kind": "zero"}
        if self.token is None and self.token_id is None:
            return str(self.model)
        which = {"token_id": self.token_id} if self.token is None else {"token": self.token}
        return {"kind": "model_token", "model": str(self.model)} | which


@dataclass(frozen=True)
class TokenRule:
    """A source for a token; `force` also for the models that have the token."""

    source: TokenSource | None
    force: bool = False


@dataclass(frozen=True)
class TokenizerRules:
    """The result's tokenizer: the union of the models', the base's, or that of one model."""

    source: TokenizerSource
    tokens: Mapping[str, TokenRule]
    pad_to_multiple_of: int | None
    place: Place = field(compare=False)

    def to_data(self) -> dict[str, Any]:
        """Return the rules as plain data."""
        data: dict[str, Any] = {
            "source": str(self.source) if isinstance(self.source, ModelRef) else self.source
        }
        if self.tokens:
            data["tokens"] = {
                token: ({"source": rule.source.to_data()} if rule.source else {})
                | ({"force": True} if rule.force else {})
                for token, rule in self.tokens.items()
            }
        if self.pad_to_multiple_of:
            data["pad_to_multiple_of"] = self.pad_to_multiple_of
        return data


@dataclass(frozen=True)
class TextRules:
    """What a recipe says of text: None where it says nothing, and all is the donor's."""

    tokenizer: TokenizerRules | None = None
    chat_template: str | None = None

    def to_mapping(self) -> dict[str, Any]:
        """Return what is said as the keys of a recipe."""
        data: dict[str, Any] = {"tokenizer": self.tokenizer.to_data()} if self.tokenizer else {}
        return data | ({"chat_template": self.chat_template} if self.chat_template else {})


NO_TEXT_RULES = TextRules()


def parse_text_rules(fields: Mapping[str, object], place: Place) -> TextRules:
    """Read the keys of a recipe that speak of text; raises the place's error."""
    template = fields.get("chat_template")
    if template is not None and (not isinstance(template, str) or not template.strip()):
        raise (place / "chat_template").fail("auto, a name or a Jinja template", template)
    old, new = fields.get("tokenizer_source"), fields.get("tokenizer")
    if old is not None and new is not None:
        raise place.fail("tokenizer or tokenizer_source", Found("both"))
    if old is not None:
        here = place / "tokenizer_source"
        rules: TokenizerRules | None = TokenizerRules(_source(old, here), {}, None, here)
    else:
        rules = None if new is None else _rules(new, place / "tokenizer")
    return TextRules(rules, template)


def _rules(data: object, place: Place) -> TokenizerRules:
    fields = place.mapping(data, ("source", "tokens", "pad_to_multiple_of"))
    here = place / "tokens"
    listed = {} if fields.get("tokens") is None else here.mapping(fields["tokens"])
    multiple = fields.get("pad_to_multiple_of")
    if multiple is not None and (type(multiple) is not int or not 1 <= multiple <= _MOST_MULTIPLE):
        raise (place / "pad_to_multiple_of").fail("a whole number from 1", multiple)
    return TokenizerRules(
        _source(fields.get("source", "union"), place / "source"),
        {token: _rule(rule, here / repr(token)) for token, rule in listed.items()},
        multiple if isinstance(multiple, int) else None,
        place,
    )


def _source(value: object, place: Place) -> TokenizerSource:
    if value in ("union", "base"):
        return "union" if value == "union" else "base"
    ref = parse_ref(value, place)
    if ref.adapter:
        raise place.fail("union, base or a model without an adapter", str(ref))
    return ref


def _rule(data: object, place: Place) -> TokenRule:
    fields = place.mapping(data, ("source", "force"))
    force = fields.get("force", False)
    if not isinstance(force, bool):
        raise (place / "force").fail("true or false", force)
    given = fields.get("source")
    source = None if given is None else _token_source(given, place / "source")
    if force and source is None:
        raise place.fail("a source to force", None)
    return TokenRule(source, force)


def _token_source(value: object, place: Place) -> TokenSource:
    if not isinstance(value, dict) or "kind" not in value:
        return TokenSource(parse_ref(value, place))
    kind = value["kind"]
    if kind not in _KINDS:
        raise (place / "kind").fail(f"one of {', '.join(_KINDS)}", kind)
    if kind == "zero":
        place.mapping(value, ("kind",))
        return TokenSource(None)
    fields = place.mapping(value, ("kind", "model", "token", "token_id"))
    model = parse_ref(fields.get("model"), place / "model")
    token, number = fields.get("token"), fields.get("token_id")
    if (token is None) == (number is None):
        raise place.fail("either token or token_id", Found("neither" if token is None else "both"))
    if token is not None and not isinstance(token, str):
        raise (place / "token").fail("a text", token)
    if number is not None and (type(number) is not int or number < 0):
        raise (place / "token_id").fail("a whole number from 0", number)
    return TokenSource(model, token, number if isinstance(number, int) else None)
