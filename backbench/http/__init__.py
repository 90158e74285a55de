"""Fetch a file over HTTP from servers that may be slow, disconnect, change the file, send false headers or never end.

An interrupted file is resumed if the server still has the same bytes; parts of two versions are never joined. Size and
time are limited, and every wait prints its reason.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from backbench.errors import BackbenchError, writing
from backbench.http import partial
from backbench.http.answers import announced_size, refuse_answer, refuse_size
from backbench.http.deadline import deadline
from backbench.http.request import LARGEST, Passing, Request
from backbench.progress import say

if TYPE_CHECKING:
    import httpx2

ATTEMPTS = 6  # in a row that bring almost no new bytes
OVERLAP = 64 << 10  # bytes that a resumed download requests again, to compare
_LONGEST_WAIT_S = 60.0
_SILENCE_S = 15.0  # between two bytes
_ANSWER_S = 20.0  # until the headers of an answer are complete
_WINDOW_S, _LEAST_IN_WINDOW = 10.0, 50 << 10  # a slower body than this, 5 kB/s, is abandoned

__all__ = ["ATTEMPTS", "LARGEST", "OVERLAP", "Request", "retrieve"]

_sleep = time.sleep


def retrieve(request: Request) -> None:
    """Fetch all bytes of `request.url` into `request.part`; attempts continue as long as new bytes arrive.

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
            except (httpx2.TransportError, Passing) as error:
                # Compare with the most ever received: without ranges, or after a change, each attempt begins at 0.
                grown = _size(request.part) >= most + OVERLAP
                most = max(most, _size(request.part))
                attempt = 1 if grown else attempt + 1
                reason = _reason(error, request)
                if attempt >= ATTEMPTS:
                    raise BackbenchError(f"{request.url}: {reason}, after {ATTEMPTS} attempts") from None
                asked = error.wait if isinstance(error, Passing) else None
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
    """Make one request: the rest of the file if the server still has the same bytes, else all of it."""
    part = request.part
    if part.is_symlink() or (part.exists() and not part.is_file()):
        raise BackbenchError(f"{part}: is not a file and is in the way; remove it")
    note = partial.noted(part, request.url)
    have = _size(part) if note else 0
    start = max(0, have - OVERLAP)
    headers = {"Range": f"bytes={start}-", "If-Range": note.validator} if note and start else {}
    with (
        deadline(_ANSWER_S) as guard,
        client.stream("GET", request.url, headers=headers, extensions=guard) as response,
    ):
        refuse_answer(response, request)
        resumed = note if response.status_code == 206 and headers else None
        total = announced_size(response, start if resumed else 0, request.url)
        if resumed and not partial.is_same(resumed, response.headers, total):
            partial.forget(part)
            raise Passing("the file changed on the server while it was fetched, so it is fetched from its beginning")
        refuse_size(total, have if resumed else 0, request)
        if not resumed:
            partial.begin(part, request.url, response.headers, total)
        guard.stop()
        body = _bounded(response.iter_raw(), request, (start if resumed else 0), total)
        with writing(part):
            done = _append(body, part, start, have) if resumed else _write(body, request, total)
    if total is not None and done != total:
        raise Passing(f"the server announced {total} bytes and sent {done}")


def _bounded(chunks: Iterator[bytes], request: Request, done: int, total: int | None) -> Iterator[bytes]:
    """Yield a body's chunks; raises when the body is longer than allowed or slower than 5 kB/s."""
    since, brought = time.monotonic(), 0
    for chunk in chunks:
        done += len(chunk)
        if total is not None and done > total:
            partial.forget(request.part)
            raise Passing(f"the server announced {total} bytes and sends more")
        if done > request.largest:
            partial.forget(request.part)
            raise BackbenchError(f"{request.url}: sends more than {request.largest / 1e6:.0f} MB; {request.advice}")
        yield chunk
        request.show(done, total)
        brought += len(chunk)
        if (passed := time.monotonic() - since) > _WINDOW_S:
            if brought < _LEAST_IN_WINDOW:
                raise Passing(f"only {brought} bytes arrived in {passed:.0f} s")
            since, brought = time.monotonic(), 0


def _write(body: Iterator[bytes], request: Request, total: int | None) -> int:
    """Write a new part; its first bytes are checked before the rest is read."""
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
    """Append the rest to a part after comparing the bytes that were requested again."""
    done = start
    with part.open("r+b") as file:
        file.seek(start)
        for chunk in body:
            again = chunk[: max(0, have - done)]
            if again and file.read(len(again)) != again:
                partial.forget(part)
                raise Passing(
                    "the file changed on the server while it was fetched, so it is fetched from its beginning"
                )
            file.seek(done + len(again))
            file.write(chunk[len(again) :])
            done += len(chunk)
    return done
