"""The recipes of benchmarks/parity.py, as plain data; models are named as in tests/families.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["same", "chance", "tokens"]
Data = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A recipe for models of a family.

    `same` compares numbers, `chance` what random masks keep, `tokens` embeddings token by token.
    """

    name: str
    family: str
    data: Data
    kind: Kind = "same"


def merge(method: str, own: Mapping[str, Data], base: str | None = "base", **fields: Any) -> Data:
    """Return a recipe of models; `own` are their parameters."""
    models = [{"model": name} | ({"parameters": one} if one else {}) for name, one in own.items()]
    data: Data = {"merge_method": method, "dtype": "float32"}
    return data | ({"base_model": base} if base else {}) | fields | {"models": models}


def pair(method: str, parameters: Data | None = None, **own: Any) -> Data:
    """Return a recipe of both experts, with the same parameters of their own, on the base."""
    fields = {"parameters": parameters} if parameters else {}
    return merge(method, {"a": own, "b": own}, **fields)


def one(method: str, **parameters: Any) -> Data:
    """Return a recipe of one expert on the base, with parameters for all tensors."""
    fields = {"parameters": parameters} if parameters else {}
    return merge(method, {"a": {}}, **fields)


def stack(method: str, *slices: Any, base: str | None = "base", **fields: Any) -> Data:
    """Return a recipe of slices, each a list of (model, first, end) or (…, parameters)."""
    made = []
    for item in slices:
        sources, parameters = item if isinstance(item, tuple) else (item, {})
        made.append(
            {"sources": [_source(*source) for source in sources]}
            | ({"parameters": parameters} if parameters else {})
        )
    data: Data = {"merge_method": method, "dtype": "float32"}
    return data | ({"base_model": base} if base else {}) | fields | {"slices": made}


def _source(model: str, first: int, end: int, **own: Any) -> Data:
    found: Data = {"model": model, "layer_range": [first, end]}
    return found | ({"parameters": own} if own else {})


SOUP = {"a": {"weight": 0.6}, "b": {"weight": 0.3}}
UNEVEN = {"a": {"weight": 0.7, "density": 0.35}, "b": {"weight": 0.4, "density": 0.8}}
METHODS: dict[str, Data] = {
    "linear": merge("linear", {"base": {"weight": 0.2}, **SOUP}),
    "task_arithmetic": merge("task_arithmetic", SOUP, parameters={"lambda": 0.8}),
    "ties": merge("ties", UNEVEN),
    "ties, as a sum": merge("ties", UNEVEN, parameters={"normalize": False, "lambda": 0.7}),
    "dare_linear, all kept": pair("dare_linear", weight=0.4, density=1.0),
    "dare_ties, all kept": pair("dare_ties", {"normalize": True}, weight=0.4, density=1.0),
    "breadcrumbs": merge("breadcrumbs", UNEVEN),
    "breadcrumbs, more outliers": pair("breadcrumbs", {"gamma": 0.2}, weight=0.4, density=0.5),
    "breadcrumbs_ties": merge("breadcrumbs_ties", UNEVEN),
    "slerp": one("slerp", t=0.3),
    "nuslerp": merge("nuslerp", {"a": {"weight": 0.3}, "b": {"weight": 0.9}}, None),
    "nuslerp on a base": merge("nuslerp", {"a": {"weight": 0.3}, "b": {"weight": 0.9}}),
    "multislerp": merge("multislerp", SOUP, None),
    "karcher": merge("karcher", {"base": {}, "a": {}, "b": {}}, None),
    "model_stock": pair("model_stock"),
    "nearswap": one("nearswap", t=0.01),
    "sce": pair("sce"),
    "sce, selected": pair("sce", {"select_topk": 0.4}),
    "passthrough, scaled": merge("passthrough", {"a": {"scale": 0.7}}, None),
    "arcee_fusion": one("arcee_fusion"),
}
CHANCE: dict[str, Data] = {
    "dare_linear": merge("dare_linear", {"a": {"weight": 1.0, "density": 0.3}}),
    "dare_ties": merge("dare_ties", {"a": {"weight": 1.0, "density": 0.6}}),
    "della_linear": merge("della_linear", {"a": {"weight": 1.0, "density": 0.4}}),
    "della": merge("della", {"a": {"weight": 1.0, "density": 0.7, "epsilon": 0.2}}),
}
CURVE = [{"filter": "mlp", "value": [0.1, 0.9, 0.3]}, {"filter": "norm", "value": 0.25},
         {"value": [0.4, 0.6]}]  # fmt: skip
HIGH = [{"filter": "attn", "value": [0.9, 0.2]}, {"value": 0.5}]
SETTINGS: dict[str, tuple[str, Data]] = {
    "gradients": (
        "gpt2", merge("linear", {"a": {"weight": [0.1, 0.9]}, "b": {"weight": 0.4}}, None)
    ),
    "gradients of three anchors": ("gemma3", one("slerp", t=[0.1, 0.9, 0.3])),
    "filters": ("phi3", one("slerp", t=CURVE)),
    "gradients and filters": (
        "qwen3",
        merge("ties", {"a": {"weight": CURVE, "density": 0.5}, "b": {"weight": HIGH}},
              parameters={"density": HIGH, "lambda": [0.6, 1.2]}),
    ),
    "filters of flags": (
        "opt",
        pair("task_arithmetic", {"normalize": [{"filter": "fc", "value": True}, {"value": False}]},
             weight=CURVE),
    ),
    "filters by layer": (
        "gemma2",
        pair("breadcrumbs", weight=[{"filter": "layers.1.", "value": 0.1}, {"value": 0.6}],
             density=[{"filter": "embed", "value": 1.0}, {"value": [0.3, 0.8]}]),
    ),
    "rows": (
        "mistral",
        merge("nuslerp", {"a": {"weight": 0.3}, "b": {"weight": 0.6}}, None, parameters={
            "nuslerp_flatten": False, "nuslerp_row_wise": [{"filter": "mlp", "value": True},
                                                           {"value": False}]}),
    ),
    "stock by rows": ("qwen2, untied", pair("model_stock", {"filter_wise": True})),
}  # fmt: skip
BOTH = [("base", 0, 3), ("a", 0, 3)]
SLICES: dict[str, tuple[str, Data]] = {
    "repeated layers": ("mistral", stack("passthrough", [("a", 0, 2)], [("a", 1, 3)])),
    "reordered layers of two": (
        "gemma2",
        stack("passthrough", [("a", 2, 3)], [("b", 0, 2)], [("a", 0, 1)], base="a"),
    ),
    "dropped layers": ("gpt2, untied", stack("passthrough", [("b", 0, 1)], [("b", 2, 3)])),
    "slerp over two slices": (
        "mistral",
        stack("slerp", ([("base", 0, 2), ("a", 1, 3)], {"t": CURVE}), BOTH, parameters={"t": 0.7}),
    ),
    "ties over slices": (
        "qwen3",
        stack("ties",
              ([("base", 0, 2), ("a", 0, 2), ("b", 1, 3)], {"weight": 0.5, "density": [0.3, 0.8]}),
              ([("base", 2, 3), ("b", 2, 3)], {"weight": 0.9, "lambda": 0.6}),
              parameters={"density": 0.6}),
    ),
    "a gradient in each slice": (
        "phi3",
        stack("linear", ([("a", 0, 2), ("b", 1, 3)], {"weight": [0.2, 0.9]}),
              ([("b", 0, 3)], {"weight": [0.5, 0.1]}), base="a"),
    ),
    "a module": (
        "gpt2",
        {"merge_method": "slerp", "dtype": "float32", "base_model": "base", "modules": {
            "default": {"slices": [{"sources": [_source("base", 0, 3), _source("b", 0, 3)],
                                    "parameters": {"t": [0.1, 0.5]}}],
                        "parameters": {"t": 0.9}}}},
    ),
}  # fmt: skip
ADAPTERS: dict[str, tuple[str, Data]] = {
    "an adapter": (
        "llama, tied", merge("linear", {"base+lora": {"weight": 0.4}, "b": {"weight": 1}}, None)
    ),
    "an adapter of an expert": (
        "mistral", merge("ties", {"a+lora": {"weight": 0.4, "density": 0.6}, "b": {"weight": 1}})
    ),
}  # fmt: skip


def _tokens(source: str, method: str, data: Data, **more: Any) -> Data:
    rules = {"source": source} | more
    return data | {"merge_method": method, "tokenizer": rules}


_ALL = merge("linear", {"base": {"weight": 0.2}, "a": {"weight": 0.5}, "b": {"weight": 0.4}})
_TWO = merge("linear", {"base": {"weight": 0.2}, "a": {"weight": 0.5}})
_EVERY_RULE = {
    "<tool>": {"source": {"kind": "zero"}},
    "<end>": {"source": {"kind": "model_token", "model": "a", "token": "Ġthe"}, "force": True},
    "Ġthe": {"source": "b", "force": True},
    "<new>": {"source": {"kind": "model_token", "model": "base", "token_id": 70}},
}
TOKENS: dict[str, tuple[str, Data]] = {
    "an added token": ("llama, tied", _tokens("union", "linear", _TWO)),
    "three vocabularies": ("mistral", _tokens("union", "linear", _ALL)),
    "without a base": ("mistral", _tokens("union", "linear", merge("linear", SOUP, None))),
    "the base's": ("llama, tied", _tokens("base", "task_arithmetic", merge("linear", SOUP))),
    "a model's": ("mistral", _tokens("b", "task_arithmetic", merge("linear", SOUP))),
    "rules for tokens": ("mistral", _tokens("union", "linear", _ALL, tokens=_EVERY_RULE)),
    "a zero that is forced": (
        "llama, tied", _tokens("base", "linear", _ALL, tokens={
            "Ġthe": {"source": {"kind": "zero"}, "force": True}}),
    ),
    "padded": ("llama, tied", _tokens("union", "linear", _ALL, pad_to_multiple_of=64)),
    "padded, with rules": (
        "mistral", _tokens("a", "linear", _ALL, tokens=_EVERY_RULE, pad_to_multiple_of=50)
    ),
    "the older key": (
        "llama, tied",
        merge("slerp", {"b": {}}, parameters={"t": 0.4}, tokenizer_source="union"),
    ),
}  # fmt: skip
FAMILIES = (
    "llama", "llama, tied", "qwen2, untied", "qwen3", "gemma2", "gemma3",
    "gemma3 that sees", "phi3", "gpt2", "gpt2, untied", "gpt_neox", "gpt_neox, tied", "opt",
    "opt of projected embeddings", "falcon", "mixtral", "qwen3_moe", "bert", "roberta", "vit",
    "clip", "t5", "t5, untied", "whisper", "llava",
)  # fmt: skip
ROUNDED = {"out_dtype": "bfloat16"}


def _of_families() -> list[Row]:
    found = []
    for number, family in enumerate(FAMILIES):
        method, data = list(METHODS.items())[number % 2 * 2]
        if family in ("mixtral", "qwen3_moe"):  # what mergekit fuses, it trims together
            method, data = "linear", METHODS["linear"]
        found.append(Row(f"{method}, {family}", family, data))
        if number % 3 == 0:
            data = METHODS["task_arithmetic"] | ROUNDED
            found.append(Row(f"task_arithmetic, {family}", family, data))
    return found


def _named(
    rows: Mapping[str, tuple[str, Data]], kind: Kind = "same", also: tuple[str, ...] = ()
) -> list[Row]:
    found = [Row(name, family, data, kind) for name, (family, data) in rows.items()]
    more = [(name, *rows[name]) for name in also]
    return found + [Row(name, family, data | ROUNDED, kind) for name, family, data in more]


ROWS: tuple[Row, ...] = (
    *(Row(name, "mistral", data) for name, data in METHODS.items()),
    *(Row(name, "qwen2", data | ROUNDED) for name, data in METHODS.items()),
    *(Row(name, "phi3", data, "chance") for name, data in CHANCE.items()),
    *_named(SETTINGS, also=("filters", "gradients and filters")),
    *_named(SLICES, also=("slerp over two slices", "ties over slices")),
    *_named(ADAPTERS),
    *_named(TOKENS, "tokens", also=("three vocabularies", "padded, with rules")),
    *_of_families(),
)
