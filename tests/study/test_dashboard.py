"""`evomerge dashboard`: the database in the browser, which can change nothing of it."""

import json
import re
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer
from wsgiref.util import setup_testing_defaults

import pytest
from optuna.exceptions import StorageInternalError
from typer.testing import CliRunner

from evomerge import Study, cli
from evomerge.errors import StudyError
from evomerge.study import dashboard
from evomerge.study.store import database
from tests.study.fake_study import contents, go_on


def ask(app: dashboard.App, path: str, method: str = "GET") -> tuple[str, bytes]:
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": method}
    setup_testing_defaults(environ)
    statuses: list[str] = []
    found = app(environ, lambda status, *rest: statuses.append(status))
    body = b"".join(found)
    getattr(found, "close", lambda: None)()
    return statuses[0], body


def test_the_pages_are_there_and_nothing_can_be_changed(fake: Path) -> None:
    go_on(fake, "s")
    before = contents("s")
    app = dashboard.reading_app("s", None)
    status, body = ask(app, "/dashboard/studies/1")
    assert status == "200 OK"
    assert b"<html" in body.lower()
    status, body = ask(app, "/api/studies/1")
    assert status == "200 OK"
    numbers = [one["number"] for one in json.loads(body)["trials"]]
    assert numbers == list(Study.open("s").trials.index)
    for method, path in {
        "DELETE": "/api/studies/1",
        "POST": "/api/studies",
        "PUT": "/api/studies/1/note",
        "PATCH": "/",
    }.items():
        assert ask(app, path, method) == (
            "403 Forbidden",
            b'{"reason": "this dashboard shows a study and changes nothing"}',
        )
    assert contents("s") == before


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_storage_of_the_dashboard_cannot_write(
    kind: str, fake: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("server") if kind == "postgresql" else None
    Study.create(fake, name="s", storage=url)
    before = contents("s", url)
    storage = database("s", url).reading_storage()
    assert [one.study_name for one in storage.get_all_studies()] == ["s"]
    for _ in range(2):  # also on a connection that has been used
        with pytest.raises(StorageInternalError) as raised:
            storage.set_study_user_attr(1, "mine", 1)
        assert re.search("read-?only", str(raised.value.__cause__))
    storage.remove_session()
    storage.engine.dispose()
    assert contents("s", url) == before


def test_it_is_served_at_the_address_that_is_printed(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Study.create(fake, name="s")
    monkeypatch.setattr(WSGIServer, "serve_forever", WSGIServer.handle_request)
    monkeypatch.setattr(dashboard._Server, "daemon_threads", False)  # so that it is waited for
    pages: list[bytes] = []
    clients: list[threading.Thread] = []

    def say(text: str) -> None:
        address = text.split(maxsplit=1)[0]
        assert address.startswith("http://127.0.0.1:")
        assert address.endswith("/dashboard/studies/1")

        def get() -> None:
            with urllib.request.urlopen(address, timeout=60) as page:  # noqa: S310
                pages.append(page.read())

        clients.append(threading.Thread(target=get))
        clients[0].start()

    dashboard.serve(None, None, "127.0.0.1", 0, say)  # the one study that there is
    clients[0].join()
    assert b"optuna" in pages[0].lower()


def test_refusals(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner()
    for words, sentence in {
        ("s",): "there is no study 's' in sqlite:///runs/s/study.db",
        (): "expected the name of a study, of which runs/ has none",
        ("--storage", "sqlite:///no.db"): "there is no database sqlite:///no.db",
    }.items():
        found = run.invoke(cli.app, ["dashboard", *words])
        assert isinstance(found.exception, StudyError)
        assert sentence in str(found.exception)
    assert not Path("no.db").exists()
    Study.create(fake, name="s")
    Study.create(fake, name="t")
    with pytest.raises(StudyError, match="of which runs/ has s, t"):
        dashboard.serve(None, None, "127.0.0.1", 0, print)
    with WSGIServer(("127.0.0.1", 0), dashboard._Silent) as other:
        taken = f"cannot listen on 127.0.0.1:{other.server_port}: .*; choose another --port"
        with pytest.raises(StudyError, match=taken):
            dashboard.serve("s", None, "127.0.0.1", other.server_port, print)
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(StudyError, match=r"not installed; pip install 'evomerge\[dashboard\]'"):
        dashboard.serve("s", None, "127.0.0.1", 0, print)
