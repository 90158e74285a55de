"""Reading files that nobody should trust: what an honest one gives, what a broken one says."""

from __future__ import annotations

import argparse
import collections
import os
import pathlib

import numpy as np
import pytest
import torch

from core import containers
from core.containers import load_torch
from core.errors import CheckpointError

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
        "one.pth": (b"\x80", "not a readable pickle; truncated"),
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
def test_code_becomes_a_named_stub_and_is_not_run(tmp_path, zipped, inside, way):
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
    contents = containers.read(file)
    assert name in contents.notes[0]
    assert "left unread, nothing was run" in contents.notes[0]
    assert len(contents.notes) == (1 if way == "getattr" else 2), "an attack is told from a harmless object"
    assert not marker.exists()
    stub = contents.value["extra"] if inside else contents.value
    assert isinstance(stub, containers.Inert)
    if inside:
        assert_weights(contents.value["state_dict"])
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
    assert read["args"] == containers.Inert("argparse.Namespace")
    assert not hasattr(read["args"], "lr")
