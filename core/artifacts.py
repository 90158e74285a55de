"""Files and their identity: hashes, atomic writes, safe loading."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch
from torch import Tensor

from core.errors import BackbenchError, CheckpointError


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over (name, dtype, shape, bytes) of the tensors, sorted by name: the same weights in any container."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write below `path` into sentences."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "no permission to write there",
            errno.EPERM: "no permission to write there",
            errno.EROFS: "the file system is read-only",
            errno.ENOTDIR: "a part of the path is a file, not a folder",
            errno.EEXIST: "a file is in the way of a folder",
        }
        if error.errno not in reasons:
            raise
        raise BackbenchError(f"cannot write {path}: {reasons[error.errno]}; what was there before is intact") from error


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, or say why not."""
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def atomic_write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write through a temporary file in the same folder and `os.replace`: readers see the old file or the new one.

    Raises:
        BackbenchError: the disk is full or not writable; the old file stays.
    """
    path = Path(path)
    make_folder(path.parent)
    with writing(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)  # mkstemp made it private
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


class _Inert:
    """Stands for a harmless object of a checkpoint that is not a tensor: takes anything, does nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...

    def __setitem__(self, _key: object, _value: object) -> None: ...

    def append(self, _value: object) -> None: ...

    def extend(self, _values: object) -> None: ...

    def __call__(self, *_args: object, **_kwargs: object) -> _Inert:
        return self


# Names that checkpoints of the field hold beside their tensors, and that become inert.
_HARMLESS = {
    ("argparse", "Namespace"),
    ("collections", "defaultdict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
    *(("builtins", name) for name in ("list", "dict", "set", "int", "float", "complex", "bytearray", "slice", "range")),
    *(
        ("__builtin__", name)
        for name in ("list", "dict", "set", "int", "float", "complex", "bytearray", "slice", "xrange")
    ),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib", "WindowsPath"),
    ("mmengine.logging.history_buffer", "HistoryBuffer"),
    ("pytorch_lightning.utilities.parsing", "AttributeDict"),
    ("lightning.pytorch.utilities.parsing", "AttributeDict"),
    ("lightning_fabric.utilities.data", "AttributeDict"),
    ("omegaconf.dictconfig", "DictConfig"),
}
_TENSORS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TENSORS or (module == "torch" and name.endswith("Storage") and name.isalnum()):
            return super().find_class(module, name)
        if (module, name) in _HARMLESS or module.startswith("numpy.dtypes"):
            return _Inert
        raise CheckpointError(f"holds '{module}.{name}', which is code, not weights; refused, nothing was run")


def _restricted_pickle() -> ModuleType:
    module = ModuleType("restricted_pickle")
    module.Unpickler = _RestrictedUnpickler
    module.load = lambda file, **kwargs: _RestrictedUnpickler(file, **kwargs).load()
    module.loads = lambda data, **kwargs: _RestrictedUnpickler(io.BytesIO(data), **kwargs).load()
    return module


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU, without running code from the file.

    First `weights_only=True`; a file that holds more goes through an unpickler that resolves tensors, turns a fixed list
    of harmless classes into inert stubs and refuses everything else by name.

    Raises:
        CheckpointError: missing, empty, truncated, a web page, not a torch file, or holding code.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; give the checkpoint file in it")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path}: the file is empty")
    if head.lstrip().startswith(b"<"):
        raise CheckpointError(
            f"{path}: is a web page, not a checkpoint (a download that ended at a login or error page?)"
        )
    if _is_torchscript(path):
        raise CheckpointError(f"{path}: is a TorchScript program, which holds code; save its state_dict() instead")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as safe_error:
        try:
            # nosec: the unpickler resolves nothing but tensors and inert stubs
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_restricted_pickle())
        except CheckpointError as refused:
            raise CheckpointError(f"{path}: {refused}") from None
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or " ".join(str(safe_error).split())[:200]
            raise CheckpointError(
                f"{path}: not a readable torch checkpoint; truncated or another format? "
                f"({path.stat().st_size} bytes; {type(error).__name__}: {reason})"
            ) from None


def _is_torchscript(path: Path) -> bool:
    """Whether torch.load would hand the file over to torch.jit.load, which runs what it holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    return any(name.endswith("constants.pkl") or "/code/" in name for name in names)
