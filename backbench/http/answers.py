"""Check a server's answer before its body is read: status, type, size and range."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

from backbench.errors import BackbenchError, CheckpointError
from backbench.http import partial
from backbench.http.request import Passing, Request

if TYPE_CHECKING:
    import httpx2

_PASSING = {408, 425, 429, 500, 502, 503, 504}  # worth another attempt


def refuse_answer(response: httpx2.Response, request: Request) -> None:
    """Refuse an answer that is an error, a web page, JSON, or encoded.

    Raises:
        Passing: the server is busy or cannot resume.
        BackbenchError: the server refuses, or encodes the file.
        CheckpointError: the answer is a web page or JSON.
    """
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
        raise Passing("the server refused to resume the download")
    if code in _PASSING:
        busy = "too many requests" if code == 429 else "the server is busy or broken"
        raise Passing(f"{busy} (HTTP {code})", _retry_after(response.headers))
    words = {
        401: "not allowed without a login",
        403: "not allowed (it was withdrawn, or needs a login)",
        404: "not there any more",
        410: "not there any more",
    }.get(code, "refused")
    raise BackbenchError(f"{request.url}: {words} (HTTP {code}); {request.advice}")


def refuse_size(total: int | None, have: int, request: Request) -> None:
    """Refuse a file that is larger than allowed or than the free disk space, before a byte is written."""
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
    """Return the seconds that the server asks us to wait; a date is ignored."""
    asked = headers.get("retry-after", "")
    return float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else None


def announced_size(response: httpx2.Response, start: int, url: str) -> int | None:
    """Return the announced length of the whole file, or None; the answer must begin at `start`."""
    if response.status_code == 206:
        unit, _, rest = response.headers.get("content-range", "").partition(" ")
        span, _, whole = rest.partition("/")
        first = span.partition("-")[0]
        if unit != "bytes" or not _is_number(first):
            raise BackbenchError(f"{url}: answers a range request without saying which range")
        if int(first) != start:
            raise Passing("the server sent another range than was asked for")
        return int(whole) if _is_number(whole) else None
    length = response.headers.get("content-length", "")
    return int(length) if _is_number(length) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19
