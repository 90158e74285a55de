"""Handmade pickles, archives and containers that attack their reader, and guards that detect what they did."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

import model_zoo.load
from backbench.errors import BackbenchError
from model_zoo.reading.torch_files.legacy import MAGIC


def glob(name):
    """GLOBAL of `module.name`."""
    module, _, word = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + word.encode() + b"\n"


def text(words):
    return b"X" + struct.pack("<I", len(words.encode())) + words.encode()


def stack_glob(name):
    module, _, word = name.rpartition(".")
    return text(module) + text(word) + b"\x93"


def arguments(*words):
    return b"(" + b"".join(w if isinstance(w, bytes) else text(w) for w in words) + b"t"


def reduce(name, *words):
    return glob(name) + arguments(*words) + b"R"


def stack_reduce(name, *words):
    return stack_glob(name) + arguments(*words) + b"R"


def inst(name, *words):
    module, _, word = name.rpartition(".")
    return b"(" + b"".join(text(w) for w in words) + b"i" + module.encode() + b"\n" + word.encode() + b"\n"


def obj(name, *words):
    return b"(" + glob(name) + b"".join(text(w) for w in words) + b"o"


def newobj(name, *words):
    return glob(name) + arguments(*words) + b"\x81"


def newobj_ex(name, *words):
    return glob(name) + arguments(*words) + b"}\x92"


def build(name, state):
    """BUILD on a named object."""
    return glob(name) + state + b"b"


def dictionary(**values):
    return b"(" + b"".join(text(key) + value for key, value in values.items()) + b"d"


def pickled(*operations, protocol=2):
    return b"\x80" + bytes([protocol]) + b"".join(operations) + b"."


def tensor(key="0", numel=1, size=(1,), stride=(1,), offset=0, kind="torch.FloatStorage"):
    """The opcodes for one tensor in torch's container."""

    def number(value):
        data = value.to_bytes(8, "little")
        return b"\x8a\x09" + data + b"\0"

    identity = arguments("storage", glob(kind), key, "cpu", number(numel)) + b"Q"
    sizes = [b"(" + b"".join(number(v) for v in values) + b"t" for values in (size, stride)]
    return reduce("torch._utils._rebuild_tensor_v2", identity, number(offset), *sizes, b"\x89", b"}")


def torch_zip(path, data, extra=(), **how):
    """Write torch.save's container with a pickle."""
    with zipfile.ZipFile(path, "w", **how) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for name, content in extra:
            archive.writestr(name, content)
    return path


def legacy(path, data, keys=(), rest=b""):
    """Write torch.save's container from before 2020 with a pickle."""
    head = [int.from_bytes(MAGIC[2:], "little"), 1001, {"protocol_version": 1001, "little_endian": True}]
    begin = b"".join(pickle.dumps(part, protocol=2) for part in head)
    path.write_bytes(begin + data + pickle.dumps(list(keys), protocol=2) + rest)
    return path


def plain(path, data):
    path.write_bytes(data)
    return path


def zipped(path, data):
    """Write a pickle in a plain zip archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/model.pkl", data)
    return path


def torch_in_zip(path, data):
    """Write torch.save's container in a plain zip archive."""
    inner = torch_zip(path.with_suffix(".inner"), data)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/model.pth", inner.read_bytes())
    inner.unlink()
    return path


def npz(path, data):
    """Write an array of objects in .npz with the pickle as its bytes."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weight.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)
    return path


CONTAINERS = {
    "zip": torch_zip, "legacy": legacy, "pickle": plain, "pickle in zip": zipped, "torch in zip": torch_in_zip, "npz": npz,
}  # fmt: skip

_EVENTS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class",
           "os.remove", "os.rename", "os.chmod", "os.mkdir", "os.link", "os.symlink", "os.utime", "os.rmdir", "os.truncate",
           "ctypes.dlopen", "shutil.copyfile", "tempfile.mkstemp", "tempfile.mkdtemp", "webbrowser.open"}  # fmt: skip
_seen: list[str] | None = None


def _hook(event, values):
    if _seen is None:
        return
    writes = event == "open" and isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in _EVENTS or writes:
        _seen.append(f"{event} {values!r}"[:200])


_hooked: list[bool] = []


@contextlib.contextmanager
def watched(folder: Path):
    """Fail if the block runs, writes or changes anything, detected by Python's audit events and the folder's files."""
    global _seen
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    before, _seen = _state(folder), []
    try:
        yield
    finally:
        events, _seen = _seen, None
    assert events == [], events
    assert _state(folder) == before


def _state(folder):
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and status.st_size < 1 << 20 else status.st_size
        found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found


@contextlib.contextmanager
def bounded(seconds=20.0, memory=600 << 20):
    """Fail if the block takes longer, or more peak memory, than allowed."""
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    start, before = (
        time.process_time(),
        _memory("VmRSS"),
    )  # other tests may run beside this one; a wait meets pytest's limit
    yield
    assert time.process_time() - start < seconds
    assert _memory("VmHWM") - before < memory


def _memory(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10


def saved(value, **how):
    """Return torch.save's bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def refusal(path):
    """Return the one-sentence error of a bad file; fail if it takes long, needs much memory, or changes anything."""
    with bounded(), watched(path.parent), pytest.raises(BackbenchError) as caught:
        model_zoo.load.load(path)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 2500
    assert said.isprintable()
    return said
