"""Fetch a file over HTTP from servers that may be slow, cut off, change the file, lie or never end.

An interrupted file is resumed where the server still has the same bytes; parts of two versions are never joined; size and
time are bounded, and every wait says why.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from backbench.errors import BackbenchError, CheckpointError, writing
from backbench.http import partial
from backbench.progress import say

if TYPE_CHECKING:
    import httpx2

ATTEMPTS = 6  # in a row that bring hardly a new byte
LARGEST = 4 << 30  # bytes of a file whose size nobody announced
OVERLAP = 64 << 10  # bytes that a resumed file asks for once more, to compare
_LONGEST_WAIT_S = 60.0
_SILENCE_S = 15.0  # between two bytes
_ANSWER_S = 20.0  # until the headers of an answer are complete
_WINDOW_S, _LEAST_IN_WINDOW = 10.0, 50 << 10  # a body that brings less is given up: 5 kB/s
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # worth another attempt

_sleep = time.sleep


class _Passing(Exception):
    """A failure that may pass: a lost connection, a server that is busy."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds that the server asks for


@dataclass(frozen=True)
class Request:
    """A file to fetch, and the checks on its bytes."""

    url: str
    part: Path  # where the bytes arrive; a `.json` beside it notes whose they are
    label: str
    show: Callable[[int, int | None], None] = lambda _done, _total: None  # called with (bytes there, bytes in all)
    largest: int = LARGEST  # bytes
    accept: Callable[[bytes], None] = lambda _head: None  # raises when the first bytes are not of such a file
    advice: str = "fetch it by other means"  # what to do when the server cannot be reached or refuses


def retrieve(request: Request) -> None:
    """All bytes of `request.url` into `request.part`, in as many attempts as it takes while bytes arrive.

    Raises:
        BackbenchError: unreachable, refused, too large, too slow, encoded, or the disk is full.
        CheckpointError: a web page, JSON, or first bytes that `accept` refuses.
    """
    import httpx2

    headers = {"User-Agent": "backbench", "Accept-Encoding": "identity"}
    timeout = httpx2.Timeout(_SILENCE_S)
    with httpx2.Client(follow_redirects=True, timeout=timeout, headers=headers) as client:
        attempt, most = 0, _size(request.part)
        while True:
            try:
                _attempt(client, request)
                return
            except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.TooManyRedirects) as error:
                raise BackbenchError(f"{request.url}: {error}") from None
            except (httpx2.TransportError, _Passing) as error:
                # More than ever before: without ranges, and after a change of the file, each attempt begins at 0.
                grown = _size(request.part) >= most + OVERLAP
                most = max(most, _size(request.part))
                attempt = 1 if grown else attempt + 1
                reason = _reason(error, request)
                if attempt >= ATTEMPTS:
                    raise BackbenchError(f"{request.url}: {reason}, after {ATTEMPTS} attempts") from None
                asked = error.wait if isinstance(error, _Passing) else None
                wait = asked if asked is not None else 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
                wait = min(_LONGEST_WAIT_S, wait)
                if attempt > 1:
                    say(f"{request.label}: {reason}; attempt {attempt + 1} of {ATTEMPTS} in {wait:.0f} s")
                _sleep(wait)


def _reason(error: Exception, request: Request) -> str:
    import httpx2

    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        host = urlsplit(request.url).hostname
        return f"cannot reach {host} ({str(error) or type(error).__name__}); {request.advice}"
    return str(error) or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(client: httpx2.Client, request: Request) -> None:
    """One request: the rest of the part where the server still has the same bytes, else all of it."""
    part = request.part
    if part.is_symlink() or (part.exists() and not part.is_file()):
        raise BackbenchError(f"{part}: is in the way and no file; remove it")
    note = partial.noted(part, request.url)
    have = _size(part) if note else 0
    start = max(0, have - OVERLAP)
    headers = {"Range": f"bytes={start}-", "If-Range": note.validator} if note and start else {}
    with (
        _deadline(_ANSWER_S) as guard,
        client.stream("GET", request.url, headers=headers, extensions=guard) as response,
    ):
        _refuse_answer(response, request)
        resumed = note if response.status_code == 206 and headers else None
        total = _total(response, start if resumed else 0, request.url)
        if resumed and not partial.is_same(resumed, response.headers, total):
            partial.forget(part)
            raise _Passing("the file changed on the server while it was fetched, so it is fetched from its beginning")
        _refuse_size(total, have if resumed else 0, request)
        if not resumed:
            partial.begin(part, request.url, response.headers, total)
        guard.stop()
        body = _bounded(response.iter_raw(), request, (start if resumed else 0), total)
        with writing(part):
            done = _append(body, part, start, have) if resumed else _write(body, request, total)
    if total is not None and done != total:
        raise _Passing(f"the server announced {total} bytes and sent {done}")


class _Guard(dict):
    """httpx's request extensions; shuts the connection when the headers of an answer take too long.

    Timeouts of httpx count from one byte to the next: a server that sends one byte a second never meets them.
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
def _deadline(seconds: float) -> Iterator[_Guard]:
    guard = _Guard(seconds)
    guard.start()
    try:
        yield guard
    finally:
        guard.stop()


def _bounded(chunks: Iterator[bytes], request: Request, done: int, total: int | None) -> Iterator[bytes]:
    """The chunks of a body; an error when it is longer than allowed or slower than 5 kB/s."""
    since, brought = time.monotonic(), 0
    for chunk in chunks:
        done += len(chunk)
        if total is not None and done > total:
            partial.forget(request.part)
            raise _Passing(f"the server announced {total} bytes and sends more")
        if done > request.largest:
            partial.forget(request.part)
            raise BackbenchError(f"{request.url}: sends more than {request.largest / 1e6:.0f} MB; {request.advice}")
        yield chunk
        request.show(done, total)
        brought += len(chunk)
        if (passed := time.monotonic() - since) > _WINDOW_S:
            if brought < _LEAST_IN_WINDOW:
                raise _Passing(f"only {brought} bytes arrived in {passed:.0f} s")
            since, brought = time.monotonic(), 0


def _write(body: Iterator[bytes], request: Request, total: int | None) -> int:
    """A new part; its first bytes are looked at before the rest is waited for."""
    done, head, accepted = 0, b"", False
    with request.part.open("wb") as file:
        for chunk in body:
            file.write(chunk)
            done += len(chunk)
            if not accepted:
                head += chunk[: 512 - len(head)]
                if accepted := len(head) >= 512 or done == total:
                    request.accept(head)
        if not accepted and total is None:
            request.accept(head)
    return done


def _append(body: Iterator[bytes], part: Path, start: int, have: int) -> int:
    """The rest of a part, once what was asked for twice is equal."""
    done = start
    with part.open("r+b") as file:
        file.seek(start)
        for chunk in body:
            again = chunk[: max(0, have - done)]
            if again and file.read(len(again)) != again:
                partial.forget(part)
                raise _Passing(
                    "the file changed on the server while it was fetched, so it is fetched from its beginning"
                )
            file.seek(done + len(again))
            file.write(chunk[len(again) :])
            done += len(chunk)
    return done


# ---------------------------------------------------------------- reading an answer


def _refuse_answer(response: httpx2.Response, request: Request) -> None:
    code, kind = response.status_code, response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if code in (200, 206):
        if kind == "text/html":
            raise CheckpointError("is a web page, not a file of weights (a login or error page?)")
        if kind.endswith("json"):
            raise CheckpointError("is JSON, not a file of weights (an error message of the server?)")
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise BackbenchError(
                f"{request.url}: sends the file '{encoding}'-encoded although asked not to, so its bytes are not those that "
                f"were published; {request.advice}"
            )
        return
    if code == 416:  # the part is as long as the file, or longer
        partial.forget(request.part)
        raise _Passing("the server refused to resume the download")
    if code in _PASSING:
        busy = "too many requests" if code == 429 else "the server is busy or broken"
        raise _Passing(f"{busy} (HTTP {code})", _retry_after(response.headers))
    words = {
        401: "not allowed without a login",
        403: "not allowed (withdrawn, or a login is needed)",
        404: "not there any more",
        410: "not there any more",
    }.get(code, "refused")
    raise BackbenchError(f"{request.url}: {words} (HTTP {code}); {request.advice}")


def _refuse_size(total: int | None, have: int, request: Request) -> None:
    """Refuse, before a byte is written, a file that is too large to be the wanted one, or for the disk."""
    if total is None:
        return
    if total > request.largest:
        raise BackbenchError(
            f"{request.url}: announces {total / 1e6:.0f} MB, more than the {request.largest / 1e6:.0f} MB it may have; "
            f"{request.advice}"
        )
    free = shutil.disk_usage(request.part.parent).free
    if total - have > free:
        raise BackbenchError(
            f"{request.part.parent}: {(total - have) / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free"
        )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks us to wait; a date is ignored."""
    asked = headers.get("retry-after", "")
    return float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else None


def _total(response: httpx2.Response, start: int, url: str) -> int | None:
    """Length of the whole file where it is announced; the answer must begin at `start`."""
    if response.status_code == 206:
        unit, _, rest = response.headers.get("content-range", "").partition(" ")
        span, _, whole = rest.partition("/")
        first = span.partition("-")[0]
        if unit != "bytes" or not _is_number(first):
            raise BackbenchError(f"{url}: answers a range request without saying which range")
        if int(first) != start:
            raise _Passing("the server sent another range than was asked for")
        return int(whole) if _is_number(whole) else None
    length = response.headers.get("content-length", "")
    return int(length) if _is_number(length) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19
