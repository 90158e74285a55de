"""iNaturalist's JSON: the demo's, ids with gaps, and broken files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from backbench.data import catalogue, demo
from backbench.data.catalogue import DataPlaces, is_published
from backbench.data.demo import render
from backbench.data.layouts import inat18
from backbench.errors import DataError


def record(pairs, categories=None):
    """Write an annotation file; `pairs` are (image id, category id)."""
    images = [{"id": i, "file_name": f"train_val2018/x/{i}.jpg"} for i, _ in pairs]
    annotations = [{"id": 7 * n, "image_id": i, "category_id": c} for n, (i, c) in enumerate(reversed(pairs))]
    named = {"categories": [{"id": c, "name": name} for c, name in categories.items()]} if categories else {}
    return {"images": images, "annotations": annotations} | named


@pytest.fixture
def write(tmp_path):
    def to(split, value):
        text = value if isinstance(value, str) else json.dumps(value)
        (tmp_path / f"{split}2018.json").write_text(text)
        return tmp_path

    to("train", record([(900, 40), (2, 3), (50, 40)], {40: "wasp", 3: "moth"}))
    to("val", record([(11, 3)]))
    return to


def test_ids_with_gaps(write, tmp_path):
    train, val = (inat18.read(tmp_path, split) for split in ("train", "val"))
    assert train.classes == val.classes == ("moth", "wasp")
    assert train.labels.tolist() == [1, 0, 1]
    assert train.labels.dtype == np.int64
    assert [train.source.name(i) for i in range(3)] == [f"train_val2018/x/{i}.jpg" for i in (900, 2, 50)]
    assert val.labels.tolist() == [0]


def test_without_categories_the_training_annotations_number_the_classes(write):
    root = write("train", record([(1, 8), (2, 5), (3, 5)]))
    write("val", record([(1, 8)]))
    assert inat18.read(root, "train").classes == ("5", "8")
    assert inat18.read(root, "train").labels.tolist() == [1, 0, 0]
    assert inat18.read(root, "val").labels.tolist() == [1]


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        ({40: "moth", 3: "wasp"}, "category 40 is 'moth' here and 'wasp' in train2018.json"),
        ({41: "wasp", 3: "bee"}, "category 3 is 'bee' here and 'moth' in train2018.json"),
        ({40: "wasp", 3: "moth"}, None),
        ({3: "moth"}, None),
    ],
)
def test_a_category_means_the_same_in_both_files(write, categories, words):
    root = write("val", record([(11, 3)], categories))
    if words is None:
        assert inat18.read(root, "val").labels.tolist() == [0]
        return
    with pytest.raises(DataError, match=words):
        inat18.read(root, "val")


@pytest.mark.parametrize("name", ["/etc/hostname", "../x.jpg", "a/../../x.jpg", ".."])
def test_no_image_is_outside_the_folder(write, name):
    train = record([(1, 3), (2, 40)])
    train["images"][1]["file_name"] = name
    with pytest.raises(DataError, match="leads out of the images' folder"):
        inat18.read(write("train", train), "train")


def test_an_id_is_a_number_and_not_true(write):
    train = record([(0, 0), (1, 1)])
    train["annotations"][0]["category_id"] = True
    with pytest.raises(DataError, match="'category_id' is True"):
        inat18.read(write("train", train), "train")


def changed(value, key, change):
    return value | {key: change(value[key])}


GOOD = record([(n, n % 2) for n in range(10)], {0: "a", 1: "b"})
BROKEN = [
    ('{"images": [', "not readable as JSON, cut short"),
    ("[]", "no list 'images' in it"),
    ({"images": []}, "no list 'annotations' in it"),
    (changed(GOOD, "annotations", lambda x: x[5:]), r"images without an annotation: 5, e\.g\. 5, 6, 7"),
    (changed(GOOD, "images", lambda x: x[:8]), r"annotations of unknown images: 2, e\.g\. 9, 8"),
    (changed(GOOD, "annotations", lambda x: [*x, x[0]]), r"images with two annotations: 1, e\.g\. 9"),
    (changed(GOOD, "images", lambda x: [*x, x[0]]), "1 image ids are there twice"),
    (
        changed(GOOD, "images", lambda x: [*x[:-1], x[-1] | {"file_name": x[0]["file_name"]}]),
        "'train_val2018/x/0.jpg' is listed before",
    ),
    (changed(GOOD, "categories", lambda x: [*x, {"id": 5, "name": "c"}]), r"categories without an image: 1, e\.g\. 5"),
    (changed(GOOD, "categories", lambda x: x[:1]), r"category ids that train2018\.json does not have: 1, e\.g\. 1"),
    (changed(GOOD, "images", lambda x: [{"file_name": "x"}]), "a record without 'id'"),
    (changed(GOOD, "images", lambda x: [*x[:-1], x[-1] | {"file_name": 5}]), "a record whose 'file_name' is 5: id 9"),
    (changed(GOOD, "images", lambda x: [*x[:-1], x[-1] | {"id": [9]}]), "a record whose 'id' is a list of 1"),
    (changed(GOOD, "annotations", lambda x: [x[0] | {"image_id": "9"}, *x[1:]]), "annotations of unknown images: 1, e"),
    (
        changed(GOOD, "annotations", lambda x: [x[0] | {"category_id": float("nan")}]),
        "a record whose 'category_id' is nan",
    ),
    (
        changed(GOOD, "annotations", lambda x: [x[0] | {"category_id": "1"}, *x[1:]]),
        r"category ids that train2018\.json does not have: 1",
    ),
    (changed(GOOD, "categories", lambda x: [*x, 5]), "a record without 'id'"),
    (changed(GOOD, "categories", lambda x: [*x, {"id": {}, "name": "c"}]), "a record whose 'id' is a dict of 0"),
]


@pytest.mark.parametrize(("value", "words"), BROKEN)
def test_broken_files(write, value, words):
    root = write("train", value)
    with pytest.raises(DataError, match=rf"train2018\.json: {words}"):
        inat18.read(root, "train")


def test_a_validation_class_that_training_does_not_have(write):
    root = write("val", record([(1, 3), (2, 77)]))
    with pytest.raises(
        DataError, match=r"val2018\.json: category ids that train2018\.json does not have: 1, e\.g\. 77"
    ):
        inat18.read(root, "val")


@pytest.mark.parametrize("split", ["train", "val"])
def test_half_a_data_set(write, tmp_path, split):
    (tmp_path / f"{split}2018.json").unlink()
    with pytest.raises(DataError, match=rf"{split}2018\.json: no such file"):
        inat18.read(tmp_path, "val")


def test_the_demo():
    splits = {role: catalogue.load("inat18", role, DataPlaces(demo.root())) for role in ("train", "test")}
    assert {role: len(split) for role, split in splits.items()} == {"train": 200, "test": 100}
    for split in splits.values():
        assert split.classes == render.CLASSES
        for i in range(0, len(split), 7):
            assert split.source.name(i).split("/")[2] == str(split.labels[i])
            assert split.source.rgb(i).shape == (render.SIDE, render.SIDE, 3)
    assert not is_published("inat18", splits)
