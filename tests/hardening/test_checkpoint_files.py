"""Paths that are not files, impossible names, and invalid sidecars give one sentence each."""

from __future__ import annotations

import os
import socket

import pytest
import torch

from backbench.errors import BackbenchError, CheckpointError
from model_zoo.load import load
from tests.builders import hostile as h
from tests.builders.backbones import make_backbone
from tests.builders.hostile import refusal


@pytest.fixture(scope="module")
def state():
    return dict(make_backbone("resnet18").state)


def special(path, kind):
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "a folder":
        path.mkdir()
    elif kind == "links in a circle":
        path.symlink_to(path.name)
    elif kind == "a link to nothing":
        path.symlink_to("nothing")
    elif kind == "a link to a pipe":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    elif kind == "below a file":
        path.write_text("")
        return path / "m.pth"
    elif kind == "8 TB of nothing":
        with path.open("wb") as file:
            file.write(b"\x80\x02")
            file.truncate(8 << 40)
    return path


SPECIAL = {
    "a pipe": "is a pipe", "a socket": "is a socket", "a folder": "is a folder", "links in a circle": "lead in a circle",
    "a link to nothing": "no such file", "a link to a pipe": "is a pipe", "below a file": "is a file, not a folder",
    "8 TB of nothing": "memory",
}  # fmt: skip


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors", "m.npz"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file(tmp_path, kind, name):
    try:
        path = special(tmp_path / name, kind)
    except OSError as error:
        pytest.skip(f"not to be made here: {error}")
    with pytest.raises(CheckpointError, match=SPECIAL[kind]):
        load(path)


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/random", "/dev/null", "/dev/stdin", "/proc/kmsg", "/proc/self/mem"]
)
def test_devices(path):
    with h.bounded(), pytest.raises(CheckpointError):
        load(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [("x" * 300, "too long"), ("x/" * 3000, "too long"), ("a\0b", "no file can have this name"), ("\udcff\ud800", "no file"),
     ("\x1b[31mred", "no such file"), ("", "folder"), (".", "folder"), ("/", "folder")],
    ids=["long", "deep", "zero byte", "surrogates", "escape codes", "empty", "here", "root"],
)  # fmt: skip
def test_names_that_no_file_has(name, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        load(name)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("kind", ["a pipe", "links in a circle", "a folder", "a socket"])
def test_sidecars_that_are_no_file(tmp_path, state, kind):
    torch.save(state, tmp_path / "m.pth")
    special(tmp_path / "m.pth.yaml", kind)
    with h.bounded(), pytest.raises(BackbenchError, match=r"m\.pth\.yaml"):
        load(tmp_path / "m.pth")


def test_a_checkpoint_whose_sidecar_could_not_have_its_name(tmp_path, state):
    path = tmp_path / ("x" * 250 + ".pth")
    torch.save(state, path)
    assert load(path).format == "torchvision"


SIDECARS = {
    "a date": "arch: !!timestamp 2001-01-01",
    "a set": "input: {size: !!set {a, b}}",
    "bytes": "arch: {name: !!binary aGk=}",
    "an alias of itself": "arch: &a {name: *a}",
    "a list": "- arch",
    "a word": "arch",
    "null inside": "arch:",
    "a list inside": "arch: [1]",
    "an unknown key": "\x07\x1b[31m: 1",
    "a key of two": "? [a, b]\n: 1",
    "NaN": "input: {mean: [.nan, 1.0, 1.0]}",
    "a tab": "arch:\n\t- x",
    "a tag of Python": "arch: !!python/name:os.system",
    "surrogates": 'arch: {name: "\\ud800"}',
    "half a quote": "arch: 'x",
    "a size of 0": "input: {size: 0}",
    "a width of 1e300": "arch: {width: 1e300}",
    "a width of 1e7": "arch: {name: resnet18, width: 1e7}",
    "zero bytes": "arch: \x00",
    "UTF-16": b"\xff\xfea\x00r\x00c\x00h\x00:\x00 \x00x\x00",
    "not UTF-8": b"arch: \xff\xfe",
    "a huge number": "input: {size: 0x" + "f" * 5000 + "}",
    "digits": "input: {size: " + "9" * 5000 + "}",
    "deep": "arch: " + "[" * 9999,
    "laughs": "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 1}]" for i in range(30)),
    "a megabyte": "#" * (1 << 20),
}


@pytest.mark.parametrize("kind", SIDECARS)
def test_sidecars(tmp_path, state, kind):
    torch.save(state, tmp_path / "m.pth")
    data = SIDECARS[kind]
    (tmp_path / "m.pth.yaml").write_bytes(data if isinstance(data, bytes) else data.encode())
    refusal(tmp_path / "m.pth")
