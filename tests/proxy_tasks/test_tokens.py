"""Prompts and answers as token ids: borders, special tokens, chat templates."""

from collections.abc import Sequence

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from evomerge.errors import DataError
from evomerge.models import load_tokenizer
from evomerge.proxy_tasks._tokens import Stops, Turn, encode_after, turn_of
from tests.architectures import byte_level_tokenizer

TEXT = "the answer is the yes. the answer is no.\n the question: yes or no?\n" * 5


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(TEXT)


def one(
    tokenizer: PreTrainedTokenizerFast, prompt: str, text: str, chat: bool = False
) -> tuple[str, list[str]]:
    """Return the prompt that the tokens spell, and the scored tokens."""
    (found,) = encode_after(tokenizer, [prompt], [text], chat)
    head = found.ids[: -found.scored]
    return tokenizer.decode(head), [tokenizer.decode([token]) for token in found.target]


def test_the_tokens_are_those_of_prompt_and_text_together(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert one(tokenizer, "the question:", " the answer") == ("the question:", [" the", " answer"])
    (found,) = encode_after(tokenizer, ["the question:"], [" the answer"], False)
    assert list(found.ids) == tokenizer("the question: the answer")["input_ids"]


def test_a_token_across_the_border_is_not_used(tokenizer: PreTrainedTokenizerFast) -> None:
    joint = [tokenizer.decode([token]) for token in tokenizer("the question: the")["input_ids"]]
    assert joint[-1] == " the"  # one token for the space that ends the prompt and the word
    prompt, target = one(tokenizer, "the question: t", "he")
    assert prompt == "the question: t"
    assert "".join(target) == "he"
    (found,) = encode_after(tokenizer, ["the question: t"], ["he"], False)
    assert list(found.ids[: -found.scored]) == tokenizer("the question: t")["input_ids"]


def test_spaces_that_end_a_prompt_go_to_all_its_texts_where_one_takes_them_up(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert one(tokenizer, "the question: ", "the") == ("the question:", [" the"])
    first, second = encode_after(tokenizer, ["the question: "] * 2, ["the", "\u20ac"], False)
    assert list(first.ids) == tokenizer("the question: the")["input_ids"]
    assert list(second.ids) == tokenizer("the question: \u20ac")["input_ids"]
    assert (first.scored, second.scored) == (1, 1 + 3)
    assert one(tokenizer, "the question: ", "\u20ac")[0] == "the question: "


def like_llama_2() -> PreTrainedTokenizerFast:
    """A tokenizer like SentencePiece's, which puts a space before every text."""
    merges = ["▁ P", "a r", "i s", "▁ m", "▁m o", "▁mo d", "e l", "▁ e", "▁e l", "▁mod el"]
    letters = sorted(set("▁Answer:[INST]/Paris5moduleq"))
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", *letters]
    tokens += [merge.replace(" ", "") for merge in merges]
    model = models.BPE(
        {token: number for number, token in enumerate(tokens)},
        [tuple(merge.split(" ")) for merge in merges],
        byte_fallback=True,
    )
    inner = Tokenizer(model)
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    found = PreTrainedTokenizerFast(tokenizer_object=inner)
    found.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    found.chat_template = (
        "{{ bos_token }}{% for one in messages %}{% if one.role == 'user' %}"
        "[INST] {{ one.content }} [/INST]{% else %} {{ one.content | trim }} {{ eos_token }}"
        "{% endif %}{% endfor %}"
    )
    return found


@pytest.mark.parametrize(
    ("prompt", "text", "scored"),
    [
        ("Answer:", " Paris", ["▁P", "ar", "is"]),
        ("Answer: ", "Paris", ["▁P", "ar", "is"]),
        ("Answer:  ", "Paris", ["▁", "▁P", "ar", "is"]),
        ("Answer: ", "5", ["5"]),
        ("Answer:\n", "Paris", ["P", "ar", "is"]),
        ("mod", "ule", ["u", "l", "e"]),
        ("mod", "el", ["el"]),
        ("a mod", "el mod", ["el", "▁mod"]),
        ("", "Paris", ["▁P", "ar", "is"]),
    ],
)
def test_what_a_model_reads_has_no_space_that_the_text_has_not(
    prompt: str, text: str, scored: list[str]
) -> None:
    tokenizer = like_llama_2()
    (found,) = encode_after(tokenizer, [prompt], [text], False)
    assert tokenizer.convert_ids_to_tokens(found.target) == scored
    assert tokenizer.decode(found.ids) == "<s> " + prompt + text


def test_many_are_encoded_as_each_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts, texts = ["the", "yes or no? ", "", "no"], [" answer", "yes", "no.", " is\n"]
    together = encode_after(tokenizer, prompts, texts, False)
    alone = [
        encode_after(tokenizer, [prompt], [text], False)[0]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    assert together == alone
    assert encode_after(tokenizer, [], [], False) == []


def test_what_opens_a_text_stands_before_the_prompt_and_what_closes_it_nowhere(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    plain = encode_after(tokenizer, ["the question:"], [" yes"], False)[0]
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", first), ("<end>", last)]
    )
    assert tokenizer("yes")["input_ids"][0] == first
    assert tokenizer("yes")["input_ids"][-1] == last
    found = encode_after(tokenizer, ["the question:"], [" yes"], False)[0]
    assert found.ids == (first, *plain.ids)
    assert found.scored == plain.scored
    empty = encode_after(tokenizer, [""], ["yes"], False)[0]
    assert empty.ids == (first, *empty.target)


def test_an_end_written_out_stays(tokenizer: PreTrainedTokenizerFast) -> None:
    found = encode_after(tokenizer, ["yes"], [" no<end>"], False)[0]
    assert found.target[-1] == tokenizer.eos_token_id


def test_an_empty_prompt_is_the_token_that_opens_or_else_ends_texts(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert one(tokenizer, "", "yes.")[0] == "<end>"
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    assert one(tokenizer, "", "yes.")[0] == "<begin>"


def test_a_text_without_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="expected a text of at least one token, got ''"):
        encode_after(tokenizer, ["yes"], [""], False)


def test_a_chat_template_wraps_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% for one in messages %}[{{ one.role }}]{{ one.content }}{% endfor %}"
        "{% if add_generation_prompt %}[bot]{% endif %}"
    )
    prompt, target = one(tokenizer, "yes or no?", "no", chat=True)
    assert prompt == "[user]yes or no?[bot]"
    assert "".join(target) == "no"


IM = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        (IM, Turn("", False, "<|im_end|>")),
        (IM.replace("<|im_end|>", "[turn]"), Turn("", False, "[turn]")),
        (IM.replace("one.content", "one.content | trim"), Turn("", True, "<|im_end|>")),
        (IM.replace("<|im_end|>", "<|im_end|>\n<end>"), Turn("", False, "<|im_end|>")),
        (IM.replace("{{ one.content", "{{ ' ' + one.content"), Turn(" ", False, "<|im_end|>")),
        (IM.replace("<|im_end|>", "\n\n"), Turn()),
        (
            IM.replace("{{ one.content", "<think>\n\n</think>\n\n{{ one.content"),
            Turn("", False, "<|im_end|>"),
        ),
        (IM.replace("assistant\n{% endif", "assistant\n<think>{% endif"), Turn()),
        ("{{ messages[0].content }}", Turn()),
        ("{{ raise_exception('never') }}", Turn()),
    ],
)
def test_what_a_template_has_around_an_answer(
    template: str, turn: Turn, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    assert turn_of(tokenizer) == turn


def test_a_chat_s_tokens_are_those_of_the_whole_conversation() -> None:
    tokenizer = like_llama_2()
    assert turn_of(tokenizer) == Turn(" ", True, " </s>")
    asked = {"role": "user", "content": "q"}
    for text in ("Paris", " Paris", "5"):
        answered = [asked, {"role": "assistant", "content": text}]
        whole = tokenizer.apply_chat_template(answered, return_dict=False)
        (found,) = encode_after(tokenizer, ["q"], [text], True, " </s>")
        assert list(found.ids) == whole
        head = tokenizer.apply_chat_template([asked], return_dict=False)
        assert list(found.ids[: -found.scored]) == head


def test_chat_without_a_template(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        DataError, match=r"expected a chat template .* got none; use a base with one"
    ):
        encode_after(tokenizer, ["yes"], ["no"], True)


def test_a_template_that_fails(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('a system message first\\nplease') }}"
    with pytest.raises(
        DataError, match=r"for messages of user, got .*a system message first"
    ) as it:
        encode_after(tokenizer, ["yes"], ["no"], True)
    assert "\n" not in str(it.value)


def test_the_zoo_s_tokens_are_the_prompt_s_then_the_answer_s(trained_family) -> None:  # type: ignore[no-untyped-def]
    tokenizer = load_tokenizer(trained_family / "base")
    found = encode_after(tokenizer, ["[sort]gnlozw="], ["glnowz"], False)[0]
    assert found.ids == tuple(tokenizer("[sort]gnlozw=glnowz")["input_ids"])
    assert (len(found.ids), found.scored) == (14, 6)


def test_a_stop_is_seen_when_it_comes_without_reading_all(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    read: list[int] = []

    def decode(tokens: Sequence[int]) -> str:
        read.append(len(tokens))
        return str(tokenizer.decode(tokens))

    stops = Stops(("no.\n", "\u20ac"), decode)
    draw = np.random.default_rng(0)
    pieces = ["the ", "answer", " no", ".", "\n", "no", "\u20ac", "\u00e9", " is", "?"]
    for _ in range(50):
        text = "".join(draw.choice(pieces, 60))
        tokens = tokenizer(text)["input_ids"]
        ends = [stops.cut(tokens[: size + 1])[1] for size in range(len(tokens))]
        read.clear()
        came = [stops.came(tokens[: size + 1]) for size in range(len(tokens))]
        first = ends.index(True) if True in ends else len(tokens)
        assert came[: first + 1] == ends[: first + 1]
        assert max(read[: first - 1], default=0) <= 4 + 4  # the bytes of a stop and a few
    assert not Stops((), decode).came([1, 2])


def test_a_template_that_asks_for_the_date_gets_the_same_one_every_day() -> None:
    tokenizer = byte_level_tokenizer("what is it today 2024 26 Jul")
    date = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    tokenizer.chat_template = date + "{% for one in messages %}<{{ one.content }}>{% endfor %}"
    (found,) = encode_after(tokenizer, ["what"], ["it"], chat=True)
    assert tokenizer.decode(found.ids) == "26 Jul 2024<what>it"
    tokenizer.chat_template = "\n  " + tokenizer.chat_template.replace("%b", "%-d, %j %I:%M %p")
    (found,) = encode_after(tokenizer, ["what"], ["it"], chat=True)
    assert tokenizer.decode(found.ids) == "\n26 26, 208 12:00 PM 2024<what>it"
    tokenizer.chat_template = {"default": "<{{ messages[-1].content }}>", "tool_use": "?"}
    (found,) = encode_after(tokenizer, ["what"], ["it"], chat=True)
    assert tokenizer.decode(found.ids) == "<what>it"
