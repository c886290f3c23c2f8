"""Uploading a merged model: what the Hub is asked for, and what is refused before it is asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.errors import CheckpointError, InputError
from evomerge.hub import push
from tests.tiny_models import base_weights, write_checkpoint

ANSWER: Any = SimpleNamespace(headers={}, request=None)
URL = "https://huggingface.co/me/model"


class FakeApi:
    """A Hub that notes what it is asked, with the repositories of a dict and whether private."""

    def __init__(self) -> None:
        self.repositories: dict[str, bool] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    def repo_info(self, repository: str, repo_type: str) -> Any:
        assert repo_type == "model"
        if repository not in self.repositories:
            raise RepositoryNotFoundError("none", response=ANSWER)
        return SimpleNamespace(private=self.repositories[repository])

    def create_repo(self, repository: str, **asked: Any) -> str:
        self.calls.append((repository, asked))
        return URL

    def upload_folder(self, **asked: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(("upload", asked))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    found = FakeApi()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "model", base_weights())
    (folder / "README.md").write_text("---\ntags: [merge, evomerge]\n---\n# model\n")
    return folder


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_what_the_hub_is_asked(api: FakeApi, model: Path, private: bool, there: bool) -> None:
    api.repositories = {"me/model": private} if there else {}
    assert push(model, "me/model", private) == URL
    assert api.calls == [
        ("me/model", {"repo_type": "model", "private": private, "exist_ok": True}),
        ("upload", {"repo_id": "me/model", "folder_path": model, "repo_type": "model",
                    "commit_message": "Merged with evomerge"}),
    ]  # fmt: skip


def refused(error: type[Exception], folder: Path, repository: str = "me/model") -> str:
    with pytest.raises(error) as caught:
        push(folder, repository, private=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_repository_that_others_see_is_not_pushed_to_unasked(api: FakeApi, model: Path) -> None:
    api.repositories = {"me/model": False}
    text = refused(InputError, model)
    assert text.startswith("expected me/model to be private, got one that is public; push with")
    assert api.calls == []


def test_what_is_no_merged_model_is_refused(api: FakeApi, model: Path, tmp_path: Path) -> None:
    assert f"got {tmp_path / 'none'}, which is none" in refused(CheckpointError, tmp_path / "none")
    assert "model.safetensors" in refused(CheckpointError, tmp_path)
    for card in ("# mine\n", "---\ntags: [merge]\n---\n", "---\n: [\n---\n", "---\n- 1\n---\n"):
        (model / "README.md").write_text(card)
        assert "whose README.md has no tag evomerge" in refused(CheckpointError, model)
    (model / "README.md").unlink()
    assert "no tag evomerge" in refused(CheckpointError, model)
    (model / "README.md").write_text("---\ntags: [evomerge]\n---\n")
    next(model.glob("*.safetensors")).unlink()
    refused(CheckpointError, model)
    assert api.calls == []


@pytest.mark.parametrize("name", ["model", "a/b/c", "", "a/", "a b/c"])
def test_a_repository_has_an_owner_and_a_name(api: FakeApi, model: Path, name: str) -> None:
    assert refused(InputError, model, name).startswith("expected a repository as OWNER/NAME, got")


def test_without_a_login_or_a_network(
    api: FakeApi, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.error = ConnectionError("Name or service not known\nmore")
    text = refused(InputError, model)
    assert "got ConnectionError from the Hub (Name or service not known); check the network" in text
    api.error = HfHubHTTPError("403 Forbidden: a read token", response=ANSWER)
    assert "403 Forbidden: a read token" in refused(InputError, model)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "run `hf auth login`" in refused(InputError, model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(InputError, model)


def test_the_command_is_private_unless_told(api: FakeApi, model: Path) -> None:
    for options, private in ([], True), (["--private"], True), (["--public"], False):
        done = CliRunner().invoke(app, ["push", str(model), "me/model", *options])
        assert (done.exit_code, done.stdout) == (0, f"{URL}\n")
        assert api.calls[-2][1]["private"] is private
