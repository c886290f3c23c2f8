"""A Hub in a folder, for tests without a network."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from evomerge.zoo.tokenizer import build_tokenizer
from tests.tiny_models import Tensors, write_checkpoint


class Hub:
    """A Hub in a folder: what is asked of it is copied to the cache, as by the network."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.cache = folder / "hub", folder / "cache"
        self.downloads: list[str] = []
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(self.cache))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", self.files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def add(self, name: str, tensors: Tensors) -> None:
        """Put a model there; its config.json is in the cache already."""
        folder = write_checkpoint(self.folder / name, tensors)
        build_tokenizer().save_pretrained(folder)
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        (folder / "merges.txt").write_text("a b\n")
        self.fetch(name, ["config.json"])

    def files(self, name: str, **_: Any) -> list[str]:
        return sorted(path.name for path in (self.folder / name).iterdir())

    def fetch(self, name: str, files: Sequence[str]) -> str:
        top = self.cache / f"models--{name.replace('/', '--')}"
        snapshot = top / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True, exist_ok=True)
        (top / "refs").mkdir(exist_ok=True)
        (top / "refs/main").write_text("0" * 40)
        for file in files:
            shutil.copyfile(self.folder / name / file, snapshot / file)
        return str(snapshot)

    def download(self, name: str, **asked: Any) -> str:
        self.downloads.append(name)
        patterns = {key: asked.get(key) for key in ("allow_patterns", "ignore_patterns")}
        return self.fetch(name, list(filter_repo_objects(self.files(name), **patterns)))
