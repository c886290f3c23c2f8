"""Tiny random language models of several architectures, saved as Hugging Face folders."""

import copy
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from evomerge.adjacent import packed
from evomerge.architectures import end_to_end
from evomerge.checkpoints import ModelRef, open_checkpoint
from evomerge.errors import CheckpointError, Place
from evomerge.models import LiveModel

VOCABULARY = 61
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,  # far from uniform predictions
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**_SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**_SIZES, num_key_value_heads=2, tie_word_embeddings=False),
    "gemma2": transformers.Gemma2Config(  # capped logits and a window
        **_SIZES, num_key_value_heads=2, head_dim=8, sliding_window=6, final_logit_softcapping=8.0
    ),
    "gpt2": transformers.GPT2Config(  # learned positions
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64,
        initializer_range=0.4, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**_SIZES),
    "bloom": transformers.BloomConfig(  # no position ids
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    ),
    "mixtral": transformers.MixtralConfig(  # experts that are one parameter
        **_SIZES, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2
    ),
    "mamba": transformers.MambaConfig(  # no key-value cache
        vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=2,
        initializer_range=0.4, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    ),
}  # fmt: skip


def save_random(folder: Path, name: str, seed: int = 0, vocabulary: int = VOCABULARY) -> Path:
    """Write a model with random weights."""
    config = copy.deepcopy(CONFIGS[name])
    config.vocab_size = vocabulary
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder


def reference(folder: Path, dtype: str = "float32") -> torch.nn.Module:
    """Load a model as any user of transformers would."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Read a model's tensors, as a live model has them: those of experts end to end."""
    checkpoint = open_checkpoint(ModelRef(str(folder)), Place("test", CheckpointError))
    found = dict(checkpoint.read(checkpoint.tensors))
    shapes = {name: tuple(one.shape) for name, one in found.items()}
    return found | packed(found, end_to_end(folder, shapes))


def live(folder: Path) -> LiveModel:
    """Load a model as evomerge does."""
    return LiveModel(folder, tensors_of(folder), torch.device("cpu"))


def byte_level_tokenizer(text: str, size: int = 300) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, as GPT-2's: a space is part of the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")  # noqa: S106
