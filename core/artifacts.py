"""Files and their identity: hashes, atomic writes, safe loading."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import pickle
import re
import shutil
import tempfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from core.errors import CheckpointError
from core.errors import writing as writing
from core.locks import held as held

_PREFIX = 50  # characters of a file's name in that of its temporary file, which may not be too long


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
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:_PREFIX]}.", suffix=".tmp")
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says to `clear_temporary` that it is being written
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


def first_bytes(path: Path) -> bytes:
    """A checkpoint's first bytes; CheckpointError when there is no file, nothing in it, or a web page."""
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
    return head


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU, without running code from the file.

    First `weights_only=True`; a file that holds more goes through an unpickler that resolves tensors, turns a fixed list
    of harmless classes into inert stubs and refuses everything else by name.

    Raises:
        CheckpointError: missing, empty, truncated, a web page, not a torch file, or holding code.
    """
    path = Path(path)
    first_bytes(path)
    if _is_torchscript(path):
        raise CheckpointError(f"{path}: is a TorchScript program, which holds code; save its state_dict() instead")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as safe_error:
        try:
            _refuse_torchscript(path)
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


_LARGEST_RATIO = 30  # weights hardly compress: what unpacks to more is no checkpoint
_CHECKPOINTS = (".pth", ".pt", ".tar", ".ckpt", ".th", ".torch", ".pkl", ".bin")


def _refuse_bomb(path: Path, archive: zipfile.ZipFile) -> None:
    """CheckpointError when an archive announces far more than it holds."""
    unpacked, packed = sum(member.file_size for member in archive.infolist()), path.stat().st_size
    if unpacked > _LARGEST_RATIO * packed + (1 << 20):
        raise CheckpointError(
            f"{path}: {packed} bytes that would unpack to {unpacked}: refused, no weights compress so far"
        )


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The opened zip archive.

    Raises:
        CheckpointError: its index cannot be read. Other readers, torch's among them, forgive more than Python's, so what
            cannot be looked into here is not handed on to them.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (
        Exception
    ) as error:  # zipfile has many ways to say so: BadZipFile, NotImplementedError, UnicodeDecodeError, ...
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: begins as a zip archive whose index cannot be read; truncated or damaged? Fetch or save it again "
            f"({Path(path).stat().st_size} bytes; {type(error).__name__}: {reason})"
        ) from None
    with archive:
        yield archive


def _members(path: Path) -> list[str]:
    """Names in a zip archive, none where the file is no archive; CheckpointError as `_archive` and `first_bytes` raise."""
    if not first_bytes(Path(path)).startswith(b"PK"):
        return []
    with _archive(path) as archive:
        return archive.namelist()


def is_plain_archive(path: Path) -> bool:
    """Whether the file is a zip archive that `torch.save` did not write.

    Raises:
        CheckpointError: no file, nothing in it, a web page, or an archive that cannot be looked into.
    """
    names = _members(path)
    return bool(names) and not any(name.endswith(("data.pkl", "constants.pkl")) for name in names)


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The one checkpoint in a plain zip archive, in a temporary folder, under a name of ours.

    Raises:
        CheckpointError: not exactly one checkpoint in it, a name that leaves the folder, a bomb, damaged.
    """
    try:
        with _archive(path) as archive, tempfile.TemporaryDirectory(prefix="backbench-") as folder:
            _refuse_bomb(path, archive)
            for name in archive.namelist():
                if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
                    raise CheckpointError(f"{path}: holds '{name}', which leads out of its folder; refused")
            found = [member for member in archive.infolist() if member.filename.endswith(_CHECKPOINTS)]
            if len(found) != 1:
                raise CheckpointError(
                    f"{path}: an archive with {len(found)} checkpoints; unpack it and give the one you mean"
                )
            target = Path(folder) / "checkpoint"
            with archive.open(found[0]) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
            yield target
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError) as error:
        raise CheckpointError(f"{path}: not a readable archive ({error})") from None


def is_npz(path: Path) -> bool:
    """Whether the file is what `numpy.savez` wrote.

    Raises:
        CheckpointError: no file, nothing in it, a web page, or an archive that cannot be looked into.
    """
    names = _members(path)
    return bool(names) and all(name.endswith(".npy") for name in names)


def load_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of numbers that `numpy.savez` wrote, as tensors.

    Raises:
        CheckpointError: a bomb, damaged, or holding objects.
    """
    try:
        with _archive(path) as archive:
            _refuse_bomb(Path(path), archive)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files if arrays[name].dtype.kind in "fiub"}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a readable file of arrays ({error})") from None


def _is_torchscript(path: Path) -> bool:
    """Whether torch.load would hand the file over to torch.jit.load, which runs what it holds."""
    if not (names := _members(path)):
        return False
    with _archive(path) as archive:
        _refuse_bomb(path, archive)
    return any(name.endswith("constants.pkl") or "/code/" in name for name in names)


def _refuse_torchscript(path: Path) -> None:
    """CheckpointError when torch's own reader of archives sees a program, whatever Python's saw of it."""
    if first_bytes(path).startswith(b"PK"):
        records = torch._C.PyTorchFileReader(str(path)).get_all_records()
        if any(name == "constants.pkl" or name.startswith("code/") for name in records):
            raise CheckpointError("is a TorchScript program, which holds code; save its state_dict() instead")


_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # what torch.save wrote first before it wrote zip files


def is_plain_pickle(path: Path) -> bool:
    """Whether the file is a pickle that `torch.save` did not write.

    Raises:
        CheckpointError: no file, nothing in it, or a web page.
    """
    head = first_bytes(Path(path))
    return head.startswith(b"\x80") and _TORCH_MAGIC not in head[:32]


class _Dtype:
    """Stands for `numpy.dtype` in a pickle: its code, and its byte order, which comes as a state."""

    def __init__(self, code: str, *_flags: object) -> None:
        if not re.fullmatch(r"[fiub][1248]", str(code)):
            raise CheckpointError(f"holds an array of '{code}', not of numbers; refused, nothing was run")
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """Stands for `numpy.ndarray` in a pickle; `value` is made from numbers alone, never by numpy's own unpickling."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, fortran, data = state
        if isinstance(data, str):  # Python 2's bytes
            data = data.encode("latin-1")
        self.value = _numbers(data, dtype, shape, "F" if fortran else "C")


def _numbers(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    array = np.frombuffer(data, dtype.order + dtype.code).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(array.dtype.newbyteorder("="), order="C")


def _reconstruct(*_arguments: object) -> _Array:
    """How pickle protocols up to 4 begin an array."""
    return _Array()


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """How pickle protocol 5 holds an array (numpy's `_frombuffer`)."""
    array = _Array()
    array.value = _numbers(data, dtype, shape, order)
    return array


def _latin1(text: str, codec: str) -> bytes:
    """How pickle protocol 2 holds bytes: `_codecs.encode`, for this codec only."""
    if codec not in ("latin1", "latin-1"):
        raise CheckpointError(f"holds bytes encoded as '{codec}'; refused, nothing was run")
    return text.encode("latin-1")


class _ByolState:
    """Stands for BYOL's NamedTuple of networks: a dictionary of its fields (deepmind-research, byol/byol_experiment.py)."""

    def __new__(cls, *values: object) -> Any:
        names = ("online_params", "target_params", "online_state", "target_state", "opt_state")
        return dict(zip(names, values, strict=False))


_HAIKU = "haiku._src.data_structures"  # its mappings are pickled as themselves and a dictionary
_ARRAYS: dict[tuple[str, str], Any] = {
    **{(_HAIKU, name): dict for name in ("FlatMapping", "FlatMap", "frozendict")},
    ("byol.byol_experiment", "_ByolExperimentState"): _ByolState,
    ("byol.utils.optimizers", "LarsState"): _Inert,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}
for _package in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _ARRAYS[f"{_package}.multiarray", "_reconstruct"] = _reconstruct
    _ARRAYS[f"{_package}.numeric", "_frombuffer"] = _from_buffer


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS:
            return _ARRAYS[module, name]
        if module.startswith("optax."):
            return _Inert
        raise CheckpointError(f"holds '{module}.{name}', which is no array but code; refused, nothing was run")


def load_pickle(path: Path) -> Any:
    """A plain pickle of dictionaries and numpy arrays, as Detectron2 keeps weights; the arrays become tensors.

    Raises:
        CheckpointError: missing, empty, truncated, a web page, or holding anything but plain values and arrays.
    """
    path = Path(path)
    first_bytes(path)
    try:
        with path.open("rb") as file:
            return _as_tensors(_ArrayUnpickler(file, encoding="latin1").load())
    except CheckpointError as refused:
        raise CheckpointError(f"{path}: {refused}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: not a readable pickle; truncated or another format? "
            f"({path.stat().st_size} bytes; {type(error).__name__}: {reason})"
        ) from None


def _as_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_tensors(item) for key, item in value.items()}
    return torch.from_numpy(value.value) if isinstance(value, _Array) else value
