"""Checkpoints that cannot be merged with each other are refused with both sides named."""

from pathlib import Path

import pytest
import torch

from evomerge.compatibility import check_alike, differences
from evomerge.errors import CheckpointError
from tests.tiny_models import CONFIG, base_weights, opened, weights, write_checkpoint, write_family

IN_LAYER = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return write_family(tmp_path / "family")


class TestAlike:
    def test_missing_tensors_name_both(self, family: Path) -> None:
        tensors = weights(family, "a")
        del tensors[IN_LAYER]
        write_checkpoint(family / "a", tensors)
        words = f"got {IN_LAYER} in {family}/base and not in {family}/a"
        for order in (("base", "a"), ("a", "base")):
            with pytest.raises(CheckpointError, match=words):
                check_alike(opened(family, *order))

    def test_models_without_a_tensor_in_common(self, family: Path) -> None:
        write_checkpoint(family / "a", {"x": torch.ones(3)})
        write_checkpoint(family / "b", {"y": torch.ones(3)})
        with pytest.raises(CheckpointError, match="must share one architecture"):
            check_alike(opened(family, "a", "b"))

    def test_outside_the_layers_models_may_differ(self, family: Path) -> None:
        tensors = weights(family, "a")
        del tensors["model.norm.weight"]
        more = {"v_head.weight": torch.ones(1, 20), "v_head.bias": torch.ones(1)}
        write_checkpoint(family / "a", tensors | more)
        checkpoints = opened(family, "base", "b", "a")
        assert "model.norm.weight" in check_alike(checkpoints)
        assert not set(more) & set(check_alike(checkpoints))
        assert differences(checkpoints) == [
            f"{family}/a lacks model.norm.weight: merged from the models that have it",
            f"{family}/a has v_head.bias and 1 more, which {family}/base lacks: left out",
        ]
        assert differences(opened(family, "base", "b")) == []

    @pytest.mark.parametrize("name", ["self_attn.rotary_emb.inv_freq", "attn.masked_bias"])
    def test_constants_in_the_layers_may_differ(self, family: Path, name: str) -> None:
        constant = {f"model.layers.0.{name}": torch.ones(3)}
        write_checkpoint(family / "a", weights(family, "a") | constant)
        for order in (("base", "a"), ("a", "base")):
            checkpoints = opened(family, *order)
            assert check_alike(checkpoints) == tuple(checkpoints[0].tensors)
            assert differences(checkpoints) == []

    def test_integers_may_differ(self, family: Path) -> None:
        for model, size in (("a", 3), ("b", 4)):
            ids = {"model.layers.0.ids": torch.arange(size)}
            write_checkpoint(family / model, weights(family, model) | ids)
        assert "model.layers.0.ids" in check_alike(opened(family, "a", "b", "c"))

    def test_other_shapes_name_both(self, family: Path) -> None:
        tensors = weights(family, "a") | {"model.norm.weight": torch.ones(21)}
        write_checkpoint(family / "a", tensors)
        words = rf"one shape for model.norm.weight, got \[20\] in {family}/base and \[21\] in .*/a"
        with pytest.raises(CheckpointError, match=words):
            check_alike(opened(family, "base", "b", "a"))

    def test_numbers_against_integers(self, family: Path) -> None:
        tensors = weights(family, "a") | {"model.norm.weight": torch.ones(20, dtype=torch.int64)}
        write_checkpoint(family / "a", tensors)
        with pytest.raises(CheckpointError, match=r"got F32 in .*/base and I64 in .*/a"):
            check_alike(opened(family, "base", "a"))

    def test_quantized_models(self, family: Path) -> None:
        tensors = weights(family, "a")
        eight = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
        write_checkpoint(family / "a", tensors | {"lm_head.weight": eight})
        with pytest.raises(CheckpointError, match=r"got F8_E4M3 for lm_head.weight in .*/a"):
            check_alike(opened(family, "base", "a"))
        config = CONFIG | {"quantization_config": {"quant_method": "gptq"}}
        write_checkpoint(family / "b", tensors, config)
        with pytest.raises(CheckpointError, match=r"got quantization_config in .*/b"):
            check_alike(opened(family, "base", "b"))

    @pytest.mark.parametrize("order", [("base", "a"), ("a", "base")])
    @pytest.mark.parametrize(
        ("says", "has_head", "other_says", "other_has_head", "outcome"),
        [
            (True, False, True, True, "tied"),
            (True, True, True, True, "tied"),
            (None, False, None, True, "tied"),  # a default that configurations leave out
            (True, False, None, True, "tied"),
            (False, True, None, True, "untied"),
            (None, True, None, True, "untied"),
            (True, False, False, True, "refused"),
            (None, False, False, True, "refused"),
            (None, False, None, False, "none"),
        ],
    )
    def test_tied_heads(
        self, tmp_path: Path, order: tuple[str, str], says: bool | None, has_head: bool,
        other_says: bool | None, other_has_head: bool, outcome: str,
    ) -> None:  # fmt: skip
        model = base_weights()
        for name, said, head in (("base", says, has_head), ("a", other_says, other_has_head)):
            config = {key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"}
            if said is not None:
                config["tie_word_embeddings"] = said
            tensors = {key: one for key, one in model.items() if head or key != "lm_head.weight"}
            write_checkpoint(tmp_path / name, tensors, config)
        checkpoints = opened(tmp_path, *order)
        if outcome == "refused":
            with pytest.raises(CheckpointError, match=r"got a tie in .*/base and none in .*/a;"):
                check_alike(checkpoints)
        else:
            assert ("lm_head.weight" in check_alike(checkpoints)) == (outcome == "untied")
