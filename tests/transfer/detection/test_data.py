"""Read VOC and COCO: hand-made, demo and real data, and every kind of bad annotation."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO

from backbench.data import catalogue, demo
from backbench.data.demo import render
from backbench.data.layouts import voc
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from transfer.detection.annotations import faults
from transfer.detection.annotations.coco_objects import unpacked
from transfer.detection.annotations.faults import whole_images
from transfer.detection.annotations.layouts import read_coco, read_voc
from transfer.detection.annotations.pixels import read_image
from transfer.detection.annotations.split import Detections, DetectionSplit, trainable
from transfer.detection.scoring import coco_eval

OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""
SIZE = (60, 40)


def xml(*objects: tuple, size: tuple[int, int] = SIZE) -> str:
    body = "".join(OBJECT.format(*item) for item in objects)
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{body}</annotation>"


def make_year(folder: Path, members: dict[str, list[str]]) -> Path:
    """A devkit year with the classes cup and bus: one plain cup per image."""
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    for split, ids in members.items():
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for cls, state in (("cup", 1), ("bus", -1)):
            lines = "".join(f"{name} {state}\n" for name in ids)
            (folder / "ImageSets/Main" / f"{cls}_{split}.txt").write_text(lines)
        for name in ids:
            Image.new("RGB", SIZE).save(folder / "JPEGImages" / f"{name}.jpg")
            (folder / "Annotations" / f"{name}.xml").write_text(xml(("cup", 0, 3, 5, 20, 30)))
    return folder


@pytest.fixture
def devkit(tmp_path):
    make_year(tmp_path / "VOCdevkit/VOC2007", {"trainval": ["a", "b", "c"], "test": ["t"]})
    make_year(tmp_path / "VOCdevkit/VOC2012", {"trainval": ["d", "e"]})
    return tmp_path


def annotate(devkit: Path, name: str, text: str, year: int = 2007) -> None:
    (devkit / f"VOCdevkit/VOC{year}/Annotations/{name}.xml").write_text(text)


def boxes(split: DetectionSplit) -> list[list[tuple]]:
    return [[item.box for item in picture.instances] for picture in split.pictures]


# ---------------------------------------------------------------- VOC


def test_voc_boxes_are_detectron2s_and_difficult_objects_stay(devkit):
    annotate(devkit, "b", xml(("bus", 1, 1, 1, 60, 40), ("cup", 0, 7, 7, 7, 9)))
    split = read_voc(devkit, "trainval")
    assert split.classes == ("bus", "cup")
    assert [(p.id, p.width, p.height) for p in split.pictures] == [("a", 60, 40), ("b", 60, 40), ("c", 60, 40)]
    assert boxes(split)[:2] == [[(2, 4, 20, 30)], [(0, 0, 60, 40), (6, 6, 7, 9)]]  # one pixel wide is wide enough
    assert [(o.label, o.difficult) for o in split.pictures[1].instances] == [(0, True), (1, False)]
    assert split.file(1) == devkit / "VOCdevkit/VOC2007/JPEGImages/b.jpg"
    assert [p.id for p in read_voc(devkit, "test").pictures] == ["t"]


def test_both_years_one_after_the_other(devkit):
    split = read_voc(devkit, "trainval07+12")
    assert [p.id for p in split.pictures] == ["a", "b", "c", "d", "e"]
    assert split.source.root == devkit / "VOCdevkit"
    assert split.source.paths[2:4] == ("VOC2007/JPEGImages/c.jpg", "VOC2012/JPEGImages/d.jpg")
    assert all(split.file(i).is_file() for i in range(5))
    assert read_voc(devkit / "VOCdevkit", "trainval07+12").manifest_sha256() == split.manifest_sha256()


def test_both_years_need_both(devkit, tmp_path):
    with pytest.raises(DataError, match="side by side"):
        read_voc(devkit / "VOCdevkit/VOC2007", "trainval07+12")
    (devkit / "VOCdevkit/VOC2012/ImageSets/Main/bus_trainval.txt").unlink()
    with pytest.raises(DataError, match=r"VOC2012/ImageSets/Main: its classes differ from those of .*VOC2007"):
        read_voc(devkit, "trainval07+12")
    shutil.rmtree(devkit / "VOCdevkit/VOC2012")
    with pytest.raises(DataError, match="no VOCdevkit/VOC2012/ImageSets/Main"):
        read_voc(devkit, "trainval07+12")


def test_classes_of_a_data_set_without_lists_of_them_are_those_of_its_annotations(devkit, capsys):
    lists = devkit / "VOCdevkit/VOC2007/ImageSets/Main"
    for file in lists.glob("*_*.txt"):
        file.unlink()
    annotate(devkit, "t", xml(("van", 0, 3, 5, 20, 30)))  # of the test split only
    annotate(devkit, "a", "<annotation>")
    split = read_voc(devkit, "trainval", bad="skip")
    assert split.classes == read_voc(devkit, "test").classes == ("cup", "van")
    assert "classes from the annotations: cup, van" in capsys.readouterr().err
    assert [[o.label for o in p.instances] for p in split.pictures] == [[0], [0]]
    for name in "bct":
        annotate(devkit, name, xml())
    with pytest.raises(DataError, match=r"and 1 annotations with faults: .*a\.xml: not readable as XML"):
        read_voc(devkit, "trainval")
    annotate(devkit, "a", xml())
    with pytest.raises(DataError, match="and no object in the annotations"):
        read_voc(devkit, "trainval")


def test_a_fault_that_all_annotations_share_is_said_not_that_there_is_no_class(devkit):
    for file in (devkit / "VOCdevkit/VOC2007/ImageSets/Main").glob("*_*.txt"):
        file.unlink()
    for file in (devkit / "VOCdevkit/VOC2007/Annotations").glob("*.xml"):
        file.write_text(file.read_text().replace("xmin", "left"))
    with pytest.raises(DataError, match=r"annotations with faults: .*a\.xml: object 1 has no <bndbox><xmin>"):
        read_voc(devkit, "trainval")


def test_without_a_stated_size_the_image_says_it(devkit):
    stated = read_voc(devkit, "trainval")
    for file in (devkit / "VOCdevkit/VOC2007/Annotations").glob("*.xml"):
        file.write_text(re.sub("<size>.*</size>", "", file.read_text(), flags=re.DOTALL))
    found = read_voc(devkit, "trainval")
    assert found.pictures == stated.pictures
    assert found.manifest_sha256() == stated.manifest_sha256()


def test_an_image_that_changes_after_it_was_listed_is_an_error_where_it_is_read(devkit):
    split = read_voc(devkit, "trainval")
    split.manifest_sha256()
    size = split.pictures[0].width, split.pictures[0].height
    read_image(split.file(0), *size)
    data = split.file(0).read_bytes()
    split.file(0).write_bytes(data[:-30] + bytes(28) + data[-2:])
    for file in (split.file(0), split.source.root.resolve() / split.source.paths[0]):
        with pytest.raises(DataError, match="changed during the run"):
            read_image(file, *size)


def test_a_split_of_ones_own_beside_the_devkits_takes_its_classes_from_the_annotations(devkit):
    (devkit / "VOCdevkit/VOC2007/ImageSets/Main/my_part.txt").write_text("a\nc\n")
    split = read_voc(devkit, "my_part")
    assert [p.id for p in split.pictures] == ["a", "c"] and split.classes == ("cup",)


def test_an_image_without_objects_is_no_fault_and_one_without_an_annotation_is(devkit):
    annotate(devkit, "b", xml())
    assert [len(p.instances) for p in read_voc(devkit, "trainval").pictures] == [1, 0, 1]
    (devkit / "VOCdevkit/VOC2007/Annotations/c.xml").unlink()
    with pytest.raises(DataError, match=r"annotations that cannot be read: 1, e\.g\. .*c\.xml"):
        read_voc(devkit, "trainval")
    assert [p.id for p in read_voc(devkit, "trainval", bad="skip").pictures] == ["a", "b"]


def test_published_counts_of_detection():
    class Numbered(tuple):
        def __len__(self):
            return 16_551

    split = ImageSplit("voc", "trainval07+12", Numbered(), None, tuple(map(str, range(20))))
    assert catalogue.is_published("voc", {"train": split})
    test = ImageSplit("voc", "test", Numbered(), None, tuple(map(str, range(20))))
    assert not catalogue.is_published("voc", {"train": split, "test": test})


BAD_XML = {
    "encoding": (
        '<?xml version="1.0" encoding="GBK"?>' + xml(("cup", 0, 3, 5, 20, 30)),
        "annotations that cannot be read: 1",
        None,
    ),
    "cut short": (xml(("cup", 0, 3, 5, 20, 30))[:-9], r"annotations that cannot be read: 1, e\.g\. .*b\.xml", None),
    "no area": (xml(("cup", 0, 9, 5, 8, 30)), r"boxes with no area: 1, e\.g\. b\.xml", 0),
    "not a number": (xml(("cup", 0, "nan", 5, 8, 30)), r"boxes with no area: 1, e\.g\. b\.xml", 0),
    "outside": (xml(("cup", 0, 62, 5, 80, 30)), r"boxes outside their image: 1, e\.g\. b\.xml", 0),
    "class": (xml(("mug", 0, 3, 5, 20, 30)), r"objects of a class that has no list: 1, e\.g\. 'mug' in b\.xml", 0),
    "no size": (xml(size=(0, 0)), r"images that are unreadable or not of the size .*: 1, e\.g\. b\.jpg", None),
    "size": (xml(("cup", 0, 3, 5, 20, 30), size=(61, 40)), r"not of the size .*: 1, e\.g\. b\.jpg", None),
}


@pytest.mark.parametrize(("text", "words", "left"), BAD_XML.values(), ids=BAD_XML)
def test_bad_voc_annotations(devkit, text, words, left, capsys):
    annotate(devkit, "b", text)
    with pytest.raises(DataError, match=rf"JPEGImages: .*{words}.*bad=skip"):
        read_voc(devkit, "trainval")
    capsys.readouterr()
    split = read_voc(devkit, "trainval", bad="skip")
    expected = [("a", 1), ("b", left), ("c", 1)]
    assert [(p.id, len(p.instances)) for p in split.pictures] == [e for e in expected if e[1] is not None]
    assert list(split.source.paths) == [f"{p.id}.jpg" for p in split.pictures]
    assert re.search(f"left out: .*{words}", capsys.readouterr().err)


def test_missing_and_unreadable_images(devkit, capsys):
    folder = devkit / "VOCdevkit/VOC2007"
    (folder / "JPEGImages/a.jpg").unlink()
    (folder / "JPEGImages/b.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"not in the folder: 1, e\.g\. a\.jpg; .*unreadable.*: 1, e\.g\. b\.jpg"):
        read_voc(devkit, "trainval")
    assert [p.id for p in read_voc(devkit, "trainval", bad="skip").pictures] == ["c"]
    (folder / "JPEGImages/c.jpg").unlink()
    with pytest.raises(DataError, match="none of its images can be used"):
        read_voc(devkit, "trainval", bad="skip")


def test_the_log_counts_and_names_the_first(devkit, capsys):
    for name in "abc":
        annotate(devkit, name, xml(("cup", 0, 9, 5, 8, 30), ("bus", 0, 1, 1, 9, 9)))
    assert [len(p.instances) for p in read_voc(devkit, "trainval", bad="skip").pictures] == [1, 1, 1]
    assert "boxes with no area: 3, e.g. a.xml, b.xml, c.xml" in capsys.readouterr().err


def test_a_box_over_the_edge_is_clipped_and_said(devkit, capsys):
    annotate(devkit, "a", xml(("cup", 0, -4, 5, 70, 30), ("cup", 0, 0, 1, 61, 40)))
    assert boxes(read_voc(devkit, "trainval"))[0] == [(0, 4, 60, 30), (0, 0, 60, 40)]
    log = capsys.readouterr().err
    assert "boxes that reached over the image's edge, clipped: 1, e.g. a.xml" in log  # a pixel more is rounding


def test_images_of_other_formats_are_found(devkit):
    folder = devkit / "VOCdevkit/VOC2007/JPEGImages"
    for name, ending in (("a", "png"), ("b", "JPEG")):
        (folder / f"{name}.jpg").unlink()
        Image.new("RGB", SIZE).save(folder / f"{name}.{ending}")
    Image.new("RGB", (9, 9)).save(folder / "c.png")
    split = whole_images(read_voc(devkit, "trainval"), bad="error")
    assert split.source.paths == ("a.png", "b.JPEG", "c.jpg"), "of two, VOC's own"


def torn(devkit) -> None:
    """Image b of the devkit has a valid header, but its pixels end halfway."""
    file = devkit / "VOCdevkit/VOC2007/JPEGImages/b.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (*reversed(SIZE), 3), np.uint8)
    Image.fromarray(pixels).save(file)
    file.write_bytes(file.read_bytes()[:-400])


def other_size(devkit) -> None:
    annotate(devkit, "b", xml(("cup", 0, 3, 5, 20, 30), size=(61, 40)))


@pytest.mark.parametrize("spoil", [torn, other_size])
def test_images_that_an_engine_would_stop_at_are_found_before(devkit, monkeypatch, capsys, spoil):
    spoil(devkit)
    monkeypatch.setattr(faults, "HEADERS", 0)  # the sample did not hold it
    split = read_voc(devkit, "trainval")
    assert len(split) == 3 and split.left_out == ()
    words = "images that cannot be decoded, or not to the size in their annotation: 1, e.g. b.jpg"
    with pytest.raises(DataError, match=re.escape(words) + ".*bad=skip"):
        whole_images(split, bad="error")
    capsys.readouterr()
    kept = whole_images(split, bad="skip")
    assert [p.id for p in kept.pictures] == ["a", "c"] and kept.left_out == (words,)
    assert f"left out: {words}" in capsys.readouterr().err
    assert whole_images(kept, bad="error").pictures == kept.pictures


def test_whatever_is_left_out_is_remembered_and_the_rest_is_not_the_published_data(devkit, monkeypatch):
    annotate(devkit, "b", xml(("cup", 0, 9, 5, 8, 30), ("cup", 0, 3, 5, 20, 30)))
    info = catalogue.info("voc").model_copy(update={"counts": {"trainval": 3, "classes": 2}})
    monkeypatch.setattr(catalogue, "info", lambda _name: info)
    split = read_voc(devkit, "trainval", bad="skip")
    assert len(split) == 3 and split.left_out == ("boxes with no area: 1, e.g. b.xml",)
    assert not catalogue.is_published("voc", {"train": split})
    annotate(devkit, "b", xml(("cup", 0, 3, 5, 20, 30)))
    assert catalogue.is_published("voc", {"train": read_voc(devkit, "trainval", bad="skip")})


def test_one_misfit_of_the_sample_leads_to_a_look_at_all(devkit, monkeypatch):
    for name in "abc":
        annotate(devkit, name, xml(("cup", 0, 3, 5, 20, 30), size=(61, 40)))
    monkeypatch.setattr(faults, "HEADERS", 1)
    with pytest.raises(DataError, match="none of its images can be used"):
        read_voc(devkit, "trainval", bad="skip")


def test_the_manifest_sees_boxes_and_difficulty(devkit):
    seen = {read_voc(devkit, "trainval").manifest_sha256()}
    for item in (("cup", 1, 3, 5, 20, 30), ("cup", 0, 3, 5, 20, 31), ("bus", 0, 3, 5, 20, 30)):
        annotate(devkit, "a", xml(item))
        seen.add(read_voc(devkit, "trainval").manifest_sha256())
    assert len(seen) == 4


def check_voc(root: Path, split: DetectionSplit) -> int:
    """Return every object of every XML, in the order of the list."""
    folder = voc.year_folder(root)
    ids = (folder / "ImageSets/Main" / f"{split.split}.txt").read_text().split()
    assert [p.id for p in split.pictures] == ids
    objects = 0
    for i, picture in enumerate(split.pictures):
        stated = voc.annotation(folder / "Annotations" / f"{picture.id}.xml")
        assert Image.open(split.file(i)).size == (picture.width, picture.height)
        for item, theirs in zip(picture.instances, stated.objects, strict=True):
            assert (split.classes[item.label], item.difficult) == (theirs.name, theirs.difficult)
            assert (item.box[0] + 1, item.box[1] + 1, *item.box[2:]) == theirs.box
        objects += len(picture.instances)
    return objects


def test_the_demos_voc():
    root = demo.root() / "voc"
    assert {check_voc(root, whole_images(read_voc(root, s), bad="error")) > 100 for s in ("trainval", "test")} == {True}


def test_real_voc(real_data, capsys):
    counts = {s: check_voc(real_data / "voc", read_voc(real_data / "voc", s)) for s in ("trainval", "test")}
    assert counts == {"trainval": 1099, "test": 1051}
    assert capsys.readouterr().err == "", "nothing is wrong with official annotations"


# ---------------------------------------------------------------- COCO

SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
RUNS = {"size": [40, 60], "counts": [100, 200, 2100]}


def thing(number: int, image: int, category: int = 90, box=(10, 10, 20, 20), mask=SQUARE, **more) -> dict:
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "segmentation": mask} | more


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    for number in (7, 30, 2, 4):
        Image.new("RGB", SIZE).save(tmp_path / f"val2017/{number:03d}.jpg")
    annotations = [
        *(thing(1, 30), thing(2, 30, 5, box=(0.5, 1.5, 59.6, 38.5)), thing(3, 2, mask=RUNS, iscrowd=1)),
        thing(4, 4, 5, mask={"size": [40, 60], "counts": "T3X6dQ2"}),
    ]
    write(tmp_path, annotations)
    return tmp_path


def write(root: Path, annotations: list[dict], *, change: dict | None = None) -> None:
    images = [{"id": n, "file_name": f"{n:03d}.jpg", "width": 60, "height": 40} for n in (30, 2, 7, 4)]
    images[1] |= change or {}
    categories = [{"id": 90, "name": "cup"}, {"id": 5, "name": "bus"}]
    record = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_val2017.json").write_text(json.dumps(record))


def test_coco_in_one_form(coco):
    split = read_coco(coco, "val2017")
    assert split.classes == ("bus", "cup"), "ids 5 and 90 are rows 0 and 1"
    assert [p.id for p in split.pictures] == ["2", "4", "7", "30"]
    assert [len(p.instances) for p in split.pictures] == [1, 1, 0, 2], "an image without objects is evaluated"
    assert boxes(split)[3] == [(10, 10, 30, 30), (0.5, 1.5, 60, 40)]
    assert [o.label for o in split.pictures[3].instances] == [1, 0]
    crowd = split.pictures[0].instances[0]
    assert (crowd.crowd, crowd.mask) == (True, RUNS)
    assert split.pictures[3].instances[0].mask == SQUARE
    assert split.annotations == coco / "annotations/instances_val2017.json"


def test_the_manifest_sees_masks_areas_and_sizes(coco):
    things = [
        thing(1, 30),
        thing(1, 30, mask=[[*SQUARE[0][:-1], 29.5]]),
        thing(1, 30, mask=[*SQUARE, *SQUARE]),
        thing(1, 30, mask=RUNS),
        thing(1, 30, mask={**RUNS, "counts": [101, 199, 2100]}),
        thing(1, 30, mask=None),
        thing(1, 30, area=400),
    ]
    seen = []
    for one in things:
        write(coco, [one])
        seen.append(read_coco(coco, "val2017").manifest_sha256())
    write(coco, things[:1])
    split = read_coco(coco, "val2017")
    assert split.manifest_sha256() == seen[0]
    wider = tuple(dataclasses.replace(p, width=61) for p in split.pictures)
    seen.append(dataclasses.replace(split, pictures=wider).manifest_sha256())
    assert len(set(seen)) == 8


def test_training_leaves_out_what_has_nothing_to_learn(coco, capsys):
    split = read_coco(coco, "val2017")
    whole = split.manifest_sha256()
    kept = trainable(split)
    assert [p.id for p in kept.pictures] == ["4", "30"]
    assert kept.source.paths == ("004.jpg", "030.jpg")
    assert "left out of training, images without an object: 2, e.g. 002.jpg, 007.jpg" in capsys.readouterr().err
    assert kept.manifest_sha256() != whole == split.manifest_sha256()
    assert trainable(kept) is kept


def test_a_split_with_nothing_to_learn_is_an_error(coco):
    write(coco, [thing(3, 2, mask=RUNS, iscrowd=1)])
    with pytest.raises(DataError, match="coco val2017: no image has an object to train on"):
        trainable(read_coco(coco, "val2017"))


BAD_COCO = {
    "no area": (thing(9, 7, box=(10, 10, 0, 20)), "boxes with no area: 1, e.g. annotation 9 of 007.jpg", 0),
    "turned": (thing(9, 7, box=(10, 10, 5, -20)), "boxes with no area", 0),
    "not numbers": (thing(9, 7, box=("a", 1, 2, 3)), "boxes that are not four numbers", 0),
    "three": (thing(9, 7, box=(1, 2, 3)), "boxes that are not four numbers", 0),
    "huge": (thing(9, 7, box=(1, 2, 10**400, 3)), "boxes that are not four numbers", 0),
    "infinite": (thing(9, 7, box=(1, 2, float("inf"), 3)), "boxes that are not four numbers", 0),
    "outside": (thing(9, 7, box=(60, 10, 5, 5)), "boxes outside their image: 1, e.g. annotation 9 of 007.jpg", 0),
    "polygon": (
        thing(9, 7, mask=[[1, 2, 3, 4]]),
        "polygons with fewer than three points, or with points far outside their image",
        0,
    ),
    "odd": (
        thing(9, 7, mask=[[1, 2, 3, 4, 5, 6, 7]]),
        "polygons with fewer than three points, or with points far outside their image",
        0,
    ),
    "one of two": (
        thing(9, 7, mask=[[1, 2], *SQUARE]),
        "polygons with fewer than three points, or with points far outside their image",
        1,
    ),
    "words": (
        thing(9, 7, mask=[["a"] * 6]),
        "polygons with fewer than three points, or with points far outside their image",
        0,
    ),
    "no list": (
        thing(9, 7, mask=3),
        "polygons with fewer than three points, or with points far outside their image",
        0,
    ),
    "far away": (
        thing(9, 7, mask=[[10, 10, 30, 10, 30, 1e9]]),
        "polygons with fewer than three points, or with points far outside their image",
        0,
    ),
    "parts of pixels": (thing(9, 7, mask=RUNS | {"counts": [100.5, 199.5, 2100]}), "run-length masks that do not", 0),
    "runs' size": (thing(9, 7, mask=RUNS | {"size": [60, 40]}), "run-length masks that do not fill their image", 0),
    "runs' sum": (thing(9, 7, mask=RUNS | {"counts": [1, 2, 3]}), "run-length masks that do not fill their image", 0),
    "no packed runs": (thing(9, 7, mask=RUNS | {"counts": "packed"}), "run-length masks that do not fill their", 0),
    "packed runs' sum": (thing(9, 7, mask=RUNS | {"counts": "T3X6dQ1"}), "run-length masks that do not fill their", 0),
    "cut runs": (thing(9, 7, mask=RUNS | {"counts": "T3X6dQ"}), "run-length masks that do not fill their image", 0),
    "crowd 2": (thing(9, 7, iscrowd=2), "objects whose iscrowd is neither 0 nor 1: 1, e.g. annotation 9", 0),
    "crowd -1": (thing(9, 7, iscrowd=-1), "objects whose iscrowd is neither 0 nor 1", 0),
    "crowd in words": (thing(9, 7, iscrowd="0"), "objects whose iscrowd is neither 0 nor 1", 0),
    "crowd nan": (thing(9, 7, iscrowd=float("nan")), "objects whose iscrowd is neither 0 nor 1", 0),
    "crowd's list": (thing(9, 7, iscrowd=[0]), "objects whose iscrowd is neither 0 nor 1", 0),
    "truth values": (thing(9, 7, box=(True, 1, 5, 5)), "boxes that are not four numbers", 0),
    "nested": (thing(9, 7, box=([1], 1, 5, 5)), "boxes that are not four numbers", 0),
    "crowd's runs": (thing(9, 7, mask={"size": [40, 60]}, iscrowd=1), "run-length masks that do not", 0),
}


@pytest.mark.parametrize("seed", range(20))
def test_packed_runs_are_those_that_pycocotools_packed(seed):
    rng = np.random.default_rng(seed)
    pixels = rng.random(tuple(rng.integers(1, 90, 2))) < rng.random() ** 2
    pixels |= bool(seed % 2) & (np.add.outer(*map(np.arange, pixels.shape)) > 30)
    flat = np.append(False, pixels.T.reshape(-1))  # column by column, background first
    expected = np.diff(np.append(np.flatnonzero(np.diff(flat)), pixels.size), prepend=0).tolist()
    packed = mask_tools.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
    assert unpacked(packed) == expected


@pytest.mark.parametrize(("annotation", "words", "left"), BAD_COCO.values(), ids=BAD_COCO)
def test_bad_coco_annotations(coco, annotation, words, left, capsys):
    write(coco, [thing(1, 30), annotation])
    with pytest.raises(DataError) as error:
        read_coco(coco, "val2017")
    assert "instances_val2017.json: " + words in str(error.value)
    assert str(error.value).endswith("or leave them out with bad=skip")
    capsys.readouterr()
    split = read_coco(coco, "val2017", bad="skip")
    assert [len(p.instances) for p in split.pictures] == [0, 0, left, 1]
    assert f"left out: {words}" in capsys.readouterr().err
    if left:
        assert split.pictures[2].instances[0].mask == SQUARE


@pytest.mark.parametrize(
    "change",
    [
        {"width": 40, "height": 60},
        {"width": 0},
        {"height": None},
        {"width": "60"},
        {"width": 60.5},
        {"width": True},
        {"width": -60},
        {"height": float("nan")},
        {"width": 10**9},
        {"width": 10**400},
        {"width": [60]},
    ],
)
def test_sizes_that_the_pictures_contradict(coco, change):
    write(coco, [thing(1, 30, box=(1, 1, 2, 2)), thing(2, 2, box=(1, 1, 2, 2))], change=change)
    with pytest.raises(DataError, match=r"not of the size in their annotation: 1, e\.g\. 002\.jpg"):
        read_coco(coco, "val2017")
    assert [p.id for p in read_coco(coco, "val2017", bad="skip").pictures] == ["4", "7", "30"]


@pytest.mark.parametrize(("stated", "crowd"), [(0, 0), (1, 1), (False, 0), (True, 1), (1.0, 1), (None, 0)])
def test_iscrowd_in_all_its_spellings(coco, stated, crowd):
    write(coco, [thing(1, 30), thing(9, 7, iscrowd=stated)])
    split = read_coco(coco, "val2017")
    assert split.pictures[2].instances[0].crowd == crowd
    nulls = {key: count for key, count in split.repaired.items() if "iscrowd" in key}
    assert nulls == ({"objects whose iscrowd is null, read as 0": 1} if stated is None else {})


@pytest.mark.parametrize("name", ["/etc/hostname", "../elsewhere/x.jpg", "deep/../../elsewhere/x.jpg", "..", "/"])
def test_nothing_outside_the_folder_is_read(coco, name):
    (coco / "elsewhere").mkdir()
    (coco / "val2017/deep").mkdir()
    Image.new("RGB", SIZE).save(coco / "elsewhere/x.jpg")
    write(coco, [thing(1, 30)], change={"file_name": name})
    with pytest.raises(DataError, match=f"file names that lead out of the folder: 1, e.g. {re.escape(name)}"):
        read_coco(coco, "val2017")
    assert [p.id for p in read_coco(coco, "val2017", bad="skip").pictures] == ["4", "7", "30"]


@pytest.mark.parametrize("name", ["030.jpg", "./030.jpg"])
def test_an_image_that_is_listed_twice(coco, name):
    write(coco, [thing(1, 30), thing(2, 4)], change={"file_name": name})
    with pytest.raises(DataError, match=r"images that are listed twice: 2, e\.g\. .*030\.jpg"):
        read_coco(coco, "val2017")
    assert [p.id for p in read_coco(coco, "val2017", bad="skip").pictures] == ["4", "7"]


def test_categories_of_one_name_are_kept_apart_and_said(coco, capsys):
    write(coco, [thing(1, 30), thing(2, 4, 5)])
    file = coco / "annotations/instances_val2017.json"
    file.write_text(file.read_text().replace('"bus"', '"cup"'))
    split = read_coco(coco, "val2017")
    assert split.classes == ("cup", "cup") and split.repaired["categories with the same name, kept separate"] == 1
    assert "categories with the same name, kept separate: 1, e.g. 'cup' (ids 5, 90)" in capsys.readouterr().err


def test_sizes_written_as_floats_are_sizes(coco):
    write(coco, [thing(1, 2)], change={"width": 60.0, "height": 40.0})
    picture = read_coco(coco, "val2017", masks=True).pictures[0]
    assert (picture.width, picture.height) == (60, 40) and isinstance(picture.width, int)


def test_coco_images_that_are_missing(coco):
    (coco / "val2017/030.jpg").unlink()
    with pytest.raises(DataError, match=r"images that are not in the folder: 1, e\.g\. 030\.jpg"):
        read_coco(coco, "val2017")
    assert [p.id for p in read_coco(coco, "val2017", bad="skip").pictures] == ["2", "4", "7"]


def test_images_in_folders_below(coco):
    (coco / "val2017/deep").mkdir()
    Image.new("RGB", SIZE).save(coco / "val2017/deep/x.jpg")
    write(coco, [thing(1, 2)], change={"file_name": "deep/x.jpg"})
    assert read_coco(coco, "val2017").source.paths[0] == "deep/x.jpg"
    write(coco, [thing(1, 2)], change={"file_name": "deep/y.jpg"})
    with pytest.raises(DataError, match=r"not in the folder: 1, e\.g\. deep/y\.jpg"):
        read_coco(coco, "val2017")


@pytest.mark.parametrize("change", [{"image_id": 99}, {"category_id": 6}])
def test_annotations_of_unknown_images_and_categories(coco, change, capsys):
    words = f"annotations whose {next(iter(change))} is unknown: 1, e.g. annotation 9"
    write(coco, [thing(1, 30), thing(9, 2) | change])
    with pytest.raises(DataError, match=re.escape(words)):
        read_coco(coco, "val2017")
    split = read_coco(coco, "val2017", bad="skip")
    assert [len(p.instances) for p in split.pictures] == [0, 0, 0, 1]
    assert f"left out: {words}" in capsys.readouterr().err
    found = [Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))] * 4
    assert coco_eval.evaluate(split, found)["box_AP"] == 0, "and the metric does without them too"


def test_masks_are_asked_for_only_where_they_are_needed(coco):
    write(coco, [thing(1, 30), thing(2, 30, mask=[])])
    assert [o.mask for o in read_coco(coco, "val2017").pictures[3].instances] == [SQUARE, None]
    with pytest.raises(DataError, match=r"objects without a mask: 1, e\.g\. annotation 2 of 030\.jpg"):
        read_coco(coco, "val2017", masks=True)
    assert len(read_coco(coco, "val2017", masks=True, bad="skip").pictures[3].instances) == 1


def test_the_metric_asks_for_the_objects_that_were_read(coco):
    """One of two cups has no mask: with masks only the other one counts, also as a box."""
    write(coco, [thing(1, 30), thing(2, 30, box=(0, 0, 8, 8), mask=[])])
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), [])
    mask = mask_tools.encode(np.asfortranarray(np.pad(np.ones((20, 20), np.uint8), ((10, 10), (10, 30)))))
    one = Detections(np.array([[10, 10, 30, 30]], np.float32), np.ones(1, np.float32), np.ones(1, np.int64), [mask])
    found = [empty, empty, empty, one]
    split = read_coco(coco, "val2017", masks=True, bad="skip")
    assert split.left_out == ("objects without a mask: 1, e.g. annotation 2 of 030.jpg",)
    scores = coco_eval.evaluate(split, found, masks=True)
    assert scores["box_AP"] == scores["mask_AP"] == pytest.approx(100)
    assert coco_eval.evaluate(read_coco(coco, "val2017"), found)["box_AP"] < 60


def test_the_two_flat_boxes_of_the_official_file_are_no_error(coco, capsys):
    Image.new("RGB", SIZE).save(coco / "val2017/002.jpg")
    write(coco, [thing(918, 200365, box=(9, 9, 1, 0)), thing(1, 30)], change={"id": 200365})
    split = read_coco(coco, "val2017")
    assert [(p.id, len(p.instances)) for p in split.pictures][-1] == ("200365", 0)
    assert "boxes with no area: 1, e.g. annotation 918" in capsys.readouterr().err


def check_coco(root: Path, split: DetectionSplit) -> tuple[int, int]:
    """Objects and crowds as pycocotools reads them."""
    theirs = COCO(str(split.annotations))
    categories = sorted(theirs.getCatIds())
    assert [p.id for p in split.pictures] == [str(i) for i in sorted(theirs.getImgIds())]
    crowds = 0
    for picture in split.pictures:
        expected = theirs.loadAnns(theirs.getAnnIds(imgIds=int(picture.id)))
        for item, a in zip(picture.instances, expected, strict=True):
            x, y, w, h = a["bbox"]
            assert item.box == pytest.approx((x, y, x + w, y + h), abs=1)
            assert (categories[item.label], item.crowd, item.mask) == (
                a["category_id"],
                a["iscrowd"],
                a["segmentation"],
            )
            crowds += item.crowd
    return sum(len(p.instances) for p in split.pictures), crowds


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_the_demos_coco(split, capsys):
    found = whole_images(read_coco(demo.root() / "coco", split, masks=True), bad="error")
    assert found.classes == render.CLASSES
    assert check_coco(demo.root() / "coco", found)[0] > 100


def test_real_coco(real_data, capsys):
    found = {
        s: whole_images(read_coco(real_data / "coco", s, masks=True), bad="error") for s in ("train2017", "val2017")
    }
    assert capsys.readouterr().err == "", "nothing is wrong with official annotations"
    counts = {s: check_coco(real_data / "coco", split) for s, split in found.items()}
    assert counts == {"train2017": (1362, 14), "val2017": (651, 8)}
