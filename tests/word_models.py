"""Tiny checkpoints whose tokenizers are lists of words, for tests of vocabularies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import CONFIG, Tensors, llama_shapes, write_checkpoint

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write_word_model(
    folder: Path,
    words: Sequence[str],
    seed: int,
    *,
    rows: int | None = None,
    added: Sequence[str] = (),
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Tensors:
    """Write a model with a word for each row, and rows beyond them where `rows` are more."""
    size = rows or len(words) + len(added)
    config = CONFIG | {"vocab_size": size, "tie_word_embeddings": tied} | settings
    draw = torch.Generator().manual_seed(seed)
    shapes = llama_shapes(config)
    if tied:
        del shapes[LM_HEAD]
    tensors = {name: torch.randn(one, generator=draw).to(dtype) for name, one in shapes.items()}
    write_checkpoint(folder, tensors, config)
    write_words(folder, words, added)
    return tensors


def write_words(folder: Path, words: Sequence[str], added: Sequence[str] = ()) -> None:
    """Write a tokenizer of words, and of special tokens behind them."""
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=words[0])
    whole.add_special_tokens({"additional_special_tokens": list(added)})
    whole.save_pretrained(folder)


def words_of(folder: Path) -> dict[str, int]:
    """Read a tokenizer's words, as any user of transformers would."""
    found: Mapping[str, int] = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    return dict(found)
