"""Read files of weights without running code from them. Their size bounds the time and memory.

`read(path)` recognises a container by its content, never by its name: torch's zip and legacy files, pickles of arrays,
.npz, safetensors, or one of these in a plain zip archive. This package reads them all itself: it gives nothing to
`torch.load`, `pickle` or `tarfile`, and unpacks nothing to the disk. An object that is neither a tensor nor a plain value
becomes an `Inert` stub; `Contents.notes` lists the names of such objects, and goes into a backbone's `notes`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from backbench.errors import CheckpointError
from backbench.files import opened, why_not
from backbench.printable import printable
from model_zoo.reading import archives, foreign, npz, safetensors
from model_zoo.reading.archives import Archive
from model_zoo.reading.pickles import plain
from model_zoo.reading.pickles.machine import Malformed
from model_zoo.reading.pickles.names import Names, Pickled, merged
from model_zoo.reading.pickles.objects import Inert
from model_zoo.reading.torch_files import legacy
from model_zoo.reading.torch_files import zip as torch_zip

__all__ = ["Contents", "Inert", "first_bytes", "load_torch", "read"]

_HEAD = 512
_NAMED = 5  # most names in a note
# Only an attack calls these: torch.load(weights_only=False) would run them.
_ARMED = ("os.", "posix.", "nt.", "subprocess.", "pty.", "runpy.", "socket.", "ctypes.", "builtins.eval",
          "builtins.exec", "builtins.__import__", "builtins.compile", "builtins.open", "webbrowser.", "shutil.")  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """A file's contents: plain values, tensors and `Inert` stubs, with notes for the user."""

    value: Any
    notes: tuple[str, ...] = ()


def read(path: Path, pickled: Mapping[str, Pickled] | None = None) -> Contents:
    """Return the contents of a file of weights.

    Args:
        pickled: operations of each layout for its own pickled classes, see `model_zoo.formats.pickled`.

    Raises:
        CheckpointError: one sentence: the path, what is wrong with the file, and what to do.
        ConfigError: the operations of two layouts contradict each other or a built-in one.
    """
    with _sentences(path), opened(path, CheckpointError) as file:
        size = os.fstat(file.fileno()).st_size
        _refuse_what_memory_cannot_hold(size)
        names = Names(merged(pickled or {}))
        value, checked = _read(file, size, names, Path(path).suffix == ".safetensors")
        _refuse_networks(value)
        return Contents(value, (*_notes(names.unknown), *([] if checked else [_UNCHECKED])))


def load_torch(path: Path) -> Any:
    """Return the value in a file of `torch.save`, on the CPU, without running code from it. For our own files.

    Raises:
        CheckpointError: missing, empty, truncated, damaged, a web page, or not a container of weights.
    """
    return read(path).value


def first_bytes(path: Path) -> bytes:
    """Return a checkpoint's first bytes. Raises CheckpointError: missing, empty, a web page or a tar archive."""
    with _sentences(path), opened(path, CheckpointError) as file:
        return _head(file, os.fstat(file.fileno()).st_size)


_UNCHECKED = "has no checksums: damage to its numbers cannot be detected"


def _head(file: BinaryIO, size: int) -> bytes:
    head = file.read(_HEAD)
    file.seek(0)
    if not head:
        raise CheckpointError("the file is empty")
    if not safetensors.is_safetensors(head, size):
        foreign.refuse(head)
    return head


def _read(file: BinaryIO, size: int, names: Names, named_so: bool, nested: bool = False) -> tuple[Any, bool]:
    """Return the value, and False if the container should have checksums but does not."""
    if named_so and not size:
        raise CheckpointError("not a readable safetensors file: the file is empty")
    head = _head(file, size)
    if named_so or safetensors.is_safetensors(head, size):
        return safetensors.read(file, size), True
    if head.startswith(b"PK"):
        with archives.opened(file, size) as archive:
            value = _of_archive(archive, names, nested)
            return value, not archive.without_checksums
    if head.startswith(b"\x80") and legacy.MAGIC in head[:32]:
        return legacy.read(file, size, names), True
    if head.startswith(npz.MAGIC):
        raise CheckpointError("is one array (.npy): save the tensors by name, with numpy.savez or torch.save")
    if head.startswith((b"\x80", b"(", b"c", b"}", b"]")):
        return plain.read(file, size, names), True
    raise Malformed("its first bytes are not those of a container of weights")


def _of_archive(archive: Archive, names: Names, nested: bool) -> Any:
    if npz.is_npz(archive):
        return npz.read(archive, names)
    if torch_zip.is_torch(archive):
        return torch_zip.read(archive, names)
    if nested:
        raise CheckpointError("an archive in an archive; unpack it and give the checkpoint in it")
    inner = archives.the_checkpoint(archive)
    value, _ = _read(inner, len(inner.getbuffer()), names, named_so=False, nested=True)
    return value


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """Turn every failure into one sentence that begins with the path."""
    shown = printable(path, 300)
    try:
        yield
    except CheckpointError as refused:
        text = str(refused)
        raise CheckpointError(text if text.startswith(shown) else f"{shown}: {text}") from None
    except MemoryError:
        raise CheckpointError(f"{shown}: its contents do not fit into this machine's memory") from None
    except (Malformed, struct.error, ValueError, RuntimeError, RecursionError, OverflowError) as error:
        reason = printable(" ".join(str(error).split()))
        raise CheckpointError(
            f"{shown}: not a readable torch checkpoint; truncated or another format? ({reason})"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{shown}: {why_not(error)}") from None


def _refuse_what_memory_cannot_hold(size: int) -> None:
    """Refuse a file larger than the memory; a sparse one can be, on any disk."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return
    if 0 < memory < size:
        raise CheckpointError(f"{size / 2**30:.0f} GiB, more than this machine's memory ({memory / 2**30:.0f} GiB)")


def _refuse_networks(value: Any) -> None:
    """Raise CheckpointError for `torch.save(model)`: pickled networks, and nothing with tensors beside them."""
    top = value.items() if isinstance(value, dict) else (("", value),)
    networks = [(key, item) for key, item in top if isinstance(item, Inert) and item.is_module]
    if networks and not _has_tensors(value):
        key, network = networks[0]
        where = f"under '{key}' " if key else ""
        model = f"checkpoint['{key}']" if key else "model"
        raise CheckpointError(
            f"contains {where}a pickled network ({network.name}), which only its own code can read: load it where that code "
            f"is and save its state_dict() instead: torch.save({model}.state_dict(), 'weights.pth')"
        )


def _has_tensors(value: Any, levels: int = 4) -> bool:
    if isinstance(value, dict) and levels:
        return any(isinstance(item, Tensor) or _has_tensors(item, levels - 1) for item in value.values())
    return False


def _notes(names: dict[str, int]) -> list[str]:
    """Return the notes on objects that are neither tensors nor plain values; `verify` prints them."""
    if not names:
        return []
    shown = ", ".join(list(names)[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    kinds = (
        "1 kind of object that is not a tensor"
        if len(names) == 1
        else f"{len(names)} kinds of objects that are not tensors"
    )
    notes = [f"contains {kinds} ({shown}): left unread, nothing was run"]
    if armed := [name for name in names if name.startswith(_ARMED)]:
        notes.append(
            f"names functions that only an attack calls ({', '.join(armed[:_NAMED])}): do not load this file with other tools"
        )
    return notes
