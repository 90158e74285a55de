"""COCO's instances as a multi-label split: compared with pycocotools, made by hand, and broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from backbench.data import catalogue, demo
from backbench.data.catalogue import DataPlaces, is_published
from backbench.data.layouts import coco
from backbench.data.splits import ImageSplit
from backbench.errors import DataError


def annotation(number, image, category, crowd=0):
    return {"id": number, "image_id": image, "category_id": category, "bbox": [0, 0, 1, 1], "iscrowd": crowd}


GOOD = {
    "images": [{"id": i, "file_name": f"{i:03d}.jpg", "width": 6, "height": 4} for i in (30, 2, 7)],
    "annotations": [
        *(annotation(1, 30, 90, crowd=1), annotation(2, 30, 5)),
        *(annotation(3, 2, 90, crowd=1), annotation(4, 2, 90), annotation(5, 2, 90, crowd=1)),
    ],
    "categories": [{"id": 90, "name": "cup"}, {"id": 5, "name": "bus"}],
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    for image in GOOD["images"]:
        Image.new("RGB", (6, 4)).save(tmp_path / "val2017" / image["file_name"])
    write(tmp_path, GOOD)
    return tmp_path


def write(root: Path, value) -> None:
    coco.annotation_file(root, "val2017").write_text(value if isinstance(value, str) else json.dumps(value))


def test_labels(root):
    split = coco.read(root, "val2017")
    assert split.classes == ("bus", "cup")
    assert [split.source.name(i) for i in range(3)] == ["002.jpg", "007.jpg", "030.jpg"]
    assert split.labels.tolist() == [[-1, 1], [-1, -1], [1, 0]]  # a crowd beside a cup does not hide it
    assert split.labels.dtype == np.int8
    assert split.source.rgb(0).shape == (4, 6, 3)


def test_instances_keep_what_detection_needs(root):
    found = coco.instances(coco.annotation_file(root, "val2017"))
    assert [c["id"] for c in found.categories] == [5, 90]
    assert [i["id"] for i in found.images] == [2, 7, 30]
    assert list(found.annotations) == GOOD["annotations"]


def changed(kind, **fields):
    first, *others = GOOD[kind]
    return GOOD | {kind: [first | fields, *others]}


def without(kind, key):
    return GOOD | {kind: [*GOOD[kind][:1], {k: v for k, v in GOOD[kind][1].items() if k != key}]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('{"images"', "not readable as JSON, cut short"),
        ({k: v for k, v in GOOD.items() if k != "annotations"}, "no list 'annotations' in it"),
        (without("images", "file_name"), "a record of 'images' without 'file_name'"),
        (without("annotations", "image_id"), "a record of 'annotations' without 'image_id'"),
        (without("categories", "name"), "a record of 'categories' without 'name'"),
        (GOOD | {"images": GOOD["images"][:2] + GOOD["images"][:1]}, "1 ids of 'images' are there twice"),
        (GOOD | {"images": GOOD["images"][:1]}, r"annotations whose image_id is unknown: 3, e\.g\. 3, 4, 5"),
        (GOOD | {"categories": GOOD["categories"][:1]}, r"annotations whose category_id is unknown: 1, e\.g\. 2"),
        (GOOD | {"images": [], "annotations": []}, "no images or no categories"),
        (changed("images", file_name=None), "a record of 'images' whose 'file_name' is None"),
        (changed("images", id=[1]), r"a record of 'images' whose 'id' is \[1\]"),
        (changed("annotations", image_id=[1]), r"a record of 'annotations' whose 'image_id' is \[1\]"),
        (changed("annotations", id="one"), "some ids of 'annotations' are numbers and some are words"),
        (changed("images", id=True), "a record of 'images' whose 'id' is True"),
        (changed("annotations", id=1.5), r"a record of 'annotations' whose 'id' is 1\.5"),
        (changed("annotations", iscrowd="0"), "iscrowd of annotation 1 is '0', neither 0 nor 1"),
        (changed("images", file_name="002.jpg"), r"images that are listed twice: 1, e\.g\. 002\.jpg"),
        (changed("categories", name="\ud800"), r"a record of 'categories' whose 'name' is '\\ud800'"),
        (changed("annotations", category_id={}), r"a record of 'annotations' whose 'category_id' is \{\}"),
    ],
)
def test_broken_files(root, value, words):
    write(root, value)
    with pytest.raises(DataError, match=rf"instances_val2017\.json: {words}"):
        coco.read(root, "val2017")


def test_missing_images_and_files(root):
    (root / "val2017" / "007.jpg").unlink()
    with pytest.raises(DataError, match=r"images that are not in .*val2017: 1, e\.g\. 007\.jpg"):
        coco.read(root, "val2017")
    with pytest.raises(DataError, match=r"instances_train2017\.json: no such file"):
        coco.read(root, "train2017")
    (root / "val2017").rename(root / "elsewhere")
    with pytest.raises(DataError, match="val2017: cannot be read"):
        coco.read(root, "val2017")


def check_with_pycocotools(root: Path, role: str) -> ImageSplit:
    split = catalogue.load("coco", role, DataPlaces(None, {"coco": root}))
    theirs = COCO(str(coco.annotation_file(root, split.split)))
    assert len(split) == len(theirs.getImgIds())
    number = {theirs.loadImgs(i)[0]["file_name"]: i for i in theirs.getImgIds()}
    for row in range(len(split)):
        image = number[split.source.name(row)]
        plain, any_ = (
            {a["category_id"] for a in theirs.loadAnns(theirs.getAnnIds(imgIds=image, iscrowd=crowd))}
            for crowd in (False, None)
        )
        expected = [1 if c in plain else 0 if c in any_ else -1 for c in sorted(theirs.getCatIds())]
        assert split.labels[row].tolist() == expected
    assert list(split.classes) == [c["name"] for c in theirs.loadCats(sorted(theirs.getCatIds()))]
    return split


def test_the_demo_agrees_with_pycocotools(capsys):
    splits = {role: check_with_pycocotools(demo.root() / "coco", role) for role in ("train", "test")}
    assert {role: len(split) for role, split in splits.items()} == {"train": 100, "test": 60}
    assert not is_published("coco", splits)


def test_real_coco_agrees_with_pycocotools(real_data, capsys):
    splits = {role: check_with_pycocotools(real_data / "coco", role) for role in ("train", "test")}
    assert {role: len(split) for role, split in splits.items()} == {"train": 147, "test": 79}
    assert all(len(split.classes) == 80 for split in splits.values())
    assert not is_published("coco", splits)
