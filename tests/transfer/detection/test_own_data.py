"""Users' images and classes by path, in VOC's or COCO's layout, through the command on both engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import run_one
from benchmarks.records.store import read_all
from transfer.detection import engines
from transfer.detection.annotations.split import DetectionSplit

pytestmark = pytest.mark.slow
CLASSES = ("bolt", "nut", "washer")  # none of them VOC's or COCO's
TINY = {"iterations": 1, "milestones": "[]", "precise_bn": 0, "sides_train": "[64]", "side_test": 64, "side_max": 96}
OBJECT = """<object><name>{}</name><difficult>0</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def label(split: DetectionSplit, row: int, index: int) -> int:
    """The demo's shapes with the user's class names."""
    return split.pictures[row].instances[index].label % len(CLASSES)


def as_voc(root: Path, splits: dict[str, DetectionSplit]) -> None:
    """Splits `mine` and `held` without lists of classes, as written by annotation tools."""
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / name).mkdir(parents=True)
    for name, split in {"mine": splits["train"], "held": splits["val"]}.items():
        (root / f"ImageSets/Main/{name}.txt").write_text("".join(f"{p.id}\n" for p in split.pictures))
        for row, p in enumerate(split.pictures):
            split.source.pil(row).save(root / f"JPEGImages/{p.id}.jpg")
            objects = "".join(
                OBJECT.format(
                    CLASSES[label(split, row, i)], *(round(v) for v in (o.box[0] + 1, o.box[1] + 1, *o.box[2:]))
                )
                for i, o in enumerate(p.instances)
            )
            size = f"<size><width>{p.width}</width><height>{p.height}</height></size>"
            (root / f"Annotations/{p.id}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


def as_coco(root: Path, splits: dict[str, DetectionSplit]) -> None:
    """Category ids 3, 7 and 40, unordered."""
    ids = dict(zip(CLASSES, (7, 40, 3), strict=True))
    (root / "annotations").mkdir(parents=True)
    for name, split in splits.items():
        (root / f"{name}2017").mkdir()
        record: dict[str, list] = {"images": [], "annotations": [], "categories": []}
        record["categories"] = [{"id": number, "name": cls} for cls, number in ids.items()]
        for row, p in enumerate(split.pictures):
            split.source.pil(row).save(root / f"{name}2017/{p.id}.png")
            image = {"id": int(p.id), "file_name": f"{p.id}.png", "width": p.width, "height": p.height}
            record["images"].append(image)
            for i, o in enumerate(p.instances):
                x0, y0, x1, y1 = o.box
                item = {"id": len(record["annotations"]) + 1, "image_id": int(p.id), "segmentation": o.mask}
                item |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": ids[CLASSES[label(split, row, i)]]}
                record["annotations"].append(item)
        (root / f"annotations/instances_{name}2017.json").write_text(json.dumps(record))


LAYOUTS = {
    "voc": (as_voc, "voc0712_detection", ["train=mine", "test=held"], "AP"),
    "coco": (as_coco, "coco_instance_segmentation", [], "mask_AP"),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["detectron2", "mmdet"])
def test_own_classes_by_path(name: str, layout: str, scenes: Callable[..., DetectionSplit], tmp_path: Path) -> None:
    reason = engines.get(name).missing()
    if reason is not None:
        pytest.skip(reason)
    write, cell, fields, metric = LAYOUTS[layout]
    write(tmp_path / "own", {"train": scenes(tmp_path / "a", 4), "val": scenes(tmp_path / "b", 3, first=10)})
    arguments = ["--ckpt", "random:resnet18", "--cell", cell, "--profile", "smoke", "--out", str(tmp_path / "out")]
    arguments += ["--data", f"{layout}={tmp_path / 'own'}", "--workers", "0", f"engine={name}", "data.expect=any"]
    spec = [f"spec.{key}={value}" for key, value in TINY.items()]
    assert run_one.main([*arguments, *fields, *spec]) == 0
    (record,) = read_all(tmp_path / "out")
    assert record.status == "ok" and 0 <= record.metrics[metric].value <= 100
    assert record.data.counts == {"train": 4, "test": 3, "classes": 3}
    native = next(file for file in (tmp_path / "out").rglob("*") if file.name in ("detectron2.yaml", "mmdet_config.py"))
    classes = "NUM_CLASSES: 3" if name == "detectron2" else "'num_classes': 3"
    assert classes in native.read_text()
