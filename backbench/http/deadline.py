"""Close connections when the headers of an answer take too long."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any


class Guard(dict):
    """Request extensions for httpx that close the connection when the headers of an answer take too long.

    httpx's timeouts run from one byte to the next: a server that sends one byte a second never reaches them.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(trace=self._trace)
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.complete"):
            connected = info["return_value"].get_extra_info("socket")
            self._sockets += [connected] if connected is not None else []

    def start(self) -> None:
        self._timer.start()

    def stop(self) -> None:
        self._timer.cancel()

    def _shut(self) -> None:
        for connected in self._sockets:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[Guard]:
    """Close the connections that use these extensions after so many seconds, unless the guard is stopped."""
    guard = Guard(seconds)
    guard.start()
    try:
        yield guard
    finally:
        guard.stop()
