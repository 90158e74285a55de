"""Archives with hidden members, links, bombs or damage give a backbone or one sentence, within limits, and change no file."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from backbench.errors import CheckpointError
from model_zoo.load import load
from tests.builders import hostile as h
from tests.builders.backbones import make_backbone
from tests.builders.hostile import refusal


@pytest.fixture(scope="module")
def state():
    return dict(make_backbone("resnet18").state)


def tar(path, *members, mode="w", how=tarfile.PAX_FORMAT, **headers):
    """Write a tar of (name, kind, link or bytes)."""
    with tarfile.open(path, mode, format=how, pax_headers=headers or None) as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.mode, info.type = 0o777, kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                archive.addfile(info)
    return path


_STORAGES = pickle.dumps(0, protocol=2)
_MEMBERS = (
    ("storages", tarfile.REGTYPE, _STORAGES),
    ("tensors", tarfile.REGTYPE, _STORAGES),
    ("pickle", tarfile.REGTYPE, b"N."),
)
TARS = {
    "a hard link with mode 0777": lambda p, v: tar(p, ("storages", tarfile.LNKTYPE, v)),
    "a symbolic link": lambda p, v: tar(p, ("storages", tarfile.SYMTYPE, v)),
    "a pipe": lambda p, v: tar(p, ("storages", tarfile.FIFOTYPE, "")),
    "a character device": lambda p, v: tar(p, ("storages", tarfile.CHRTYPE, "")),
    "a block device": lambda p, v: tar(p, ("storages", tarfile.BLKTYPE, "")),
    "a folder": lambda p, v: tar(p, ("storages", tarfile.DIRTYPE, "")),
    "an absolute path": lambda p, v: tar(p, (v, tarfile.REGTYPE, b"x")),
    "a path that leads out": lambda p, v: tar(p, ("../victim", tarfile.REGTYPE, b"x")),
    "a link, then a file through it": lambda p, v: tar(
        p, ("a", tarfile.SYMTYPE, v.removesuffix("victim")), ("a/victim", tarfile.REGTYPE, b"x")
    ),
    "a link to itself": lambda p, v: tar(p, ("storages", tarfile.SYMTYPE, "storages")),
    "torch's own of 2016": lambda p, v: tar(p, *_MEMBERS),
    "GNU's format": lambda p, v: tar(p, *_MEMBERS, how=tarfile.GNU_FORMAT),
    "USTAR": lambda p, v: tar(p, *_MEMBERS, how=tarfile.USTAR_FORMAT),
    "a long name": lambda p, v: tar(p, ("x" * 5000, tarfile.REGTYPE, b"x"), how=tarfile.GNU_FORMAT),
    "headers of 9 MB": lambda p, v: tar(p, *_MEMBERS, **{f"k{i}": "v" * 90_000 for i in range(100)}),
    "a sparse member": lambda p, v: tar(p, ("storages", tarfile.GNUTYPE_SPARSE, "")),
    "gzip": lambda p, v: tar(p, *_MEMBERS, mode="w:gz"),
    "bzip2": lambda p, v: tar(p, *_MEMBERS, mode="w:bz2"),
    "xz": lambda p, v: tar(p, *_MEMBERS, mode="w:xz"),
    "empty": lambda p, v: tar(p),
    "of before POSIX": lambda p, v: old_tar(p),
}  # fmt: skip


def old_tar(path):
    """Write a header without magic bytes, recognisable by its checksum only."""
    header = bytearray(tar(path, *_MEMBERS, how=tarfile.USTAR_FORMAT).read_bytes())
    header[257:512] = bytes(255)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path.write_bytes(header)
    return path


@pytest.mark.parametrize("inside", ["", "a zip"], ids=["alone", "in a zip"])
@pytest.mark.parametrize("kind", TARS)
def test_tars(tmp_path, kind, inside):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    victim.chmod(0o600)
    path = TARS[kind](tmp_path / "m.pth.tar", str(victim))
    if inside:
        data = path.read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("folder/m.pth.tar", data)
    assert victim.stat().st_mode & 0o777 == 0o600
    said = refusal(path)
    assert kind == "empty" or "is a tar archive" in said or "is compressed with" in said


def zip_of(path, *members, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as archive:
        for info, data in members:
            archive.writestr(info, data)
    return path


def good(path):
    """Write a sound checkpoint in an archive."""
    return zip_of(path, ("m.pth", _GOOD))


def unix(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def patched(path, mark, at, new, times=-1):
    """Write new bytes at an offset after each zip signature."""
    data, where = bytearray(path.read_bytes()), 0
    while times and (where := data.find(mark, where)) >= 0:
        data[where + at : where + at + len(new)] = new
        where, times = where + 4, times - 1
    path.write_bytes(data)
    return path


_ENTRY, _INDEX, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_GOOD = h.saved({"state_dict": {"a": torch.arange(2000.0)}})
_BIG = bytes(30 << 20)


def overlapping(path):
    """Write two entries of the index that share bytes."""
    zip_of(path, ("archive/data.pkl", b"\x80\x02N."), ("archive/data/0", bytes(1 << 20)), ("archive/data/1", b""))
    data = bytearray(path.read_bytes())
    first = data.find(_INDEX, data.find(_INDEX) + 4)
    last = data.find(_INDEX, first + 4)
    data[last + 16 : last + 28] = data[first + 16 : first + 28]
    data[last + 42 : last + 46] = data[first + 42 : first + 46]
    path.write_bytes(data)
    return path


def twice(path):
    with pytest.warns(UserWarning, match="Duplicate"):
        return zip_of(path, ("archive/data.pkl", b"\x80\x02N."), ("archive/data.pkl", b"\x80\x02}."))


ZIPS = {
    "a path that leads out": lambda p: zip_of(p, ("../m.pth", b"x")),
    "a path that leads out further in": lambda p: zip_of(p, ("a/../../m.pth", b"x")),
    "an absolute path": lambda p: zip_of(p, ("/tmp/m.pth", b"x")),
    "a drive": lambda p: zip_of(p, ("C:/m.pth", b"x")),
    "backslashes": lambda p: zip_of(p, ("..\\m.pth", b"x")),
    "a symbolic link": lambda p: zip_of(p, (unix("m.pth", 0o120777), "/etc/passwd")),
    "a pipe": lambda p: zip_of(p, (unix("m.pth", 0o010666), "")),
    "a device": lambda p: zip_of(p, (unix("m.pth", 0o020666), "")),
    "a folder named as a checkpoint": lambda p: zip_of(p, ("m.pth/", b"")),
    "torch's, out of its folder": lambda p: h.torch_zip(p, h.pickled(h.tensor("../../victim"))),
    "the same name twice": twice,
    "overlapping members": overlapping,
    "two pickles": lambda p: zip_of(p, ("a/data.pkl", b"\x80\x02N."), ("b/data.pkl", b"\x80\x02N.")),
    "a program beside the pickle": lambda p: zip_of(p, ("a/data.pkl", b"\x80\x02N."), ("a/code/x.py", "print()")),
    "constants beside the pickle": lambda p: zip_of(p, ("a/data.pkl", b"\x80\x02N."), ("a/constants.pkl", "x")),
    "a bomb": lambda p: zip_of(p, ("m.pth", _BIG), how=zipfile.ZIP_DEFLATED),
    "a bomb in torch's": lambda p: zip_of(p, ("a/data.pkl", b"\x80\x02N."), ("a/data/0", _BIG), how=zipfile.ZIP_DEFLATED),
    "a bomb by bzip2": lambda p: zip_of(p, ("m.pth", _BIG), how=zipfile.ZIP_BZIP2),
    "LZMA": lambda p: zip_of(p, ("m.pth", _GOOD), how=zipfile.ZIP_LZMA),
    "a zip in a zip in a zip": lambda p: zip_of(p, ("m.pth", good(p).read_bytes())),
    "encrypted": lambda p: patched(patched(good(p), _ENTRY, 6, b"\1\0"), _INDEX, 8, b"\1\0"),
    "a method of the future": lambda p: patched(good(p), _INDEX, 10, b"\x63\0"),
    "a version of the future": lambda p: patched(good(p), _INDEX, 6, b"\xff\0"),
    "stored, said to be deflated": lambda p: patched(good(p), _INDEX, 10, b"\x08\0"),
    "4 GB announced": lambda p: patched(good(p), _INDEX, 20, b"\xfe\xff\xff\xff" * 2),
    "less announced than there is": lambda p: patched(good(p), _INDEX, 24, struct.pack("<I", 100)),
    "a member beyond the end": lambda p: patched(good(p), _INDEX, 42, struct.pack("<I", 1 << 30)),
    "a wrong checksum": lambda p: patched(good(p), _INDEX, 16, b"\1\2\3\4"),
    "an index that is not text": lambda p: patched(patched(good(p), _INDEX, 8, b"\0\x08"), _INDEX, 46, b"\xff"),
    "an index elsewhere": lambda p: patched(good(p), _END, 16, struct.pack("<I", 7)),
    "an index of 4 GB": lambda p: patched(good(p), _END, 12, b"\xff\xff\xff\xfe"),
    "65,535 members announced": lambda p: patched(good(p), _END, 8, b"\xff\xff\xff\xff"),
    "50,000 members": lambda p: zip_of(p, *((f"{i}", b"") for i in range(50_000))),
    "a name of 60,000 characters": lambda p: zip_of(p, ("x" * 60_000 + ".pth", b"x")),
    "escape codes in a name": lambda p: zip_of(p, ("\x1b[31m/../m.pth", b"x")),
    "no member": lambda p: zip_of(p),
    "its end is missing": lambda p: cut(good(p), 0.9),
    "half of it": lambda p: cut(good(p), 0.5),
    "its first bytes": lambda p: cut(good(p), 0.001),
    "a missing storage": lambda p: h.torch_zip(p, h.pickled(h.tensor("9")), [("archive/data/0", bytes(4))]),
    "a storage that is too short": lambda p: h.torch_zip(p, h.pickled(h.tensor("0")), [("archive/data/0", bytes(3))]),
    "a pickle that is none": lambda p: zip_of(p, ("archive/data.pkl", b"\x80\x02\xff\xff.")),
    "only a pickle's name": lambda p: zip_of(p, ("data.pkl", b"")),
}  # fmt: skip


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: max(4, int(share * len(data)))])
    return path


@pytest.mark.parametrize("kind", ZIPS)
def test_zips(tmp_path, kind):
    refusal(ZIPS[kind](tmp_path / "m.pth"))


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("where", [0.02, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("wrapped", [False, True], ids=["torch", "torch in a zip"])
def test_a_flipped_byte(tmp_path, state, where, wrapped):
    """Damage to numbers or pickle is named, or the file cannot be read; it never gives another network."""
    path, good = tmp_path / "m.pth", load_of(tmp_path / "good.pth", state)
    data = h.saved(state)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [m for m in archive.infolist() if "/data/" in m.filename or m.filename.endswith("data.pkl")]
    entry = sorted(entries, key=lambda m: m.header_offset)[int(where * len(entries))]
    spoilt = bytearray(data)
    at = entry.header_offset + 64 + len(entry.filename) + entry.file_size // 2
    spoilt[at] ^= 0x40
    if wrapped:
        zip_of(path, ("m.pth", bytes(spoilt)))
    else:
        path.write_bytes(spoilt)
    try:
        read = load(path)
    except CheckpointError as error:
        assert "is damaged" in str(error)
    else:
        assert read.weights_sha256 == good, "the byte was padding"


def load_of(path, value):
    torch.save(value, path)
    return load(path).weights_sha256


@pytest.mark.parametrize("name", ["m.npz", "m.zip"])
def test_a_flipped_byte_of_other_archives(tmp_path, name):
    path = tmp_path / name
    if name == "m.npz":
        np.savez(path, **{"conv1.weight": np.ones(1000, np.float32)})
    else:
        zip_of(path, ("x.pkl", pickle.dumps({"model": np.ones(1000, np.float32)})))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    assert "is damaged" in refusal(path)


def test_what_was_saved_without_checksums_is_read_and_noted(tmp_path, state):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "m.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    backbone = load(tmp_path / "m.pth")
    assert any("has no checksums" in note for note in backbone.notes)
