"""LoRA adapters applied as tensors are read: against float64 by hand, and against PEFT."""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints import Checkpoint, ModelRef, open_checkpoint
from evomerge.errors import CheckpointError, Place
from tests.tiny_adapters import PREFIX, by_hand, factors, write_adapter
from tests.tiny_models import (
    Tensors,
    base_weights,
    merged,
    recipe_of,
    write_checkpoint,
    write_family,
)

PLACE = Place("study.yaml", CheckpointError, "models.base")
LAYER = "model.layers.1."
Q, K, UP = f"{LAYER}self_attn.q_proj", f"{LAYER}self_attn.k_proj", f"{LAYER}mlp.up_proj"
SHAPES = {Q: (20, 20), K: (10, 20), UP: (27, 20)}
EMBED = "model.embed_tokens"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", base_weights())


def open_(base: Path, adapter: Path) -> Checkpoint:
    return open_checkpoint(ModelRef(str(base), None, ModelRef(str(adapter))), PLACE)


def read(base: Path, adapter: Path) -> Tensors:
    checkpoint = open_(base, adapter)
    found = dict(checkpoint.read(checkpoint.tensors))
    mapped = checkpoint.map(checkpoint.tensors)
    assert list(mapped) == list(checkpoint.tensors)
    for name, info in checkpoint.tensors.items():
        assert torch.equal(mapped[name], found[name])
        assert mapped[name].is_contiguous()
        assert tuple(found[name].shape) == info.shape
    return found


def unchanged(found: Tensors, origin: Tensors, *but: str) -> bool:
    return all(torch.equal(found[name], origin[name]) for name in origin if name not in but)


class TestArithmetic:
    def test_by_hand(self, tmp_path: Path) -> None:
        """W [2, 3] + 4 / 2 · B [2, 2] · A [2, 3]."""
        weight = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
        base = write_checkpoint(tmp_path / "base", {"x.weight": weight}, {"model_type": "x"})
        tensors = {
            f"{PREFIX}x.lora_A.weight": torch.tensor([[1.0, 0, 2], [0, 1, 1]]),
            f"{PREFIX}x.lora_B.weight": torch.tensor([[1.0, 2], [3, 0]]),
        }
        adapter = write_adapter(tmp_path / "lora", tensors, r=2, lora_alpha=4)
        assert read(base, adapter)["x.weight"].tolist() == [[3, 6, 11], [10, 5, 18]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("dora", [False, True])
    @pytest.mark.parametrize("stable", [False, True])
    def test_against_float64(
        self, tmp_path: Path, dtype: torch.dtype, dora: bool, stable: bool
    ) -> None:
        origin = {name: tensor.to(dtype) for name, tensor in base_weights().items()}
        base = write_checkpoint(tmp_path / "base", origin)
        tensors = factors(SHAPES, dora=dora)
        adapter = write_adapter(tmp_path / "lora", tensors, use_dora=dora, use_rslora=stable)
        found = read(base, adapter)
        for module in SHAPES:
            name = f"{module}.weight"
            right = by_hand(origin[name], tensors, module, 5 / (math.sqrt(3) if stable else 3))
            assert found[name].dtype == dtype
            assert torch.equal(found[name], right.to(dtype))
            assert not torch.equal(found[name], origin[name])
        assert unchanged(found, origin, *(f"{module}.weight" for module in SHAPES))

    def test_large_tensors_are_computed_in_parts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = write_checkpoint(tmp_path / "base", base_weights())
        tensors = factors(SHAPES, dora=True)
        adapter = write_adapter(tmp_path / "lora", tensors, use_dora=True)
        whole = read(base, adapter)
        for chunk in (1, 20, 77):
            monkeypatch.setattr("evomerge.adapters._CHUNK", chunk)
            parts = read(base, adapter)
            assert all(torch.equal(parts[name], whole[name]) for name in whole)

    @pytest.mark.parametrize("dora", [False, True])
    def test_layers_stored_transposed(self, tmp_path: Path, dora: bool) -> None:
        """As in GPT-2, whose files leave out the prefix too."""
        shapes = {"transformer.h.0.c_attn": (60, 20), "transformer.h.0.c_proj": (20, 20)}
        origin = {
            f"{module.removeprefix('transformer.')}.weight": torch.randn(shape[::-1])
            for module, shape in shapes.items()
        }
        base = write_checkpoint(tmp_path / "base", origin, {"model_type": "gpt2"})
        tensors = factors(shapes, dora=dora)
        config = {"use_dora": dora, "fan_in_fan_out": True}
        found = read(base, write_adapter(tmp_path / "lora", tensors, **config))
        for (module, _), name in zip(shapes.items(), origin, strict=True):
            right = by_hand(origin[name].T, tensors, module, 5 / 3).T
            torch.testing.assert_close(found[name].double(), right, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("said", [False, True])
    def test_square_layers_alone(self, base: Path, tmp_path: Path, said: bool) -> None:
        tensors = factors({Q: (20, 20)})
        found = read(base, write_adapter(tmp_path / "lora", tensors, fan_in_fan_out=said))
        weight = base_weights()[f"{Q}.weight"]
        right = by_hand(weight.T if said else weight, tensors, Q, 5 / 3)
        assert torch.equal(found[f"{Q}.weight"], (right.T if said else right).float())

    def test_square_layers_are_as_the_others(self, base: Path, tmp_path: Path) -> None:
        """A configuration that says `fan_in_fan_out` of linear layers is mistaken; PEFT warns."""
        tensors = factors(SHAPES)
        right = read(base, write_adapter(tmp_path / "lora", tensors))
        other = write_adapter(tmp_path / "other", tensors, fan_in_fan_out=True)
        assert unchanged(read(base, other), right)

    def test_patterns(self, base: Path, tmp_path: Path) -> None:
        """The first that fits the end of a module's name counts, as in PEFT."""
        tensors = factors({Q: (20, 20)}, 2) | factors({K: (10, 20)}, 5) | factors({UP: (27, 20)}, 3)
        adapter = write_adapter(
            tmp_path / "lora",
            tensors,
            rank_pattern={"q_proj": 2, "roj": 9, r"layers\.[1-9]\..*k_proj": 5, "k_proj": 7},
            alpha_pattern={"^model.layers.1.mlp.up_proj": 7.5, "1.self_attn.q_proj": 11},
        )
        found = read(base, adapter)
        for module, scale in {Q: 11 / 2, K: 5 / 5, UP: 7.5 / 3}.items():
            right = by_hand(base_weights()[f"{module}.weight"], tensors, module, scale)
            assert torch.equal(found[f"{module}.weight"], right.float())

    def test_embeddings(self, base: Path, tmp_path: Path) -> None:
        """PEFT stores them the other way round, and the base's own beside the update."""
        origin = base_weights()[f"{EMBED}.weight"]
        tensors = {
            f"{PREFIX}{EMBED}.lora_embedding_A": torch.randn(3, 131),
            f"{PREFIX}{EMBED}.lora_embedding_B": torch.randn(20, 3),
        }
        found = read(base, write_adapter(tmp_path / "lora", tensors))[f"{EMBED}.weight"]
        a, b = (one.double() for one in tensors.values())
        torch.testing.assert_close(found.double(), origin + 5 / 3 * (b @ a).T)
        tensors[f"{PREFIX}{EMBED}.base_layer.weight"] = origin + 1
        moved = read(base, write_adapter(tmp_path / "other", tensors))[f"{EMBED}.weight"]
        torch.testing.assert_close(moved, found + 1)

    @pytest.mark.parametrize(
        "key", ["lm_head.weight", "lm_head.modules_to_save.weight",
                "lm_head.modules_to_save.default.weight"]
    )  # fmt: skip
    def test_modules_to_save(self, tmp_path: Path, key: str) -> None:
        stored = {name: tensor.bfloat16() for name, tensor in base_weights().items()}
        base = write_checkpoint(tmp_path / "base", stored)
        head = torch.randn(131, 20)
        tensors = factors(SHAPES) | {f"{PREFIX}{key}": head}
        if "default" in key:
            tensors[f"{PREFIX}lm_head.original_module.weight"] = torch.zeros(131, 20)
        found = read(base, write_adapter(tmp_path / "lora", tensors, modules_to_save=["lm_head"]))
        assert torch.equal(found["lm_head.weight"], head.bfloat16())

    def test_names_of_other_versions(self, base: Path, tmp_path: Path) -> None:
        tensors = factors(SHAPES, dora=True)
        right = read(base, write_adapter(tmp_path / "lora", tensors, use_dora=True))
        renamed = {
            name.removeprefix(PREFIX).replace("_A.weight", "_A.default.weight")
            + (".default.weight" if name.endswith("vector") else ""): tensor
            for name, tensor in tensors.items()
        }
        found = read(base, write_adapter(tmp_path / "other", renamed, use_dora=True))
        assert unchanged(found, right)

    def test_a_bin_file(self, base: Path, tmp_path: Path) -> None:
        tensors = factors(SHAPES)
        adapter = write_adapter(tmp_path / "lora", tensors)
        right = read(base, adapter)
        (adapter / "adapter_model.safetensors").unlink()
        torch.save(tensors, adapter / "adapter_model.bin")
        assert unchanged(read(base, adapter), right)

    def test_threads_do_not_show(self, tmp_path: Path) -> None:
        shape = (700, 900)
        base = write_checkpoint(
            tmp_path / "base", {"x.weight": torch.randn(shape).bfloat16()}, {"model_type": "x"}
        )
        write_adapter(tmp_path / "lora", factors({"x": shape}, 16), r=16)
        code = (
            "import sys, torch, xxhash\ntorch.set_num_threads(int(sys.argv[1]))\n"
            "from tests.test_adapters import open_, Path\n"
            f"one = open_(Path({str(base)!r}), Path({str(tmp_path / 'lora')!r}))\n"
            "bits = dict(one.read(['x.weight']))['x.weight'].view(torch.int16).numpy()\n"
            "print(xxhash.xxh3_64_hexdigest(bits.tobytes()))\n"
        )
        runs = [
            subprocess.run([sys.executable, "-c", code, threads], capture_output=True, check=True)
            for threads in ("1", "2")
        ]
        assert runs[0].stdout == runs[1].stdout != b""


def test_the_adapter_is_read_lazily(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", factors(SHAPES))
    checkpoint = open_(base, adapter)
    (adapter / "adapter_model.safetensors").unlink()
    assert dict(checkpoint.read(["model.norm.weight"]))
    for get in (lambda: dict(checkpoint.read([f"{Q}.weight"])),
                lambda: checkpoint.map([f"{Q}.weight"])[f"{Q}.weight"]):  # fmt: skip
        with pytest.raises(CheckpointError, match=r"cannot read the tensors of .*adapter_model"):
            get()


def test_opening_imports_no_torch(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", factors(SHAPES))
    code = (
        "import sys\nfrom evomerge.checkpoints import ModelRef, open_checkpoint\n"
        "from evomerge.errors import CheckpointError, Place\n"
        "place = Place('x', CheckpointError)\n"
        f"open_checkpoint(ModelRef.parse({f'{base}+{adapter}'!r}, place), place)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_merge_of_adapters_is_the_merge_of_the_models_with_them(tmp_path: Path) -> None:
    family = write_family(tmp_path, torch.bfloat16)
    experts: dict[str, dict[str, Any]] = {}
    whole: dict[str, dict[str, Any]] = {}
    for seed, name in enumerate("ab"):
        lora = write_adapter(tmp_path / f"lora-{name}", factors(SHAPES, seed=seed))
        write_checkpoint(tmp_path / f"whole-{name}", read(family / "base", lora))
        experts[f"base+{lora}"] = whole[f"whole-{name}"] = {"weight": 0.5 + seed}
    fields = {"base_model": "base", "dtype": "bfloat16", "parameters": {"density": 0.4}}
    found = merged(recipe_of(family, "ties", models=experts, **fields))
    right = merged(recipe_of(family, "ties", models=whole, **fields))
    assert unchanged(found, right)
    assert not unchanged(found, read(family / "base", tmp_path / "lora-a"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {
            "rank_pattern": {"q_proj": 2, r"1\.mlp.*": 5},
            "alpha_pattern": {"layers.[01].*v_proj": 3},
        },
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
    ],
)
def test_as_peft_merges(
    base: Path, tmp_path: Path, options: dict[str, Any], dtype: torch.dtype
) -> None:
    """Within two roundings of the storage dtype: PEFT rounds the product and then the sum."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    stored = {name: tensor.to(dtype) for name, tensor in base_weights().items()}
    write_checkpoint(base, stored)
    targets = {"r": 4, "lora_alpha": 9, "target_modules": ["q_proj", "v_proj", "up_proj"]}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **(targets | options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), config)
        draw = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = 0.3 * torch.randn(parameter.shape, generator=draw)
                parameter.data += noise.to(parameter.dtype)
        model.save_pretrained(tmp_path / "lora")
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        merged = peft.PeftModel.from_pretrained(plain, tmp_path / "lora").merge_and_unload()
    found = read(base, tmp_path / "lora")
    assert json.loads((tmp_path / "lora/adapter_config.json").read_text())["peft_type"] == "LORA"
    assert not unchanged(found, stored)
    for name, right in merged.state_dict().items():
        largest = right.double().abs().max().item()
        torch.testing.assert_close(
            found[name], right, rtol=0, atol=2 * torch.finfo(dtype).eps * largest
        )
