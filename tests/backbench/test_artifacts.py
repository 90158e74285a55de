"""Atomic writes, identity of tensors, and loading untrusted files."""

from __future__ import annotations

import collections
import errno
import hashlib
import os
import pathlib

import numpy as np
import pytest
import torch
from filelock import Timeout

from backbench.errors import BackbenchError
from backbench.files import atomic, locks
from backbench.files.atomic import atomic_save, atomic_write, atomic_write_text, make_folder
from backbench.files.hashes import file_sha256, tensors_sha256

# ---------------------------------------------------------------- writing


def files_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_atomic_write_replaces_and_makes_folders(tmp_path):
    file = tmp_path / "a" / "b" / "x.txt"
    atomic_write_text(file, "é one")
    atomic_write_text(file, "two")
    assert file.read_bytes() == b"two"
    assert files_in(file.parent) == ["x.txt"]


def test_the_file_gets_the_permissions_of_an_ordinary_one(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write_text(tmp_path / "x", "1")
        assert os.umask(0o027) == 0o027, "the umask is put back"
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("old", ["old", None])
@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_a_failing_writer_leaves_the_old_file(tmp_path, old, error):
    file = tmp_path / "x.txt"
    if old:
        file.write_text(old)

    def write(handle):
        handle.write(b"half")
        raise error

    with pytest.raises(type(error)):
        atomic_write(file, write)
    assert files_in(tmp_path) == (["x.txt"] if old else [])
    assert not old or file.read_text() == old


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
    ],
)
@pytest.mark.parametrize("where", ["writer", "fsync", "replace", "mkstemp"])
def test_the_systems_refusal_is_a_sentence_and_the_old_file_stays(tmp_path, monkeypatch, number, words, where):
    file = tmp_path / "x.txt"
    file.write_text("old")

    def refuse(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    def write(handle):
        handle.write(b"half")
        if where == "writer":
            refuse()

    targets = {"fsync": atomic.os, "replace": atomic.os, "mkstemp": atomic.tempfile}
    if where in targets:
        monkeypatch.setattr(targets[where], where, refuse)
    with pytest.raises(BackbenchError) as error:
        atomic_write(file, write)
    monkeypatch.undo()
    assert words in str(error.value)
    assert str(file) in str(error.value)
    assert file.read_text() == "old"
    assert files_in(tmp_path) == ["x.txt"]


def test_a_lock_that_may_not_be_written_is_a_sentence(tmp_path, monkeypatch):
    def refuse(*_args, **_fields):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(locks, "_create_file", refuse)
    with (
        pytest.raises(BackbenchError, match=r"x\.lock: no permission to write there"),
        locks.held(tmp_path / "x.lock"),
    ):
        pass


def test_a_lock_is_held_until_the_end_and_given_back_after_an_error(tmp_path):
    lock = tmp_path / "x.lock"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locks.held(lock):
            with pytest.raises(Timeout), locks.held(lock, timeout=0):
                pass
            1 / 0  # noqa: B018


def test_other_errors_of_the_system_are_not_dressed_up(tmp_path):
    def write(_handle):
        raise OSError(errno.EIO, "input/output error")

    with pytest.raises(OSError, match="input/output"):
        atomic_write(tmp_path / "x", write)
    assert files_in(tmp_path) == []


def test_readers_see_the_old_file_until_it_is_whole(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"old")

    def write(handle):
        handle.write(b"new")
        handle.flush()
        assert file.read_bytes() == b"old"

    atomic_write(file, write)
    assert file.read_bytes() == b"new"


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "x").write_text("")
    for folder in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(BackbenchError, match=r"cannot write .*file"):
            make_folder(folder)
    with pytest.raises(BackbenchError, match="cannot write"):
        atomic_write_text(tmp_path / "x" / "y", "1")


def test_make_folder_without_permission(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(BackbenchError, match="no permission"):
        make_folder(tmp_path / "new")


def test_atomic_save_reads_back(tmp_path):
    atomic_save(tmp_path / "x.pth", {"w": torch.arange(3)})
    assert torch.equal(torch.load(tmp_path / "x.pth")["w"], torch.arange(3))


# ---------------------------------------------------------------- identity


def test_file_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def state():
    return {"b": torch.arange(24.0).reshape(2, 3, 2, 2), "a": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}


def test_tensors_sha256_is_the_stated_digest():
    expected = hashlib.sha256(b"w|torch.float32|(2,)|" + np.array([1, 2], "<f4").tobytes()).hexdigest()
    assert tensors_sha256({"w": torch.tensor([1.0, 2.0])}) == expected
    none = hashlib.sha256(b"n|torch.int64|()|" + bytes([3, *[0] * 7]) + b"w|torch.bool|(0, 4)|").hexdigest()
    assert tensors_sha256({"w": torch.zeros(0, 4, dtype=torch.bool), "n": torch.tensor(3)}) == none


def test_tensors_sha256_is_blind_to_order_and_memory_layout(state):
    same = [
        dict(reversed(state.items())),
        {**state, "b": state["b"].contiguous(memory_format=torch.channels_last)},
        {**state, "b": state["b"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)},
        {**state, "b": torch.cat([state["b"], state["b"]])[:2]},
        {**state, "b": torch.nn.Parameter(state["b"])},
        {**state, "c": torch.ones(1, dtype=torch.bfloat16).expand(2)},
        collections.OrderedDict(state),
    ]
    assert {tensors_sha256(s) for s in same} == {tensors_sha256(state)}


def test_tensors_sha256_sees_names_dtypes_shapes_and_bytes(state):
    changed = state["b"].clone()
    changed[1, 2, 1, 1] += 1e-5
    variants = [
        state,
        {**state, "b": changed},
        {**state, "b": state["b"].reshape(2, 3, 4)},
        {**state, "b": state["b"].transpose(2, 3)},
        {**state, "b": state["b"].double()},
        {**state, "b": state["b"].view(torch.int32)},
        {"d" if name == "b" else name: value for name, value in state.items()},
        {"a": state["a"], "b": state["b"]},
        {**state, "z": torch.empty(0)},
        {**state, "a": torch.tensor([3])},
        {**state, "c": torch.tensor([True, True])},
    ]
    assert len({tensors_sha256(s) for s in variants}) == len(variants)
