"""COCO's metric: hand-made files, users' files, and pycocotools used as in its demo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbench.data import demo
from backbench.errors import DataError
from transfer.detection.annotations.layouts import read_coco
from transfer.detection.annotations.split import Detections, DetectionSplit, trainable
from transfer.detection.scoring.coco_eval import evaluate

SIZES = ("", "50", "75", "s", "m", "l")


def rle(mask, height: int, width: int) -> dict:
    """Return a COCO mask of any kind as packed run lengths."""
    parts = coco_mask.frPyObjects(mask, height, width)
    return coco_mask.merge(parts) if isinstance(parts, list) else parts


def near_truth(split: DetectionSplit, *, seed: int = 0, spread: float = 0.0, false: int = 0) -> list[Detections]:
    """One moved box per object (also crowds), and boxes on background with the first object's mask."""
    rng = np.random.default_rng(seed)
    found = []
    for picture in split.pictures:
        items = list(picture.instances) + list(picture.instances[:1]) * false
        boxes = np.array([item.box for item in items], np.float32).reshape(-1, 4)
        masks = [rle(item.mask, picture.height, picture.width) for item in items] if split_has_masks(split) else None
        labels = np.array([item.label for item in items], np.int64)
        boxes = boxes + rng.normal(0, spread, boxes.shape).astype(np.float32)
        scores = rng.uniform(0.05, 1, len(items)).astype(np.float32)
        found.append(Detections(boxes, scores, labels, masks))
    return found


def split_has_masks(split: DetectionSplit) -> bool:
    return any(item.mask is not None for picture in split.pictures for item in picture.instances)


def nothing(split: DetectionSplit) -> list[Detections]:
    return [Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))] * len(split)


# ---------------------------------------------------------------- users' own files


def square(x: float, side: float) -> list[list[float]]:
    return [[x, 0, x + side, 0, x + side, side, x, side]]


def thing(number: int, image: int, category: int, x: float, side: float, **more) -> dict:
    record = {"id": number, "image_id": image, "category_id": category, "bbox": [x, 0, side, side]}
    return record | {"segmentation": square(x, side)} | more


def own(root: Path, annotations: list[dict]) -> DetectionSplit:
    """A file with COCO's minimum: no area, no iscrowd, ids with gaps."""
    (root / "mine").mkdir()
    (root / "annotations").mkdir()
    images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 50} for n in (40, 3)]
    for image in images:
        Image.new("RGB", (100, 50)).save(root / "mine" / image["file_name"])
    categories = [{"id": 77, "name": "cup"}, {"id": 2, "name": "bus"}]
    record = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_mine.json").write_text(json.dumps(record))
    return read_coco(root, "mine", bad="skip")


def test_ids_from_zero_and_with_gaps(tmp_path, capsys):
    # pycocotools itself takes a match with annotation 0 for none.
    split = own(tmp_path, [thing(0, 40, 77, 0, 40), thing(9, 3, 2, 0, 40)])
    metrics = evaluate(split, near_truth(split), masks=True)
    kinds = {f"{kind}_AP{size}" for kind in ("box", "mask") for size in ("", "50", "75", "m")}
    assert metrics == pytest.approx(dict.fromkeys(kinds, 100)), "no object is small or large"
    assert capsys.readouterr().out == ""


def test_labels_are_rows_of_the_classes(tmp_path):
    split = own(tmp_path, [thing(1, 40, 77, 0, 40), thing(2, 3, 2, 0, 40)])
    swapped = [replace(one, labels=1 - one.labels) for one in near_truth(split)]
    assert evaluate(split, swapped)["box_AP"] == 0


def test_detections_belong_to_their_image(tmp_path):
    split = own(tmp_path, [thing(1, 40, 77, 0, 40), thing(2, 3, 77, 55, 40)])
    assert evaluate(split, near_truth(split)[::-1])["box_AP"] == 0


def test_an_overlap_of_six_tenths_counts_at_three_of_ten_ious(tmp_path):
    split = own(tmp_path, [thing(1, 40, 77, 0, 40)])
    found = near_truth(split)
    (row,) = [i for i, one in enumerate(found) if len(one.scores)]
    found[row] = replace(found[row], boxes=np.array([[0, 0, 40, 25]], np.float32))  # 25 / 40 of the object
    metrics = evaluate(split, found)
    assert (metrics["box_AP"], metrics["box_AP50"], metrics["box_AP75"]) == pytest.approx((30, 100, 0))


def test_small_and_large_masks_by_their_own_area(tmp_path):
    long = thing(1, 40, 77, 0, 50)  # box and file: 50 x 50 is medium; its mask: a thin strip, small
    strip = [[0, 0, 50, 0, 50, 4, 0, 4]]
    split = own(tmp_path, [long | {"segmentation": strip, "area": 200}])
    found = near_truth(split)
    assert "box_APs" in evaluate(split, found), "the truth's area is the file's"
    metrics = evaluate(split, found, masks=True)
    assert metrics["mask_APs"] == pytest.approx(100)
    assert "mask_APm" not in metrics


def test_nothing_found_is_0(tmp_path):
    split = own(tmp_path, [thing(1, 40, 77, 0, 40), thing(2, 3, 2, 0, 10)])
    metrics = evaluate(split, nothing(split), masks=True)
    assert metrics == dict.fromkeys(metrics, 0.0)
    assert {"box_AP", "mask_AP", "box_APs", "mask_APm"} < set(metrics)


def test_a_detection_in_an_image_without_objects_is_false(tmp_path):
    split = own(tmp_path, [thing(1, 40, 77, 0, 40)])
    found = near_truth(split)
    empty = [p.id for p in split.pictures].index("3")
    found[empty] = Detections(np.array([[0, 0, 9, 9]], np.float32), np.ones(1, np.float32), np.ones(1, np.int64))
    assert evaluate(split, found)["box_AP"] == pytest.approx(50)
    kept = trainable(split)
    assert evaluate(kept, near_truth(kept))["box_AP"] == pytest.approx(100), "a part of the file's images"


def test_what_was_left_out_of_the_split_is_not_missed(tmp_path):
    bad = thing(2, 40, 77, 0, 40) | {"bbox": [0, 0, 0, 40]}
    point = thing(3, 3, 77, 0, 40) | {"segmentation": [[1, 2]]}
    half = thing(4, 3, 77, 50, 40) | {"segmentation": [[1, 2], *square(50, 40)]}
    split = own(tmp_path, [thing(1, 40, 77, 0, 40), bad, point, half])
    metrics = evaluate(split, near_truth(split), masks=True)
    assert (metrics["box_AP"], metrics["mask_AP"]) == pytest.approx((100, 100))


def test_a_file_of_boxes_only(tmp_path):
    split = own(tmp_path, [thing(1, 40, 77, 0, 40) | {"segmentation": []}])
    assert evaluate(split, near_truth(split))["box_AP"] == pytest.approx(100)
    with pytest.raises(DataError, match=r"instances_mine\.json: contains no object with a mask to find"):
        evaluate(split, nothing(split), masks=True)


def test_what_cannot_be_evaluated_is_refused(tmp_path):
    split = own(tmp_path, [thing(1, 40, 77, 0, 40)])
    found = near_truth(split)
    (row,) = [i for i, one in enumerate(found) if len(one.scores)]
    with pytest.raises(DataError, match="no annotation file in COCO's format"):
        evaluate(replace(split, annotations=None), found)
    with pytest.raises(DataError, match="detections for 1 images, not for 2"):
        evaluate(split, found[:1])
    maskless = [replace(one, masks=None) for one in found]
    assert evaluate(split, maskless)["box_AP"] == pytest.approx(100)
    with pytest.raises(DataError, match=r"40\.png: 0 masks for 1 detections"):
        evaluate(split, maskless, masks=True)
    found[row] = replace(found[row], masks=[rle(square(0, 10), 100, 50)])
    with pytest.raises(DataError, match=r"40\.png: a detection's mask does not have the size of the image"):
        evaluate(split, found, masks=True)


def test_only_crowds_is_nothing_to_find(tmp_path):
    split = own(tmp_path, [thing(1, 40, 77, 0, 40, iscrowd=1)])
    with pytest.raises(DataError, match="contains no object to find"):
        evaluate(split, nothing(split))


# ---------------------------------------------------------------- pycocotools


def pycocotools(split: DetectionSplit, found: list[Detections], kind: str) -> list[float]:
    """Results in file form, through `loadRes`."""
    truth = COCO(str(split.annotations))
    categories = sorted(truth.getCatIds())
    results = []
    for picture, one in zip(split.pictures, found, strict=True):
        for i, (x0, y0, x1, y1) in enumerate(one.boxes.astype(float).tolist()):
            where = {"bbox": [x0, y0, x1 - x0, y1 - y0]} if kind == "bbox" else {"segmentation": one.masks[i]}
            label = {"category_id": categories[one.labels[i]], "score": float(one.scores[i])}
            results.append({"image_id": int(picture.id)} | label | where)
    run = COCOeval(truth, truth.loadRes(results), kind)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run.stats[:6].tolist()


def check_with_pycocotools(root: Path) -> None:
    split = read_coco(root, "val2017", masks=True)
    for spread, false in ((0.0, 0), (4.0, 2)):
        found = near_truth(split, spread=spread, false=false)
        metrics = evaluate(split, found, masks=True)
        for kind, prefix in (("bbox", "box_AP"), ("segm", "mask_AP")):
            expected = dict(zip(SIZES, pycocotools(split, found, kind), strict=True))
            assert {s: metrics.get(prefix + s, -100) for s in SIZES} == {s: 100 * v for s, v in expected.items()}
        assert metrics["mask_AP"] > 50
        assert (metrics["box_AP"] < 80) == bool(spread)


def test_equal_to_pycocotools_on_the_demo(capsys):
    check_with_pycocotools(demo.root() / "coco")


@pytest.mark.slow
def test_equal_to_pycocotools_on_photographs(real_data, capsys):
    check_with_pycocotools(real_data / "coco")
