"""Faulty servers: a file without a published checksum arrives intact, or nothing is pinned and a sentence says why."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import threading
import zipfile

import pytest
from servers import DATA, OTHER, answer, cut, good, plain, serving, status

from backbench import http
from backbench.errors import BackbenchError
from model_zoo import fetch
from model_zoo.architecture import Architecture
from model_zoo.entries import Entry
from model_zoo.fetch import pins

HALF = len(DATA) // 2
MODIFIED = "Wed, 21 Oct 2015 07:28:00 GMT"
PICKLE = pickle.dumps({"conv1.weight": [1.0] * 50_000}, protocol=2)


def part_of(data, *, etag=None, modified=None, first=None, total=None, code=206, headers=()):
    """Answer with the requested range of `data`, ignoring If-Range."""

    def behave(h):
        wanted = h.headers.get("Range")
        start = int(wanted[6:-1]) if wanted else 0
        body = data[start:]
        span = f"bytes {start if first is None else first}-{len(data) - 1}/{total or len(data)}"
        named = [("ETag", etag)] if etag else []
        named += [("Last-Modified", modified)] if modified else []
        answer(h, body, code if wanted else 200, headers=[*named, ("Content-Range", span), *headers])

    return behave


def begun(data=DATA, *, etag=None, modified=None, size=HALF):
    """Send the first half, then end the connection."""
    named = [("ETag", etag)] if etag else []
    named += [("Last-Modified", modified)] if modified else []
    return lambda h: answer(h, data[:size], length=len(data), headers=named)


def raw(text, body=b""):
    """Send a handwritten answer."""

    def behave(h):
        h.wfile.write(text.encode("latin-1") + b"\r\n\r\n" + body)
        h.close_connection = True

    return behave


def endless(chunk, headers=""):
    """Send an endless body without a length."""

    def behave(h):
        h.close_connection = True
        with contextlib.suppress(OSError):
            h.wfile.write(f"HTTP/1.1 200 OK\r\n{headers}\r\n".encode())
            while True:
                h.wfile.write(chunk)

    return behave


def trickle(first, every):
    """Send `first`, then a byte at a time."""

    def behave(h):
        h.close_connection = True
        with contextlib.suppress(OSError):
            h.wfile.write(first)
            while True:
                h.wfile.flush()
                threading.Event().wait(every)
                h.wfile.write(b"a")

    return behave


def chunked(data, *, cut_off=False):
    def behave(h):
        h.close_connection = True
        h.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        h.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n" + (b"" if cut_off else b"0\r\n\r\n"))

    return behave


def reset(h):
    """Reset the connection instead of closing it."""
    h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    h.connection.close()
    h.close_connection = True


def archive(kind):
    buffer = io.BytesIO()
    if kind == "zip of pictures":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a.jpg", b"\xff\xd8" * 400)
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as file:
            info = tarfile.TarInfo("model.pth")
            info.size = len(DATA)
            file.addfile(info, io.BytesIO(DATA))
    return buffer.getvalue()


def flipped(data=DATA, place=HALF):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


HEADERS = f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n"
RIGHT = {  # the file arrives despite the server
    "another file after the cut, named by its own etag": [begun(OTHER, etag='"a"'), part_of(DATA, etag='"b"'), good],
    "another file after the cut, without an etag": [begun(OTHER, etag='"a"'), part_of(DATA), good],
    "another file under the same etag": [begun(OTHER, etag='"a"'), part_of(DATA, etag='"a"'), good],
    "another file of the same second": [begun(OTHER, modified=MODIFIED), part_of(DATA, modified=MODIFIED), good],
    "another file under a weak etag": [begun(OTHER, etag='W/"a"'), part_of(DATA, etag='W/"a"'), good],
    "another length after the cut": [begun(DATA + b"1", etag='"a"'), part_of(DATA, etag='"a"'), good],
    "another total in the range": [begun(etag='"a"'), part_of(DATA, etag='"a"', total=len(DATA) + 5), good],
    "a range that begins elsewhere": [begun(etag='"a"'), part_of(DATA, etag='"a"', first=0), good],
    "a whole answered as a range": [
        lambda h: answer(h, DATA, 206, headers=[("Content-Range", f"bytes 0-/{len(DATA)}")])
    ],
    "the file changes at every attempt": [
        begun(OTHER, etag='"a"'),
        begun(DATA, etag='"b"'),
        begun(OTHER, etag='"c"'),
        good,
    ],
    "more bytes than announced": [lambda h: answer(h, DATA + OTHER, length=len(DATA)), good],
    "no length, closed at the end": [raw("HTTP/1.1 200 OK", DATA)],
    "chunks": [chunked(DATA)],
    "chunks that are cut off": [chunked(DATA[:HALF], cut_off=True), good],
    "resets": [reset, reset, good],
    "a redirect to a busy server": [status(302, [("Location", "/b")]), status(503), good],
    "another range refused": [begun(etag='"a"'), status(416), good],
    "the rest without a word of which": [begun(etag='"a"'), cut(HALF, plain), good],
}
SENTENCE = {  # nothing is pinned or kept
    "gzip although not asked for": (
        [lambda h: answer(h, gzip.compress(DATA), headers=[("Content-Encoding", "gzip")])],
        "'gzip'-encoded",
    ),
    "br": ([lambda h: answer(h, DATA, headers=[("Content-Encoding", "br")])], "'br'-encoded"),
    "gzip, without saying so": ([lambda h: answer(h, gzip.compress(DATA))], "is not a checkpoint"),
    "JSON, said": ([lambda h: answer(h, b'{"error": 1}', headers=[("Content-Type", "application/json")])], "is JSON"),
    "JSON, not said": ([lambda h: answer(h, b'{"error": "quota exceeded"}')], "is not a checkpoint"),
    "problem+json": ([lambda h: answer(h, b"{}", headers=[("Content-Type", "application/problem+json")])], "is JSON"),
    "a page that says it is binary": (
        [lambda h: answer(h, b"<html></html>", headers=[("Content-Type", "application/octet-stream")])],
        "web page",
    ),
    "a page after a long blank": ([lambda h: answer(h, b" " * 300 + b"<html>")], "web page"),
    "a pointer of git-lfs": (
        [lambda h: answer(h, b"version https://git-lfs.github.com/spec/v1\n")],
        "is not a checkpoint",
    ),
    "plain text": ([lambda h: answer(h, b"Too many requests")], "is not a checkpoint"),
    "nothing": ([lambda h: answer(h, b"")], "empty"),
    "zeros of the right length": ([lambda h: answer(h, bytes(len(DATA)))], "is not a checkpoint"),
    "one bit of a weight": ([lambda h: answer(h, flipped())], "no checkpoint arrived"),
    "half of one file and half of another": (
        [lambda h: answer(h, DATA[:HALF] + OTHER[HALF:])],
        "no checkpoint arrived",
    ),
    "the first half, announced as all": ([lambda h: answer(h, DATA[:HALF])], "truncated"),
    "half a pickle, announced as all": ([lambda h: answer(h, PICKLE[: len(PICKLE) // 2])], "no checkpoint arrived"),
    "an archive of pictures": ([lambda h: answer(h, archive("zip of pictures"))], "no checkpoint arrived"),
    "a tar": ([lambda h: answer(h, archive("tar"))], "is not a checkpoint"),
    "endless zeros": ([endless(bytes(65536))], "is not a checkpoint"),
    "an endless checkpoint": ([endless(DATA)], "sends more than"),
    "a length beyond any checkpoint": ([raw("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999")], "announces"),
    "a length that is not a number": ([raw("HTTP/1.1 200 OK\r\nContent-Length: -5", DATA)], "attempts"),
    "a byte now and then": ([trickle(HEADERS.encode() + b"\r\nPK\x03\x04", 0.05)], "bytes arrived in"),
    "headers, a byte now and then": ([trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ", 0.05)], "attempts"),
    "headers without end": ([endless(b"a" * 65536, "X-Long: ")], "attempts"),
    "no answer": ([trickle(b"", 60)], "attempts"),
    "no HTTP": ([raw("SSH-2.0-OpenSSH_9.2")], "attempts"),
    "redirects without end": ([status(302, [("Location", "/again")])], "redirect|attempts"),
    "a redirect to a file": ([status(302, [("Location", "file:///etc/passwd")])], "file"),
    "a range that calls itself the whole": (
        [begun(etag='"a"'), part_of(DATA, etag='"a"', code=200)],
        "is not a checkpoint",
    ),
    "a range of nothing": ([begun(etag='"a"'), lambda h: answer(h, b"", 206)], "without saying which range"),
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Use a separate cache, and a hundredth of the real limits."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("BACKBENCH_ZOO"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(http, "_sleep", lambda _s: None)
    for name, value in {"_WINDOW_S": 0.2, "_ANSWER_S": 0.4, "_SILENCE_S": 0.4}.items():
        monkeypatch.setattr(http, name, value)


def fetched(script):
    with serving() as server:
        server.script = list(script)
        wanted = Entry(
            name="some_r50", method="Some", arch=Architecture(name="resnet50"), pretrained_on="ImageNet",
            url=f"{server.url}/resnet50.pth",
        )  # fmt: skip
        return fetch.fetch(wanted)


@pytest.mark.parametrize("kind", RIGHT)
def test_the_right_file_in_spite_of_the_server(kind):
    assert fetched(RIGHT[kind]).read_bytes() == DATA
    assert pins.read()["some_r50"]["sha256"] == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("kind", SENTENCE)
def test_a_sentence_and_no_pin(kind, monkeypatch):
    script, words = SENTENCE[kind]
    monkeypatch.setattr(http, "LARGEST", 8 << 20)
    with pytest.raises(BackbenchError, match=words) as caught:
        fetched(script)
    assert "\n" not in str(caught.value)
    assert pins.read() == {}
    assert not list(pins.folder().glob("some_r50*")), "only checked files are in place"


PINS = {
    "a list": "[]",
    "null": "null",
    "a number": "7",
    "deep": "[" * 100_000,
    "a pin that is a list": '{"some_r50": []}',
    "a pin without sha256": '{"some_r50": {}}',
    "a sha256 that is a number": '{"some_r50": {"sha256": 5}}',
    "cut short": '{"some_r50": {"sha',
    "a huge number": '{"some_r50": ' + "9" * 5000 + "}",
    "not UTF-8": "\udcff\udcfe",
}


@pytest.mark.parametrize("kind", [*PINS, "a folder", "a pipe"])
def test_pins_that_are_none(kind):
    path = pins.file()
    path.parent.mkdir(parents=True)
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(PINS[kind].encode("utf-8", "surrogateescape"))
    with pytest.raises(BackbenchError, match=r"pins\.json: .*remove it"):
        fetched([good])


NOTES = {"a list": "[]", "deep": "[" * 100_000, "of words": json.dumps({"url": 5, "validator": None, "total": "x"})}


@pytest.mark.parametrize("kind", [*NOTES, "a total that is a word", "a part that is a folder", "a part that is a link"])
def test_parts_of_earlier_runs_that_are_none(kind, tmp_path):
    part = pins.folder() / ".some_r50.pth.part"
    part.parent.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"of another program")
    if kind == "a part that is a folder":
        part.mkdir()
    elif kind == "a part that is a link":
        part.symlink_to(victim)
    else:
        part.write_bytes(OTHER[:HALF])
        part.with_name(part.name + ".json").write_text(NOTES.get(kind, ""))
    if kind in ("a part that is a folder", "a part that is a link"):
        with pytest.raises(BackbenchError, match="is in the way"):
            fetched([good])
    else:
        assert fetched([good]).read_bytes() == DATA
    assert victim.read_bytes() == b"of another program"
