"""Atomic writes: readers see the old file or the whole new one. Weights are read by `model_zoo.reading`."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch

from backbench.errors import writing

_PREFIX = 50  # characters of the file's name used in its temporary file's name, whose length is limited


def make_folder(path: Path) -> Path:
    """Create a folder and its parents. Raises BackbenchError with the reason when that fails."""
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def atomic_write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write to a temporary file in the same folder, then `os.replace`: readers see the old file or the new one.

    Raises:
        BackbenchError: the disk is full or not writable; the old file stays.
    """
    path = Path(path)
    make_folder(path.parent)
    with writing(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:_PREFIX]}.", suffix=".tmp")
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(
                    handle, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # tells `clear_temporary` that the file is being written
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)  # mkstemp allows only the owner to read it
            os.replace(temporary, path)  # noqa: PTH105 (the name of the operation matters here)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write` of UTF-8 text."""
    atomic_write(path, lambda file: file.write(text.encode("utf-8")))


def atomic_save(path: Path, value: object) -> None:
    """`atomic_write` of `torch.save`; serialised in memory first, since torch reports a full disk as a RuntimeError."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    atomic_write(path, lambda file: file.write(buffer.getbuffer()))
