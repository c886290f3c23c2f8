"""Tiny random models of many families, saved as their libraries save them: a base and two experts.

The layers of a family may be called otherwise in the files than in the live model; `Stack` says
both names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

Config = Callable[[], Any]
_SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_TEXT: dict[str, Any] = _SIZES | {"num_key_value_heads": 2}
_WIDE: dict[str, Any] = _TEXT | {"head_dim": 8}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}
_NO_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
EMBEDDINGS = ("embed_tokens.",)


@dataclass(frozen=True)
class Stack:
    """A stack of layers that can be sliced, and where the configuration counts them.

    `before` are parts of the names of what precedes the layers.
    """

    name: str = "model.layers"
    live: str = ""  # in the model, where that is another name
    count: tuple[str, ...] = ("num_hidden_layers",)
    before: tuple[str, ...] = EMBEDDINGS
    module: str = ""  # as recipes name it, where the model has several stacks
    first_stays: bool = False  # the first layer is of another kind than all others


@dataclass(frozen=True)
class Family:
    """How a family's models are made, saved, run and sliced."""

    config: Config
    model: Any = hf.AutoModelForCausalLM
    stacks: tuple[Stack, ...] = (Stack(),)
    dtype: torch.dtype = torch.float32
    sharded: bool = False
    inputs: Callable[[], Mapping[str, torch.Tensor]] = lambda: {"input_ids": _tokens()}


def _tokens() -> torch.Tensor:
    return torch.arange(10, 20).repeat(2, 1)


def _pixels() -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 8 * 8).sin().reshape(2, 3, 8, 8)


def _seen() -> dict[str, torch.Tensor]:
    """Two prompts of an image each; token 5 stands for one patch."""
    tokens = torch.cat([torch.full((2, 4), 5), _tokens()], dim=1)
    return {"input_ids": tokens, "pixel_values": _pixels()}


def _heard() -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 8 * 32).sin().reshape(2, 8, 32)


def _decoded(**encoded: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**encoded, "decoder_input_ids": _tokens()[:, :4]}


def _read_and_seen() -> dict[str, torch.Tensor]:
    return {"input_ids": _tokens(), "pixel_values": _pixels()}


def _t5(**own: Any) -> Any:
    sizes = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 3}
    return hf.T5Config(**sizes, num_heads=4, decoder_start_token_id=0, **own)


def _gpt2(**own: Any) -> Any:
    return hf.GPT2Config(
        vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=64, **_NO_IDS, **own
    )


def _opt(**own: Any) -> Any:
    return hf.OPTConfig(
        vocab_size=61, hidden_size=32, ffn_dim=40, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=1, **({"word_embed_proj_dim": 32} | _NO_IDS | own),
    )  # fmt: skip


def _falcon(**own: Any) -> Any:
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    return hf.FalconConfig(**sizes, **_NO_IDS, **own)


def _whisper() -> Any:
    return hf.WhisperConfig(
        vocab_size=61, d_model=32, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=40, num_mel_bins=8,
        max_source_positions=16, max_target_positions=32, decoder_start_token_id=1, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, begin_suppress_tokens=None,
    )  # fmt: skip


def _clip() -> Any:
    text = _SIZES | {"bos_token_id": 1, "eos_token_id": 2}
    return hf.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16)


def _llava() -> Any:
    return hf.LlavaConfig(
        text_config=hf.LlamaConfig(**_TEXT), vision_config=hf.CLIPVisionConfig(**_VISION),
        image_token_index=5,
    )  # fmt: skip


def _gemma3() -> Any:
    return hf.Gemma3Config(
        text_config=_WIDE | {"sliding_window": 4}, vision_config=_VISION, mm_tokens_per_image=4,
        image_token_index=5, boi_token_index=6, eoi_token_index=7,
    )  # fmt: skip


def _tower(module: str, name: str, part: str, before: tuple[str, ...], live: str = "") -> Stack:
    return Stack(name, live, (f"{part}_config", "num_hidden_layers"), before, module)


_BLOCKS = (Stack("transformer.h", before=("wte.", "wpe."), count=("n_layer",)),)
_NEOX = (Stack("gpt_neox.layers", before=("embed_in.",)),)
_OPT = (Stack("model.decoder.layers", before=("decoder.embed_", "decoder.project_in.")),)
_T5 = tuple(
    Stack(f"{part}.block", count=(count,), before=(), module=part, first_stays=True)
    for part, count in (("encoder", "num_layers"), ("decoder", "num_decoder_layers"))
)
_WHISPER = tuple(
    Stack(f"model.{part}.layers", count=(f"{part}_layers",), before=before, module=f"model.{part}")
    for part, before in (
        ("encoder", ("encoder.embed_positions.", "encoder.conv1.", "encoder.conv2.")),
        ("decoder", ("decoder.embed_tokens.", "decoder.embed_positions.")),
    )
)
_LANGUAGE = _tower(
    "language_model", "language_model.model.layers", "text", EMBEDDINGS,
    live="model.language_model.layers",
)  # fmt: skip
_SIGHT = _tower(
    "vision_tower", "vision_tower.encoder.layers", "vision",
    ("vision_tower.embeddings.", "vision_tower.pre_layrnorm."),
    live="model.vision_tower.encoder.layers",
)  # fmt: skip
_CLIP = (
    _tower("text_model", "text_model.encoder.layers", "text", ("text_model.embeddings.",)),
    _tower(
        "vision_model", "vision_model.encoder.layers", "vision",
        ("vision_model.embeddings.", "vision_model.pre_layrnorm."),
    ),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama": Family(
        lambda: hf.LlamaConfig(**_TEXT, attention_bias=True, mlp_bias=True), sharded=True
    ),
    "llama, tied": Family(
        lambda: hf.LlamaConfig(**_TEXT, tie_word_embeddings=True), dtype=torch.bfloat16
    ),
    "mistral": Family(lambda: hf.MistralConfig(**_TEXT, tie_word_embeddings=False)),
    "qwen2": Family(lambda: hf.Qwen2Config(**_TEXT, tie_word_embeddings=True), sharded=True),
    "qwen2, untied": Family(
        lambda: hf.Qwen2Config(
            **_TEXT, tie_word_embeddings=False, use_sliding_window=True, sliding_window=4,
            max_window_layers=1,
        )
    ),
    "qwen3": Family(
        lambda: hf.Qwen3Config(**_WIDE, tie_word_embeddings=False), dtype=torch.float16
    ),
    "gemma2": Family(lambda: hf.Gemma2Config(**_WIDE, sliding_window=4), dtype=torch.bfloat16),
    "gemma3": Family(lambda: hf.Gemma3TextConfig(**_WIDE, sliding_window=4), sharded=True),
    "gemma3 that sees": Family(
        _gemma3, hf.Gemma3ForConditionalGeneration, (_LANGUAGE, _SIGHT), inputs=_seen
    ),
    "phi3": Family(lambda: hf.Phi3Config(**_TEXT, tie_word_embeddings=False)),
    "gpt2": Family(_gpt2, stacks=_BLOCKS),
    "gpt2, untied": Family(
        lambda: _gpt2(tie_word_embeddings=False), stacks=_BLOCKS, sharded=True
    ),
    "gpt_neox": Family(lambda: hf.GPTNeoXConfig(**_SIZES), stacks=_NEOX),
    "gpt_neox, tied": Family(
        lambda: hf.GPTNeoXConfig(**_SIZES, tie_word_embeddings=True), stacks=_NEOX
    ),
    "opt": Family(_opt, stacks=_OPT, dtype=torch.float16),
    "opt of projected embeddings": Family(
        lambda: _opt(word_embed_proj_dim=16, do_layer_norm_before=False), stacks=_OPT
    ),
    "falcon": Family(
        lambda: _falcon(bias=True, alibi=False),
        stacks=(Stack("transformer.h", before=("word_embeddings.",)),),
    ),
    "mixtral": Family(
        lambda: hf.MixtralConfig(**_TEXT, num_local_experts=3, num_experts_per_tok=2), sharded=True
    ),
    "qwen3_moe": Family(
        lambda: hf.Qwen3MoeConfig(
            **_WIDE, moe_intermediate_size=16, num_experts=3, num_experts_per_tok=2,
            mlp_only_layers=[0],
        )
    ),
    "bert": Family(
        lambda: hf.BertConfig(**_SIZES),
        hf.BertForMaskedLM,
        (Stack("bert.encoder.layer", before=("bert.embeddings.",)),),
    ),
    "roberta": Family(
        lambda: hf.RobertaConfig(**(_SIZES | {"pad_token_id": 1})),
        hf.RobertaForSequenceClassification,
        (Stack("roberta.encoder.layer", before=("roberta.embeddings.",)),),
        sharded=True,
    ),
    "vit": Family(
        lambda: hf.ViTConfig(**_VISION),
        hf.ViTForImageClassification,
        (Stack("vit.encoder.layer", "vit.layers", before=("vit.embeddings.",)),),
        inputs=lambda: {"pixel_values": _pixels()},
    ),
    "clip": Family(_clip, hf.CLIPModel, _CLIP, inputs=_read_and_seen),
    "t5": Family(
        _t5, hf.T5ForConditionalGeneration, _T5, inputs=lambda: _decoded(input_ids=_tokens())
    ),
    "t5, untied": Family(
        lambda: _t5(tie_word_embeddings=False, feed_forward_proj="gated-gelu"),
        hf.T5ForConditionalGeneration, _T5, dtype=torch.bfloat16, sharded=True,
        inputs=lambda: _decoded(input_ids=_tokens()),
    ),
    "whisper": Family(
        _whisper, hf.WhisperForConditionalGeneration, _WHISPER,
        inputs=lambda: _decoded(input_features=_heard()),
    ),
    "llava": Family(_llava, hf.LlavaForConditionalGeneration, (_LANGUAGE, _SIGHT), inputs=_seen),
}  # fmt: skip


def build(family: Family, config: Any = None) -> torch.nn.Module:
    """Make a model; its weights are those of its library."""
    config = config or family.config()
    auto = family.model is hf.AutoModelForCausalLM
    model = family.model.from_config(config) if auto else family.model(config)
    found: torch.nn.Module = model.eval()
    return found


def write_models(folder: Path, family: Family) -> dict[str, dict[str, torch.Tensor]]:
    """Write `base`, `a` and `b` below a folder; returns `state_of` each live model."""
    states = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build(family)
        for one in model.parameters():
            one.add_(0.3 * torch.randn_like(one))  # biases too
        base = [one.clone() for one in model.parameters()]
        for name, scale in (("base", 0.0), ("a", 0.02), ("b", 0.02)):
            for one, start in zip(model.parameters(), base, strict=True):
                one.copy_(start + scale * torch.randn_like(start))
            save(model.to(family.dtype), folder / name, family)
            states[name] = state_of(model)
            model.float()
    return states


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy a model's tensors as float32; of tied ones the first, by which the others are set."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        found.setdefault(tensor.data_ptr(), (name, tensor))
    return {name: tensor.clone().float() for name, tensor in found.values()}


def save(model: Any, folder: Path, family: Family) -> None:
    """Save as its library does, in one file or in several."""
    model.save_pretrained(folder, **({"max_shard_size": "30KB"} if family.sharded else {}))


def load(folder: Path, family: Family) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Load a model in float32 as any user would; also what its library says of the names."""
    model, said = family.model.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    return model.eval(), said


@torch.no_grad()
def run(model: Any, family: Family) -> torch.Tensor:
    """What a model makes of the family's inputs, its first output."""
    found: torch.Tensor = model(**family.inputs()).to_tuple()[0]
    return found
