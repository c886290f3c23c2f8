"""Modules of models with several stacks of layers, and the configurations of what is sliced."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import CheckpointError, InputError, RecipeError
from tests.test_assembly import config_of, parts_of, passthrough
from tests.tiny_models import CONFIG, Tensors, opened, write_checkpoint, write_family

SEEING = {"text_config": {"num_hidden_layers": 2, "layer_types": ["x", "y"]},
          "vision_config": {"num_hidden_layers": 2, "layer_types": ["u", "v"]},
          "eos_token_id": [1, 2], "model_type": "seeing"}  # fmt: skip


def write_seeing(folder: Path, seed: int) -> Path:
    """A model of two stacks, of two layers each, and a projector."""
    draw = torch.Generator().manual_seed(seed)
    names = ["vision_tower.patch_embed.weight", "vision_tower.post_norm.weight",
             "projector.linear.weight", "language_model.embed_tokens.weight",
             "language_model.norm.weight", "lm_head.weight"]  # fmt: skip
    names += [f"{stack}.{n}.w" for stack in ("vision_tower.blocks", "language_model.layers")
              for n in (0, 1)]  # fmt: skip
    tensors: Tensors = {name: torch.randn(4, 4, generator=draw) for name in names}
    return write_checkpoint(folder, tensors, SEEING)


class TestModules:
    def data(self, folder: Path, **modules: Any) -> dict[str, Any]:
        names = {"language": "language_model", "vision": "vision_tower"}
        named = {names.get(key, key): one for key, one in modules.items()}
        return {"merge_method": "passthrough", "base_model": str(folder / "one"), "modules": named}

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for seed, name in enumerate(("one", "two")):
            write_seeing(tmp_path / name, seed)
        return tmp_path

    def test_each_module_has_its_own_models(self, folder: Path) -> None:
        layers = passthrough(folder, ("two", 1, 2), ("one", 0, 2), ("two", 0, 1))["slices"]
        data = self.data(
            folder,
            vision={"models": [{"model": str(folder / "two")}]},
            language={"slices": layers},
            default={"models": [{"model": str(folder / "one")}]},
        )
        made = {
            name: (Path(part.checkpoints[0].ref.path).name, tensor)
            for part in parts_of(data)
            for name, tensor in part.checkpoints[0].map(part.names).items()
        }
        language = "language_model.layers"
        origins = {
            f"{language}.0.w": ("two", f"{language}.1.w"),
            f"{language}.1.w": ("one", f"{language}.0.w"),
            f"{language}.2.w": ("one", f"{language}.1.w"),
            f"{language}.3.w": ("two", f"{language}.0.w"),
            "language_model.embed_tokens.weight": ("two", "language_model.embed_tokens.weight"),
            "language_model.norm.weight": ("two", "language_model.norm.weight"),
        }
        origins |= {name: ("one", name) for name in ("lm_head.weight", "projector.linear.weight")}
        for name in ("patch_embed.weight", "post_norm.weight", "blocks.0.w", "blocks.1.w"):
            origins[f"vision_tower.{name}"] = ("two", f"vision_tower.{name}")
        assert set(made) == set(origins)
        for name, (model, tensor) in origins.items():
            stored = opened(folder, model)[0].map([tensor])[tensor]
            assert made[name][0] == model
            assert torch.equal(made[name][1], stored)
        config = config_of(data)
        assert config == SEEING | {
            "text_config": {"num_hidden_layers": 4, "layer_types": ["y", "x", "y", "x"]}
        }

    def test_the_longest_name_counts(self, folder: Path) -> None:
        whole = {name: {"models": [{"model": str(folder / name)}]} for name in ("one", "two")}
        modules = {"language_model": whole["two"], "language_model.layers": whole["one"],
                   "default": whole["one"]}  # fmt: skip
        parts = parts_of(self.data(folder, **modules))
        first = {name: Path(part.checkpoints[0].ref.path).name
                 for part in parts for name in part.names}  # fmt: skip
        assert {name for name, model in first.items() if model == "two"} == {
            "language_model.embed_tokens.weight", "language_model.norm.weight",
        }  # fmt: skip

    def test_the_parts_of_a_vision_stack(self, folder: Path) -> None:
        layers = passthrough(folder, ("two", 0, 2), ("one", 1, 2))["slices"]
        rest = {"models": [{"model": str(folder / "one")}]}
        data = self.data(folder, vision={"slices": layers}, default=rest)
        first = {name: Path(part.checkpoints[0].ref.path).name
                 for part in parts_of(data) for name in part.names}  # fmt: skip
        assert first["vision_tower.patch_embed.weight"] == "two"
        assert first["vision_tower.post_norm.weight"] == "one"
        config = config_of(data)
        assert config["vision_config"] == {"num_hidden_layers": 3, "layer_types": ["u", "v", "v"]}
        assert config["text_config"] == SEEING["text_config"]

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (["text_decoder", "default"],
             "expected a module of FOLDER/one, which are default, language_model, vision_tower, "
             "language_model.layers, vision_tower.blocks, got 'text_decoder' at modules in test.y"),
            (["text_decoder"], "which are default, language_model, vision_tower"),
            (["language_mode", "default"], "got 'language_mode' at modules"),
            (["language"], "expected modules that cover every tensor, got none for lm_head.weight "
             "at modules in test.yaml; add 'default', which takes what the others leave"),
        ],
    )  # fmt: skip
    def test_modules_that_are_not_there(self, folder: Path, names: list[str], words: str) -> None:
        whole = {"models": [{"model": str(folder / "one")}]}
        with pytest.raises(RecipeError, match=re.escape(words.replace("FOLDER", str(folder)))):
            parts_of(self.data(folder, **dict.fromkeys(names, whole)))

    def test_slices_of_two_stacks_need_modules(self, folder: Path) -> None:
        words = (
            f"expected one stack of layers in {folder / 'one'}, got language_model.layers, "
            "vision_tower.blocks at slices in test.yaml; name each under modules"
        )
        with pytest.raises(RecipeError, match=re.escape(words)):
            parts_of(passthrough(folder, ("one", 0, 1)))


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return write_family(tmp_path / "family")


class TestConfig:
    @pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers"])
    def test_the_number_of_layers(self, family: Path, key: str) -> None:
        own = {name: one for name, one in CONFIG.items() if name != "num_hidden_layers"} | {key: 3}
        (family / "a" / "config.json").write_text(json.dumps(own))
        data = passthrough(family, ("a", 0, 3), ("a", 1, 3))
        assert config_of(data) == own | {key: 5}

    def test_lists_of_layers(self, family: Path) -> None:
        for name in "ab":
            own = {"layer_types": [f"{name}{n}" for n in range(3)], "eos_token_id": [1, 2, 3],
                   "mlp_only_layers": []}  # fmt: skip
            (family / name / "config.json").write_text(json.dumps(CONFIG | own))
        found = config_of(passthrough(family, ("a", 2, 3), ("b", 0, 2), ("c", 1, 2)))
        assert found["layer_types"] == ["a2", "b0", "b1", "a1"]  # c has none of its own
        assert (found["eos_token_id"], found["mlp_only_layers"]) == ([1, 2, 3], [])
        assert found["num_hidden_layers"] == 4

    def test_an_order_of_as_many_layers(self, family: Path) -> None:
        own = CONFIG | {"layer_types": ["x", "y", "z"]}
        (family / "a" / "config.json").write_text(json.dumps(own))
        found = config_of(passthrough(family, ("a", 2, 3), ("a", 0, 2)))
        assert found == own | {"layer_types": ["z", "x", "y"]}

    def test_no_number_of_layers(self, family: Path) -> None:
        (family / "a" / "config.json").write_text(json.dumps({"model_type": "odd", "layers": 7}))
        assert config_of(passthrough(family, ("a", 2, 3), ("a", 0, 2)))["layers"] == 7
        with pytest.raises(CheckpointError, match=r"the number of layers, 3, as num_hidden_layers"):
            config_of(passthrough(family, ("a", 0, 3), ("a", 1, 3)))

    def test_an_entry_that_no_configuration_has(self, family: Path) -> None:
        (family / "a" / "config.json").write_text(json.dumps(CONFIG | {"layer_types": ["x"] * 3}))
        tensors = dict(opened(family, "b")[0].map(opened(family, "b")[0].tensors))
        for name in [name for name in tensors if ".layers.2." in name]:
            tensors[name.replace(".2.", ".3.")] = tensors[name].clone()
        write_checkpoint(family / "tall", tensors, CONFIG | {"num_hidden_layers": 4})
        with pytest.raises(InputError, match=r"an entry of layer_types for model.layers.3, got 3"):
            config_of(passthrough(family, ("a", 0, 3), ("tall", 3, 4)))
