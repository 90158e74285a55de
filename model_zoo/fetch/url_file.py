"""A checkpoint given by its address: `https://HOST/PATH`, optionally with `#sha256=...`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from backbench.errors import CheckpointError


@dataclass(frozen=True)
class UrlFile:
    """A checkpoint given by its address; fields shared with `Entry` have the same meaning."""

    url: str
    sha256: str | None = None
    by_hand = licence = sha256_prefix = md5_prefix = size_mb = None
    mirrors = ()

    @property
    def name(self) -> str:
        """The name under which it is pinned."""
        return self.url

    @property
    def stem(self) -> str:
        """The file name in the address, with unsafe characters replaced."""
        path = PurePosixPath(unquote(urlsplit(self.url).path))
        return re.sub(r"[^\w.-]", "_", path.name, flags=re.ASCII)[-80:].lstrip(".") or "checkpoint"

    @property
    def file(self) -> str:
        """The file name in the cache; the prefix separates addresses with the same ending."""
        return f"{hashlib.sha256(self.url.encode()).hexdigest()[:12]}-{self.stem}"


def is_url(source: str) -> bool:
    """Return whether a checkpoint is given by its address."""
    return source.lower().startswith(("https://", "http://"))


def parse(source: str) -> UrlFile:
    """Return the address and its checksum.

    Raises:
        CheckpointError: no host, or a fragment other than `#sha256=<64 hexadecimal digits>`.
    """
    url, _, fragment = source.partition("#")
    stated = fragment.removeprefix("sha256=").lower() if fragment else None
    if stated is not None and not re.fullmatch(r"[0-9a-f]{64}", stated):
        raise CheckpointError(f"{source}: only sha256=<64 hexadecimal digits> may follow #")
    if not _host(url):
        raise CheckpointError(f"{source}: has no host; an address is https://HOST/PATH")
    return UrlFile(url, stated)


def _host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.port != 0 else None
    except ValueError:  # brackets, an invalid port
        return None
