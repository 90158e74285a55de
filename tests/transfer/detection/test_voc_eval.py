"""VOC's metric: by hand, against a simple second implementation, and against Detectron2's evaluator."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backbench.data import demo
from backbench.data.layouts import voc
from backbench.data.splits import Files
from backbench.errors import DataError
from transfer.detection.annotations.layouts import read_voc
from transfer.detection.annotations.split import Detections, DetectionSplit, Instance, Picture
from transfer.detection.scoring import voc_eval
from transfer.detection.scoring.voc_eval import IOUS, evaluate

CUP = (9.0, 9.0, 30.0, 30.0)  # 21 pixels a side, VOC's (10, 10, 30, 30)


def split_of(*images: list[Instance], classes: tuple[str, ...] = ("cup",)) -> DetectionSplit:
    pictures = tuple(Picture(str(i), 100, 100, tuple(items)) for i, items in enumerate(images))
    source = Files(Path("images"), tuple(f"{p.id}.jpg" for p in pictures))
    return DetectionSplit("voc", "test", source, pictures, classes)


def found(*items: tuple) -> Detections:
    """Detections of one image: (score, box[, label])."""
    return Detections(
        np.array([item[1] for item in items], np.float32).reshape(-1, 4),
        np.array([item[0] for item in items], np.float32),
        np.array([item[2] if len(item) > 2 else 0 for item in items], np.int64),
    )


def moved(box: tuple, x: float) -> tuple:
    return (box[0] + x, box[1], box[2] + x, box[3])


# ---------------------------------------------------------------- by hand


def test_every_object_found_is_100():
    split = split_of([Instance(0, CUP)], [Instance(0, CUP), Instance(1, moved(CUP, 40))], classes=("cup", "bus"))
    hits = [found((0.9, CUP)), found((0.8, CUP), (0.7, moved(CUP, 40), 1))]
    for fields in itertools.product([True, False], repeat=2):
        metrics = evaluate(split, hits, eleven_point=fields[0], rounded=fields[1])
        assert metrics["per_class"] == pytest.approx({"cup": 100, "bus": 100})
        assert [metrics[k] for k in ("AP", "AP50", "AP75")] == pytest.approx([100] * 3)


def test_nothing_found_is_0():
    split = split_of([Instance(0, CUP)], [])
    for eleven_point in (True, False):
        assert evaluate(split, [found(), found()], eleven_point=eleven_point)["AP"] == 0


# One of two objects is found, behind one false positive: precision 1/2 up to recall 1/2, 0 beyond.
HALF_ELEVEN, HALF_AREA = 100 * 6 * 0.5 / 11, 100 * 0.5 * 0.5


@pytest.mark.parametrize(("eleven_point", "expected"), [(True, HALF_ELEVEN), (False, HALF_AREA)])
def test_one_of_two_behind_a_false_one(eleven_point, expected):
    split = split_of([Instance(0, CUP)], [Instance(0, CUP)])
    metrics = evaluate(split, [found((0.9, moved(CUP, 60)), (0.8, CUP)), found()], eleven_point=eleven_point)
    assert metrics["AP"] == pytest.approx(expected)


def test_the_second_detection_of_an_object_is_false():
    split = split_of([Instance(0, CUP), Instance(0, moved(CUP, 60))])
    twice = found((0.9, CUP), (0.8, moved(CUP, 1)), (0.7, moved(CUP, 60)))
    # area: recall 1/2 at precision 1, recall 1 at precision 2/3
    assert evaluate(split, [twice], eleven_point=False, ious=[0.5])["AP"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))


def test_a_detection_does_not_turn_to_the_second_nearest_object():
    near = moved(CUP, 2)
    split = split_of([Instance(0, CUP), Instance(0, near)])
    both_on_one = found((0.9, CUP), (0.8, CUP))  # the second overlaps `near` by 0.8, but its best is taken
    assert evaluate(split, [both_on_one], eleven_point=False, ious=[0.5])["AP"] == pytest.approx(50)


def test_difficult_objects_and_crowds_count_neither_way():
    for kind in ({"difficult": True}, {"crowd": True}):
        split = split_of([Instance(0, CUP), Instance(0, moved(CUP, 60), **kind)])
        several = found((0.9, moved(CUP, 60)), (0.8, moved(CUP, 61)), (0.7, CUP))
        assert evaluate(split, [several], eleven_point=False, ious=[0.5])["AP"] == pytest.approx(100)


def test_detections_match_in_their_own_image_and_class():
    split = split_of([Instance(0, CUP)], [Instance(1, CUP)], classes=("cup", "bus"))
    assert evaluate(split, [found((0.9, CUP, 1)), found((0.9, CUP, 0))])["AP"] == 0


def test_the_last_pixel_belongs_to_the_box_and_the_threshold_does_not():
    # VOC's (1, 1, 4, 4) has 16 pixels, (1, 1, 4, 2) the upper 8 of them: 0.5 is not more than 0.5.
    split = split_of([Instance(0, (0, 0, 4, 4))])
    half, more = found((0.9, (0, 0, 4, 2))), found((0.9, (0, 0, 4, 2.1)))
    assert evaluate(split, [half], ious=[0.5])["AP"] == 0
    assert evaluate(split, [more], ious=[0.5])["AP"] == pytest.approx(100)


def test_rounding_is_part_of_the_metric_unless_told_otherwise():
    split = split_of([Instance(0, (0, 0, 4, 4))], [])
    barely = [found((0.9, (0, 0, 4, 2.04))), found()]
    assert evaluate(split, barely, ious=[0.5])["AP"] == 0
    assert evaluate(split, barely, ious=[0.5], rounded=False)["AP"] == pytest.approx(100)
    close = [found((0.9001, CUP)), found((0.9002, CUP))]  # equal to three decimals
    cup = split_of([Instance(0, CUP)], [])
    assert evaluate(cup, close, eleven_point=False, rounded=False)["AP"] == pytest.approx(50)
    assert evaluate(cup, close, eleven_point=False)["AP"] == pytest.approx(100)


def test_rounding_is_that_of_printing_and_reading():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(0, 500, 4000), np.arange(4000) / 20]).astype(np.float32)
    scores = np.concatenate([rng.uniform(0, 1, 1000), np.arange(1000) / 2000]).astype(np.float32)
    one = Detections(values.reshape(-1, 4), scores, np.zeros(2000, np.int64))
    flat = voc_eval.flatten(split_of([]), [one], rounded=True)
    for box, expected in zip(one.boxes, flat.boxes, strict=True):
        assert [float(f"{v:.1f}") for v in (box[0] + 1, box[1] + 1, box[2], box[3])] == expected.tolist()
    assert [float(f"{v:.3f}") for v in scores.tolist()] == flat.scores.tolist()


def test_a_class_without_objects_counts_0_and_is_named(capsys):
    split = split_of([Instance(0, CUP), Instance(2, CUP, difficult=True)], classes=("cup", "bus", "cat"))
    assert evaluate(split, [found((0.9, CUP), (0.9, CUP, 1))])["AP50"] == pytest.approx(100 / 3)
    assert "classes without an object that counts have AP 0: 2, e.g. bus, cat" in capsys.readouterr().err


def test_only_the_ious_asked_for():
    metrics = evaluate(split_of([Instance(0, CUP)]), [found((0.9, moved(CUP, 6)))], ious=[0.5, 0.6])
    assert metrics.keys() == {"AP", "AP50", "per_class"}
    assert metrics["AP"] == pytest.approx(50)  # overlap 15 / 27
    assert evaluate(split_of([Instance(0, CUP)]), [found()], ious=[0.75]).keys() == {"AP", "AP75"}


def test_boxes_turned_inside_out_are_false():
    split = split_of([Instance(0, CUP)])
    # VOC's width -21 and height -21: union with the object 441 + 441 - 0; and -21 x 21: union 0
    turned = found((0.9, (53, 53, 31, 31)), (0.8, (53, 9, 31, 30)), (0.7, CUP))
    assert evaluate(split, [turned], eleven_point=False)["AP"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("detections", "words"),
    [
        ([], "voc test: detections for 0 images, not for 1"),
        ([replace(found((0.9, CUP)), labels=np.zeros(2, np.int64))], r"0\.jpg: 1 boxes, 1 scores, 2 labels"),
        ([found((float("nan"), CUP))], r"0\.jpg: a detection's box or score is not a number"),
        ([found((0.9, (0, 0, float("inf"), 1)))], r"0\.jpg: a detection's box or score is not a number"),
        ([found((0.9, CUP, 1))], r"0\.jpg: a detection's label is not one of the 1 classes"),
        ([found((0.9, CUP, -1))], r"0\.jpg: a detection's label is not one of the 1 classes"),
    ],
)
def test_what_is_no_detection_is_refused(detections, words):
    with pytest.raises(DataError, match=words):
        evaluate(split_of([Instance(0, CUP)]), detections)


# ---------------------------------------------------------------- a second way


def plain_overlap(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    both = width * height if width > 0 and height > 0 else 0
    return both / ((a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - both)


def plain_ap(split, detections, label, iou, eleven_point) -> float:
    """The devkit's rules, one detection at a time; scores must differ. Recalls are float multiples of 0.1, as in the devkit."""
    lines = [
        (float(s), i, (b[0] + 1.0, b[1] + 1.0, float(b[2]), float(b[3])))
        for i, one in enumerate(detections)
        for s, b, k in zip(one.scores, one.boxes.astype(float), one.labels, strict=True)
        if k == label
    ]
    objects = {i: [o for o in p.instances if o.label == label] for i, p in enumerate(split.pictures)}
    positives = sum(not o.difficult for items in objects.values() for o in items)
    taken, curve, tp, fp = set(), [], 0, 0
    for _, i, box in sorted(lines, reverse=True):
        overlaps = [plain_overlap((o.box[0] + 1, o.box[1] + 1, *o.box[2:]), box) for o in objects[i]]
        best = max(overlaps, default=0.0)
        if best > iou:
            nearest = overlaps.index(best)
            if objects[i][nearest].difficult:
                continue
            tp, fp = (tp + 1, fp) if (i, nearest) not in taken else (tp, fp + 1)
            taken.add((i, nearest))
        else:
            fp += 1
        curve.append((tp / positives, tp / (tp + fp)))
    if eleven_point:
        return sum(max([p for r, p in curve if r >= t * 0.1], default=0) for t in range(11)) / 11
    envelope = [(r, max(p for q, p in curve if q >= r)) for r, _ in curve]
    return sum((r - before) * p for (r, p), before in zip(envelope, [0, *(r for r, _ in envelope)], strict=False))


def random_split(rng, images: int, classes: int) -> DetectionSplit:
    def instance() -> Instance:
        corner = rng.integers(0, 60, 2)
        box = (*corner.tolist(), *(corner + rng.integers(5, 40, 2)).tolist())
        return Instance(int(rng.integers(classes)), tuple(map(float, box)), difficult=bool(rng.random() < 0.2))

    items = [[instance() for _ in range(rng.integers(0, 6))] for _ in range(images)]
    return split_of(*items, classes=tuple(f"c{i}" for i in range(classes)))


def near_truth(
    rng, split: DetectionSplit, *, spread: float = 3.0, times: int = 2, step: float = 0.0
) -> list[Detections]:
    """A few moved boxes per object, sometimes with another class, and random boxes; scores have few distinct values."""
    every = []
    for picture in split.pictures:
        items = [item for item in picture.instances for _ in range(times)]
        boxes = np.array([item.box for item in items]).reshape(-1, 4) + rng.normal(0, spread, (len(items), 4))
        corners = rng.uniform(0, 80, (3, 2))
        boxes = np.concatenate([boxes, np.concatenate([corners, corners + rng.uniform(2, 90, (3, 2))], axis=1)])
        labels = np.array([item.label for item in items] + [0, 0, 0], np.int64)
        wrong = rng.random(len(labels)) < 0.1
        labels[wrong] = rng.integers(0, len(split.classes), wrong.sum())
        scores = rng.uniform(0, 1, len(labels))
        scores = np.round(scores / step) * step if step else scores
        if step and len(labels) > 3:
            boxes, scores, labels = (np.concatenate([v, v[:2]]) for v in (boxes, scores, labels))  # duplicates
        order = np.argsort(-scores, kind="stable")
        every.append(Detections(boxes[order].astype(np.float32), scores[order].astype(np.float32), labels[order]))
    return every


@pytest.mark.parametrize("seed", range(6))
def test_against_the_rules_written_plainly(seed, monkeypatch):
    monkeypatch.setattr(voc_eval, "_PAIRS", 7)  # several parts
    rng = np.random.default_rng(seed)
    split = random_split(rng, 12, 3)
    detections = near_truth(rng, split, spread=2.0)
    for eleven_point, iou in ((True, 0.5), (False, 0.5), (False, 0.65), (True, 0.75)):
        expected = [100 * plain_ap(split, detections, c, iou, eleven_point) for c in range(3)]
        metrics = evaluate(split, detections, ious=[iou], eleven_point=eleven_point, rounded=False)
        assert metrics["AP"] == pytest.approx(np.mean(expected), abs=1e-9)
        assert 0 < metrics["AP"] < 100
        if iou == 0.5:
            assert list(metrics["per_class"].values()) == pytest.approx(expected, abs=1e-9)


def test_ap_is_the_mean_over_ious():
    rng = np.random.default_rng(9)
    split = random_split(rng, 20, 2)
    detections = near_truth(rng, split)
    single = [evaluate(split, detections, ious=[iou])["AP"] for iou in IOUS]
    metrics = evaluate(split, detections)
    assert metrics["AP"] == pytest.approx(np.mean(single))
    assert (metrics["AP50"], metrics["AP75"]) == (single[0], single[5])
    assert len(set(single)) > 3


# ---------------------------------------------------------------- Detectron2


def detectron2s(root: Path, split: DetectionSplit, detections: list[Detections], year: int) -> dict[str, float]:
    import PIL.Image
    import torch

    PIL.Image.LINEAR = PIL.Image.BILINEAR  # names that v0.6 uses and newer releases dropped
    for kind in (str, int, float, bool, object):
        if kind.__name__ not in vars(np):
            setattr(np, kind.__name__, kind)
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    name = f"backbench_{split.split}_{year}_{root}"
    MetadataCatalog.get(name).set(
        dirname=str(voc.year_folder(root)), year=year, split=split.split, thing_classes=list(split.classes)
    )
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for picture, one in zip(split.pictures, detections, strict=True):
        instances = Instances((picture.height, picture.width))
        instances.pred_boxes = Boxes(torch.tensor(one.boxes))
        instances.scores, instances.pred_classes = torch.tensor(one.scores), torch.tensor(one.labels)
        evaluator.process([{"image_id": picture.id}], [{"instances": instances}])
    return {name: float(value) for name, value in evaluator.evaluate()["bbox"].items()}


def check_with_detectron2(root: Path, split_name: str) -> None:
    split = read_voc(root, split_name)
    for seed, (spread, step) in enumerate([(0.0, 0.0), (2.0, 0.0), (5.0, 0.1), (40.0, 0.25)]):
        detections = near_truth(np.random.default_rng(seed), split, spread=spread, step=step)
        for year in (2007, 2012):
            ours = evaluate(split, detections, eleven_point=year == 2007)
            theirs = detectron2s(root, split, detections, year)
            assert {name: ours[name] for name in theirs} == theirs, (spread, step, year)
            assert 0 < theirs["AP"] < 100


@pytest.mark.slow
def test_equal_to_detectron2s_to_the_digit_on_the_demo(tmp_path):
    pytest.importorskip("detectron2")
    root = shutil.copytree(demo.root() / "voc", tmp_path / "voc")
    for file in voc.year_folder(root).glob("Annotations/*.xml"):  # it asks for fields that no metric needs
        text = file.read_text().replace("<truncated>0</truncated>", "")
        text = text.replace("<difficult>", "<pose>Unspecified</pose><truncated>0</truncated><difficult>")
        file.write_text(text)
    check_with_detectron2(root, "test")


@pytest.mark.slow
def test_equal_to_detectron2s_to_the_digit_on_photographs(real_data):
    pytest.importorskip("detectron2")
    check_with_detectron2(real_data / "voc", "test")
