"""Download zoo entries and `https://` checkpoints into a cache folder; a file is checked before it is moved into place.

`BACKBENCH_ZOO=DIR` names a folder of files that you have already, `BACKBENCH_ZOO_MIRROR=URL` a server with the files under
the entries' names (as `download --all --to DIR` writes them). HTTP proxies come from the usual environment variables.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backbench.errors import BackbenchError, CheckpointError, writing
from model_zoo import entries
from model_zoo.entries import Entry
from model_zoo.fetch import checksums, pins, url_file
from model_zoo.fetch.url_file import UrlFile

if TYPE_CHECKING:
    from backbench.progress import Transfers

PARALLEL = 4
_LEAST_OF_STATED, _MOST_OF_STATED = 0.9, 1.12  # a size in MB may be in MiB


def fetch_url(source: str) -> tuple[Path, str]:
    """Return the file at an address, downloaded once, and its name there. `#sha256=...` states its checksum.

    Raises:
        BackbenchError, CheckpointError: as `fetch`.
    """
    from backbench.files.atomic import make_folder

    wanted = url_file.parse(source)
    return _fetch(wanted, make_folder(pins.folder() / "urls")), wanted.stem


def fetch(entry: Entry, folder: Path | None = None, bars: Transfers | None = None) -> Path:
    """Return an entry's file: from `BACKBENCH_ZOO`, from `folder` (default: the cache), else downloaded into `folder`.

    If `folder` is given, a file found in `BACKBENCH_ZOO` is copied there.

    Raises:
        BackbenchError: there are no public weights, or no address serves them; the error says what to do.
        CheckpointError: the bytes differ from those published or pinned.
    """
    if not entry.has_weights:
        more = f"; entries with weights: {', '.join(entry.see)}" if entry.see else ""
        raise BackbenchError(f"zoo entry '{entry.name}' has no weights ({entry.no_weights}){more}")
    own = _from_own_folder(entry)
    if own and folder is None:
        return own
    from backbench.files.atomic import make_folder

    return _fetch(entry, make_folder(folder or pins.folder()), own, bars)


def is_here(wanted: Entry | UrlFile) -> bool:
    """Return whether the file is in `BACKBENCH_ZOO` or the cache, so that it needs no download.

    Raises:
        BackbenchError, CheckpointError: as `fetch`, for `BACKBENCH_ZOO`.
    """
    if isinstance(wanted, UrlFile):
        return (pins.folder() / "urls" / wanted.file).exists()
    return _from_own_folder(wanted) is not None or (pins.folder() / wanted.file).exists()


def _fetch(wanted: Entry | UrlFile, folder: Path, own: Path | None = None, bars: Transfers | None = None) -> Path:
    """Return the file in `folder`: check it if it exists, else copy `own`, else download it."""
    from backbench.files.atomic import atomic_write
    from backbench.files.locks import held
    from backbench.progress import Transfers

    target = folder / wanted.file
    with held(folder / f".{wanted.file}.lock"):
        if target.exists():
            try:
                check(wanted, target)
            except CheckpointError as error:
                raise CheckpointError(f"{error}; remove the file to have it fetched again") from None
        elif own:
            with own.open("rb") as source:
                atomic_write(target, functools.partial(shutil.copyfileobj, source))
        else:
            with Transfers() if bars is None else contextlib.nullcontext(bars) as shown:
                _download(wanted, target, shown)
    return target


def fetch_all(
    wanted: Sequence[Entry],
    folder: Path | None = None,
    done: Callable[[Entry, Path | BackbenchError], None] | None = None,
) -> dict[str, Path | BackbenchError]:
    """Fetch several files, `PARALLEL` at a time; a failure does not stop the others."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    from backbench.progress import Transfers

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
        except BaseException:  # Ctrl-C: start no more; files under way keep their part for the next run
            pool.shutdown(wait=False, cancel_futures=True)
            bars.stop()
            raise
    return found


# ---------------------------------------------------------------- checks of the bytes


def check(entry: Entry | UrlFile, path: Path) -> str:
    """Return the file's SHA-256, after comparing the file with every known checksum.

    Raises:
        CheckpointError: the bytes differ from those published, or pinned at the first download.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a file")
    found = checksums.sha256(path)
    pin = pins.read().get(entry.name, {}).get("sha256")
    for known, whose in ((entry.sha256, "the entry's"), (entry.sha256_prefix, "the authors'"), (pin, "the pinned")):
        if known and not found.startswith(known):
            hint = f"; if the authors changed the file, remove '{entry.name}' from {pins.file()}"
            raise CheckpointError(
                f"{path}: wrong bytes: sha256 {found[:16]}..., {whose} is {known[:16]}{hint if known == pin else ''}"
            )
    if entry.md5_prefix:
        md5 = checksums.md5(path)
        if not md5.startswith(entry.md5_prefix):
            raise CheckpointError(f"{path}: wrong bytes: md5 {md5[:8]}, the authors' is {entry.md5_prefix}")
    _check_shape(entry, path)
    return found


def _check_shape(entry: Entry | UrlFile, path: Path) -> None:
    """Raise CheckpointError if the size or the container is wrong."""
    from model_zoo.reading import first_bytes

    size = path.stat().st_size
    if entry.size_mb and not _LEAST_OF_STATED < size / (entry.size_mb * 1e6) < _MOST_OF_STATED:
        raise CheckpointError(f"{path}: {size / 1e6:.1f} MB, the source says {entry.size_mb:g} MB; truncated?")
    if first_bytes(path).startswith(b"PK") and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: the end of the archive is missing: truncated")


# ---------------------------------------------------------------- the user's folder, BACKBENCH_ZOO


def _from_own_folder(entry: Entry) -> Path | None:
    """Return the file in `BACKBENCH_ZOO`, found by the entry's name, by an unshared published name, or by checksum."""
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
    known = entry.sha256 or pins.read().get(entry.name, {}).get("sha256") or entry.sha256_prefix
    if known:
        found = next((path for path in everything if checksums.sha256(path).startswith(known)), None)
        if found:
            return found
    if wrong:
        raise wrong
    return None


# ---------------------------------------------------------------- over the network


def places(wanted: Entry | UrlFile) -> list[str]:
    """Return the addresses to try, in order: the mirror from the environment, the authors' address, its mirrors."""
    mirror = os.environ.get("BACKBENCH_ZOO_MIRROR") if isinstance(wanted, Entry) else None
    found = [f"{mirror.rstrip('/')}/{wanted.file}"] if mirror else []
    if wanted.url and not wanted.by_hand:
        found.append(wanted.url)
    return [*found, *wanted.mirrors]


def _download(wanted: Entry | UrlFile, target: Path, bars: Transfers) -> None:
    """Try one address after the other; check the file, pin it, and move it into place."""
    from backbench import http
    from backbench.http import partial
    from backbench.progress import say

    how = f"download {wanted.url} in a browser as" if wanted.url else "put it as"
    by_hand = f"{wanted.by_hand}: {how} {wanted.file} into a folder, name it in BACKBENCH_ZOO"
    failed = [f"{wanted.name}: {by_hand}"] if wanted.by_hand else []
    part = target.with_name(f".{target.name}.part")
    largest = int(_MOST_OF_STATED * wanted.size_mb * 1e6) if wanted.size_mb else http.LARGEST
    for url in places(wanted):
        say(f"{wanted.name}: from {url}, licence of the weights: {wanted.licence or 'not stated'}")
        try:
            accept = _refuse_other_head if not _is_published(wanted) else lambda _head: None
            http.retrieve(http.Request(url, part, wanted.name, bars.add(wanted.name), largest, accept, _advice(wanted)))
            sha256 = check(wanted, part)
            if not _is_published(wanted):
                _refuse_other_file(part)
        except CheckpointError as error:  # do not resume from these bytes
            partial.forget(part)
            failed.append(f"{url}: {str(error).removeprefix(f'{part}: ')}")
        except BackbenchError as error:
            failed.append(str(error))
        else:
            pins.add(wanted.name, sha256, part.stat().st_size, url)
            with writing(target):
                os.replace(part, target)  # noqa: PTH105 (atomic)
            partial.forget(part)
            return
    raise BackbenchError("; ".join(failed))


def _advice(wanted: Entry | UrlFile) -> str:
    if isinstance(wanted, UrlFile):
        return "download it by other means and give the file: --ckpt FILE"
    return "if you have the file, or can fetch it by other means, put it into a folder and name that in BACKBENCH_ZOO"


def _is_published(wanted: Entry | UrlFile) -> bool:
    """Return whether the authors publish a checksum."""
    return bool(wanted.sha256 or wanted.sha256_prefix or wanted.md5_prefix)


_HEADS = (b"PK\x03\x04", b"\x80", b"(", b"}", b"]", b"c")  # zip, pickles of any protocol


def _refuse_other_head(head: bytes) -> None:
    """Raise CheckpointError if the first bytes, of a file without a published checksum, are not a checkpoint's."""
    is_safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30
    if not head:
        raise CheckpointError("the file is empty")
    if head.lstrip().startswith(b"<"):
        raise CheckpointError("is a web page, not a checkpoint (a login or error page?)")
    if not (head.startswith(_HEADS) or is_safetensors):
        raise CheckpointError(
            f"is not a checkpoint: begins with {head[:8]!r}, unlike torch files, pickles, safetensors and zip archives"
        )


def _refuse_other_file(part: Path) -> None:
    """Raise CheckpointError if the file cannot be read completely, so that only readable files are pinned.

    A torch file has a checksum for each tensor, so a mixture of two versions is detected here.
    """
    from model_zoo import reading

    try:
        reading.read(part)
    except CheckpointError as error:
        text = str(error).removeprefix(f"{part}: ")
        raise CheckpointError(f"no checkpoint arrived, nothing was pinned: {text}") from None
