"""STL-10's folds, and the demo's binary files."""

from __future__ import annotations

import numpy as np
import pytest

from backbench.data import catalogue, demo
from backbench.data.catalogue import DataPlaces, is_published
from backbench.data.demo import render
from backbench.data.layouts import stl10
from backbench.data.overlap import duplicates
from backbench.data.splits import ImageSplit
from backbench.errors import DataError


@pytest.fixture
def stl(tmp_path):
    """Six training images: image i is i everywhere, of class i + 1."""
    pixels = np.repeat(np.arange(6, dtype=np.uint8), 3 * 96 * 96)
    pixels.tofile(tmp_path / "train_X.bin")
    np.arange(1, 7, dtype=np.uint8).tofile(tmp_path / "train_y.bin")
    (tmp_path / "fold_indices.txt").write_text("5 0 2\n1 3 4 \n")
    return tmp_path


def test_a_fold_is_rows_of_train(stl):
    fold = stl10.read(stl, "fold0")
    assert fold.split == "fold0"
    assert len(fold) == 3
    assert fold.labels.tolist() == [5, 0, 2]
    assert [int(fold.source.rgb(i).max()) for i in range(3)] == [5, 0, 2]
    assert [fold.source.name(i) for i in range(3)] == ["train/5", "train/0", "train/2"]
    assert len(fold.classes) == 10
    assert stl10.read(stl, "fold1").labels.tolist() == [1, 3, 4]


@pytest.mark.parametrize(
    ("text", "split", "words"),
    [
        ("5 0 2\n", "fold1", "no fold1 in it; it holds fold0 to fold0"),
        ("5 0 2\n", "foldx", "no foldx in it"),
        ("5 6 2\n", "fold0", "1: row numbers outside 0 to 5"),
        ("5 -1 2\n", "fold0", "1: row numbers outside 0 to 5"),
        ("5 5 2\n", "fold0", "1: row numbers that are there twice"),
        ("5 x 2\n", "fold0", "1: not a list of numbers"),
        (None, "fold0", "no such file"),
    ],
)
def test_broken_folds(stl, text, split, words):
    file = stl / "fold_indices.txt"
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=rf"fold_indices\.txt.*{words}"):
        stl10.read(stl, split)


class Numbered:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


@pytest.mark.parametrize(
    ("own", "count", "published"), [("fold3", 1000, True), ("fold3", 999, False), ("old", 1000, False)]
)
def test_a_whole_fold_is_a_published_split(own, count, published):
    split = ImageSplit("stl10", own, Numbered(count), None, tuple("abcdefghij"))
    assert is_published("stl10", {"train": split}) is published


def test_the_demo():
    places = DataPlaces(demo.root())
    train, test, unlabeled = (catalogue.load("stl10", name, places) for name in ("train", "test", "unlabeled"))
    assert (len(train), len(test), len(unlabeled)) == (200, 100, 100)
    assert np.bincount(train.labels).tolist() == [20] * 10
    assert np.bincount(test.labels).tolist() == [10] * 10
    assert unlabeled.labels is None
    assert train.classes == render.CLASSES
    # classes take turns: row 37 is the fourth picture of class 7
    assert np.array_equal(train.source.rgb(37), render.render_single(7, render.seeded("stl10", "train", 7, 3)))
    folds = [catalogue.load("stl10", f"fold{k}", places) for k in range(10)]
    assert all(len(fold) == 40 for fold in folds)
    assert len({fold.manifest_sha256() for fold in folds}) == 10
    assert duplicates(train, test) == duplicates(unlabeled, test) == []
    assert len(duplicates(train, folds[0])) == 40
