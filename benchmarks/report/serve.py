"""Serve a folder's report to this machine's browsers, and render it again when its records change."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from backbench.config import digest
from backbench.errors import BackbenchError
from backbench.progress import say
from benchmarks.report import Report

_HOST = "127.0.0.1"  # no other machine can connect


def serve(out: Path, *, port: int, to: str | None = None, curves: Mapping[str, Path] | None = None) -> None:
    """Serve until Ctrl-C.

    Args:
        port: 0 picks a free one.
        to: the row to compare with; the first random baseline unless given.

    Raises:
        BackbenchError: the port cannot be had.
    """
    with server(Live(out, to, curves or {}), port) as made:
        print(f"report: http://{_HOST}:{made.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            made.serve_forever()
        except KeyboardInterrupt:
            say("the report is no longer served")


class Live:
    """A report that follows its folder."""

    def __init__(self, out: Path, to: str | None, curves: Mapping[str, Path]) -> None:
        """Remember what to render. The arguments are those of `serve`."""
        self._out, self._to, self._curves = out, to, curves
        self._lock = threading.Lock()  # matplotlib draws one page at a time
        self._rendered: tuple[str, str] | None = None  # version and page

    def version(self) -> str:
        """Return a hash of the folder's files: it changes when a record comes, goes or changes."""
        files = [path for path in self._out.glob("*/*/seed*") if path.is_file()]
        seen = [(str(path), *_state(path)) for path in (*sorted(files), *self._curves.values())]
        return digest(seen)

    def page(self) -> str:
        """Return the page of the records that the folder holds now."""
        with self._lock:
            version = self.version()
            if self._rendered is None or self._rendered[0] != version:
                page = Report(self._out, to=self._to).page(curves=self._curves, version=version)
                self._rendered = version, page
            return self._rendered[1]


def server(live: Live, port: int) -> ThreadingHTTPServer:
    """Return a server of `/` and `/version`, bound to this machine. Raises BackbenchError: the port cannot be had."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer with the page or its version."""
            answers = {"/": (live.page, "text/html"), "/version": (live.version, "text/plain")}
            if not self._is_asked_by_this_machine():
                return self._send(HTTPStatus.FORBIDDEN, f"open http://{_HOST}:{port}/\n", "text/plain")
            if self.path not in answers:
                return self._send(HTTPStatus.NOT_FOUND, "not found\n", "text/plain")
            make, kind = answers[self.path]
            try:
                return self._send(HTTPStatus.OK, make(), kind)
            except BackbenchError as error:
                return self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n", "text/plain")

        def _is_asked_by_this_machine(self) -> bool:
            """Return whether the request names this host: a page of another site that resolves to it does not."""
            return self.headers.get("Host", "").rpartition(":")[0] in (_HOST, "localhost")

        def _send(self, status: HTTPStatus, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the browser has left the page
                self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            """Print no line per request."""

    try:
        made = ThreadingHTTPServer((_HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise BackbenchError(f"--serve {port}: {error}; `--serve 0` takes any free port") from None
    made.daemon_threads = True
    return made


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # replaced at this moment: the next look tells
        return 0, 0
    return found.st_mtime_ns, found.st_size
