"""The files of a model beside its weights and config.json: which they are, and carrying them on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evomerge.files import write_bytes, write_json
from evomerge.headers import read_json
from evomerge.recipe_inputs import RecipeInputs

_GENERATION = "generation_config.json"
_TOKENIZER = (  # what from_pretrained of a tokenizer reads
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "encoder.json",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "emoji.json",
    "normalizer.json",
    "spiece.model",
    "spm*.model",
    "sentencepiece*.model",
    "*.spm",
    "*.tiktoken",
    "tiktoken.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_OTHERS = (  # what from_pretrained of a model or processor reads
    _GENERATION,
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    "processor_config.json",
    "custom_generate/*.py",
    "custom_generate/requirements.txt",
)
_WITH_CODE = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
_MODULE = re.compile(r"\w+\Z")
_IMPORT = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import|import\s+\.(\w+)\s*$)", re.MULTILINE)


def carry(inputs: RecipeInputs, folder: Path) -> None:
    """Put the side files of a recipe's result into a folder; raises OSError where that fails.

    They are the donor's, save for a tokenizer or chat template that the recipe asks for.
    """
    donor, new = inputs.donor.folder, inputs.tokenizer
    origin = new.origin if new else donor
    own = side_files(donor) if origin == donor else [*_matching(donor, _OTHERS), *_code(donor)]
    _copy(donor, folder, own)
    if new and (folder / _GENERATION).is_file():
        write_json(folder / _GENERATION, inputs.in_vocabulary(read_json(folder / _GENERATION)))
    if origin and origin != donor:
        _copy(origin, folder, [*_matching(origin, _TOKENIZER), *_code(origin)])
    elif new and not origin:
        new.tokenizer.save_pretrained(str(folder))
    inputs.write_template(folder)


def side_files(folder: Path) -> list[str]:
    """Return which side files a model's folder has, in order; paths within the folder.

    The code that an `auto_map` names is among them, since a model without it does not load, with
    what it imports from beside it. It is not run here.
    """
    return sorted({*_matching(folder, _OTHERS), *_matching(folder, _TOKENIZER), *_code(folder)})


def _matching(folder: Path, patterns: Sequence[str]) -> set[str]:
    found = (path for pattern in patterns for path in folder.glob(pattern))
    return {path.relative_to(folder).as_posix() for path in found if path.is_file()}


def _copy(source: Path, folder: Path, names: Iterable[str]) -> None:
    for name in names:
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        write_bytes(target, (source / name).read_bytes())


def _code(folder: Path) -> Iterator[str]:
    """Yield the Python files that the configurations of a folder name, and what these import."""
    modules = [name for file in _WITH_CODE for name in _mapped(folder / file)]
    seen: set[str] = set()
    while modules:
        module = modules.pop()
        path = folder / f"{module}.py"
        if module in seen or not _MODULE.match(module) or not path.is_file():
            continue
        seen.add(module)
        text = path.read_text(encoding="utf-8", errors="replace")
        modules += [one or other for one, other in _IMPORT.findall(text)]
        yield path.name


def _mapped(file: Path) -> Iterator[str]:
    """Yield the modules of an auto_map that lie in the folder: `org/name--module.Class` do not."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return
    given: Any = content.get("auto_map") if isinstance(content, dict) else None
    for value in given.values() if isinstance(given, dict) else (given,):
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, str) and "--" not in one:
                yield one.partition(".")[0]
