"""A checkpoint that is named by its address: `https://HOST/PATH`, with `#sha256=...` where its checksum is known."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from backbench.errors import CheckpointError


@dataclass(frozen=True)
class UrlFile:
    """A checkpoint that is named by its address alone; the fields that an entry has too mean the same."""

    url: str
    sha256: str | None = None
    by_hand = licence = sha256_prefix = md5_prefix = size_mb = None
    mirrors = ()

    @property
    def name(self) -> str:
        """Under which it is pinned."""
        return self.url

    @property
    def stem(self) -> str:
        """The file's name at its address, without what a file name cannot hold."""
        path = PurePosixPath(unquote(urlsplit(self.url).path))
        return re.sub(r"[^\w.-]", "_", path.name, flags=re.ASCII)[-80:].lstrip(".") or "checkpoint"

    @property
    def file(self) -> str:
        """Its file's name in the cache: two addresses may end alike."""
        return f"{hashlib.sha256(self.url.encode()).hexdigest()[:12]}-{self.stem}"


def is_url(source: str) -> bool:
    """Whether a checkpoint is named by its address."""
    return source.lower().startswith(("https://", "http://"))


def parse(source: str) -> UrlFile:
    """The address and the checksum that it states.

    Raises:
        CheckpointError: no host, or another fragment than `#sha256=<64 hexadecimal digits>`.
    """
    url, _, fragment = source.partition("#")
    stated = fragment.removeprefix("sha256=").lower() if fragment else None
    if stated is not None and not re.fullmatch(r"[0-9a-f]{64}", stated):
        raise CheckpointError(f"{source}: after # only sha256=<64 hexadecimal digits> is known")
    if not _host(url):
        raise CheckpointError(f"{source}: names no host; an address is https://HOST/PATH")
    return UrlFile(url, stated)


def _host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.port != 0 else None
    except ValueError:  # brackets, a port that is none
        return None
