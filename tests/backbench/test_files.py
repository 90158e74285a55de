"""Files opened with care: kinds, sizes, changes, encodings."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
from PIL import Image

from backbench import files
from backbench.data.layouts import stl10
from backbench.data.splits import Files, ImageSplit, Subset
from backbench.errors import DataError


@pytest.fixture
def split(tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 8), (40 * i, 9, 9)).save(tmp_path / f"{i}.bmp")
    names = tuple(f"{i}.bmp" for i in range(3))
    return ImageSplit("x", "train", Files(tmp_path, names), np.zeros(3, np.int64), ("a",))


def other_picture(path):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)


def written_anew(path):
    other_picture(path)


def replaced(path):
    other_picture(path.with_suffix(".new.bmp"))
    path.with_suffix(".new.bmp").replace(path)


def with_the_old_time(path):
    before = path.stat()
    other_picture(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def another_link(path):
    other_picture(path.with_suffix(".other.bmp"))
    path.unlink()
    path.symlink_to(path.with_suffix(".other.bmp"))


@pytest.mark.parametrize("exchange", [written_anew, replaced, with_the_old_time, another_link])
@pytest.mark.parametrize("part", [False, True], ids=["whole", "part"])
def test_an_image_that_is_exchanged_for_one_of_the_same_size_is_noticed(split, exchange, part):
    split.manifest_sha256()
    source = Subset(split.source, np.array([2, 1])) if part else split.source
    exchange(split.source.root / "1.bmp")
    for read in (source.pil, source.rgb, source.stored):
        with pytest.raises(files.Changed, match=r"1\.bmp: changed during the run"):
            read(1)
        read(0)


def test_what_is_not_listed_yet_may_change(split):
    written_anew(split.source.root / "1.bmp")
    assert split.source.rgb(1)[0, 0].tolist() == [1, 2, 3]


def test_the_state_sees_what_the_manifest_cannot(split):
    state, manifest = split.state_sha256(), split.manifest_sha256()
    written_anew(split.source.root / "1.bmp")
    again = ImageSplit("x", "train", Files(split.source.root, split.source.paths), split.labels, ("a",))
    assert again.manifest_sha256() == manifest
    assert again.state_sha256() != state
    assert again.state_sha256() == again.state_sha256()


def test_the_state_depends_on_the_order(split):
    order = np.array([1, 0, 2])
    turned = ImageSplit("x", "train", Subset(split.source, order), split.labels, ("a",))
    assert turned.state_sha256() != split.state_sha256()


def test_an_exchanged_binary_file_is_noticed(tmp_path):
    file = tmp_path / "unlabeled_X.bin"
    file.write_bytes(bytes(2 * 27648))
    read = stl10.read(tmp_path, "unlabeled")
    assert not read.source.rgb(1).any()
    file.write_bytes(bytes([1]) * (2 * 27648))
    with pytest.raises(files.Changed, match=r"unlabeled_X\.bin: changed"):
        read.source.rgb(1)
    file.write_bytes(bytes(27648))  # cut short: of a mapped one this would end the process
    with pytest.raises(files.Changed, match=r"unlabeled_X\.bin: changed"):
        read.source.pil(1)


# ---------------------------------------------------------------- kinds of files


def fifo(path):
    os.mkfifo(path)


def bound_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (fifo, "is a pipe; give a file"),
        (bound_socket, "is a socket; give a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device; give a file"),
        (lambda path: path.symlink_to(path), "its links lead in a circle"),
        (lambda path: path.mkdir(), "is a folder; give a file"),
        (lambda path: path.symlink_to("nowhere"), "no such file or folder"),
        (lambda path: None, "no such file or folder"),
    ],
    ids=["fifo", "socket", "device", "loop of links", "folder", "broken link", "absent"],
)
def test_what_is_no_file_is_a_sentence_at_once(tmp_path, make, words):
    path = tmp_path / "x"
    make(path)
    for read in (files.read_text, files.read_lines, files.read_json):
        with pytest.raises(files.Unreadable, match=rf"x: {words}"):
            read(path)


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 3000, "a\0b"], ids=["long", "deep", "zero byte"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(files.Unreadable, match=r"too long|no file can have this name"):
        files.read_text(tmp_path / name)
    with pytest.raises(files.Unreadable, match=r"too long|no file can have this name"):
        files.status_of(tmp_path / name)


def test_a_file_beyond_the_limit(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**20 + 1)
    assert len(files.read_bytes(tmp_path / "x", limit=2**20 + 1)) == 2**20 + 1
    with pytest.raises(files.Unreadable, match=r"x: cannot be read \(1 MiB: is it what its name says"):
        files.read_bytes(tmp_path / "x", limit=2**20)


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_every_encoding_that_says_which_it_is(tmp_path, encoding, end):
    (tmp_path / "list.txt").write_bytes(end.join(["é one", " 二 ", "", "z"]).encode(encoding))
    assert files.read_lines(tmp_path / "list.txt") == ["é one", "二", "", "z"]


def test_only_ends_of_lines_divide(tmp_path):
    (tmp_path / "list.txt").write_bytes("a\u2028b\x0cc\nd\n".encode())
    assert files.read_lines(tmp_path / "list.txt") == ["a\u2028b\x0cc", "d"]


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"")
    assert files.read_lines(tmp_path / "list.txt") == []
    (tmp_path / "list.txt").write_bytes(b"\n")
    assert files.read_lines(tmp_path / "list.txt") == [""]


def test_names_that_are_not_utf8_are_those_of_the_folder(tmp_path):
    name = b"caf\xe9.jpg"
    (tmp_path / os.fsdecode(name)).touch()
    (tmp_path / "list.txt").write_bytes(name + b"\n")
    assert files.read_lines(tmp_path / "list.txt")[0] in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("data", ["a\nb\n".encode("utf-16-le"), b"\xff\xfea", bytes(100)])
def test_what_is_no_text(tmp_path, data):
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(DataError, match=r"list\.txt: not .*text.*; save it as UTF-8"):
        files.read_lines(tmp_path / "list.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_every_encoding(tmp_path, encoding):
    (tmp_path / "x.json").write_bytes('{"é": [1]}'.encode(encoding))
    assert files.read_json(tmp_path / "x.json") == {"é": [1]}


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000, b'"\xff"', b"\x00\x01\x02\x03", b"[1] x"],
    ids=["empty", "cut", "deep lists", "deep objects", "a huge number", "not UTF-8", "binary", "more behind it"],
)
def test_what_is_no_json(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.json: not readable as JSON"):
        files.read_json(tmp_path / "x.json")
