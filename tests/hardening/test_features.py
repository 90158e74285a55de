"""Damage to the feature cache: no damaged file is ever measured or stops a run; other faults give a sentence."""

import io
import os
import socket
import threading

import numpy as np
import pytest
import torch
from backbones import make_backbone
from PIL import Image

from backbench.data.catalogue import DataPlaces, load
from backbench.errors import BackbenchError
from backbench.files import Changed
from model_zoo.architecture import InputSpec
from transfer import feature_file, features
from transfer.feature_spec import FeatureSpec

pytest_plugins = ["feature_runs"]
SIZE = 32


@pytest.fixture(scope="module")
def backbone():
    return make_backbone("resnet18", spec=InputSpec(size=SIZE))


def saved(file, array, **options):
    """Replace a feature file by a sound .npy file without a checksum."""
    out = io.BytesIO()
    np.save(out, array, **options)
    file.write_bytes(out.getvalue())


def archived(file):
    out = io.BytesIO()
    np.savez(out, rows_of(file))
    file.write_bytes(out.getvalue())


def rows_of(file):
    return np.load(file).copy()


def flip(file, place, bit=1):
    data = bytearray(file.read_bytes())
    data[place] ^= bit
    file.write_bytes(data)


def in_place(file, rows):
    """Replace the rows, but keep the header and the checksum."""
    data = file.read_bytes()
    start = len(data) - rows.nbytes - 48
    file.write_bytes(data[:start] + rows.astype("<f4").tobytes() + data[-48:])


def with_nan(rows):
    rows[5, 3] = np.nan
    return rows


def rewritten(file, rows, label):
    """Write rows as the program does, with a checksum."""
    with feature_file.new_rows(file, rows.shape, label) as append:
        append(rows)


def replaced(file, make):
    file.unlink()
    make(file)


def listening(file):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(file))


def swapped(file):
    """Swap two rows."""
    rows = rows_of(file)
    in_place(file, rows[[1, 0, *range(2, len(rows))]])


def hole(file):
    """Replace a page by zeros, as if it had never been written."""
    rows = rows_of(file)
    rows[7:9] = 0
    in_place(file, rows)


DAMAGES = {
    "a NaN, saved again": lambda f: saved(f, with_nan(rows_of(f))),
    "a NaN in place": lambda f: in_place(f, with_nan(rows_of(f))),
    "an infinite number in place": lambda f: in_place(f, np.where(rows_of(f) > 1, np.inf, rows_of(f))),
    "another width": lambda f: saved(f, rows_of(f)[:, :9]),
    "another width with a checksum": lambda f: rewritten(f, rows_of(f)[:, :9], f.stem),
    "a row less": lambda f: saved(f, rows_of(f)[:-1]),
    "a row less with a checksum": lambda f: rewritten(f, rows_of(f)[:-1], f.stem),
    "a row more": lambda f: rewritten(f, np.pad(rows_of(f), [(0, 1), (0, 0)]), f.stem),
    "one dimension": lambda f: saved(f, rows_of(f).ravel()),
    "three dimensions": lambda f: saved(f, rows_of(f)[None]),
    "float64": lambda f: saved(f, rows_of(f).astype(np.float64)),
    "float16": lambda f: saved(f, rows_of(f).astype(np.float16)),
    "whole numbers": lambda f: saved(f, rows_of(f).astype(np.int32)),
    "the other byte order": lambda f: saved(f, rows_of(f).astype(">f4")),
    "column by column": lambda f: saved(f, np.asfortranarray(rows_of(f))),
    "objects": lambda f: saved(f, np.array([[None] * 8] * 24, object), allow_pickle=True),
    "an archive": archived,
    "rows exchanged": swapped,
    "rows in reverse": lambda f: in_place(f, rows_of(f)[::-1]),
    "columns in reverse": lambda f: in_place(f, rows_of(f)[:, ::-1]),
    "a page of zeros": hole,
    "all zeros": lambda f: f.write_bytes(b"\0" * f.stat().st_size),
    "one bit of a number": lambda f: flip(f, 1000),
    "one bit of the first number": lambda f: flip(f, 128),
    "one bit of the last number": lambda f: flip(f, -49, 128),
    "one byte of the header": lambda f: flip(f, 20),
    "the magic bytes": lambda f: flip(f, 0, 255),
    "one bit of the checksum": lambda f: flip(f, -1),
    "the checksum's mark": lambda f: flip(f, -40),
    "no checksum, as it was before": lambda f: saved(f, rows_of(f)),
    "cut in the checksum": lambda f: f.write_bytes(f.read_bytes()[:-7]),
    "cut in the rows": lambda f: f.write_bytes(f.read_bytes()[:700]),
    "cut in the header": lambda f: f.write_bytes(f.read_bytes()[:50]),
    "cut to nothing": lambda f: f.write_bytes(b""),
    "bytes after the end": lambda f: f.write_bytes(f.read_bytes() + b"\0"),
    "twice": lambda f: f.write_bytes(f.read_bytes() * 2),
    "words": lambda f: f.write_text("these are no features\n" * 100),
    "the file of another key": lambda f: rewritten(f, rows_of(f) + 1, "another key"),
    "a pipe": lambda f: replaced(f, os.mkfifo),
    "a socket": lambda f: replaced(f, listening),
    "a link to nothing": lambda f: replaced(f, lambda p: p.symlink_to("nowhere")),
    "a link to itself": lambda f: replaced(f, lambda p: p.symlink_to(p.name)),
    "a link to an endless device": lambda f: replaced(f, lambda p: p.symlink_to("/dev/zero")),
    "a link to a folder": lambda f: replaced(f, lambda p: p.symlink_to(p.parent)),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_computed_anew_with_a_word(split, ctx, backbone, computed, capsys, monkeypatch, kind):
    first = features.extract(backbone, split, ctx).clone()
    (file,) = ctx.cache.glob("*.npy")
    monkeypatch.chdir(ctx.cache)  # a socket's path is short
    capsys.readouterr()
    DAMAGES[kind](file)
    assert torch.equal(features.extract(backbone, split, ctx), first)
    assert len(computed) == 2
    said = capsys.readouterr()
    assert "computing features again" in " ".join((said.out + said.err).split())
    assert torch.equal(features.extract(backbone, split, ctx), first)
    assert len(computed) == 2, "the file is intact again"
    assert sorted(p.suffix for p in ctx.cache.iterdir()) == [".lock", ".npy"]


def folder_in(place):
    def put(cache, key):
        (cache / place.format(key)).mkdir(parents=True)

    return put


def cache_is_a_file(cache, key):
    cache.write_text("")


def cache_is_below_a_file(cache, key):
    cache.parent.joinpath("file").write_text("")
    return cache.parent / "file" / "features"


IN_THE_WAY = {
    "a folder in the file's place": (folder_in("{}.npy"), "a folder is in the way"),
    "a folder in the part's place": (folder_in("{}.part0"), "a folder is in the way"),
    "a folder in the lock's place": (folder_in("{}.npy.lock"), "cannot write .*lock"),
    "a file in the cache folder's place": (cache_is_a_file, "cannot write"),
    "a cache folder below a file": (cache_is_below_a_file, "cannot write"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_in_the_way_is_a_sentence(split, ctx, backbone, kind):
    put, words = IN_THE_WAY[kind]
    ctx.cache = put(ctx.cache, features._key(backbone, split, ctx, FeatureSpec(SIZE, 37))) or ctx.cache
    with pytest.raises(BackbenchError, match=words) as refused:
        features.extract(backbone, split, ctx)
    assert "\n" not in str(refused.value)


LEFT_BEHIND = {
    "a part of a killed job": lambda p: p.write_bytes(b"half"),
    "a pipe in the part's place": os.mkfifo,
    "a link in the part's place": lambda p: p.symlink_to(p.parent / "somebody's"),
    "a hard link in the part's place": lambda p: os.link(p.parent / "somebody's", p),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", LEFT_BEHIND)
def test_what_is_left_behind_is_neither_waited_for_nor_written_through(split, ctx, backbone, kind):
    ctx.cache.mkdir()
    theirs = ctx.cache / "somebody's"
    theirs.write_text("precious")
    LEFT_BEHIND[kind](ctx.cache / f"{features._key(backbone, split, ctx, FeatureSpec(SIZE, 37))}.part0")
    assert len(features.extract(backbone, split, ctx)) == 24
    assert theirs.read_text() == "precious"


# ---------------------------------------------------------------- replaced images


def exchange(path, *, keep_time=False):
    """Return another picture with the same number of bytes."""
    before = path.stat()
    data = bytearray(before.st_size)
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (255, 0, 0)).save(out, "PNG")
    data[: len(out.getvalue())] = out.getvalue()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (0 if keep_time else 1_000)))


@pytest.mark.parametrize("index", [0, 13, 23])
def test_an_image_exchanged_between_runs_for_one_of_its_size_is_seen(image_folder, ctx, backbone, computed, index):
    places = DataPlaces(None, {"imagenet": image_folder})
    split = load("imagenet", "train", places)
    before = features.extract(backbone, split, ctx).clone()
    exchange(split.source.root / split.source.paths[index])
    later = load("imagenet", "train", places)
    assert later.manifest_sha256() == split.manifest_sha256(), "the manifest does not show the change"
    after = features.extract(backbone, later, ctx)
    assert len(computed) == 2
    assert [i for i in range(24) if not torch.equal(before[i], after[i])] == [index]


@pytest.mark.parametrize("keep_time", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_exchanged_during_the_run_ends_it_in_a_sentence(image_folder, ctx, backbone, workers, keep_time):
    split = load("imagenet", "train", DataPlaces(None, {"imagenet": image_folder}))
    split.manifest_sha256()  # for the record
    ctx.workers = workers
    path = split.source.root / split.source.paths[20]
    exchange(path, keep_time=keep_time)
    with pytest.raises(Changed, match=path.name) as refused:
        features.extract(backbone, split, ctx)
    assert "\n" not in str(refused.value), "from a decoding process as well"
    assert not list(ctx.cache.glob("*.npy")) and not list(ctx.cache.glob("*.part*"))


@pytest.mark.timeout(120)
def test_two_jobs_at_once_compute_once(split, ctx, backbone, computed):
    found = []
    threads = [threading.Thread(target=lambda: found.append(features.extract(backbone, split, ctx))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1 and len(found) == 3
    assert all(torch.equal(one, found[0]) for one in found)
