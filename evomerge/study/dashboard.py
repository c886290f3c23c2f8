"""A study's database in optuna-dashboard, which may look at it and change nothing."""

from __future__ import annotations

import socketserver
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from evomerge.errors import StudyError
from evomerge.study.database import Database
from evomerge.study.store import Store, database, studies

App = Callable[[dict[str, Any], Any], Iterable[bytes]]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, *words: Any) -> None:
        pass


def serve(
    name: str | None, url: str | None, host: str, port: int, say: Callable[[str], Any]
) -> None:
    """Show a database in the browser until Ctrl-C; `say` is told the address.

    Without a name it is that of the one study there is. Raises StudyError where that cannot be,
    and where optuna-dashboard is not installed.
    """
    path = "/dashboard/"
    if name is None and url is None:
        name = _only()
    if name is not None:
        path += f"studies/{Store.open(name, url).look(lambda _, identity: identity)}"
    app = reading_app(name, url)
    try:
        server = make_server(host, port, app, _Server, _Silent)
    except OSError as problem:
        raise StudyError(
            f"cannot listen on {host}:{port}: {problem.strerror}; choose another --port"
        ) from None
    with server:
        say(f"http://{host}:{server.server_port}{path}  (Ctrl-C ends it)")
        server.serve_forever()


def _only() -> str:
    names = studies(None)
    if len(names) != 1:
        raise StudyError(
            f"expected the name of a study, of which runs/ has {', '.join(names) or 'none'}; "
            + ("name one" if names else "begin one with evomerge search")
        )
    return names[0]


def reading_app(name: str | None, url: str | None) -> App:
    """Return the dashboard of a study's database as a WSGI application that writes nothing."""
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise StudyError(
            "optuna-dashboard is not installed; pip install 'evomerge[dashboard]'"
        ) from None
    place = database(name, url) if name else Database(str(url))
    if place.file is not None and not place.file.is_file():
        raise StudyError(f"there is no database {place.name}")
    app: App = wsgi(place.reading_storage())

    def reading(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("403 Forbidden", [("Content-Type", "application/json")])
            return [b'{"reason": "this dashboard shows a study and changes nothing"}']
        return app(environ, start_response)

    return reading
