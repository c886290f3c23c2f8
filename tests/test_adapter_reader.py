"""Adapters that cannot be applied to a model: each is refused in one sentence."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints import Checkpoint, ModelRef, open_checkpoint
from evomerge.errors import CheckpointError, Place
from tests.tiny_adapters import PREFIX, factors, write_adapter
from tests.tiny_models import CONFIG, base_weights, write_checkpoint

PLACE = Place("study.yaml", CheckpointError, "models.base")
LAYER = "model.layers.1."
Q, UP = f"{LAYER}self_attn.q_proj", f"{LAYER}mlp.up_proj"
SHAPES = {Q: (20, 20), UP: (27, 20)}
EMBED = "model.embed_tokens"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", base_weights())


def open_(base: Path, adapter: Path) -> Checkpoint:
    return open_checkpoint(ModelRef(str(base), None, ModelRef(str(adapter))), PLACE)


def refused(base: Path, adapter: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        open_(base, adapter)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()
    assert str(adapter) in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LOHA"}, "expected a LoRA adapter, got peft_type 'LOHA' in .*PEFT fi"),
        ({"peft_type": None}, "expected a LoRA adapter, got peft_type None"),
        ({"bias": "all"}, "expected an adapter without biases, got bias: all"),
        ({"bias": 3}, "expected an adapter without biases, got bias: 3"),
        ({"use_qalora": True}, "expected plain LoRA or DoRA, got use_qalora: True"),
        ({"target_parameters": ["experts"]}, "got target_parameters: .*experts"),
        ({"trainable_token_indices": [1]}, "got trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "got layer_replication"),
        ({"lora_bias": True}, "got lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa, which changed them"),
        ({"init_lora_weights": "pissa_niter_4"}, "save it again with PEFT's path_initial"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights: loftq"),
        ({"r": 0}, "expected a whole number from 1 as r, got 0"),
        ({"r": True}, "expected a whole number from 1 as r, got True"),
        ({"r": "3"}, "expected a whole number from 1 as r, got 3"),
        ({"r": 2.5}, "expected a whole number from 1 as r, got 2.5"),
        ({"r": 4}, r"expected rank 4 for .* as adapter_config.json says, got \[3, 20\]"),
        ({"lora_alpha": None}, "expected a number as lora_alpha, got None"),
        ({"lora_alpha": math.nan}, "expected a number as lora_alpha, got nan"),
        ({"lora_alpha": math.inf}, "expected a number as lora_alpha, got inf"),
        ({"rank_pattern": {"q_proj": 2}}, f"expected rank 2 for {Q}"),
        ({"rank_pattern": {"q_proj": 0}}, "whole number from 1 as rank_pattern"),
        ({"rank_pattern": ["q_proj"]}, "expected a mapping as rank_pattern"),
        ({"alpha_pattern": {"(": 1}}, "expected regular expressions in alpha_pattern"),
        ({"alpha_pattern": {"q": "x"}}, "expected a number as alpha_pattern.'q'., got x"),
        ({"use_dora": True}, "expected lora_A, lora_B, lora_magnitude_vector for .*, got"),
        ({"use_rslora": "yes"}, "expected true or false as use_rslora, got yes"),
    ],
)  # fmt: skip
def test_configurations(base: Path, tmp_path: Path, config: dict[str, Any], words: str) -> None:
    refused(base, write_adapter(tmp_path / "lora", factors(SHAPES), **config), words)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"r": 1, "r": 2}', None])
def test_no_configuration(base: Path, tmp_path: Path, content: str | None) -> None:
    adapter = write_adapter(tmp_path / "lora", factors(SHAPES))
    file = adapter / "adapter_config.json"
    file.unlink() if content is None else file.write_text(content)
    refused(base, adapter, r"expected (JSON|a JSON object|adapter_config.json in)")


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        (f"{Q}.lora_B.weight", None, f"expected lora_A, lora_B for {Q}, got lora_A in"),
        (f"{Q}.lora_A.weight", None, f"expected lora_A, lora_B for {Q}, got lora_B in"),
        (f"{Q}.lora_embedding_A", (3, 20), "expected lora_embedding_A, lora_embedding_B"),
        (f"{Q}.lora_magnitude_vector", (20,), f"expected lora_A, lora_B for {Q}, got"),
        (f"{Q}.lora_B.bias", (20,), f"got {PREFIX}{Q}.lora_B.bias, which fits none of them"),
        (f"{Q}.lora_diag", (3,), f"got {PREFIX}{Q}.lora_diag, which fits none of them"),
        ("model.layers.9.mlp.up_proj.lora_A.weight", (3, 20), "layers.9.*fits none of them"),
        ("token_adapter.trainable_tokens_delta", (3, 20), "fits none of them"),
        (f"{Q}.lora_A.default.weight", (3, 20), "expected one of .* and .*, got both"),
        ("model.layers.1.mlp.up_proj.lora_A.weight", (3, 21), f"what fits {UP}.weight"),
        (f"{UP}.lora_B.weight", (26, 3), f"expected what fits {UP}.weight, F32 .27, 20.*model"),
        (f"{UP}.lora_A.weight", (3, 27), f"expected what fits {UP}.weight"),
        (f"{UP}.lora_B.weight", (27, 2), f"expected rank 3 for {UP}"),
        (f"{UP}.lora_B.weight", (27, 3, 1, 1), f"expected what fits {UP}.weight"),
        ("lm_head.weight", (130, 20), "expected what fits lm_head.weight, F32 .131, 20., got"),
        ("lm_head", (130, 20), "got base_model.model.lm_head, which fits none of them"),
    ],
)  # fmt: skip
def test_tensors(
    base: Path, tmp_path: Path, key: str, shape: tuple[int, ...] | None, words: str
) -> None:
    tensors = factors(SHAPES)
    if shape is None:
        del tensors[PREFIX + key]
    else:
        tensors[PREFIX + key] = torch.zeros(shape)
    refused(base, write_adapter(tmp_path / "lora", tensors), words)


def test_whole_numbers(base: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.int() for name, tensor in factors(SHAPES).items()}
    refused(base, write_adapter(tmp_path / "lora", tensors), "got I32 .* for .*lora_A")


def test_dora_shapes(base: Path, tmp_path: Path) -> None:
    tensors = factors(SHAPES, dora=True)
    tensors[f"{PREFIX}{UP}.lora_magnitude_vector"] = torch.ones(20)
    adapter = write_adapter(tmp_path / "lora", tensors, use_dora=True)
    refused(base, adapter, r"got F32 \[20\] for .*up_proj.lora_magnitude_vector")
    tensors = {
        f"{PREFIX}{EMBED}.lora_embedding_A": torch.ones(3, 131),
        f"{PREFIX}{EMBED}.lora_embedding_B": torch.ones(20, 3),
        f"{PREFIX}{EMBED}.lora_magnitude_vector": torch.ones(131),
    }
    adapter = write_adapter(tmp_path / "embed", tensors, use_dora=True)
    refused(base, adapter, "expected DoRA of linear layers alone")


def test_transposed_layers_of_a_configuration_that_has_none(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", factors({UP: (20, 27)}))
    refused(base, adapter, rf"expected what fits {UP}.weight, F32 \[27, 20\], got F32 \[3, 27\]")
    write_adapter(tmp_path / "lora", factors({UP: (20, 27)}), fan_in_fan_out=True)
    assert open_(base, adapter)


def test_tied_embeddings(tmp_path: Path) -> None:
    """Merged, the update would reach the head, which it was not trained for."""
    weights = base_weights()
    del weights["lm_head.weight"]
    base = write_checkpoint(tmp_path / "t", weights, CONFIG | {"tie_word_embeddings": True})
    tensors = {f"{PREFIX}{EMBED}.weight": torch.ones(131, 20)}
    adapter = write_adapter(tmp_path / "lora", tensors)
    refused(base, adapter, "expected an adapter that leaves tied embeddings alone")
    assert open_(base, write_adapter(tmp_path / "other", factors(SHAPES)))


@pytest.mark.parametrize("left", [[], ["adapter_model.safetensors"]])
def test_files(base: Path, tmp_path: Path, left: list[str]) -> None:
    adapter = write_adapter(tmp_path / "lora", factors(SHAPES))
    file = adapter / "adapter_model.safetensors"
    if left:
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    words = "expected a whole safetensors" if left else "expected adapter_model.safetensors or"
    refused(base, adapter, words)


def test_nothing_in_it(base: Path, tmp_path: Path) -> None:
    refused(base, write_adapter(tmp_path / "lora", {}), "expected LoRA tensors, got none")


def test_a_model_in_its_place(base: Path) -> None:
    refused(base, base, "expected adapter_config.json in .*, got no such file")


def test_no_folder(base: Path) -> None:
    with pytest.raises(CheckpointError, match=r"got /gone, which does not exist at models"):
        open_(base, Path("/gone"))
