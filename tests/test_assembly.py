"""Which tensors the parts of a sliced recipe are made of, and the configuration that says so."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.assembly import Part, assemble
from evomerge.checkpoints import Checkpoint, ModelRef, open_checkpoint
from evomerge.errors import CheckpointError, RecipeError
from evomerge.layer_config import assembled_config
from evomerge.recipe import resolve
from evomerge.slices import SlicedRecipe, parse_any_recipe
from evomerge.views import view
from tests.tiny_models import CONFIG, PLACE, Tensors, opened, write_checkpoint, write_family

Layers = Sequence[tuple[str, int, int]]


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return write_family(tmp_path / "family")


def passthrough(folder: Path, *layers: tuple[str, int, int], **fields: Any) -> dict[str, Any]:
    slices = [
        {"sources": [{"model": str(folder / name), "layer_range": [first, end]}]}
        for name, first, end in layers
    ]
    return {"merge_method": "passthrough", "slices": slices} | fields


def read(data: Mapping[str, Any]) -> tuple[SlicedRecipe, list[Checkpoint]]:
    recipe = parse_any_recipe(data, PLACE)
    assert isinstance(recipe, SlicedRecipe)
    refs = dict.fromkeys([recipe.donor, *recipe.inputs])
    return recipe, [open_checkpoint(ref, PLACE) for ref in refs]


def _copied(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}  # their file is replaced


def parts_of(data: Mapping[str, Any]) -> list[Part]:
    return assemble(*read(data))


def config_of(data: Mapping[str, Any]) -> dict[str, Any]:
    return assembled_config(*read(data))


class TestViews:
    def test_tensors_by_other_names(self, family: Path) -> None:
        (checkpoint,) = opened(family, "a")
        up, norm = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
        one = view(checkpoint, {"z": up, "y": norm, "x": up})
        assert list(one.tensors) == ["x", "y", "z"]
        assert one.tensors["x"] == checkpoint.tensors[up]
        assert (one.ref, one.config) == (checkpoint.ref, checkpoint.config)
        own = checkpoint.map([up, norm])
        read = list(one.read(["z", "y", "x"]))
        assert sorted(name for name, _ in read) == ["x", "y", "z"]
        for found in (dict(read), one.map(["z", "y", "x"])):
            assert sorted(found) == ["x", "y", "z"]
            assert len(found) == 3
            assert torch.equal(found["x"], own[up])
            assert torch.equal(found["z"], own[up])
            assert torch.equal(found["y"], own[norm])

    def test_of_a_view(self, family: Path) -> None:
        (checkpoint,) = opened(family, "a")
        twice = view(view(checkpoint, {"x": "model.norm.weight"}), {"y": "x"})
        assert [name for name, _ in twice.read(["y"])] == ["y"]
        assert torch.equal(twice.map(["y"])["y"], checkpoint.map(["model.norm.weight"])
                           ["model.norm.weight"])  # fmt: skip


class TestParts:
    def test_a_part_for_the_same_models_in_the_same_roles(self, family: Path) -> None:
        data = passthrough(family, ("a", 0, 2), ("b", 1, 2), ("a", 1, 3))
        of_a, of_b = parts_of(data)
        assert [str(one.ref) for one in of_a.checkpoints] == [str(family / "a")]
        assert {name.split(".")[2] for name in of_b.names} == {"2"}
        layers = {name.split(".")[2] for name in of_a.names if ".layers." in name}
        assert layers == {"0", "1", "3", "4"}
        outside = [name for name in of_a.names if ".layers." not in name]
        assert outside == ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]

    def test_each_tensor_has_its_values(self, family: Path) -> None:
        a, b = ({"model": str(family / name), "layer_range": [0, 3]} for name in "ab")
        curve = [{"filter": "layers.2.mlp", "value": 7}, {"value": [0.0, 1.0]}]
        data = {
            "merge_method": "linear",
            "slices": [
                {"sources": [a | {"parameters": {"weight": curve}}, b]},
                {"sources": [a | {"layer_range": [2, 3], "parameters": {"weight": curve}},
                             b | {"layer_range": [0, 1]}],
                 "parameters": {"weight": [{"filter": "layers.0.mlp", "value": 5}]}},
            ],
            "parameters": {"weight": 0.5, "normalize": [{"filter": "layers.3", "value": False}]},
        }  # fmt: skip
        (part,) = parts_of(data)
        table = resolve(part.recipe, part.names)
        weight = {name: tuple(table["weight"][:, at]) for at, name in enumerate(part.names)}
        up, norm = "mlp.up_proj.weight", "input_layernorm.weight"
        assert weight["model.embed_tokens.weight"] == weight["lm_head.weight"] == (0, 0.5)
        assert weight[f"model.layers.1.{up}"] == weight[f"model.layers.1.{norm}"] == (0.5, 0.5)
        assert weight[f"model.layers.2.{up}"] == (7, 0.5)
        assert weight[f"model.layers.2.{norm}"] == (1, 0.5)
        assert weight[f"model.layers.3.{up}"] == (7, 5)  # by the names 2 and 0 of the sources
        assert weight[f"model.layers.3.{norm}"] == (1, 0.5)
        normalize = dict(zip(part.names, table["normalize"], strict=True))
        assert {name for name, one in normalize.items() if not one} == {
            name for name in part.names if ".layers.3." in name
        }  # by the name in the result

    def test_the_base_is_the_pattern_wherever_it_is_listed(self, family: Path) -> None:
        """Integers and the kinds of layers are those of the base."""
        for number, name in enumerate(("a", "base")):
            tensors = dict(opened(family, name)[0].map(opened(family, name)[0].tensors))
            tensors["model.layers.0.count"] = torch.tensor([number])
            kinds = {"layer_types": [name] * 3}
            write_checkpoint(family / name, _copied(tensors), CONFIG | kinds)
        sources = [{"model": str(family / name), "layer_range": [0, 1]} for name in ("a", "base")]
        data = {"merge_method": "slerp", "base_model": str(family / "base"),
                "slices": [{"sources": sources}], "parameters": {"t": 0.5}}  # fmt: skip
        (part,) = parts_of(data)
        count = "model.layers.0.count"
        assert int(part.checkpoints[0].map([count])[count]) == 1
        assert config_of(data)["layer_types"] == ["base"]

    def test_seeds_of_slices_are_parts_of_their_own(self, family: Path) -> None:
        sources = [{"model": str(family / name), "layer_range": [0, 1]} for name in ("base", "a")]
        slices = [{"sources": sources, "parameters": {"seed": seed}} for seed in (1, 2, 1)]
        data = {"merge_method": "dare_ties", "base_model": str(family / "base"), "slices": slices,
                "parameters": {"weight": 1}}  # fmt: skip
        assert [part.recipe.parameters["seed"] for part in parts_of(data)] == [1, 2]

    @pytest.mark.parametrize(
        ("layers", "words"),
        [
            ([("a", 0, 4)], "expected layer_range within the 3 layers of FOLDER/a, got [0, 4] at "
             "slices[0].sources[0].layer_range in test.yaml"),
            ([("a", 0, 3), ("b", 7, 9)], "got [7, 9] at slices[1].sources[0].layer_range"),
        ],
    )  # fmt: skip
    def test_layers_that_are_not_there(self, family: Path, layers: Layers, words: str) -> None:
        with pytest.raises(RecipeError, match=re.escape(words.replace("FOLDER", str(family)))):
            parts_of(passthrough(family, *layers))

    def test_a_parameter_without_a_value(self, family: Path) -> None:
        a, base = ({"model": str(family / name), "layer_range": [0, 3]} for name in ("a", "base"))
        weight = [{"filter": "layers", "value": 1}]
        slices = [{"sources": [base, a | {"parameters": {"weight": weight}}]}]
        data = {"merge_method": "ties", "base_model": base["model"], "slices": slices}
        with pytest.raises(RecipeError, match=r"value of weight for every tensor, got none for"):
            parts_of(data)

    def test_models_of_other_shapes_and_dtypes(self, family: Path) -> None:
        wide = {name: torch.zeros(3, 3) for name in opened(family, "a")[0].tensors}
        write_checkpoint(family / "wide", wide)
        with pytest.raises(
            CheckpointError, match=r"like those of .*/a, whose .* got \[3, 3\] for "
        ):
            parts_of(passthrough(family, ("a", 0, 1), ("wide", 0, 1)))
        half = {name: one.half() for name, one in opened(family, "a")[0].map(wide).items()}
        write_checkpoint(family / "half", half)
        data = passthrough(family, ("a", 0, 1), ("half", 0, 1))
        with pytest.raises(CheckpointError, match=r"one dtype in all models, got F32 .* and F16"):
            parts_of(data)
        assert len(parts_of(data | {"dtype": "float32"})) == 2

    @pytest.mark.parametrize(
        ("lost", "words"),
        [("model.layers.1.mlp.up_proj.weight",
          r"got none for model.layers.0.mlp.up_proj.weight where it has \[27, 20\]"),
         ("model.norm.weight", r"got none for model.norm.weight where it has \[20\]")],
    )  # fmt: skip
    def test_a_result_that_would_lack_tensors(self, family: Path, lost: str, words: str) -> None:
        tensors = dict(opened(family, "b")[0].map(opened(family, "b")[0].tensors))
        del tensors[lost]
        write_checkpoint(family / "less", tensors)
        with pytest.raises(CheckpointError, match=words):
            parts_of(
                passthrough(family, ("less", 1, 3), base_model=str(family / "a"), dtype="float32")
            )

    def test_constants_of_older_checkpoints_are_no_difference(self, family: Path) -> None:
        tensors = dict(opened(family, "b")[0].map(opened(family, "b")[0].tensors))
        for layer in range(3):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
        write_checkpoint(family / "older", tensors)
        for first, second in (("older", "a"), ("a", "older")):
            assert len(parts_of(passthrough(family, (first, 0, 3), (second, 1, 2)))) == 2

    def test_a_tie_that_models_do_not_share(self, family: Path) -> None:
        tied = dict(opened(family, "a")[0].map(opened(family, "a")[0].tensors))
        del tied["lm_head.weight"]
        write_checkpoint(family / "tied", tied, CONFIG | {"tie_word_embeddings": True})
        with pytest.raises(CheckpointError, match=r"expected lm_head.weight tied to the embed"):
            parts_of(passthrough(family, ("tied", 0, 2), ("a", 0, 2)))
        stored = tied | {"lm_head.weight": tied["model.embed_tokens.weight"].clone()}
        silent = {key: one for key, one in CONFIG.items() if key != "tie_word_embeddings"}
        for config in (CONFIG | {"tie_word_embeddings": True}, silent):
            write_checkpoint(family / "stored", stored, config)
            parts = parts_of(passthrough(family, ("tied", 0, 2), ("stored", 0, 2)))
            assert "lm_head.weight" not in {name for part in parts for name in part.names}


def test_models_are_named_by_reference(family: Path) -> None:
    recipe, checkpoints = read(passthrough(family, ("a", 0, 3), base_model=str(family / "b")))
    assert [one.ref for one in checkpoints] == [ModelRef(str(family / name)) for name in "ba"]
    assert [part.recipe.inputs for part in assemble(recipe, checkpoints)] == [
        (ModelRef(str(family / "a")),)
    ]
