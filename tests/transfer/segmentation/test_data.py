"""Splits of images and masks: their hashes, limits, checks; mIoU against a loop and MMSegmentation; pictures."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from masked import make_ade20k, make_mask_folders, make_voc12, mask
from PIL import Image

from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.data.splits import Files
from backbench.errors import ConfigError, DataError
from benchmarks import plan
from transfer.protocol import DataSpec
from transfer.segmentation.annotations.reading import confirm, limited, read, read_splits
from transfer.segmentation.annotations.split import IGNORE, of_rows
from transfer.segmentation.scoring.confusion import Confusion, areas_of, counts_of
from transfer.segmentation.scoring.draw import colour_of, grid


@pytest.fixture
def root(tmp_path):
    return make_mask_folders(tmp_path / "mine")


def of(root, split="train"):
    return read("mask_folders", root, split, dataset="mine")


# ---------------------------------------------------------------- splits


def test_row_i_is_an_image_and_its_mask(tmp_path):
    split = read("voc12", make_voc12(tmp_path), "train_aug", dataset="voc12")
    assert len(split) == 4 and split.classes[0] == "background"
    assert [split.file(i).stem for i in range(4)] == [split.mask_file(i).stem for i in range(4)]
    assert split.label(0).shape == (8, 12) and split.label(0).dtype == np.uint8
    part = of_rows(split, [3, 1])
    assert [part.file(i).stem for i in range(2)] == ["2008_z", "2007_a"]
    assert np.array_equal(part.label(1), split.label(1))


def test_the_manifest_has_the_masks_and_the_table_of_values(root, tmp_path):
    before, state = of(root).manifest_sha256(), of(root).state_sha256()
    assert of(root).manifest_sha256() == before
    assert replace(of(root), values=tuple(range(256))).manifest_sha256() != before
    file = root / "masks/train/part/0.png"
    os.utime(file, ns=(1, 1))
    assert of(root).manifest_sha256() == before and of(root).state_sha256() != state
    mask(file, np.random.default_rng(0).integers(0, 3, 96))
    assert of(root).manifest_sha256() != before, "a mask of another size in bytes"
    elsewhere = make_mask_folders(tmp_path / "elsewhere")
    assert of(elsewhere).manifest_sha256() == before, "the folder does not count"


def test_a_limit_takes_the_same_images_each_time(root):
    split = of(root)
    cut = limited(split, 2)
    assert (len(cut), cut.split) == (2, "train[2]") and cut.source.paths == limited(of(root), 2).source.paths
    assert limited(split, 0) is split and limited(split, 4) is split


def test_splits_of_other_data_need_a_word(tmp_path):
    make_ade20k(tmp_path)
    places, names = DataPlaces(None, {"ade20k": tmp_path}), ("training", "validation")
    with pytest.raises(
        DataError, match=r"training 3, validation 2, 150 classes; published: training 20210, validation 2000"
    ):
        read_splits(DataSpec(name="ade20k"), names, places)
    found = read_splits(DataSpec(name="ade20k", expect="any", limit=1), names, places)
    assert {role: len(split) for role, split in found.items()} == {"train": 1, "test": 1}


def test_a_layout_without_masks_is_refused(tmp_path):
    with pytest.raises(DataError, match="'mine' is of layout 'imagefolder', which has no masks"):
        read("imagefolder", tmp_path, "train", dataset="mine")


def test_every_mask_is_read_before_a_training(root):
    confirm(of(root))
    mask(root / "masks/train/part/1.png", [9])
    mask(root / "masks/train/part/2.png", [0], size=(5, 5))
    with pytest.raises(DataError, match=r"mine train: .*1\.png: value 9 is none of the 3 classes.* \(2 such masks\)"):
        confirm(of(root))


def test_own_masks_make_the_cell(root, monkeypatch):
    monkeypatch.setattr(catalogue, "OWN", {})
    catalogue.parse_places([f"mine={root}"])
    config = plan.load_cell("mine_linear_segmentation").config
    assert (config.preset, config.train, config.test, config.data.expect) == ("dinov3", "train", "val", "any")
    with pytest.raises(ConfigError, match=r"'knn' needs one class an image; 'mine' .* gives semantic"):
        plan.load_cell("mine_knn")


# ---------------------------------------------------------------- scores


def made(seed: int, classes: int, images: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        truth = rng.integers(0, classes - 1, (9, 7)).astype(np.uint8)  # the last class is never true
        truth[rng.random(truth.shape) < 0.2] = IGNORE
        predicted = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, classes, truth.shape))
        pairs.append((np.where(predicted == IGNORE, 0, predicted).astype(np.uint8), truth))
    return pairs


def looped(pairs, classes):
    """IoU and accuracy per class, pixel by pixel."""
    both, either, true = [0] * classes, [0] * classes, [0] * classes
    right = total = 0
    for predicted, truth in pairs:
        for p, t in zip(predicted.flat, truth.flat, strict=True):
            if t == IGNORE:
                continue
            total, right = total + 1, right + (p == t)
            for c in range(classes):
                both[c] += p == c and t == c
                either[c] += c in (p, t)
                true[c] += t == c
    iou = [100 * b / e for b, e in zip(both, either, strict=True) if e]
    accuracy = [100 * b / t for b, t in zip(both, true, strict=True) if t]
    return {"mIoU": np.mean(iou), "mAcc": np.mean(accuracy), "aAcc": 100 * right / total}


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_are_those_of_a_loop_over_pixels(classes):
    pairs, parts = made(classes, classes), [Confusion(classes), Confusion(classes)]
    for i, (predicted, truth) in enumerate(pairs):
        parts[i % 2].add(predicted, truth)
    parts[0].merge(parts[1])
    assert parts[0].scores() == pytest.approx(looped(pairs, classes))


def test_scores_are_mmsegmentations():
    metric = pytest.importorskip("mmseg.evaluation.metrics.iou_metric").IoUMetric
    pairs, confusion = made(3, 6), Confusion(6)
    results = []
    for predicted, truth in pairs:
        confusion.add(predicted, truth)
        results.append(metric.intersect_and_union(torch.from_numpy(predicted), torch.from_numpy(truth), 6, IGNORE))
    sums = [sum(part) for part in zip(*results, strict=True)]
    theirs = metric.total_area_to_metrics(*sums)
    ours = confusion.scores()
    assert ours["aAcc"] == pytest.approx(100 * float(theirs["aAcc"]))
    assert ours["mIoU"] == pytest.approx(100 * float(np.nanmean(theirs["IoU"])))
    assert ours["mAcc"] == pytest.approx(100 * float(np.nanmean(theirs["Acc"])))
    assert confusion.iou() == pytest.approx(100 * np.asarray(theirs["IoU"], float), nan_ok=True)


def test_sums_of_an_images_areas_give_the_scores():
    pairs, confusion = made(1, 4), Confusion(4)
    areas = areas_of(np.stack([confusion.add(*pair) for pair in pairs]))
    assert {name: values.shape for name, values in areas.items()} == dict.fromkeys(
        ("intersection", "union", "truth"), (4, 4)
    )
    iou = 100 * areas["intersection"].sum(0) / areas["union"].sum(0)
    assert iou == pytest.approx(confusion.iou()) and np.nanmean(iou) == pytest.approx(confusion.scores()["mIoU"])
    assert np.array_equal(areas["truth"].sum(0), confusion.counts.sum(1))


def test_a_class_that_occurs_nowhere_does_not_count():
    confusion = Confusion(3)
    confusion.add(np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8))
    assert confusion.scores() == pytest.approx({"mIoU": 25.0, "mAcc": 50.0, "aAcc": 50.0})
    assert np.isnan(confusion.iou()[2])


def test_what_cannot_be_counted_is_an_error():
    one = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="different shapes"):
        counts_of(one, np.zeros((2, 3), np.uint8), 2)
    with pytest.raises(ValueError, match="a predicted class is outside 0 to 1"):
        counts_of(one + 2, one, 2)
    with pytest.raises(ValueError, match="3 classes cannot be added to 2"):
        Confusion(2).merge(Confusion(3))
    empty = Confusion(2)
    empty.add(one, one + IGNORE)
    with pytest.raises(DataError, match="no pixel of the test images has a class"):
        empty.scores()


# ---------------------------------------------------------------- pictures


def test_colours_are_vocs():
    """VOCcode's VOClabelcolormap: background, aeroplane, bicycle, bird, ..., tvmonitor."""
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0),
             15: (192, 128, 128), 20: (0, 64, 128)}  # fmt: skip
    assert {label: colour_of(label) for label in known} == known
    assert len({colour_of(label) for label in range(255)}) == 255


def test_a_picture_has_three_panels_an_image_and_a_legend(root, tmp_path):
    split, file = of(root), tmp_path / "pictures.png"
    predicted = [np.ones((4, 4), np.uint8), split.label(3)]  # another size than the image: it is stretched
    grid(split, predicted, [0, 3], file)
    drawn = np.asarray(Image.open(file).convert("RGB"))
    assert drawn.shape[1] == 1200 and drawn.shape[0] > 2 * 250
    assert (drawn[-40:] == colour_of(1)).all(-1).any(), "the legend shows the colour of a predicted class"
    for rows, found in (([], []), ([4], predicted[:1]), ([0], predicted)):
        with pytest.raises(ConfigError, match="cannot draw images"):
            grid(split, found, rows, file)


def test_files_of_both_kinds_are_files(root):
    assert isinstance(of(root).source, Files) and isinstance(of(root).masks, Files)
