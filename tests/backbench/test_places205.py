"""Places205's csv files: the demo's, and broken ones."""

from __future__ import annotations

import numpy as np
import pytest

from backbench.data import catalogue, demo
from backbench.data.catalogue import DataPlaces, is_published
from backbench.data.demo import render
from backbench.data.layouts import places205
from backbench.errors import DataError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "train_places205.csv").write_text("b/bar/1.jpg 1\na/abbey/1.jpg 0\nb/bar/2.jpg 1\n")
    (tmp_path / "val_places205.csv").write_text("b/bar/9.jpg 1\n")
    return tmp_path


def test_labels_in_the_order_of_the_file(root):
    train, val = (places205.read(root, split) for split in ("train", "val"))
    assert train.labels.tolist() == [1, 0, 1]
    assert train.labels.dtype == np.int64
    assert [train.source.name(i) for i in range(3)] == ["b/bar/1.jpg", "a/abbey/1.jpg", "b/bar/2.jpg"]
    assert train.classes == val.classes == ("a/abbey", "b/bar")
    assert val.labels.tolist() == [1]


def test_classes_without_folders_of_their_own_are_numbered(root):
    (root / "train_places205.csv").write_text("1.jpg 1\n2.jpg 0\n")
    assert places205.read(root, "val").classes == ("0", "1")


def test_folders_of_several_classes_say_nothing_of_a_label(root):
    (root / "train_places205.csv").write_text("x/1.jpg 0\ny/2.jpg 1\nx/3.jpg 1\n")
    (root / "val_places205.csv").write_text("x/9.jpg 1\ny/9.jpg 0\n")
    assert places205.read(root, "val").labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("split", "text", "words"),
    [
        ("train", "a/1.jpg 0\na/2.jpg\n", r"train_places205\.csv:2: 'a/2\.jpg' is not a path and a label"),
        ("train", "a/1.jpg 0 1\n", r"train_places205\.csv:1: 'a/1\.jpg 0 1' is not"),
        ("train", "a/1.jpg,0\n", r"train_places205\.csv:1: "),
        ("train", "a/1.jpg 0\n\n", r"train_places205\.csv:2: '' is not"),
        ("train", "a/1.jpg 0.5\n", r"train_places205\.csv:1: 'a/1\.jpg 0\.5' is not"),
        ("train", "a/1.jpg -1\n", r"train_places205\.csv:1: 'a/1\.jpg -1' is not"),
        ("train", "a/1.jpg 0\nb/1.jpg 2\n", r"labels without an image: 1, e\.g\. 1"),
        ("train", "a/1.jpg 0\nb/1.jpg 1\na/1.jpg 0\n", r"train_places205\.csv:3: 'a/1\.jpg' is listed before"),
        (
            "train",
            "a/1.jpg 0\nb/1.jpg 1\n./a//1.jpg 1\n",
            r"train_places205\.csv:3: '\./a//1\.jpg' is listed before, as 'a/1",
        ),
        ("train", "a/1.jpg 0\n/b/1.jpg 1\n", r"train_places205\.csv:2: '/b/1\.jpg' leads out of the images' folder"),
        ("train", "a/1.jpg 0\nb/../../1.jpg 1\n", r"train_places205\.csv:2: .* leads out of the images' folder"),
        ("val", "a/abbey/9.jpg 1\n", r"val_places205\.csv:1: 'a/abbey/9\.jpg' has label 1, .* have 0: .* count from 1"),
        ("val", "c/9.jpg 0\n./b/bar/9.jpg 0\n", r"val_places205\.csv:2: '\./b/bar/9\.jpg' has label 0, .* have 1"),
        ("train", f"a/1.jpg {'9' * 17}\n", r"labels without an image: 99999999999999999, e\.g\. 0"),
        ("train", f"a/1.jpg {'9' * 5000}\n", r"train_places205\.csv:1: "),
        ("train", "", "the file is empty"),
        ("train", None, r"train_places205\.csv: no such file"),
        ("val", "a/1.jpg 0\nb/1.jpg 2\n", r"val_places205\.csv:2: label 2 is out of range: .* have 0 to 1"),
        ("val", None, r"val_places205\.csv: no such file"),
    ],
)
def test_broken_files(root, split, text, words):
    file = root / f"{split}_places205.csv"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(DataError, match=words):
        places205.read(root, split)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_as_other_systems_write_them(root, encoding):
    (root / "train_places205.csv").write_bytes("b/my bar/1.jpg 1\r\na/abbey/é.jpg 0\r\n".encode(encoding))
    train = places205.read(root, "train")
    assert train.source.paths == ("b/my bar/1.jpg", "a/abbey/é.jpg")
    assert train.classes == ("a/abbey", "b/my bar")


def test_no_images(root):
    (root / "images").rmdir()
    with pytest.raises(DataError, match="no folder 'images'"):
        places205.read(root, "train")


def test_the_demo():
    splits = {role: catalogue.load("places205", role, DataPlaces(demo.root())) for role in ("train", "test")}
    assert {role: len(split) for role, split in splits.items()} == {"train": 200, "test": 100}
    for split in splits.values():
        assert [name.split("/")[1] for name in split.classes] == list(render.CLASSES)
        for i in range(0, len(split), 7):
            assert split.classes[split.labels[i]] in split.source.name(i)
            assert split.source.rgb(i).shape == (render.SIDE, render.SIDE, 3)
    assert not is_published("places205", splits)
