"""Opening checkpoints: whatever is wrong with a folder is said in one sentence."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors.torch import save_file

from evomerge.checkpoints import Checkpoint, ModelRef, locate, open_checkpoint
from evomerge.errors import CheckpointError, EvomergeError, InputError, Place
from tests.tiny_models import (
    llama_shapes,
    weights,
    write_checkpoint,
    write_family,
)

PLACE = Place("study.yaml", InputError, "models.base")


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return write_family(tmp_path / "family")


def open_(folder: Path) -> Checkpoint:
    return open_checkpoint(ModelRef(str(folder)), PLACE)


def sharded(folder: Path, parts: int = 3) -> dict[str, Any]:
    """Split a checkpoint's file into shards; returns the index."""
    tensors = weights(folder.parent, folder.name)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        members = {name: tensors[name] for name in list(tensors)[part::parts]}
        save_file(members, folder / file)
        weight_map.update(dict.fromkeys(members, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def write_index(folder: Path, index: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_headers_are_read_without_torch(family: Path) -> None:
    checkpoint = open_(family / "a")
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == llama_shapes()
    assert list(checkpoint.tensors) == sorted(checkpoint.tensors)
    assert {info.dtype for info in checkpoint.tensors.values()} == {"F32"}
    assert checkpoint.config["hidden_size"] == 20
    read = dict(checkpoint.read(checkpoint.tensors))
    assert all(torch.equal(read[name], one) for name, one in weights(family, "a").items())


def test_shards_are_read_as_one_file(family: Path) -> None:
    whole = weights(family, "a")
    sharded(family / "a")
    checkpoint = open_(family / "a")
    assert list(checkpoint.tensors) == sorted(whole)
    read = dict(checkpoint.read(sorted(whole, reverse=True)))
    assert all(torch.equal(read[name], one) for name, one in whole.items())


def test_a_single_file_goes_before_an_index(family: Path) -> None:
    """As transformers have it: a stale index beside the file says nothing."""
    write_index(family / "a", {"weight_map": {"x": "gone.safetensors"}})
    assert "lm_head.weight" in open_(family / "a").tensors


def test_tensors_are_read_lazily(family: Path) -> None:
    checkpoint = open_(family / "a")
    (family / "a" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot read the tensors of"):
        dict(checkpoint.read(["lm_head.weight"]))


class TestMap:
    """`map` gives what `read` gives, when it is asked for."""

    def test_it_is_what_is_read(self, family: Path) -> None:
        sharded(family / "a")
        checkpoint = open_(family / "a")
        mapped = checkpoint.map(checkpoint.tensors)
        assert list(mapped) == list(checkpoint.tensors)
        for name, tensor in checkpoint.read(checkpoint.tensors):
            assert torch.equal(mapped[name], tensor)
            assert mapped[name].is_contiguous()
            assert mapped[name].view(-1).shape == (tensor.numel(),)
        assert list(checkpoint.map(["lm_head.weight"])) == ["lm_head.weight"]
        with pytest.raises(KeyError):
            checkpoint.map(["lm_head.weight"])["model.norm.weight"]

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
    def test_nothing_is_read_before_it_is_touched(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "m", {"x": torch.ones(8 * 2**20)}, {"model_type": "x"})
        mapped = open_(tmp_path / "m").map(["x"])
        before = resident()
        tensor = mapped["x"]
        assert resident()["RssFile"] - before["RssFile"] < 8 * 1024  # kB of 32 MiB
        assert tensor.view(torch.int16).view(-1)[::512].sum() == 0
        assert resident()["RssFile"] - before["RssFile"] > 24 * 1024
        assert resident()["RssAnon"] - before["RssAnon"] < 8 * 1024

    def test_writing_into_a_tensor_leaves_the_file_alone(self, family: Path) -> None:
        checkpoint = open_(family / "a")
        before = (family / "a" / "model.safetensors").read_bytes()
        checkpoint.map(checkpoint.tensors)["lm_head.weight"].fill_(7)
        assert (family / "a" / "model.safetensors").read_bytes() == before

    def test_a_file_that_changed_is_refused(self, family: Path) -> None:
        mapped = open_(family / "a").map(["model.norm.weight"])
        save_file({"model.norm.weight": torch.ones(3)}, family / "a" / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"expected F32 of shape \[20\] for model.norm.w"):
            mapped["model.norm.weight"]


def resident() -> dict[str, int]:
    """Kilobytes of this process in memory, by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    parts = (line.split() for line in lines if line.startswith("Rss"))
    return {part[0].rstrip(":"): int(part[1]) for part in parts}


class TestDamage:
    @pytest.mark.parametrize("keep", [0, 4, 8, 40, 5000, -1])
    def test_truncated(self, family: Path, keep: int) -> None:
        file = family / "a" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        self.refused(family / "a", r"expected a whole safetensors file, got .* in .*safetensors")

    @pytest.mark.parametrize(
        "content",
        [b"", b"PK\x03\x04", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"[]"],
    )
    def test_not_safetensors(self, family: Path, content: bytes) -> None:
        (family / "a" / "model.safetensors").write_bytes(content)
        self.refused(family / "a", "expected a whole safetensors file")

    def test_missing_shard(self, family: Path) -> None:
        sharded(family / "a")
        (family / "a" / "model-00002-of-00003.safetensors").unlink()
        self.refused(family / "a", "the shard model-00002-of-00003.safetensors that .* is missing")

    @pytest.mark.parametrize(
        "name",
        ["../a.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", 7, None, []],
    )
    def test_index_names_something_else(self, family: Path, name: object) -> None:
        (family / "a.safetensors").write_bytes((family / "a/model.safetensors").read_bytes())
        index = sharded(family / "a")
        index["weight_map"]["lm_head.weight"] = name
        write_index(family / "a", index)
        self.refused(family / "a", "expected a .safetensors file beside .* for lm_head.weight")

    def test_index_places_a_tensor_in_the_wrong_file(self, family: Path) -> None:
        index = sharded(family / "a")
        file = index["weight_map"]["lm_head.weight"]
        other = next(one for one in index["weight_map"].values() if one != file)
        index["weight_map"]["lm_head.weight"] = other
        write_index(family / "a", index)
        self.refused(family / "a", f"places lm_head.weight in {other}, but {file} holds it")

    def test_index_lists_what_no_file_holds(self, family: Path) -> None:
        index = sharded(family / "a")
        index["weight_map"]["ghost.weight"] = "model-00001-of-00003.safetensors"
        write_index(family / "a", index)
        self.refused(family / "a", "places ghost.weight in .*, which does not hold it")

    def test_index_leaves_a_tensor_out(self, family: Path) -> None:
        index = sharded(family / "a")
        del index["weight_map"]["lm_head.weight"]
        write_index(family / "a", index)
        self.refused(family / "a", "places lm_head.weight in no file, but .* holds it")

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", "{}", '{"weight_map": {}}', "\x00", "[" * 9999]
    )
    def test_broken_index(self, family: Path, content: str) -> None:
        sharded(family / "a")
        (family / "a" / "model.safetensors.index.json").write_text(content)
        self.refused(family / "a", "expected (JSON|a JSON object|a weight_map)")

    @pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"{'a': 1}", b"\xff\xfe"])
    def test_broken_configuration(self, family: Path, content: bytes | None) -> None:
        path = family / "a" / "config.json"
        path.unlink() if content is None else path.write_bytes(content)
        self.refused(family / "a", "config")

    def test_no_checkpoint(self, family: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        self.refused(tmp_path / "empty", "expected model.safetensors, .* in .*/empty, got none")

    def test_an_adapter_alone(self, tmp_path: Path) -> None:
        (tmp_path / "lora").mkdir()
        (tmp_path / "lora" / "adapter_config.json").write_text("{}")
        self.refused(tmp_path / "lora", "got the adapter .*; write it behind its model")

    def test_gguf(self, family: Path, tmp_path: Path) -> None:
        (tmp_path / "gguf").mkdir()
        (tmp_path / "gguf" / "model-q4.gguf").write_bytes(b"GGUF")
        self.refused(tmp_path / "gguf", "got model-q4.gguf; GGUF is not read; merge the model's or")
        self.refused(tmp_path / "gguf" / "model-q4.gguf", "merge the model's original weights")

    def test_no_tensors(self, family: Path) -> None:
        save_file({}, family / "a" / "model.safetensors")
        self.refused(family / "a", "expected tensors, got none")

    def refused(self, folder: Path, words: str) -> None:
        with pytest.raises(EvomergeError, match=words) as caught:
            open_(folder)
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is None


class TestLocate:
    def test_a_file_is_no_model(self, family: Path) -> None:
        file = family / "a" / "model.safetensors"
        with pytest.raises(InputError, match=r"expected a folder .* at models.base in study.yaml"):
            locate(ModelRef(str(file)), PLACE)

    def test_a_missing_folder(self) -> None:
        with pytest.raises(InputError, match=r"got ./no/such, which does not exist at models.base"):
            locate(ModelRef("./no/such"), PLACE)

    def test_a_folder_has_no_revision(self, family: Path) -> None:
        with pytest.raises(InputError, match="expected a folder without a revision"):
            locate(ModelRef(str(family / "a"), "main"), PLACE)

    @pytest.mark.parametrize("path", ["org/model", "model", "x--y", "a" * 96])
    def test_the_hub_is_out_of_reach(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(
            InputError, match=r"the Hub gave none at models.base in study.yaml"
        ) as e:
            locate(ModelRef(path), PLACE)
        assert "\n" not in str(e.value)

    def test_what_is_downloaded(self, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, Any] = {}

        def download(path: str, **options: Any) -> str:
            asked.update(options, path=path)
            return str(family / "a")

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        assert locate(ModelRef("org/name", "v1"), PLACE) == (family / "a").resolve()
        assert (asked["path"], asked["revision"]) == ("org/name", "v1")
        patterns = {key: asked[f"{key}_patterns"] for key in ("allow", "ignore")}
        files = ["model-00001-of-00002.safetensors", "config.json", "merges.txt", "tokenizer.model",
                 "chat_template.jinja", "modeling_x.py", "vocab.bpe", "tokenizer.model.v3",
                 "additional_chat_templates/rag.jinja", "custom_generate/generate.py",
                 "pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors",
                 "onnx/config.json", "original/tokenizer.model", "gguf/x.gguf"]  # fmt: skip
        chosen = filter_repo_objects(
            files, allow_patterns=patterns["allow"], ignore_patterns=patterns["ignore"]
        )
        assert list(chosen) == files[:10]

    def test_pickled_weights_are_downloaded_where_there_are_no_safetensors(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[list[str]] = []

        def download(path: str, **options: Any) -> str:
            asked.append(options["allow_patterns"])
            return str(tmp_path)

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        assert locate(ModelRef("org/name"), PLACE) == tmp_path.resolve()
        files = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin",
                 "optimizer.bin", "training_args.bin"]  # fmt: skip
        assert len(asked) == 2
        assert list(filter_repo_objects(files, allow_patterns=asked[1])) == files[:3]

    @pytest.mark.parametrize("path", ["~nobody-is-called-this", "a\0b", "x" * 5000, "a b", "ü/ü/ü"])
    def test_odd_names(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(InputError):
            locate(ModelRef(path), PLACE)
        assert ModelRef(path).resolved(Path()) == ModelRef(path)

    def test_the_home_folder(self, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(family))
        assert locate(ModelRef("~/a"), PLACE) == (family / "a").resolve()
