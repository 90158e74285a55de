"""The rendered scenes in the layouts of the real data sets."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from backbench.data.demo.render import CLASSES, SCENE, SIDE, Placed, render_scene, render_single, seeded
from backbench.files.atomic import make_folder

PER_CLASS = {"train": 200, "val": 100}


def make(folder: Path) -> None:
    """Write every layout below `folder`."""
    _make_image_folder(folder / "imagenet", CLASSES, PER_CLASS)
    _make_image_folder(folder / "imagenet100", CLASSES[:4], {"train": 20, "val": 10})
    _make_stl10(folder / "stl10" / "stl10_binary")
    _make_voc(folder / "voc" / "VOCdevkit" / "VOC2007")
    _make_coco(folder / "coco")
    _make_places205(folder / "places205")
    _make_inat18(folder / "inat18")
    _make_voc12(folder / "voc12" / "VOCdevkit" / "VOC2012")


def _save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, quality=90)


def _make_image_folder(folder: Path, classes: Sequence[str], per_class: Mapping[str, int]) -> None:
    for split, count in per_class.items():
        for label, name in enumerate(classes):
            target = make_folder(folder / split / name)
            for i in range(count):
                _save(target / f"{name}_{i:04d}.jpg", render_single(label, seeded(folder.name, split, label, i)))


def _make_stl10(folder: Path) -> None:
    make_folder(folder)
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    per_class = {"train": 20, "test": 10, "unlabeled": 10}
    for split, count in per_class.items():
        keys = [(label, i) for i in range(count) for label in range(len(CLASSES))]  # classes take turns
        pixels = np.stack([render_single(label, seeded("stl10", split, label, i)) for label, i in keys])
        pixels.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")  # planes of colours, each column by column
        if split != "unlabeled":
            np.array([label + 1 for label, _ in keys], np.uint8).tofile(folder / f"{split}_y.bin")
    rows = 20 * len(CLASSES)
    folds = [
        seeded("stl10", "fold", k).permutation(rows)[: rows // 5] for k in range(10)
    ]  # a fifth of the images each, as in STL-10
    (folder / "fold_indices.txt").write_text("".join(f"{' '.join(map(str, sorted(fold)))}\n" for fold in folds))


def _make_voc(folder: Path) -> None:
    lists, pictures, notes = (make_folder(folder / n) for n in ("ImageSets/Main", "JPEGImages", "Annotations"))
    for split, first, count in (("trainval", 1, 100), ("test", 101, 100)):
        states: dict[str, dict[int, int]] = {}
        for number in range(first, first + count):
            name = f"{number:06d}"
            pixels, placed = render_scene(seeded("voc", number))
            _save(pictures / f"{name}.jpg", pixels)
            ET.ElementTree(_voc_xml(name, placed)).write(notes / f"{name}.xml")
            states[name] = {
                label: 1 if any(not p.difficult for p in placed if p.label == label) else 0
                for label in {p.label for p in placed}
            }
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in states))
        for label, cls in enumerate(CLASSES):  # 1 present, 0 only as a difficult object, -1 absent
            rows = [f"{name} {state.get(label, -1):2d}\n" for name, state in states.items()]
            (lists / f"{cls}_{split}.txt").write_text("".join(rows))


def _voc_xml(name: str, placed: list[Placed]) -> ET.Element:
    root_node = ET.Element("annotation")
    ET.SubElement(root_node, "folder").text = "VOC2007"
    ET.SubElement(root_node, "filename").text = f"{name}.jpg"
    size = ET.SubElement(root_node, "size")
    for key, value in zip(("width", "height", "depth"), (*SCENE, 3), strict=True):
        ET.SubElement(size, key).text = str(value)
    for item in placed:
        node = ET.SubElement(root_node, "object")
        ET.SubElement(node, "name").text = CLASSES[item.label]
        ET.SubElement(node, "truncated").text = "0"
        ET.SubElement(node, "difficult").text = str(int(item.difficult))
        box = ET.SubElement(node, "bndbox")
        x0, y0, x1, y1 = item.box  # VOC counts pixels from 1 and includes the last one
        for key, corner in zip(("xmin", "ymin", "xmax", "ymax"), (x0 + 1, y0 + 1, x1, y1), strict=True):
            ET.SubElement(box, key).text = str(max(1, round(corner)))
    return root_node


def _make_coco(folder: Path) -> None:
    categories = [{"id": 3 * i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)]
    for split, count in (("train2017", 100), ("val2017", 60)):
        pictures = make_folder(folder / split)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(count):
            number = i + (1 if split == "train2017" else 100_001)
            pixels, placed = render_scene(seeded("coco", split, i))
            _save(pictures / f"{number:012d}.jpg", pixels)
            images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": SCENE[0], "height": SCENE[1]})
            for item in placed:
                x0, y0, x1, y1 = item.box
                area = float(cv2.contourArea(item.polygon.astype(np.float32)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": categories[item.label]["id"],
                        "segmentation": [[round(float(c), 2) for c in item.polygon.reshape(-1)]],
                        "bbox": [round(c, 2) for c in (x0, y0, x1 - x0, y1 - y0)],
                        "area": round(area, 2),
                        "iscrowd": 0,
                    }
                )
        target = make_folder(folder / "annotations") / f"instances_{split}.json"
        target.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def _make_places205(folder: Path) -> None:
    for split, count in (("train", 20), ("val", 10)):
        rows = []
        for label, name in enumerate(CLASSES):
            make_folder(folder / "images" / name[0] / name)
            for i in range(count):
                path = f"{name[0]}/{name}/{split}_{i:04d}.jpg"
                _save(folder / "images" / path, render_single(label, seeded("places205", split, label, i)))
                rows.append(f"{path} {label}\n")
        (folder / f"{split}_places205.csv").write_text("".join(rows))


def _make_inat18(folder: Path) -> None:
    for split, count in (("train", 20), ("val", 10)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for label in range(len(CLASSES)):
            make_folder(folder / "train_val2018" / "Shapes" / str(label))
            for i in range(count):
                number = 1000 * len(images) + (1 if split == "train" else 7)  # ids have gaps, as COCO's do
                name = f"train_val2018/Shapes/{label}/{split}_{i:04d}.jpg"
                _save(folder / name, render_single(label, seeded("inat18", split, label, i)))
                images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
                annotations.append({"id": number, "image_id": number, "category_id": label})
        categories = [{"id": i, "name": name, "supercategory": "Shapes"} for i, name in enumerate(CLASSES)]
        record = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}2018.json").write_text(json.dumps(record))


def _make_voc12(folder: Path) -> None:
    """Write scenes with masks: a class is background or a shape; as in VOC, 255 marks the outlines."""
    lists, pictures = (make_folder(folder / name) for name in ("ImageSets/Segmentation", "JPEGImages"))
    own, added = (make_folder(folder / name) for name in ("SegmentationClass", "SegmentationClassAug"))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in ("background", *CLASSES)))
    names: dict[str, list[str]] = {}
    for split, count, masks in (("train", 60, own), ("aug", 40, added), ("val", 60, own)):
        names[split] = [f"{split}_{i:04d}" for i in range(count)]
        for i, name in enumerate(names[split]):
            pixels, placed = render_scene(seeded("voc12", split, i))
            _save(pictures / f"{name}.jpg", pixels)
            Image.fromarray(_class_mask(placed)).save(masks / f"{name}.png")
    names["trainaug"] = names["train"] + names.pop("aug")
    for split, found in names.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in found))


def _class_mask(placed: list[Placed]) -> np.ndarray:
    """Return the class of each pixel, (H, W) uint8: the front object's, 0 without one, 255 on outlines."""
    mask = np.zeros(SCENE[::-1], np.uint8)
    for item in placed:
        outline = [np.round(item.polygon * 16).astype(np.int32)]
        cv2.fillPoly(mask, outline, item.label + 1, shift=4)
        cv2.polylines(mask, outline, isClosed=True, color=255, shift=4)
    return mask
