"""Downloads from a real loopback server that misbehaves like real servers."""

import contextlib
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import warm
from backbones import initial
from servers import DATA, OTHER, SHA, answer, cut, good, plain, serving, status

from backbench import http
from backbench.errors import BackbenchError, CheckpointError
from benchmarks.subjects import split_name
from model_zoo import entries, fetch
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import save
from model_zoo.entries import Entry
from model_zoo.fetch import pins
from model_zoo.load import load


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Use a separate cache and no environment variables, and record waits instead of sleeping."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("BACKBENCH_ZOO"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    waits = []
    monkeypatch.setattr(http, "_sleep", waits.append)
    return waits


def entry(server, **fields):
    fields = {"url": f"{server.url}/some/resnet50.pth", "sha256": SHA, **fields}
    return Entry(name="some_r50", method="Some", arch=Architecture(name="resnet50"), pretrained_on="ImageNet", **fields)


def refusal(wanted, kind=BackbenchError):
    with pytest.raises(kind) as caught:
        fetch.fetch(wanted)
    left = sorted(p.name for p in pins.folder().iterdir() if p.suffix == ".pth")
    assert left == [], "only checked files are in place"
    return str(caught.value)


def test_a_file_comes_once_and_is_kept(server, capsys):
    wanted = entry(server, licence="CC-BY-NC-4.0")
    path = fetch.fetch(wanted)
    assert capsys.readouterr().err == f"some_r50: from {wanted.url}, licence of the weights: CC-BY-NC-4.0\n"
    assert path == pins.folder() / "some_r50.pth"
    assert path.read_bytes() == DATA
    assert fetch.fetch(entry(server)) == path
    assert len(server.seen) == 1
    assert not [p.name for p in pins.folder().iterdir() if ".part" in p.name]


def test_a_cut_connection_goes_on_from_where_it_was(server, place):
    server.script = [cut(300_000), cut(200_000), good]
    assert fetch.fetch(entry(server)).read_bytes() == DATA
    asked = [wanted for _, wanted, _ in server.seen]
    assert asked[0] is None and len(asked) == 3
    assert 0 < int(asked[1][6:-1]) < int(asked[2][6:-1]) <= 500_000
    assert len(place) == 2 and max(place) <= 1, "new bytes reset the waits"


def test_a_part_of_an_earlier_process_is_gone_on_with(server, monkeypatch):
    server.script = [cut(300_000)]
    monkeypatch.setattr(http, "ATTEMPTS", 1)
    assert "attempts" in refusal(entry(server))
    server.script = [good]
    server.seen.clear()
    assert fetch.fetch(entry(server)).read_bytes() == DATA
    assert server.seen[0][1] is not None and server.seen[0][2] == '"one"'


def test_halves_of_two_versions_are_never_joined(server):
    other = bytes(reversed(DATA))
    server.script = [lambda h: good(h, data=other, etag='"old"', cut=300_000), good]
    assert fetch.fetch(entry(server)).read_bytes() == DATA


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_validator_it_begins_anew(server, etag):
    headers = [("ETag", etag)] if etag else []
    server.script = [lambda h: answer(h, DATA[:1000], length=len(DATA), headers=headers), plain]
    assert fetch.fetch(entry(server)).read_bytes() == DATA
    assert [wanted for _, wanted, _ in server.seen] == [None, None]


def test_a_server_without_ranges(server):
    begun = 3 * http.OVERLAP
    server.script = [lambda h: answer(h, DATA[:begun], length=len(DATA), headers=[("ETag", '"a"')]), plain]
    assert fetch.fetch(entry(server)).read_bytes() == DATA
    assert server.seen[1][1] == f"bytes={2 * http.OVERLAP}-", "some bytes are requested twice, to compare them"


def test_a_server_without_ranges_that_cuts_here_and_there(server):
    """More bytes than in the attempt before, but never more than in the best attempt."""
    server.script = [cut(size, plain) for size in (1000, 500) * (2 * http.ATTEMPTS)]
    assert f"after {http.ATTEMPTS} attempts" in refusal(entry(server))
    assert len(server.seen) == http.ATTEMPTS


def test_a_server_that_sends_another_range(server):
    def wrong(h):
        answer(h, DATA[7:], 206, headers=[("Content-Range", f"bytes 7-{len(DATA) - 1}/{len(DATA)}"), ("ETag", '"one"')])

    server.script = [cut(1000), wrong, good]
    assert fetch.fetch(entry(server)).read_bytes() == DATA


def test_a_refused_range(server):
    server.script = [cut(1000), status(416), good]
    assert fetch.fetch(entry(server)).read_bytes() == DATA


def test_too_long_a_length_is_announced(server):
    server.script = [lambda h: answer(h, DATA, length=len(DATA) + 10)]
    assert "attempts" in refusal(entry(server))


def test_too_short_a_length_is_announced(server):
    server.script = [lambda h: answer(h, DATA, length=len(DATA) - 10)]
    text = refusal(entry(server))
    assert "wrong bytes" in text and SHA[:16] in text


def test_wrong_bytes_are_not_kept(server):
    server.script = [lambda h: good(h, data=DATA[::-1])]
    assert "wrong bytes" in refusal(entry(server))
    assert not [p.name for p in pins.folder().iterdir() if ".part" in p.name]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sha256_prefix": "00000000"}, "the authors'"),
        ({"md5_prefix": "00000000"}, "md5"),
        ({"size_mb": 97.8}, "the source says 97.8 MB"),
    ],
)
def test_what_the_authors_say_is_checked(server, fields, words):
    assert words in refusal(entry(server, sha256=None, **fields))


def test_right_prefixes_pass(server):
    md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()[:8]
    wanted = entry(server, sha256=None, sha256_prefix=SHA[:8], md5_prefix=md5, size_mb=1.024)
    assert fetch.fetch(wanted).read_bytes() == DATA


def test_an_unknown_checksum_is_pinned(server):
    wanted = entry(server, sha256=None)
    path = fetch.fetch(wanted)
    assert pins.read()["some_r50"] == {"sha256": SHA, "size": len(DATA), "url": wanted.url}
    path.unlink()
    server.script = [lambda h: good(h, data=OTHER)]
    assert "pinned" in refusal(wanted)
    path.write_bytes(b"damaged in the cache")
    with pytest.raises(CheckpointError, match=r"pinned.*remove the file to have it fetched again"):
        fetch.fetch(wanted)


@pytest.mark.parametrize(
    ("code", "words"),
    [(404, "not there any more"), (403, "not allowed"), (401, "login"), (410, "not there"), (400, "refused")],
)
def test_final_refusals_are_not_repeated(server, code, words):
    server.script = [status(code)]
    text = refusal(entry(server))
    assert words in text and str(code) in text and server.url in text and "BACKBENCH_ZOO" in text
    assert len(server.seen) == 1


@pytest.mark.parametrize(("code", "words"), [(429, "too many requests"), (503, "busy"), (500, "busy or broken")])
def test_a_busy_server_is_asked_again(server, place, code, words):
    server.script = [status(code), status(code), good]
    assert fetch.fetch(entry(server)).read_bytes() == DATA
    assert len(place) == 2 and place[0] < place[1], "longer waits"
    (pins.folder() / "some_r50.pth").unlink()
    server.script = [status(code)]
    assert words in refusal(entry(server))
    assert len(server.seen) == 3 + http.ATTEMPTS


def test_the_wait_that_a_server_asks_for(server, place):
    server.script = [status(429, [("Retry-After", "17")]), status(503, [("Retry-After", "999999")]), good]
    fetch.fetch(entry(server))
    assert place == [17, 60]


def test_redirects(server):
    server.script = [status(302, [("Location", "/elsewhere")]), good]
    assert fetch.fetch(entry(server)).read_bytes() == DATA
    assert server.seen[1][0] == "/elsewhere"


def test_redirects_in_a_circle(server):
    server.script = [status(302, [("Location", "/again")])]
    assert "redirect" in refusal(entry(server)).lower()


def test_a_web_page_in_place_of_the_file(server):
    server.script = [lambda h: answer(h, b"<html>log in</html>", headers=[("Content-Type", "text/html")])]
    assert "web page" in refusal(entry(server))
    server.script = [lambda h: answer(h, b"<!DOCTYPE html>log in")]
    assert "web page" in refusal(entry(server, sha256=None))


def test_a_truncated_archive_without_checksum(server):
    server.script = [lambda h: answer(h, DATA[:-30])]
    assert "truncated" in refusal(entry(server, sha256=None))


def test_a_slow_server(server):
    def slow(h):
        h.send_response(200)
        h.send_header("Content-Length", str(len(DATA)))
        h.end_headers()
        for start in range(0, len(DATA), 100_000):
            h.wfile.write(DATA[start : start + 100_000])
            h.wfile.flush()
            threading.Event().wait(0.01)

    server.script = [slow]
    assert fetch.fetch(entry(server)).read_bytes() == DATA


def test_no_network(server, monkeypatch):
    wanted = entry(server, url="http://127.0.0.1:9/resnet50.pth")
    text = refusal(wanted)
    assert "cannot reach 127.0.0.1" in text and "BACKBENCH_ZOO" in text


def test_the_environments_proxy_is_used(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url)
    wanted = entry(server, url="http://nowhere.invalid/resnet50.pth")
    assert fetch.fetch(wanted).read_bytes() == DATA
    assert [path for path, *_ in server.seen] == ["http://nowhere.invalid/resnet50.pth"]


def test_the_mirror_is_asked_first(server, monkeypatch):
    monkeypatch.setenv("BACKBENCH_ZOO_MIRROR", f"{server.url}/mirror/")
    assert fetch.fetch(entry(server)).read_bytes() == DATA
    assert [path for path, *_ in server.seen] == ["/mirror/some_r50.pth"]


def test_other_places_follow(server, monkeypatch):
    monkeypatch.setenv("BACKBENCH_ZOO_MIRROR", f"{server.url}/mirror")
    server.script = [status(404), lambda h: good(h, data=DATA[::-1]), good]
    wanted = entry(server, mirrors=(f"{server.url}/copy.pth",))
    assert fetch.fetch(wanted).read_bytes() == DATA
    assert [path for path, *_ in server.seen] == ["/mirror/some_r50.pth", "/some/resnet50.pth", "/copy.pth"]


def test_what_a_program_cannot_fetch(server, monkeypatch):
    wanted = entry(server, by_hand="a person must confirm")
    text = refusal(wanted)
    assert "a person must confirm" in text and wanted.url in text and "BACKBENCH_ZOO" in text
    assert server.seen == []
    monkeypatch.setenv("BACKBENCH_ZOO_MIRROR", server.url)
    assert fetch.fetch(wanted).read_bytes() == DATA


def test_numbers_only_says_where_weights_are():
    with pytest.raises(BackbenchError, match=r"has no weights .*entries with weights: moco_v2_200ep"):
        fetch.fetch(entries.get("moco_v2_r50_imagenet"))


@pytest.mark.parametrize("name", ["some_r50.pth", "deep/down/resnet50.pth", "renamed.bin"])
def test_the_users_folder(server, tmp_path, monkeypatch, name):
    """Files are found by the entry's name, the published name, or checksum; no server is contacted."""
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    (tmp_path / "mine" / "other.pth").write_bytes(b"something else")
    monkeypatch.setenv("BACKBENCH_ZOO", str(tmp_path / "mine"))
    assert fetch.fetch(entry(server, url=f"{server.url}/a/resnet50.pth")) == path
    assert server.seen == []


def test_a_published_name_that_several_share_proves_nothing(tmp_path, monkeypatch, server):
    """Barlow Twins and VICReg both publish a resnet50.pth."""
    (tmp_path / "resnet50.pth").write_bytes(DATA)
    monkeypatch.setenv("BACKBENCH_ZOO", str(tmp_path))
    assert fetch._from_own_folder(entries.get("barlowtwins_1000ep")) is None
    (tmp_path / "moco_v2_200ep_pretrain.pth.tar").write_bytes(DATA)
    with pytest.raises(CheckpointError, match="wrong bytes: md5"):
        fetch.fetch(entries.get("moco_v2_200ep"))
    monkeypatch.setenv("BACKBENCH_ZOO", str(tmp_path / "nowhere"))
    with pytest.raises(BackbenchError, match="no such folder"):
        fetch.fetch(entries.get("moco_v2_200ep"))


def test_several_at_once_and_one_that_fails(server, tmp_path):
    wanted = [entry(server).model_copy(update={"name": f"net_{i}", "sha256": SHA if i else "0" * 64}) for i in range(5)]
    found = fetch.fetch_all(wanted, tmp_path / "to")
    assert sorted(p.name for p in (tmp_path / "to").glob("*.pth")) == [f"net_{i}.pth" for i in range(1, 5)]
    assert isinstance(found["net_0"], BackbenchError)
    assert set(pins.read()) == {f"net_{i}" for i in range(1, 5)}, "no concurrent pin is lost"


def test_ctrl_c_ends_what_is_under_way(server, tmp_path):
    """One file is complete at Ctrl-C; the other stops at its next bytes and keeps its part."""

    def by_name(h):
        if "quick" in h.path:
            threading.Event().wait(0.1)
            return good(h)
        h.send_response(200)
        h.send_header("Content-Length", str(len(DATA)))
        h.send_header("ETag", '"one"')
        h.end_headers()
        with contextlib.suppress(OSError):  # the client disconnected
            for start in range(0, len(DATA), 10_000):
                h.wfile.write(DATA[start : start + 10_000])
                threading.Event().wait(0.01)

    def interrupt(*_):
        raise KeyboardInterrupt

    server.script = [by_name]
    names = ("quick", "slow")
    wanted = [entry(server, url=f"{server.url}/{name}.pth").model_copy(update={"name": name}) for name in names]
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch_all(wanted, tmp_path, interrupt)
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == ["quick.pth"]
    assert 0 < (tmp_path / ".slow.pth.part").stat().st_size < len(DATA)


FETCH = """
import sys
from model_zoo import fetch
from model_zoo.architecture import Architecture
from model_zoo.entries import Entry
url, sha256 = sys.argv[1:]
arch = Architecture(name="resnet50")
print(fetch.fetch(Entry(name="some_r50", method="Some", arch=arch, pretrained_on="ImageNet", url=url, sha256=sha256)))
"""


@pytest.mark.slow
def test_two_processes_fetch_once(server, tmp_path):
    server.script = [lambda h: (threading.Event().wait(0.3), good(h))]
    wanted = entry(server)
    with ThreadPoolExecutor(2) as both:
        words = ["-c", FETCH, str(wanted.url), str(wanted.sha256)]
        done = list(both.map(lambda _: warm.run(words, cwd=warm.ROOT), range(2)))
    assert [one.returncode for one in done] == [0, 0], done
    assert all(Path(one.stdout.strip()).read_bytes() == DATA for one in done)
    assert len(server.seen) == 1


# ---------------------------------------------------------------- https:// as a checkpoint


@pytest.fixture
def model(tmp_path):
    """Return the bytes of a complete backbone."""
    path = tmp_path / "made.pth"
    arch = Architecture(name="resnet18", width=0.25)
    save(path, initial(arch), arch, InputSpec())
    return path.read_bytes()


def test_an_address_is_a_checkpoint(server, model):
    server.script = [lambda h: answer(h, model)]
    url = f"{server.url}/releases/moco_r18.pth?download=1"
    backbone = load(url)
    assert (backbone.name, backbone.source) == ("moco_r18", url)
    assert pins.read()[url]["sha256"] == hashlib.sha256(model).hexdigest()
    assert load(url).weights_sha256 == backbone.weights_sha256
    assert len(server.seen) == 1, "the second load uses the cache"


def test_two_addresses_of_one_file_name_are_two_files(server, model):
    server.script = [lambda h: answer(h, model)]
    paths = {fetch.fetch_url(f"{server.url}/{place}/resnet50.pth")[0] for place in ("moco", "swav")}
    assert len(paths) == 2


def test_an_address_may_state_the_checksum(server, model):
    server.script = [lambda h: answer(h, model)]
    assert load(f"{server.url}/a.pth#sha256={hashlib.sha256(model).hexdigest()}")
    with pytest.raises(BackbenchError, match=r"wrong bytes: sha256 .* the entry's is 0000"):
        load(f"{server.url}/b.pth#sha256={'0' * 64}")
    with pytest.raises(CheckpointError, match="only sha256=<64 hexadecimal digits>"):
        load(f"{server.url}/c.pth#md5=1234")


@pytest.mark.parametrize("url", ["https://", "http:///a.pth", "https://[broken/a.pth", "https://h:99999999/a.pth"])
def test_addresses_that_are_none(url):
    with pytest.raises(BackbenchError):
        load(url)


@pytest.mark.parametrize(
    ("ckpt", "expected"),
    [
        ("https://h/a=b.pth?t=1", (None, "https://h/a=b.pth?t=1")),
        ("mine=https://h/a=b.pth", ("mine", "https://h/a=b.pth")),
    ],
)
def test_an_address_with_and_without_a_name(ckpt, expected):
    assert split_name(ckpt) == expected
