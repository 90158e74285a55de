"""Layouts with a class for each pixel, built in small: images, masks and classes; faults are refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as published
from masked import (
    lines,
    make_ade20k,
    make_cityscapes,
    make_mask_folders,
    make_voc12,
    mask,
    picture,
    png,
)
from PIL import Image

from backbench.data import catalogue, doctor, layouts
from backbench.data.catalogue import DataPlaces
from backbench.data.layouts import ade20k, cityscapes, mask_folders, voc12
from backbench.data.masks import IGNORE, UNKNOWN, label_map, label_of, stored_values, table_of
from backbench.errors import DataError
from backbench.files import Changed

MAKE = {"voc12": make_voc12, "cityscapes": make_cityscapes, "ade20k": make_ade20k, "mask_folders": make_mask_folders}
SPLITS = {
    "voc12": ("train_aug", "val"),
    "cityscapes": ("train", "val"),
    "ade20k": ("training", "validation"),
    "mask_folders": ("train", "val"),
}


def labels_of(layout: str, root: Path, split: str) -> list[np.ndarray]:
    module = layouts.get(layout)
    images, masks = module.read(root, split), module.masks(root, split)
    assert len(images) == len(masks.source) and images.labels is None and images.classes == masks.classes
    rows = range(len(images))
    return [label_of(images.source, masks.source, row, len(masks.classes), masks.values) for row in rows]


@pytest.mark.parametrize("layout", MAKE)
def test_a_layout_is_recognised_and_its_masks_are_those_of_its_images(layout, tmp_path):
    root = MAKE[layout](tmp_path)
    assert layouts.recognise(root) == (layout, *SPLITS[layout])
    module = layouts.get(layout)
    for split in SPLITS[layout]:
        images, masks = module.read(root, split), module.masks(root, split)
        for row in range(len(images)):
            name, other = (Path(files.name(row)).stem for files in (images.source, masks.source))
            assert other.startswith(name.removesuffix("_leftImg8bit"))
        found = np.unique(np.stack(labels_of(layout, root, split)))
        assert set(found.tolist()) <= {*range(len(images.classes)), IGNORE}


# ---------------------------------------------------------------- VOC 2012


@pytest.mark.parametrize("split", ["train", "val"])
def test_vocs_images_and_masks_are_torchvisions(split, tmp_path):
    root = make_voc12(tmp_path)
    theirs = published.VOCSegmentation(root, year="2012", image_set=split)
    images, masks = voc12.read(root, split), voc12.masks(root, split)
    assert [str(images.source.root / path) for path in images.source.paths] == theirs.images
    assert [str(masks.source.root / path) for path in masks.source.paths] == theirs.masks
    for ours, (_, stored) in zip(labels_of("voc12", root, split), theirs, strict=True):
        assert np.array_equal(ours, np.asarray(stored)), "indices of the palette, not colours"
    assert len(images.classes) == 21 and images.classes[0] == "background"


@pytest.mark.parametrize("name", ["trainaug.txt", "train_aug.txt", "aug.txt"])
def test_train_aug_is_train_and_the_images_that_sbd_adds(name, tmp_path):
    """Whichever list there is: train's own images keep VOC's masks, the others follow by name."""
    lists = make_voc12(tmp_path) / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "trainaug.txt").unlink()
    added = ("2008_z", "2008_c") if name == "aug.txt" else ("2008_z", "2007_a", "2008_c", "2007_b")
    lines(lists / name, *added)
    images, masks = voc12.read(tmp_path, "train_aug"), voc12.masks(tmp_path, "train_aug")
    assert [Path(path).stem for path in images.source.paths] == ["2007_b", "2007_a", "2008_c", "2008_z"]
    assert [path.partition("/")[0] for path in masks.source.paths] == ["SegmentationClass"] * 2 + [
        "SegmentationClassAug"
    ] * 2
    assert [int(labels.flat[1]) for labels in labels_of("voc12", tmp_path, "train_aug")] == [2, 1, 0, 0]


def test_a_list_of_pairs_of_paths_names_images(tmp_path):
    lists = make_voc12(tmp_path) / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    lines(lists / "trainaug.txt", "/JPEGImages/2008_c.jpg /SegmentationClassAug/2008_c.png")
    assert [Path(path).stem for path in voc12.read(tmp_path, "train_aug").source.paths] == [
        "2007_b", "2007_a", "2008_c"
    ]  # fmt: skip


def test_classes_of_other_data_in_vocs_layout(tmp_path):
    folder = make_voc12(tmp_path) / "VOCdevkit/VOC2012"
    lines(folder / "classes.txt", "ground", "roof")
    assert voc12.read(folder, "val").classes == ("ground", "roof")
    with pytest.raises(DataError, match="value 3 is none of the 2 classes; the values may be 0 to 1, 255"):
        labels_of("voc12", folder, "val")


def test_a_devkit_with_boxes_is_one_of_boxes_unless_told(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "OWN", {})
    folder = make_voc12(tmp_path) / "VOCdevkit/VOC2012"
    assert layouts.recognise(folder)[0] == "voc12"
    for split in ("train", "val"):
        lines(folder / f"ImageSets/Main/{split}.txt", "2007_a")
        lines(folder / f"ImageSets/Main/cat_{split}.txt", "2007_a 1")
    assert layouts.recognise(folder) == ("voc", "train", "val")
    catalogue.parse_places([f"mine=voc12:{folder}"])
    assert (catalogue.OWN["mine"].layout, catalogue.OWN["mine"].train) == ("voc12", "train_aug")


# ---------------------------------------------------------------- Cityscapes, ADE20K, your own


def test_cityscapes_ids_are_torchvisions():
    theirs = {each.id: each for each in published.Cityscapes.classes if each.train_id not in (-1, 255)}
    assert sorted(theirs) == list(cityscapes.IDS)
    assert [theirs[number].name for number in cityscapes.IDS] == list(cityscapes.CLASSES)
    assert [theirs[number].train_id for number in cityscapes.IDS] == list(range(19))


def test_both_kinds_of_cityscapes_masks_give_the_same_labels(tmp_path):
    by_id = labels_of("cityscapes", make_cityscapes(tmp_path / "ids"), "train")
    trained = make_cityscapes(tmp_path / "train_ids", train_ids=True)
    by_train_id = labels_of("cityscapes", trained, "train")
    assert cityscapes.masks(trained, "train").source.name(0).endswith("labelTrainIds.png")
    for one, other in zip(by_id, by_train_id, strict=True):
        assert np.array_equal(one, other)
    assert by_id[0].flat[:5].tolist() == [0, 18, IGNORE, IGNORE, 13]
    (trained / "gtFine/train/ulm/ulm_1_gtFine_labelTrainIds.png").unlink()
    assert cityscapes.masks(trained, "train").source.name(0).endswith("labelIds.png"), "one kind for all images"


def test_cityscapes_images_are_torchvisions(tmp_path):
    root = make_cityscapes(tmp_path)
    theirs = published.Cityscapes(root, split="train", mode="fine", target_type="semantic")
    images = cityscapes.read(root, "train")
    assert {str(images.source.root / path) for path in images.source.paths} == set(map(str, theirs.images))
    masks = cityscapes.masks(root, "train")
    pairs = dict(zip(map(str, theirs.images), (target[0] for target in theirs.targets), strict=True))
    for row, path in enumerate(images.source.paths):
        assert str(masks.source.root / masks.source.paths[row]) == str(pairs[str(images.source.root / path)])


def test_ade20k_ignores_0_and_names_its_classes(tmp_path):
    root = make_ade20k(tmp_path)
    assert [labels.flat[:4].tolist() for labels in labels_of("ade20k", root, "validation")] == [
        [IGNORE, 0, 149, 1],
        [IGNORE, 0, 149, 2],
    ]
    assert ade20k.read(root, "training").classes[:2] == ("name1", "name2")
    (root / "ADEChallengeData2016/objectInfo150.txt").unlink()
    assert ade20k.read(root, "training").classes[0] == "1" and len(ade20k.read(root, "training").classes) == 150


def test_own_masks_have_names_or_numbers(tmp_path):
    root = make_mask_folders(tmp_path)
    assert mask_folders.read(root, "val").classes == ("sky", "sea", "sand")
    (root / "classes.txt").unlink()
    highest = max(int(labels.max()) for labels in labels_of("mask_folders", root, "train"))
    assert mask_folders.read(root, "val").classes == tuple(str(i) for i in range(highest + 1))
    mask(root / "masks/train/part/0.png", [4, 255])
    assert mask_folders.read(root, "val").classes == ("0", "1", "2", "3", "4"), "a changed mask is read again"
    mask(root / "masks/train/more.png", [0])
    assert mask_folders.read(root, "train").passed_over == {mask_folders.ALONE: (1, "more.png")}


def test_mmsegmentations_names_of_folders(tmp_path):
    root = make_mask_folders(tmp_path)
    (root / "images").rename(root / "img_dir")
    (root / "masks").rename(root / "ann_dir")
    assert layouts.recognise(root) == ("mask_folders", "train", "val")
    assert len(labels_of("mask_folders", root, "train")) == 4


# ---------------------------------------------------------------- what does not fit


def _voc(root: Path) -> Path:
    return root / "VOCdevkit/VOC2012"


def _jpeg(path: Path) -> None:
    Image.new("L", (12, 8), 1).save(path.with_suffix(".jpg"))
    path.unlink()


LISTS = "ImageSets/Segmentation"
BROKEN = [  # layout, split, what is done to the folder, words of the error
    ("voc12", "val", lambda r: (_voc(r) / "SegmentationClass/2007_v.png").unlink(), r"SegmentationClass/2007_v\.png"),
    ("voc12", "val", lambda r: (_voc(r) / "JPEGImages/2007_v.jpg").unlink(), "not in .*JPEGImages: 1, e.g. 2007_v"),
    ("voc12", "train", lambda r: lines(_voc(r) / LISTS / "train.txt", "2007_a", "2007_a"), "names images twice: 1"),
    ("voc12", "train_aug", lambda r: (_voc(r) / LISTS / "trainaug.txt").unlink(), r"set <cell>\.train=train"),
    ("voc12", "train_aug", lambda r: lines(_voc(r) / LISTS / "aug.txt") or lines(_voc(r) / LISTS / "trainaug.txt", "2007_v"),
     "names images of val: 1, e.g. 2007_v"),
    ("voc12", "trainval", lambda r: None, r"trainval\.txt"),
    ("voc12", "val", lambda r: picture(_voc(r) / "SegmentationClass/2007_v.png"), r"2007_v\.png: a mask in colours \(RGB\)"),
    ("voc12", "val", lambda r: mask(_voc(r) / "SegmentationClass/2007_v.png", [0], size=(11, 8)),
     r"has 11x8 pixels, but its image 2007_v\.jpg 12x8"),
    ("voc12", "val", lambda r: mask(_voc(r) / "SegmentationClass/2007_v.png", [0, 21]), "value 21 is none of the 21 classes"),
    ("cityscapes", "train", lambda r: (r / "gtFine/train/ulm/ulm_1_gtFine_labelIds.png").unlink(),
     r"not there: 1, e\.g\. ulm/ulm_1_gtFine_labelIds\.png"),
    ("cityscapes", "test", lambda r: None, "no split 'test' with public masks"),
    ("cityscapes", "val", lambda r: mask(r / "gtFine/val/bonn/bonn_1_gtFine_labelIds.png", [34]), "value 34 is none of the 19"),
    ("ade20k", "validation", lambda r: (r / "ADEChallengeData2016/annotations/validation/ADE_1.png").unlink(), r"ADE_1\.png"),
    ("ade20k", "validation", lambda r: mask(r / "ADEChallengeData2016/annotations/validation/ADE_1.png", [151]),
     "value 151 is none of the 150 classes; the values may be 0 to 150"),
    ("ade20k", "training", lambda r: lines(r / "ADEChallengeData2016/objectInfo150.txt", "Name", "wall"), "1 classes, not 150"),
    ("mask_folders", "train", lambda r: (r / "masks/train/part/2.png").unlink(), r"without a mask: 1, e\.g\. part/2\.png"),
    ("mask_folders", "train", lambda r: [_jpeg(r / f"masks/train/part/{i}.png") for i in range(4)], "stored without loss"),
    ("mask_folders", "train", lambda r: _jpeg(r / "masks/train/part/0.png"), r"images without a mask: 1, e\.g\. part/0"),
    ("mask_folders", "train", lambda r: picture(r / "images/train/part/0.jpg"), "differ in their ending only"),
    ("mask_folders", "train", lambda r: lines(r / "classes.txt", "sky", "sky"), "there twice: 1, e.g. sky"),
    ("mask_folders", "train", lambda r: lines(r / "classes.txt"), "0 names"),
    ("mask_folders", "val", lambda r: mask(r / "masks/val/part/0.png", [3]), "value 3 is none of the 3 classes"),
    ("mask_folders", "val", lambda r: (r / "masks/val/part/0.png").write_bytes(b""), r"0\.png: the file is empty"),
    ("mask_folders", "test", lambda r: None, "no folder images/test"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "split", "change", "words"), BROKEN)
def test_masks_that_do_not_fit_are_refused(layout, split, change, words, tmp_path):
    root = MAKE[layout](tmp_path)
    change(root)
    with pytest.raises(DataError, match=words):
        labels_of(layout, root, split)


@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)])
def test_every_depth_of_a_png_gives_the_stored_numbers(bits, colour):
    values = np.arange(24).reshape(4, 6) % min(2**bits, 256)
    data = png(values, bits=bits, colour=colour, palette=bytes(range(3 * min(2**bits, 85))) if colour == 3 else b"")
    assert np.array_equal(stored_values(data, "x.png"), values)


def test_numbers_above_255_and_cut_files_are_refused():
    values = np.full((4, 6), 300)
    with pytest.raises(DataError, match="values from 300 to 300, a mask has 0 to 255"):
        stored_values(png(values, bits=16), "x.png")
    whole = png(np.arange(4000).reshape(40, 100) * 7 % 251, bits=8)
    with pytest.raises(DataError, match=r"x\.png: not a whole image"):
        stored_values(whole[: len(whole) // 2], "x.png")
    with pytest.raises(DataError, match=r"x\.png: not a PNG, BMP or TIFF"):
        stored_values(b"\xff\xd8 no", "x.png")


def test_a_table_maps_every_value_or_refuses_it():
    table = table_of(3)
    assert len(table) == 256 and table[:4] == (0, 1, 2, UNKNOWN) and table[255] == IGNORE
    assert len(table_of(255)) == 256 and table_of(255)[254:] == (254, IGNORE)
    assert label_map(png(np.array([[0, 2, 255]]), bits=8), "x", 3).tolist() == [[0, 2, IGNORE]]


def test_the_doctor_reads_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "OWN", {})
    root = make_mask_folders(tmp_path)
    catalogue.parse_places([f"mine={root}"])
    places = DataPlaces(None, {"mine": root})
    assert doctor.examine("mine", places).problems == []
    mask(root / "masks/val/part/0.png", [7])
    (problem,) = doctor.examine("mine", places).problems
    assert problem.startswith("val: masks that do not fit: 1, e.g. ") and "value 7" in problem
    (root / "masks/val/part/0.png").unlink()
    assert "images without a mask" in doctor.examine("mine", places).problems[0]


def test_published_counts():
    counts = {name: catalogue.info(name).counts for name in ("voc12", "cityscapes", "ade20k")}
    assert counts["voc12"] == {"train_aug": 10582, "train": 1464, "val": 1449, "classes": 21}
    assert counts["cityscapes"] == {"train": 2975, "val": 500, "classes": 19}
    assert counts["ade20k"] == {"training": 20210, "validation": 2000, "classes": 150}


def test_a_mask_that_changes_after_it_was_listed_is_an_error(tmp_path):
    root = make_mask_folders(tmp_path)
    images, masks = mask_folders.read(root, "val").source, mask_folders.masks(root, "val").source
    assert masks.size(0) > 0, "listed"
    file = root / "masks/val" / masks.paths[0]
    os.utime(file, ns=(1, 1))
    with pytest.raises(Changed, match="changed during the run"):
        label_of(images, masks, 0, 3)
