"""Atomic writes, identity of tensors, and loading files that nobody should trust."""

from __future__ import annotations

import argparse
import collections
import errno
import hashlib
import os
import pathlib

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout

from core import artifacts
from core.artifacts import (
    atomic_save,
    atomic_write,
    atomic_write_text,
    file_sha256,
    load_torch,
    make_folder,
    tensors_sha256,
)
from core.errors import BackbenchError, CheckpointError

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

    targets = {"fsync": artifacts.os, "replace": artifacts.os, "mkstemp": artifacts.tempfile}
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

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with (
        pytest.raises(BackbenchError, match=r"x\.lock: no permission to write there"),
        artifacts.held(tmp_path / "x.lock"),
    ):
        pass


def test_a_lock_is_held_until_the_end_and_given_back_after_an_error(tmp_path):
    lock = tmp_path / "x.lock"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), artifacts.held(lock):
            with pytest.raises(Timeout), artifacts.held(lock, timeout=0):
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
    assert torch.equal(load_torch(tmp_path / "x.pth")["w"], torch.arange(3))


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


# ---------------------------------------------------------------- loading

WEIGHTS = {"conv.weight": torch.arange(12.0).reshape(3, 4), "bn.num_batches_tracked": torch.tensor(7)}
both_containers = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(path, value, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def assert_weights(read):
    assert set(read) == set(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)


@both_containers
def test_plain_weights(tmp_path, zipped):
    assert_weights(load_torch(save(tmp_path / "x.pth", WEIGHTS, zipped)))


def test_what_is_no_checkpoint_is_named(tmp_path):
    whole = save(tmp_path / "zip.pth", WEIGHTS).read_bytes()
    legacy = save(tmp_path / "legacy.pth", WEIGHTS, zipped=False).read_bytes()
    garbage = np.random.default_rng(0).bytes(2000)
    cases = {
        "empty.pth": (b"", "the file is empty"),
        "page.pth": (b"\n  <!DOCTYPE html><html>sign in</html>", "is a web page"),
        "xml.pth": (b"<?xml version='1.0'?><Error/>", "is a web page"),
        "half.pth": (whole[: len(whole) // 2], "truncated"),
        "almost.pth": (whole[:-1], "truncated"),
        "head.pth": (whole[:10], "truncated"),
        "half_legacy.pth": (legacy[: len(legacy) // 2], "truncated"),
        "almost_legacy.pth": (legacy[:-1], "truncated"),
        "garbage.pth": (garbage, "not a readable torch checkpoint"),
        "text.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "not a readable torch checkpoint"),
        "one.pth": (b"\x80", "not a readable torch checkpoint"),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError) as error:
            load_torch(tmp_path / name)
        assert words in str(error.value), name
        assert name in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such file"):
        load_torch(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_torch(tmp_path)


class Reduces:
    """Pickles to a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@both_containers
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "beside weights"])
@pytest.mark.parametrize("way", ["system", "eval", "exec", "getattr", "open", "import"])
def test_code_is_refused_named_and_not_run(tmp_path, zipped, inside, way):
    marker = tmp_path / "marker"
    python = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    function, name, arguments = {
        "system": (os.system, "system", (f"touch {marker}",)),
        "eval": (eval, "eval", (python,)),
        "exec": (exec, "exec", (python,)),
        "getattr": (getattr, "getattr", (marker, "touch")),
        "open": (os.open, "open", (str(marker), os.O_CREAT)),
        "import": (__import__, "__import__", ("antigravity",)),
    }[way]
    attack = Reduces(function, *arguments)
    file = save(tmp_path / "x.pth", {"state_dict": WEIGHTS, "extra": attack} if inside else attack, zipped)
    with pytest.raises(CheckpointError) as error:
        load_torch(file)
    assert name in str(error.value)
    assert "refused" in str(error.value)
    assert not marker.exists()
    if way in ("system", "eval", "exec", "open"):  # the file is armed: torch's own trusting loader runs it
        torch.load(file, weights_only=False)
        assert marker.exists()


class Unfolds(torch.nn.Module):
    """A TorchScript archive whose own `__setstate__` speaks when it is loaded."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.weight * x

    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        print("code of the file was run")
        self.weight = state[0]
        self.training = state[1]


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_refused_and_not_run(tmp_path, capfd):
    torch.jit.script(Unfolds()).save(str(tmp_path / "x.pth"))
    capfd.readouterr()
    refused = False
    try:
        load_torch(tmp_path / "x.pth")
    except CheckpointError as error:
        refused = "x.pth" in str(error)
    assert "code of the file was run" not in capfd.readouterr().out
    assert refused


HARMLESS = {
    "namespace": argparse.Namespace(lr=0.1, gpus=[0, 1], nested={"a": argparse.Namespace()}),
    "numpy scalars": {"best": np.float64(71.5), "epoch": np.int64(3), "flag": np.bool_(True)},
    "numpy array": np.arange(6).reshape(2, 3),
    "defaultdict": collections.defaultdict(list, {"loss": [1.0, 2.0]}),
    "path": pathlib.Path("/data/imagenet"),
    "pure path": pathlib.PurePosixPath("a/b"),
    "ordered": collections.OrderedDict(a=1),
    "builtins": [slice(1, 2), range(3), complex(1, 2), {1, 2}, bytearray(b"x")],
}


@both_containers
@pytest.mark.parametrize("kind", HARMLESS)
def test_weights_beside_harmless_objects_are_intact(tmp_path, zipped, kind):
    file = save(tmp_path / "x.pth", {"before": HARMLESS[kind], "state_dict": WEIGHTS, "epoch": 3}, zipped)
    read = load_torch(file)
    assert_weights(read["state_dict"])
    assert read["epoch"] == 3


@both_containers
def test_weights_in_an_ordered_dict_with_parameters_and_shared_storage(tmp_path, zipped):
    base = torch.arange(10.0)
    state = collections.OrderedDict(a=torch.nn.Parameter(base[:4]), b=base[2:6], c=base.reshape(2, 5).T)
    read = load_torch(save(tmp_path / "x.pth", {"args": argparse.Namespace(a=1), "model": state}, zipped))["model"]
    for name, value in state.items():
        assert torch.equal(read[name], value)


@both_containers
def test_a_harmless_object_does_nothing(tmp_path, zipped):
    read = load_torch(save(tmp_path / "x.pth", {"args": argparse.Namespace(lr=0.1), "w": WEIGHTS}, zipped))
    assert not hasattr(read["args"], "lr")
    assert type(read["args"]).__module__ == "core.artifacts"
