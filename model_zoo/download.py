"""Verified downloads of zoo entries into a cache folder: resumed, retried, checked, moved into place at once.

`BACKBENCH_ZOO=DIR` names a folder of files one already has, `BACKBENCH_ZOO_MIRROR=URL` a server that holds the files under
the entries' names (what `download --all --to DIR` writes); HTTP proxies come from the usual environment variables.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from core.cache import cache_folder
from core.errors import BackbenchError, CheckpointError
from model_zoo import entries
from model_zoo.entries import Entry

if TYPE_CHECKING:
    import httpx2

    from core.progress import Transfers

ATTEMPTS = 6  # in a row without a new byte
PARALLEL = 4
_LONGEST_WAIT_S = 60.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # worth another attempt
_OFFLINE = "if there is no network here, put the file into a folder and name that in BACKBENCH_ZOO"

_sleep = time.sleep


class _Passing(Exception):
    """A failure that may pass: a lost connection, a server that is busy."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds that the server asks for


def cache() -> Path:
    """Where downloads are kept, with `pins.json`."""
    return cache_folder() / "zoo"


def fetch(entry: Entry, folder: Path | None = None, bars: Transfers | None = None) -> Path:
    """The file of an entry: from `BACKBENCH_ZOO`, from `folder` (default: the cache), else downloaded into it.

    A `folder` that is given holds it afterwards in any case: what is in `BACKBENCH_ZOO` is copied there.

    Raises:
        BackbenchError: there are no public weights, or nowhere can they be fetched from; says what to do.
        CheckpointError: the bytes are not those that were published or pinned.
    """
    if not entry.has_weights:
        more = f"; entries with weights: {', '.join(entry.see)}" if entry.see else ""
        raise BackbenchError(f"zoo entry '{entry.name}' has no weights ({entry.no_weights}){more}")
    own = _from_own_folder(entry)
    if own and folder is None:
        return own
    from filelock import FileLock

    from core.artifacts import atomic_write, make_folder, writing
    from core.progress import Transfers

    folder = make_folder(folder or cache())
    target = folder / entry.file
    with writing(target), FileLock(str(folder / f".{entry.file}.lock")):
        if target.exists():
            try:
                check(entry, target)
            except CheckpointError as error:
                raise CheckpointError(f"{error}; remove the file to have it fetched again") from None
            return target
        if own:
            with own.open("rb") as source:
                atomic_write(target, functools.partial(shutil.copyfileobj, source))
            return target
        with Transfers() if bars is None else contextlib.nullcontext(bars) as shown:
            _download(entry, target, shown)
    return target


def fetch_all(
    wanted: Sequence[Entry],
    folder: Path | None = None,
    done: Callable[[Entry, Path | BackbenchError], None] | None = None,
) -> dict[str, Path | BackbenchError]:
    """Several files at once, `PARALLEL` at a time; one that fails does not stop the others."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    from core.progress import Transfers

    found: dict[str, Path | BackbenchError] = {}
    with Transfers() as bars, ThreadPoolExecutor(PARALLEL) as pool:
        running = {pool.submit(fetch, entry, folder, bars): entry for entry in wanted}
        try:
            for future in as_completed(running):
                entry = running[future]
                try:
                    found[entry.name] = future.result()
                except BackbenchError as error:
                    found[entry.name] = error
                if done:
                    done(entry, found[entry.name])
        except BaseException:  # Ctrl-C: what has not begun never does, what has keeps its part for the next time
            pool.shutdown(wait=False, cancel_futures=True)
            bars.stop()
            raise
    return found


# ---------------------------------------------------------------- what the bytes must be


def pins() -> dict[str, dict[str, Any]]:
    """What was downloaded first under each name: {"sha256", "size", "url"}."""
    path = cache() / "pins.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BackbenchError(f"{path}: cannot be read ({error}); remove it to pin anew") from None


def check(entry: Entry, path: Path) -> str:
    """The file's SHA-256, once it agrees with everything known of it.

    Raises:
        CheckpointError: other bytes than published, or than pinned at the first download.
    """
    from core.artifacts import file_sha256

    found = file_sha256(path)
    pin = pins().get(entry.name, {}).get("sha256")
    for known, whose in ((entry.sha256, "the entry's"), (entry.sha256_prefix, "the authors'"), (pin, "the pinned")):
        if known and not found.startswith(known):
            hint = f"; if the authors changed the file, remove '{entry.name}' from {cache() / 'pins.json'}"
            raise CheckpointError(
                f"{path}: wrong bytes: sha256 {found[:16]}..., {whose} is {known[:16]}{hint if known == pin else ''}"
            )
    if entry.md5_prefix:
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if not md5.startswith(entry.md5_prefix):
            raise CheckpointError(f"{path}: wrong bytes: md5 {md5[:8]}, the authors' is {entry.md5_prefix}")
    _check_shape(entry, path)
    return found


def _check_shape(entry: Entry, path: Path) -> None:
    """What can be told of a file that has no published checksum."""
    from core.artifacts import first_bytes

    size = path.stat().st_size
    if entry.size_mb and not 0.9 < size / (entry.size_mb * 1e6) < 1.12:  # MB or MiB
        raise CheckpointError(f"{path}: {size / 1e6:.1f} MB, the source says {entry.size_mb:g} MB; truncated?")
    if first_bytes(path).startswith(b"PK") and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: the end of the archive is missing: truncated")


def _pin(entry: Entry, sha256: str, size: int, url: str) -> None:
    from core.artifacts import atomic_write_text, held, make_folder

    folder = make_folder(cache())
    with held(folder / ".pins.lock"):
        known = {**pins(), entry.name: {"sha256": sha256, "size": size, "url": url}}
        atomic_write_text(folder / "pins.json", json.dumps(known, indent=2, sort_keys=True) + "\n")


# ---------------------------------------------------------------- a folder of one's own


def _from_own_folder(entry: Entry) -> Path | None:
    """The file in `BACKBENCH_ZOO`: by the entry's name, by the published one where no other has it, or by checksum."""
    place = os.environ.get("BACKBENCH_ZOO")
    if not place:
        return None
    folder = Path(place)
    if not folder.is_dir():
        raise BackbenchError(f"BACKBENCH_ZOO={place}: no such folder")
    everything = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    names = [entry.file]
    if sum(other.remote_file == entry.remote_file for other in entries.all_entries()) <= 1:
        names.append(entry.remote_file)
    wrong = None
    for path in sorted((p for p in everything if p.name in names), key=lambda p: names.index(p.name)):
        try:
            check(entry, path)
        except CheckpointError as error:
            wrong = error
        else:
            return path
    known = entry.sha256 or pins().get(entry.name, {}).get("sha256") or entry.sha256_prefix
    if known:
        from core.artifacts import file_sha256

        found = next((path for path in everything if file_sha256(path).startswith(known)), None)
        if found:
            return found
    if wrong:
        raise wrong
    return None


# ---------------------------------------------------------------- over the network


def places(entry: Entry) -> list[str]:
    """Where to ask, in order: the mirror of the environment, the authors' place, its copies."""
    mirror = os.environ.get("BACKBENCH_ZOO_MIRROR")
    found = [f"{mirror.rstrip('/')}/{entry.file}"] if mirror else []
    if entry.url and not entry.by_hand:
        found.append(entry.url)
    return [*found, *entry.mirrors]


def _download(entry: Entry, target: Path, bars: Transfers) -> None:
    """Ask one place after the other, check, pin, move into place."""
    from core.progress import say

    how = f"download {entry.url} in a browser as" if entry.url else "put it as"
    by_hand = f"{entry.by_hand}: {how} {entry.file} into a folder, name it in BACKBENCH_ZOO"
    failed = [f"{entry.name}: {by_hand}"] if entry.by_hand else []
    part = target.with_name(f".{target.name}.part")
    for url in places(entry):
        say(f"{entry.name}: from {url}, licence of the weights: {entry.licence or 'not stated'}")
        try:
            _retrieve(url, part, entry.name, bars)
            sha256 = check(entry, part)
        except CheckpointError as error:  # nothing of it is worth resuming
            _forget(part)
            failed.append(f"{url}: {str(error).removeprefix(f'{part}: ')}")
        except BackbenchError as error:
            failed.append(str(error))
        else:
            _pin(entry, sha256, part.stat().st_size, url)
            os.replace(part, target)  # noqa: PTH105 (atomic)
            _forget(part)
            return
    raise BackbenchError("; ".join(failed))


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)


def _validator_file(part: Path) -> Path:
    """Beside the part: whose bytes they are, so that halves of two versions are never joined."""
    return part.with_name(part.name + ".json")


def _retrieve(url: str, part: Path, label: str, bars: Transfers) -> None:
    """All bytes of `url` into `part`, in as many attempts as it takes while bytes arrive."""
    import httpx2

    headers = {"User-Agent": "backbench", "Accept-Encoding": "identity"}
    timeout = httpx2.Timeout(30.0, connect=15.0)
    host, show = urlsplit(url).hostname, bars.add(label)
    with httpx2.Client(follow_redirects=True, timeout=timeout, headers=headers) as client:
        attempt, most = 0, _size(part)
        while True:
            try:
                _attempt(client, url, part, show)
                return
            except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.TooManyRedirects) as error:
                raise BackbenchError(f"{url}: {error}") from None
            except (httpx2.TransportError, _Passing) as error:
                grown = _size(part) > most  # than ever before: without ranges each attempt begins anew
                most = max(most, _size(part))
                attempt = 1 if grown else attempt + 1
                if attempt >= ATTEMPTS:
                    raise BackbenchError(f"{url}: {_reason(error, host)}, after {ATTEMPTS} attempts") from None
                asked = error.wait if isinstance(error, _Passing) else None
                _sleep(
                    min(_LONGEST_WAIT_S, asked if asked is not None else 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
                )


def _reason(error: Exception, host: str | None) -> str:
    import httpx2

    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return f"cannot reach {host} ({str(error) or type(error).__name__}); {_OFFLINE}"
    return str(error) or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(client: httpx2.Client, url: str, part: Path, show: Callable[[int, int | None], None]) -> None:
    """One request: the rest of the part where the server still has the same bytes, else all of it."""
    known = _validator(part, url)
    have = _size(part) if known else 0
    headers = {"Range": f"bytes={have}-", "If-Range": known} if have else {}
    with client.stream("GET", url, headers=headers) as response:
        _raise_for_status(response, url, part)
        resumed = response.status_code == 206
        start, total = _extent(response, have if resumed else 0, url)
        if start != (have if resumed else 0):
            _forget(part)
            raise _Passing("the server sent another range than was asked for")
        if not resumed:
            _remember(part, url, response.headers)
        with part.open("ab" if resumed else "wb") as file:
            done = start
            for chunk in response.iter_raw():
                file.write(chunk)
                done += len(chunk)
                show(done, total)
    if total is not None and done != total:
        if done > total:
            _forget(part)
        raise _Passing(f"the server announced {total} bytes and sent {done}")


def _raise_for_status(response: httpx2.Response, url: str, part: Path) -> None:
    code = response.status_code
    if code in (200, 206):
        if response.headers.get("content-type", "").startswith("text/html"):
            raise CheckpointError("is a web page, not a checkpoint (a login or error page?)")
        return
    if code == 416:  # the part is as long as the file, or longer
        _forget(part)
        raise _Passing("the server refused to go on from where we were")
    if code in _PASSING:
        busy = "too many requests" if code == 429 else "the server is busy or broken"
        raise _Passing(f"{busy} (HTTP {code})", _retry_after(response.headers))
    words = {
        401: "not allowed without a login",
        403: "not allowed (withdrawn, or a login is needed)",
        404: "not there any more",
        410: "not there any more",
    }.get(code, "refused")
    raise BackbenchError(f"{url}: {words} (HTTP {code}); if you have the file, name its folder in BACKBENCH_ZOO")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks us to wait; a date is not understood and ignored."""
    asked = headers.get("retry-after", "")
    return float(asked) if asked.isdigit() else None


def _extent(response: httpx2.Response, have: int, url: str) -> tuple[int, int | None]:
    """(first byte of the answer, length of the whole file if told)."""
    if response.status_code == 206:
        unit, _, rest = response.headers.get("content-range", "").partition(" ")
        span, _, whole = rest.partition("/")
        first = span.partition("-")[0]
        if unit != "bytes" or not first.isdigit():
            raise BackbenchError(f"{url}: answers a range request without saying which range")
        return int(first), int(whole) if whole.isdigit() else None
    length = response.headers.get("content-length", "")
    return 0, int(length) if length.isdigit() else None


def _remember(part: Path, url: str, headers: Mapping[str, str]) -> None:
    """Note whose bytes follow, where the server names them; a weak ETag does not promise equal bytes."""
    etag = headers.get("etag", "")
    validator = etag if etag and not etag.startswith("W/") else headers.get("last-modified", "")
    _validator_file(part).write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")


def _validator(part: Path, url: str) -> str | None:
    """What to show the server so that it goes on only with the same bytes; None: begin anew."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        noted = json.loads(_validator_file(part).read_text(encoding="utf-8"))
        if noted["url"] == url and isinstance(noted["validator"], str):
            return noted["validator"] or None
    return None
