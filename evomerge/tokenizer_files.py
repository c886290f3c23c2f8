"""The tokenizer of a merged model: that of an input or the union of all, and its chat template."""

from __future__ import annotations

import copy
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
import transformers
import xxhash
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evomerge import chat_templates
from evomerge.checkpoints import Checkpoint, ModelRef, locate
from evomerge.errors import CheckpointError, Place, RecipeError, first_line
from evomerge.files import write_json, write_text
from evomerge.headers import read_json
from evomerge.tokenizer_rules import TextRules, TokenizerRules
from evomerge.vocabulary import Alignment, Vocabulary, said_sizes, vocabulary_tensors

Tokenizer: TypeAlias = PreTrainedTokenizerBase
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_MORE = ("merges.txt", "added_tokens.json", "special_tokens_map.json", "generation_config.json")
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
_MAPPED = {"BPE", "WordPiece", "WordLevel"}  # models whose vocabulary is a mapping
_IDS = ("_token_id", "_token_ids", "_token_index")

transformers.utils.logging.disable_progress_bar()
if "TRANSFORMERS_VERBOSITY" not in os.environ:
    transformers.utils.logging.set_verbosity_error()  # stderr is for what evomerge says
# Where nobody has said whether a checkpoint's code may run, the library asks on stdin: with no
# seconds to wait it takes it as no. What evomerge calls itself always says.
transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def settings_of(folder: Path) -> dict[str, Any]:
    """Return what tokenizer_config.json says; raises CheckpointError where it is broken."""
    return read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}


def has_tokenizer(folder: Path) -> bool:
    """Return whether there is a tokenizer in a model's folder."""
    return any((folder / name).is_file() for name in FILES)


def tokenizer_digest(folder: Path) -> str:
    """Return a hash of what a folder says of its tokenizer, chat templates and ends of texts."""
    names = {*FILES, *_MORE, SETTINGS, TEMPLATE}
    more = [*folder.glob("*.py"), *folder.glob("additional_chat_templates/*")]
    found = xxhash.xxh3_128()
    for file in sorted([*(folder / name for name in names), *more]):
        if file.is_file():
            found.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return found.hexdigest()


def read_tokenizer(folder: Path, trust: bool = False) -> Tokenizer:
    """Return the tokenizer of a folder, whose own code may run where `trust` is set.

    Raises CheckpointError where there is none.
    """
    if not has_tokenizer(folder):
        raise CheckpointError(
            f"expected a tokenizer in {folder}, got none of {', '.join(FILES)}; "
            "copy the files there from the model's source"
        )
    try:
        found: Tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust)
    except Exception as problem:  # the library raises whatever its parsers raise
        if not trust and brings_code(folder / SETTINGS):
            raise untrusted("a tokenizer", folder / SETTINGS) from None
        reason = f"{type(problem).__name__}: {first_line(problem)}"
        raise CheckpointError(f"expected a tokenizer, got {reason} in {folder}") from None
    return found


def brings_code(file: Path) -> bool:
    """Return whether a configuration says that its checkpoint comes with code of its own."""
    return file.is_file() and bool(read_json(file).get("auto_map"))


def untrusted(what: str, file: Path) -> CheckpointError:
    """Return (to be raised) the refusal of a checkpoint's code."""
    return CheckpointError(
        f"expected {what} that transformers knows, got one with code of its own, none of which was "
        f"run, in {file}; read that code and, if you trust it, add --trust-remote-code"
    )


@dataclass(frozen=True)
class NewTokenizer:
    """The tokenizer of a result, and the rows of its embeddings.

    `origin` is the folder whose tokenizer it is, unchanged; None for one that is in no folder.
    """

    tokenizer: Tokenizer
    origin: Path | None
    alignment: Alignment
    notes: tuple[str, ...]

    def config(self, donor: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration of the donor's, of model or generation, for the new vocabulary.

        Every vocab_size of the donor's follows, and every id of a token.
        """
        words = {number: token for token, number in self._of(donor).ids.items()}
        size = next(said_sizes(config), None)

        def moved(value: Any) -> Any:
            if isinstance(value, list):
                return [moved(one) for one in value]
            token = words.get(value) if type(value) is int else None
            return value if token is None else self.alignment.ids.get(token, value)

        def changed(part: Mapping[str, Any]) -> dict[str, Any]:
            found = dict(part)
            for key, value in part.items():
                if isinstance(value, dict) and key.endswith("config"):
                    found[key] = changed(value)
                elif key == "vocab_size" and value == size:
                    found[key] = self.alignment.size
                elif key.endswith(_IDS):
                    found[key] = moved(value)
            return found

        return changed(config)

    def _of(self, donor: Checkpoint) -> Vocabulary:
        return self.alignment.vocabularies[donor.ref]


def make_tokenizer(
    rules: TokenizerRules, opened: Sequence[Checkpoint], trust: bool = False
) -> NewTokenizer:
    """Return the tokenizer that a recipe asks for; the first of `opened` is the donor, the base.

    An input without a tokenizer is taken to have the donor's. Raises CheckpointError where the
    donor has none or one cannot be read, and the rules' error where they name what is not there.
    """
    donor, *others = opened
    rows = {one.ref: vocabulary_tensors(one)[0] for one in opened}
    tokenizers = {donor.ref: read_tokenizer(donor.folder, trust)}
    notes = []
    for one in others:
        if has_tokenizer(one.folder):
            tokenizers[one.ref] = read_tokenizer(one.folder, trust)
        else:
            notes.append(f"{one.ref} has no tokenizer: taken to have that of {donor.ref}")
            tokenizers[one.ref] = tokenizers[donor.ref]
    vocabularies = {ref: Vocabulary(own.get_vocab(), rows[ref]) for ref, own in tokenizers.items()}
    folder, first, most = donor.folder, tokenizers[donor.ref], rows[donor.ref]
    if isinstance(rules.source, ModelRef):
        folder, first, most = _of_model(rules, opened, tokenizers, rows, trust)
    found = _within(first, most, folder, trust)
    if rules.source == "union":
        _unite(found, [(tokenizers[one.ref], rows[one.ref]) for one in others])
    known = found.get_vocab()
    found.add_tokens([token for token in rules.tokens if token not in known])
    ids = dict(sorted(found.get_vocab().items(), key=lambda item: item[1]))
    size = max(ids.values()) + 1
    if rules.pad_to_multiple_of:
        size += -size % rules.pad_to_multiple_of
    alignment = Alignment(ids, size, rules, vocabularies)
    alignment.check()
    origin = folder if ids == first.get_vocab() else None
    return NewTokenizer(found, origin, alignment, tuple(notes))


def _of_model(
    rules: TokenizerRules,
    opened: Sequence[Checkpoint],
    tokenizers: Mapping[ModelRef, Tokenizer],
    rows: Mapping[ModelRef, int],
    trust: bool,
) -> tuple[Path, Tokenizer, int]:
    """Return the tokenizer of the model that the rules name, which need not be an input."""
    assert isinstance(rules.source, ModelRef)
    for one in opened:
        if (one.ref.path, one.ref.revision) == (rules.source.path, rules.source.revision):
            return one.folder, tokenizers[one.ref], rows[one.ref]
    folder = locate(
        rules.source, Place(rules.place.document, CheckpointError, rules.place.path) / "source"
    )
    own = read_tokenizer(folder, trust)
    return folder, own, max(own.get_vocab().values()) + 1


def _within(tokenizer: Tokenizer, rows: int, folder: Path, trust: bool) -> Tokenizer:
    """Return a copy of a tokenizer without the tokens that have no row in the embeddings."""
    beyond = {token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return copy.deepcopy(tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        _leave_out(beyond, Path(scratch), folder)
        return read_tokenizer(Path(scratch), trust)


def _leave_out(tokens: set[str], scratch: Path, folder: Path) -> None:
    file = scratch / "tokenizer.json"
    content: dict[str, Any] = read_json(file) if file.is_file() else {}
    model = content.get("model", {})
    if model.get("type") not in _MAPPED:
        raise CheckpointError(
            f"expected a row of the embeddings for every token in {folder}, got none for "
            f"{len(tokens)}, such as {min(tokens)!r}; use the tokenizer of another model"
        )
    content["added_tokens"] = [
        one for one in content.get("added_tokens", []) if one["content"] not in tokens
    ]
    model["vocab"] = {token: one for token, one in model["vocab"].items() if token not in tokens}
    if "merges" in model:
        pairs = [one.split(" ") if isinstance(one, str) else one for one in model["merges"]]
        model["merges"] = [one for one in pairs if not {*one, "".join(one)} & tokens]
    write_json(file, content)
    write_json(scratch / SETTINGS, _without(tokens, settings_of(scratch)))


def _without(tokens: set[str], part: Any) -> Any:
    """Return settings without the mention of some tokens, by their text or as {content: …}."""

    def mentioned(one: Any) -> bool:
        text = one.get("content") if isinstance(one, dict) else one
        return isinstance(text, str) and text in tokens

    if isinstance(part, dict):
        return {key: _without(tokens, one) for key, one in part.items() if not mentioned(one)}
    if isinstance(part, list):
        return [_without(tokens, one) for one in part if not mentioned(one)]
    return part


def _unite(found: Tokenizer, others: Sequence[tuple[Tokenizer, int]]) -> None:
    """Add to a tokenizer what others have, in the order of their ids.

    Ordinary tokens of other vocabularies are added as whole words, as mergekit does: what they are
    made of cannot be merged into the rules of the first.
    """
    known = found.get_vocab()
    words: dict[str, None] = {}
    added: dict[str, Any] = {}
    for other, size in others:
        special = {one.content: one for one in other.added_tokens_decoder.values()}
        for token, number in sorted(other.get_vocab().items(), key=lambda item: item[1]):
            if number < size and token not in known:
                if token in special:
                    added.setdefault(token, special[token])
                else:
                    words.setdefault(token)
    found.add_tokens([token for token in words if token not in added])
    found.add_tokens(list(added.values()))


def chosen_template(rules: TextRules, folders: Sequence[Path], source: str) -> str | None:
    """Return the Jinja template that a recipe asks for; the first of `folders` is the donor's.

    `auto` is the template that most inputs have, of several the first. Raises RecipeError for an
    unknown name or a broken template, and CheckpointError where the donor has no tokenizer that
    could have one.
    """
    wanted = rules.chat_template
    if wanted is None:
        return None
    here = Place(source, RecipeError) / "chat_template"
    if not has_tokenizer(folders[0]):
        raise CheckpointError(
            f"expected a tokenizer in {folders[0]} to have the chat template, got none; copy its "
            "files there from the model's source"
        )
    if wanted == "auto":
        counted = Counter(text.strip() for text in map(template_of, folders) if text)
        return counted.most_common(1)[0][0] if counted else None
    if "{" not in wanted:
        if wanted not in chat_templates.NAMES:
            raise here.unknown(wanted, "chat template", ["auto", *chat_templates.NAMES])
        return chat_templates.load(wanted)
    try:
        jinja2.Environment(autoescape=False, extensions=["jinja2.ext.loopcontrols"]).parse(wanted)  # noqa: S701
    except jinja2.TemplateSyntaxError as problem:
        raise here.fail("a Jinja template", wanted, f"line {problem.lineno}: {problem}") from None
    return wanted


def template_of(folder: Path) -> str | None:
    """Return the default chat template in a model's folder, None where there is none."""
    file = folder / TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings_of(folder).get("chat_template")
    if isinstance(found, list):  # of several, by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def write_template(template: str, folder: Path) -> None:
    """Give the tokenizer in a folder a chat template in place of its own."""
    write_text(folder / TEMPLATE, template)
    settings = settings_of(folder)
    if settings.pop("chat_template", None) is not None:
        write_json(folder / SETTINGS, settings)
