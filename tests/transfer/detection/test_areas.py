"""Areas that COCO's metric takes from the file, and what replaces impossible ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_tools

from backbench.errors import DataError
from transfer.detection.annotations.layouts import read_coco
from transfer.detection.annotations.split import Detections, DetectionSplit, check_measurable
from transfer.detection.scoring.coco_eval import evaluate

RIGHT = 900.0  # of the square masks and boxes below
DIAMOND = [[20, 5, 35, 20, 20, 35, 5, 20]]  # in the same box, of half the area


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def write(root: Path, areas: list, *, masks: list | None = None, **fields: object) -> Path:
    """Four images with one object each, of category 1, 3, 1 and 3; `...` omits the area."""
    (root / "val2017").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for i, area in enumerate(areas):
        images.append({"id": 101 + i, "file_name": f"{i}.png", "width": 64, "height": 48})
        Image.new("RGB", (64, 48)).save(root / f"val2017/{i}.png")
        thing = {"id": i, "image_id": 101 + i, "category_id": 1 + 2 * (i % 2), "bbox": [5, 5, 30, 30], "iscrowd": 0}
        mask = square(5, 5, 30) if masks is None else masks[i]
        thing |= ({"segmentation": mask} if mask else {}) | ({} if area is ... else {"area": area}) | fields
        annotations.append(thing)
    categories = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]
    record = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_val2017.json").write_text(json.dumps(record))
    return root


def missing_the_first(split: DetectionSplit) -> list[Detections]:
    """Exact detections of all objects except the first image's."""
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    return [empty] + [
        Detections(
            np.array([o.box for o in p.instances], np.float32),
            np.ones(len(p.instances), np.float32),
            np.array([o.label for o in p.instances]),
        )
        for p in split.pictures[1:]
    ]


SOUND = [RIGHT] * 4
HALF = 100 * (51 / 101 + 1) / 2  # one of two cats: precision 1 at recalls 0, 0.01, ..., 0.5; all dogs

BAD = {
    "negative": (-900.0, "areas of 0 or less"),
    "minus one": (-1, "areas of 0 or less"),
    "zero": (0, "areas of 0 or less"),
    "minus zero": (-0.0, "areas of 0 or less"),
    "nan": (float("nan"), "areas that are not finite"),
    "infinite": (float("inf"), "areas that are not finite"),
    "minus infinite": (float("-inf"), "areas that are not finite"),
    "over 1e10": (1e11, "areas larger than their image"),
    "of another image": (100 * 100, "areas larger than their image"),
    "no float holds it": (10**400, "areas that are not numbers"),
    "a word": ("900", "areas that are not numbers"),
    "true": (True, "areas that are not numbers"),
    "a list": ([900.0], "areas that are not numbers"),
    "null": (None, "areas that are missing"),
    "absent": (..., "areas that are missing"),
}


@pytest.mark.parametrize(("area", "words"), BAD.values(), ids=BAD)
def test_an_object_counts_whatever_its_stated_area(tmp_path, area, words, capsys):
    split = read_coco(write(tmp_path, [area, *SOUND[1:]]), "val2017", masks=True)
    found = missing_the_first(split)
    assert evaluate(split, found)["box_AP"] == pytest.approx(HALF)
    assert split.repaired == {f"{words}, taken from their masks": 1}
    assert f"{words}, taken from their masks: 1, e.g. annotation 0 of 0.png" in capsys.readouterr().err
    sound = read_coco(write(tmp_path / "sound", SOUND), "val2017", masks=True)
    assert sound.repaired == {}
    assert evaluate(split, found) == evaluate(sound, found), "every size too"
    assert [o.area for p in split.pictures for o in p.instances] == SOUND


@pytest.mark.parametrize("area", [-1, None, ..., 1e11])
def test_without_a_mask_it_is_the_boxs(tmp_path, area):
    split = read_coco(write(tmp_path, [area] * 4, masks=[None] * 4), "val2017")
    assert [o.area for p in split.pictures for o in p.instances] == SOUND
    (what,) = split.repaired
    assert what.endswith("taken from their boxes") and split.repaired[what] == 4
    assert evaluate(split, missing_the_first(split))["box_AP"] == pytest.approx(HALF)


def test_masks_of_all_kinds_have_their_own_area(tmp_path):
    column = {"size": [48, 64], "counts": [48 * 5, 48 * 10, 48 * 49]}
    packed = mask_tools.frPyObjects(column, 48, 64)
    packed = packed | {"counts": packed["counts"].decode()}
    masks = [DIAMOND, [*square(5, 5, 10), *square(10, 10, 10)], column, packed]
    split = read_coco(write(tmp_path, [0] * 4, masks=masks), "val2017")
    first, second, third, fourth = (o.area for p in split.pictures for o in p.instances)
    assert first == pytest.approx(450, rel=0.05), "half the box"
    assert second == pytest.approx(175, rel=0.05), "what two parts share counts once"
    assert third == fourth == 480


def test_a_mask_that_covers_no_pixel_leaves_the_box(tmp_path):
    line = [[5, 5, 5, 5, 5, 5]]
    split = read_coco(write(tmp_path, [0], masks=[line]), "val2017")
    assert [(o.area, o.area_of) for p in split.pictures for o in p.instances] == [(900, "box")]


@pytest.mark.parametrize("area", [0.25, 899.5, 900, 64 * 48, 65 * 49])
def test_a_valid_area_is_never_replaced(tmp_path, area):
    split = read_coco(write(tmp_path, [area] * 4), "val2017")
    assert {(o.area, o.area_of) for p in split.pictures for o in p.instances} == {(area, "stated")}
    assert split.repaired == {}


def test_mended_areas_are_other_data_where_they_decide_a_number(tmp_path):
    """An older record that ignored the object is never reused for a new one."""
    manifests = {}
    for name, area, masks in (
        ("stated", RIGHT, None), ("negative", -900.0, None), ("absent", ..., None),
        ("boxes: negative", -900.0, [None] * 4), ("boxes: absent", ..., [None] * 4),
    ):  # fmt: skip
        manifests[name] = read_coco(write(tmp_path / name, [area] * 4, masks=masks), "val2017").manifest_sha256()
    assert len({manifests[name] for name in ("stated", "negative", "boxes: absent")}) == 3
    assert manifests["negative"] == manifests["absent"], "the masks' areas in both"
    assert manifests["boxes: negative"] == manifests["boxes: absent"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"iscrowd": 1}, r"\(objects: 4 crowds\)"), ({"segmentation": None}, r"\(objects: 4 without a mask\)")],
)
def test_what_has_nothing_that_counts_cannot_be_measured(tmp_path, fields, words):
    split = read_coco(write(tmp_path, SOUND, **fields), "val2017")
    with pytest.raises(DataError, match=rf"instances_val2017\.json: no object counts in the 4 test images.*{words}"):
        check_measurable(split, masks=True)


def test_all_areas_negative_can_be_measured(tmp_path):
    split = read_coco(write(tmp_path, [-900.0] * 4), "val2017", masks=True)
    check_measurable(split, masks=True)
    assert evaluate(split, missing_the_first(split))["box_AP"] == pytest.approx(HALF)
