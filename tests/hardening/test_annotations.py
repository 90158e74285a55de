"""Faulty annotation files give a sentence before training, or the right number.

A detector finds every object but the first exactly; its score is known without the file under test.
"""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backbench.data.catalogue import DataPlaces
from backbench.errors import BackbenchError
from benchmarks import plan
from transfer.detection.annotations.split import Detections, DetectionSplit
from transfer.detection.scoring import coco_eval, voc_eval

WIDTH, HEIGHT = 64, 48
HALF = 100 * (51 / 101 + 1) / 2  # COCO: one of two cats (precision 1 at recalls 0 to 0.5), both dogs
HALF_VOC = 100 * (6 / 11 + 1) / 2  # VOC 2007: the same at its eleven recalls
WHOLE, NOTHING_LEFT = 100.0, None


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def sound() -> dict[str, list[dict[str, Any]]]:
    """Return four images with one object each: cat, dog, cat, dog."""
    images = [{"id": 101 + i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(4)]
    square = [5.0, 5.0, 35.0, 5.0, 35.0, 35.0, 5.0, 35.0]
    annotations = [
        {"id": 10 + i, "image_id": 101 + i, "category_id": 1 + 2 * (i % 2), "bbox": [5.0, 5.0, 30.0, 30.0],
         "area": 900.0, "iscrowd": 0, "segmentation": [list(square)]}
        for i in range(4)
    ]  # fmt: skip
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def coco(root: Path, text: str | bytes | None = None) -> Path:
    """Write a sound data set, with another annotation file for the test split."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        for i in range(4):
            Image.new("RGB", (WIDTH, HEIGHT), (60 * i, 0, 0)).save(root / split / f"{i}.png")
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(sound()))
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (root / "annotations/instances_val2017.json").write_bytes(data)
    return root


def splits(cell: str, layout: str, root: Path, **fields: str) -> dict[str, DetectionSplit]:
    """Read and check the data as a run does before it trains."""
    one = plan.load_cell(cell, ["data.expect=any", *(f"{name}={value}" for name, value in fields.items())])
    found = one.task.splits(one.config, DataPlaces(None, {layout: root}))
    for split in found.values():
        split.manifest_sha256()
    return found


def all_but_the_first(split: DetectionSplit) -> list[Detections]:
    """Return detections of the objects in images 1, 2 and 3 of the sound file."""
    found = []
    for row in range(len(split)):
        number = int(Path(split.source.name(row)).stem[-1])
        boxes = np.array([[5, 5, 35, 35]] if number else [], np.float32).reshape(-1, 4)
        labels = np.array([number % 2] if number else [], np.int64)
        found.append(Detections(boxes, np.ones(len(boxes), np.float32), labels))
    return found


def coco_ap(root: Path, bad: str) -> float | str:
    """Return the box AP, or the error."""
    try:
        test = splits("coco_instance_segmentation", "coco", root, bad=bad)["test"]
        return coco_eval.evaluate(test, all_but_the_first(test))["box_AP"]
    except BackbenchError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return str(error)


def said(found: float | str, expected: float | str | None) -> None:
    """Check for the expected number, or for an error with the words."""
    if isinstance(expected, str):
        assert isinstance(found, str) and expected in found, found
    else:
        assert found == pytest.approx(expected), found


# ---------------------------------------------------------------- one value of one object


def objects(**fields: Any) -> Callable[[dict], None]:
    """Change values of the first object; `...` removes one."""

    def change(record: dict) -> None:
        for name, value in fields.items():
            record["annotations"][0].pop(name, None)
            if value is not ...:
                record["annotations"][0][name] = value

    return change


def images(**fields: Any) -> Callable[[dict], None]:
    return lambda record: record["images"][0].update(fields)


NAN, INF, HUGE = float("nan"), float("inf"), 10**400
RUNS = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 5, HEIGHT * 10, HEIGHT * (WIDTH - 15)]}
MENDED = {
    **{
        f"area {value!r:.12}": objects(area=value)
        for value in (-1, 0, -900.0, NAN, INF, -INF, 1e300, HUGE, "900", True)
    },
    **{f"area {value!r}": objects(area=value) for value in (None, [900], {}, ...)},
    **{f"iscrowd {value!r}": objects(iscrowd=value) for value in (None, False, 0.0, ...)},
    "annotation id 0": objects(id=0),
    "annotation id negative": objects(id=-(2**70)),
    "annotation id huge": objects(id=HUGE),
    "mask as runs": objects(segmentation=RUNS),
    "mask as runs of floats": objects(segmentation={"size": [48.0, 64.0], "counts": [240.0, 480.0, 2352.0]}),
    "size as whole floats": images(width=64.0, height=48.0),
    "box of a pixel's part over the edge": objects(bbox=[-0.5, 5, 30, 30]),
    "an unknown field": objects(keypoints=[NAN], score="high"),
}


@pytest.mark.parametrize("kind", MENDED)
def test_what_is_mended_scores_as_it_should(tmp_path, kind):
    record = sound()
    MENDED[kind](record)
    root = coco(tmp_path / "d", json.dumps(record))
    for bad in ("error", "skip"):
        said(coco_ap(root, bad), HALF)


REFUSED = {  # words of the error, and the score if bad=skip leaves out the object (or its image)
    **{f"iscrowd {v!r:.9}": (objects(iscrowd=v), "iscrowd is neither 0 nor 1", WHOLE)
       for v in (2, -1, "0", "1", NAN, [0], HUGE)},
    "box of no width": (objects(bbox=[5, 5, 0, 30]), "boxes with no area", WHOLE),
    "box turned inside out": (objects(bbox=[35, 35, -30, -30]), "boxes with no area", WHOLE),
    "box of three": (objects(bbox=[5, 5, 30]), "boxes that are not four numbers", WHOLE),
    "box of words": (objects(bbox=["5", "5", "30", "30"]), "boxes that are not four numbers", WHOLE),
    "box of nan": (objects(bbox=[5, 5, NAN, 30]), "boxes that are not four numbers", WHOLE),
    "box of huge numbers": (objects(bbox=[5, 5, HUGE, 30]), "boxes that are not four numbers", WHOLE),
    "box of truth values": (objects(bbox=[5, 5, True, True]), "boxes that are not four numbers", WHOLE),
    "box of lists": (objects(bbox=[[5], [5], [30], [30]]), "boxes that are not four numbers", WHOLE),
    "box null": (objects(bbox=None), "boxes that are not four numbers", WHOLE),
    "box outside": (objects(bbox=[64, 5, 30, 30]), "boxes outside their image", WHOLE),
    "mask of two points": (objects(segmentation=[[5, 5, 9, 9]]), "polygons with fewer than three points", WHOLE),
    "mask of half a point": (objects(segmentation=[[5, 5, 9, 9, 5, 9, 7]]), "polygons with fewer than three points", WHOLE),
    "mask of words": (objects(segmentation=[["5"] * 6]), "polygons with fewer than three points", WHOLE),
    "mask of nan": (objects(segmentation=[[5, 5, 9, 9, 5, NAN]]), "polygons with fewer than three points", WHOLE),
    "mask far outside": (objects(segmentation=[[5, 5, 9, 9, 5, 1e12]]), "polygons with fewer than three points", WHOLE),
    "mask flat": (objects(segmentation=[5, 5, 9, 9, 5, 9]), "polygons with fewer than three points", WHOLE),
    "mask a word": (objects(segmentation="cat"), "polygons with fewer than three points", WHOLE),
    "mask empty": (objects(segmentation=[]), "objects without a mask", WHOLE),
    "mask absent": (objects(segmentation=...), "objects without a mask", WHOLE),
    "runs of another size": (objects(segmentation=RUNS | {"size": [WIDTH, HEIGHT]}), "run-length masks", WHOLE),
    "runs too many": (objects(segmentation=RUNS | {"counts": [2**40, 1]}), "run-length masks", WHOLE),
    "runs negative": (objects(segmentation=RUNS | {"counts": [-1, HEIGHT * WIDTH + 1]}), "run-length masks", WHOLE),
    "runs nan": (objects(segmentation=RUNS | {"counts": [NAN]}), "run-length masks", WHOLE),
    "runs no list": (objects(segmentation=RUNS | {"counts": 3072}), "run-length masks", WHOLE),
    "runs of another alphabet": (objects(segmentation=RUNS | {"counts": "~~~~\x00"}), "run-length masks", WHOLE),
    "size of nothing": (objects(segmentation={"counts": [1]}), "run-length masks", WHOLE),
    "width in words": (images(width="64"), "not of the size in their annotation", WHOLE),
    "width nan": (images(width=NAN), "not of the size", WHOLE),
    "width negative": (images(width=-64), "not of the size", WHOLE),
    "width zero": (images(width=0), "not of the size", WHOLE),
    "width of parts": (images(width=64.5), "not of the size", WHOLE),
    "width true": (images(width=True), "not of the size", WHOLE),
    "width huge": (images(width=HUGE), "not of the size", WHOLE),
    "width of another image": (images(width=65), "not of the size", WHOLE),
    "sides exchanged": (images(width=HEIGHT, height=WIDTH), "not of the size", WHOLE),
    "file absent": (images(file_name="9.png"), "images that are not in the folder", WHOLE),
    "file of no name": (images(file_name=""), "images that are not in the folder", WHOLE),
    "file with a zero byte": (images(file_name="sub/\x00.png"), "images that are not in the folder", WHOLE),
    "file of a long name": (images(file_name="a/" + "b" * 5000), "images that are not in the folder", WHOLE),
    "file with backslashes": (images(file_name="val2017\\0.png"), "images that are not in the folder", WHOLE),
    "file absolute": (images(file_name="/etc/hostname"), "file names that lead out of the folder", WHOLE),
    "file above": (images(file_name="../train2017/0.png"), "file names that lead out of the folder", WHOLE),
    "file above, hidden": (images(file_name="x/../../train2017/0.png"), "file names that lead out", WHOLE),
    "file listed twice": (images(file_name="./2.png"), "images that are listed twice", WHOLE),
    "object of no image": (objects(image_id=5), "annotations whose image_id is unknown", WHOLE),
    "object of no category": (objects(category_id=2), "annotations whose category_id is unknown", WHOLE),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_left_out_when_asked(tmp_path, kind):
    """`listed twice` leaves out both of its images, and their cat."""
    change, words, left = REFUSED[kind]
    record = sound()
    change(record)
    root = coco(tmp_path / "d", json.dumps(record))
    said(coco_ap(root, "error"), words)
    said(coco_ap(root, "skip"), left)


# ---------------------------------------------------------------- the whole file


def both(record: dict, name: str, value: Any) -> dict:
    """Change a value of the first item in one of the record's lists."""
    record = copy.deepcopy(record)
    kind, field = name.split(".")
    record[kind][0][field] = value
    return record


def every(kind: str, **fields: Any) -> str:
    record = sound()
    for item in record[kind]:
        item.update(fields)
    return json.dumps(record)


def twice(kind: str) -> str:
    record = sound()
    record[kind].append(copy.deepcopy(record[kind][0]))
    return json.dumps(record)


def without(kind: str, field: str) -> str:
    record = sound()
    del record[kind][0][field]
    return json.dumps(record)


FILES: dict[str, tuple[str | bytes, str | float]] = {
    **{f"ids: {kind} {v!r:.9}": (json.dumps(both(sound(), f"{kind}.id", v)), "id") for kind in
       ("images", "annotations", "categories") for v in (1.5, True, None, [1], {}, "one", NAN)},
    **{f"twice: {kind}": (twice(kind), f"ids of '{kind}' are there twice") for kind in sound()},
    **{f"lacks {kind}.{field}": (without(kind, field), f"without '{field}'") for kind, field in (
        ("images", "width"), ("images", "file_name"), ("annotations", "bbox"), ("annotations", "category_id"),
        ("categories", "name"))},
    **{f"document {text:.7}": (text, "json") for text in ("[]", "null", "3", '"x"', "NaN", "{}", "[[]]", "", " ", "{")},
    **{f"list {kind} {v!r}": (json.dumps(sound() | {kind: v}), f"'{kind}'") for kind in sound() for v in (None, {}, "x", 3)},
    **{f"items of {kind} {v!r}": (json.dumps(sound() | {kind: [v]}), f"'{kind}'") for kind in sound() for v in (None, [], "x")},
    "no images": (json.dumps(sound() | {"images": [], "annotations": []}), "no images or no categories"),
    "no categories": (json.dumps(sound() | {"categories": [], "annotations": []}), "no images or no categories"),
    "no objects": (json.dumps(sound() | {"annotations": []}), "no object counts in the 4 test images of val2017"),
    "all crowds": (every("annotations", iscrowd=1, segmentation=RUNS), "no object counts"),
    "all without masks": (every("annotations", segmentation=[]), "objects without a mask: 4"),
    "all boxes flat": (every("annotations", bbox=[5, 5, 30, 0]), "boxes with no area: 4"),
    "all areas negative": (every("annotations", area=-900.0), HALF),
    "all areas nan": (every("annotations", area=NAN), HALF),
    "other classes": (every("categories", name="bus"), "class 1 is 'cat' in train2017 and 'bus' in val2017"),
    "half a pair in a class": (every("categories", name="\ud800"), "whose 'name' is '\\ud800'"),
    "deep": ("[" * 100_000, "not readable as JSON"),
    "deep in a list": ('{"images": ' + "[" * 50_000 + "]" * 50_000 + "}", "not readable as JSON"),
    "a number of 5,000 digits": ('{"images": ' + "9" * 5000 + "}", "not readable as JSON"),
    "cut short": (json.dumps(sound())[:-40], "not readable as JSON"),
    "binary": (bytes(range(256)) * 8, "not readable as JSON"),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps(sound()).encode(), HALF),
    "utf-16": (json.dumps(sound()).encode("utf-16"), HALF),
    "latin-1": (json.dumps(sound(), ensure_ascii=False).replace("cat", "caf\xe9").encode("latin-1"), "not readable as JSON"),
    "escapes in a class": (every("categories", name="\x1b[31mcat"), "\\x1b[31mcat"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_files_as_a_whole(tmp_path, kind):
    text, expected = FILES[kind]
    root = coco(tmp_path / "d", text)
    for bad in ("error", "skip"):
        found = coco_ap(root, bad)
        if bad == "skip" and isinstance(expected, str) and ": 4" in expected:
            expected = "no object counts"
        said(found, expected)
        assert "\x1b" not in str(found)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def bomb(path: Path) -> None:
    """Return the header of a picture with more pixels than any memory."""
    data = bytearray(path.read_bytes())
    data[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    path.write_bytes(data)


SPOILT = {spoil.__name__: spoil for spoil in (fifo, folder, device, loop, emptied, cut, bomb)}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_images_that_are_none(tmp_path, spoil, layout):
    root = {"coco": coco, "voc": devkit}[layout](tmp_path / "d")
    image = next(root.rglob("val2017/0.png" if layout == "coco" else "JPEGImages/t0.png"))
    spoil(image)
    score = {"coco": coco_ap, "voc": voc_ap}[layout]
    found = score(root, "error")
    assert isinstance(found, str) and image.name in found
    said(score(root, "skip"), WHOLE)


@pytest.mark.parametrize("spoil", [fifo, folder, device, loop, emptied, cut])
@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_annotation_files_that_are_none(tmp_path, spoil, layout):
    root = {"coco": coco, "voc": devkit}[layout](tmp_path / "d")
    file = next(root.rglob("instances_val2017.json" if layout == "coco" else "t0.xml"))
    spoil(file)
    found = {"coco": coco_ap, "voc": voc_ap}[layout](root, "error")
    assert isinstance(found, str) and file.name in found


@pytest.mark.parametrize("turned", [False, True], ids=["stated as stored", "stated as turned"])
@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_photographs_with_a_turn_in_their_exif(tmp_path, turned, layout):
    """Boxes refer to the stored pixels; the size of the rotated image is refused."""
    root = {"coco": coco, "voc": devkit}[layout](tmp_path / "d")
    image = next(root.rglob("val2017/0.png" if layout == "coco" else "JPEGImages/t0.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)).save(image, exif=exif)
    found = {"coco": coco_ap, "voc": voc_ap}[layout](root, "error")
    said(found, "not of the size" if turned else {"coco": HALF, "voc": HALF_VOC}[layout])


# ---------------------------------------------------------------- VOC


OBJECT = "<object><name>{}</name>{}<bndbox>{}</bndbox></object>"
BOX = "<xmin>6</xmin><ymin>6</ymin><xmax>35</xmax><ymax>35</ymax>"
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
PLAIN = "<difficult>0</difficult>"


def xml(name: str = "cat", difficult: str = PLAIN, box: str = BOX, size: str = SIZE) -> str:
    return f"<annotation>{size}{OBJECT.format(name, difficult, box)}</annotation>"


def devkit(root: Path, text: str | None = None) -> Path:
    """Write the four images and objects in VOC's layout; `text` is the annotation of the first test image."""
    year = root / "VOCdevkit/VOC2007"
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (year / name).mkdir(parents=True)
    for split, letter in (("trainval", "a"), ("test", "t")):
        ids = [f"{letter}{i}" for i in range(4)]
        (year / f"ImageSets/Main/{split}.txt").write_text("\n".join(ids))
        for number, cls in enumerate(("cat", "dog")):
            lines = "".join(f"{name} {1 if i % 2 == number else -1}\n" for i, name in enumerate(ids))
            (year / f"ImageSets/Main/{cls}_{split}.txt").write_text(lines)
        for i, name in enumerate(ids):
            Image.new("RGB", (WIDTH, HEIGHT), (60 * i, 0, 0)).save(year / f"JPEGImages/{name}.png")
            (year / f"Annotations/{name}.xml").write_text(xml(("cat", "dog")[i % 2]))
    if text is not None:
        (year / "Annotations/t0.xml").write_text(text)
    return root


def voc_ap(root: Path, bad: str) -> float | str:
    """Return the AP, or the error."""
    try:
        test = splits("voc0712_detection", "voc", root, bad=bad, train="trainval", test="test")["test"]
        return voc_eval.evaluate(test, all_but_the_first(test))["AP"]
    except BackbenchError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return str(error)


def corner(**corners: object) -> str:
    values = {"xmin": 6, "ymin": 6, "xmax": 35, "ymax": 35} | corners
    return xml(box="".join(f"<{key}>{value}</{key}>" for key, value in values.items() if value is not ...))


VOC = {
    "difficult 2": (xml(difficult="<difficult>2</difficult>"), "difficult", WHOLE),
    "difficult -1": (xml(difficult="<difficult>-1</difficult>"), "difficult", WHOLE),
    "difficult in words": (xml(difficult="<difficult>yes</difficult>"), "difficult", WHOLE),
    "difficult nan": (xml(difficult="<difficult>nan</difficult>"), "difficult", WHOLE),
    "corners exchanged": (corner(xmin=35, xmax=6), "boxes with no area: 1, e.g. t0.xml", WHOLE),
    "corners outside": (corner(xmin=70, xmax=90), "boxes outside their image: 1, e.g. t0.xml", WHOLE),
    "corners in words": (corner(xmin="left"), "'left', not a number", WHOLE),
    "corners nan": (corner(xmin="nan"), "boxes with no area", WHOLE),
    "corners infinite": (corner(xmax="inf"), "boxes with no area", WHOLE),
    "a corner absent": (corner(xmax=...), "t0.xml", WHOLE),
    "a corner empty": (corner(xmax=""), "t0.xml", WHOLE),
    "width 0": (xml(size=SIZE.replace(">64<", ">0<")), "not of the size", WHOLE),
    "width in words": (xml(size=SIZE.replace(">64<", ">wide<")), "t0.xml", WHOLE),
    "width of another image": (xml(size=SIZE.replace(">64<", ">65<")), "not of the size", WHOLE),
    "sides exchanged": (xml(size=f"<size><width>{HEIGHT}</width><height>{WIDTH}</height></size>"), "not of the size", WHOLE),
    "another class": (xml(name="mug"), "objects of a class that has no list", WHOLE),
    "no name": (xml(name=""), "t0.xml", WHOLE),
    "escapes in a name": (xml(name="&#27;[31mcat".replace("&#27;", "\x7f")), "objects of a class that has no list", WHOLE),
    "cut short": (xml()[:-20], "annotations that cannot be read: 1", WHOLE),
    "empty": ("", "annotations that cannot be read: 1", WHOLE),
    "entities": ('<!DOCTYPE a [<!ENTITY b "&c;&c;"><!ENTITY c "x">]><annotation>&b;' + xml()[12:], "declares entities", WHOLE),
    "a billion laughs": (
        '<!DOCTYPE a [<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
        + "]>" + xml(name="&a11;"), "annotations that cannot be read: 1", WHOLE),
    "no object": (f"<annotation>{SIZE}</annotation>", None, WHOLE),
    "difficult 1": (xml(difficult="<difficult>1</difficult>"), None, WHOLE),
    "no difficult": (xml(difficult=""), None, HALF_VOC),
    "over the edge": (corner(xmin=-4), None, HALF_VOC),
}  # fmt: skip


@pytest.mark.parametrize("kind", VOC)
def test_voc(tmp_path, kind):
    text, words, left = VOC[kind]
    root = devkit(tmp_path / "d", text)
    said(voc_ap(root, "error"), words if words is not None else left)
    said(voc_ap(root, "skip"), left)


@pytest.mark.parametrize("kind", ["all difficult", "no object", "all flat"])
def test_voc_with_nothing_to_find(tmp_path, kind):
    root = devkit(tmp_path / "d")
    text = {"all difficult": xml(difficult="<difficult>1</difficult>"), "all flat": corner(xmax=1),
            "no object": f"<annotation>{SIZE}</annotation>"}[kind]  # fmt: skip
    for i in range(4):
        (root / f"VOCdevkit/VOC2007/Annotations/t{i}.xml").write_text(text)
    said(voc_ap(root, "skip"), "no object counts in the 4 test images of test")


@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_nothing_to_learn_from(tmp_path, layout):
    root = {"coco": coco, "voc": devkit}[layout](tmp_path / "d")
    if layout == "coco":
        (root / "annotations/instances_train2017.json").write_text(every("annotations", iscrowd=1))
    else:
        for i in range(4):
            (root / f"VOCdevkit/VOC2007/Annotations/a{i}.xml").write_text(f"<annotation>{SIZE}</annotation>")
    said({"coco": coco_ap, "voc": voc_ap}[layout](root, "error"), "no image has an object to train on")
