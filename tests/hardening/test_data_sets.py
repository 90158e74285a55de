"""Changes that tools and disks make to data sets: the number of scikit-learn, a remark in the record, or one sentence."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.data.layouts import coco
from backbench.data.overlap import in_both
from backbench.errors import DataError
from benchmarks.measuring import measure, prepare
from benchmarks.options import CellOptions
from benchmarks.plan import load_cell
from model_zoo.load import load
from transfer.detection.annotations.layouts import read_coco
from transfer.protocol import RunContext

pytestmark = pytest.mark.timeout(120)


def picture(path: Path, seed: int, **fields: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (36, 36, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG", **fields)


@pytest.fixture
def folder(tmp_path):
    """Write `train` and `val` with two classes."""
    for k, split in enumerate(("train", "val")):
        for j, name in enumerate(("ant", "bee")):
            for i in range(6):
                picture(tmp_path / f"data/{split}/{name}/{split}{i}.png", 100 * k + 10 * j + i)
    return tmp_path / "data"


@pytest.fixture
def voc(tmp_path):
    """Write eight images per split, two classes."""
    root = tmp_path / "voc"
    for k, split in enumerate(("trainval", "test")):
        names = [f"{split}{i}" for i in range(8)]
        for i, name in enumerate(names):
            picture(root / f"JPEGImages/{name}.png", 100 * k + i)
        lists = root / "ImageSets/Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(names))
        for j, label in enumerate(("cat", "dog")):
            rows = [f"{name} {1 if i % 2 == j else -1}" for i, name in enumerate(names)]
            (lists / f"{label}_{split}.txt").write_text("\n".join(rows))
    return root


def arguments(tmp_path) -> CellOptions:
    return CellOptions(ckpt="random:resnet18", cell="x", workers=0, out=tmp_path / "out")


def record(tmp_path, cell, name, root, *overrides):
    """Return the record of one seed, as `run_one` does."""
    chosen = load_cell(cell, ["data.expect=any", "size=32", *overrides], "full")
    backbone, args = load("random:resnet18", seed=0), arguments(tmp_path)
    splits, planned = prepare(backbone, chosen, 0, DataPlaces(None, {name: root}), args)
    return planned if planned.status != "ok" else measure(planned, backbone, chosen, splits, args)[0]


def svm(tmp_path, root):
    return record(tmp_path, "voc07_svm", "voc", root, "costs=[1.0]", "jobs=1")


def knn(tmp_path, root):
    return record(tmp_path, "imagenet_knn", "imagenet", root, "k=[5]", "headline_k=5")


def rewrite(root, change, pattern="*.txt"):
    for file in sorted((root / "ImageSets/Main").glob(pattern)):
        file.write_bytes(change(file.read_bytes()))


def renamed(root, ending):
    for file in sorted((root / "JPEGImages").iterdir()):
        file.rename(file.with_suffix(ending))


UNCHANGED = {
    "ends of lines of Windows": lambda r: rewrite(r, lambda b: b.replace(b"\n", b"\r\n")),
    "byte order marks": lambda r: rewrite(r, lambda b: b"\xef\xbb\xbf" + b),
    "UTF-16": lambda r: rewrite(r, lambda b: b.decode().encode("utf-16")),
    "tabs": lambda r: rewrite(r, lambda b: b.replace(b" ", b"\t"), "*_*.txt"),
    "endings in capital letters": lambda r: renamed(r, ".PNG"),
    "endings in the lists": lambda r: rewrite(
        r, lambda b: b"\n".join(b" ".join([w[0] + b".png", *w[1:]]) for w in map(bytes.split, b.splitlines()))
    ),
    "lists that a Mac keeps beside": lambda r: (r / "ImageSets/Main/._dog_test.txt").write_bytes(b"\0\5\x16\7"),
    "lists that an editor keeps": lambda r: (r / "ImageSets/Main/.dog_test.txt").write_text("trainval0 1"),
    "backups": lambda r: (r / "ImageSets/Main/dog_test.txt~").write_text("x"),
    "thumbnails": lambda r: picture(r / "JPEGImages/@eaDir/test0.png", 3),
    "hidden images": lambda r: (r / "JPEGImages/._test0.png").write_bytes(b"\0"),
}


@pytest.mark.parametrize("kind", UNCHANGED)
def test_what_tools_do_to_lists_leaves_the_number(voc, tmp_path, kind):
    before = svm(tmp_path, voc)
    UNCHANGED[kind](voc)
    after = svm(tmp_path, voc)
    assert (after.status, after.reason) == ("ok", None)
    assert after.metrics == before.metrics


@pytest.mark.parametrize("classes", [("cat", "dog"), ("dog",)], ids=["of every class", "of one"])
def test_lists_of_0_and_1_are_no_number_of_100(voc, tmp_path, classes):
    """0 means 'difficult objects only': then no negatives would remain."""
    for name in classes:
        rewrite(voc, lambda b: b.replace(b"-1", b"0"), f"{name}_*.txt")
    found = svm(tmp_path, voc)
    assert found.status == "failed"
    assert f"0 in class '{classes[0]}'" in found.reason
    assert "Write -1 where 0 means absent" in found.reason


def val_is_train(root):
    (root / "val").rename(root.parent / "away")
    (root / "val").symlink_to("train")


def test_a_test_split_that_is_the_training_split_is_said_in_the_record(folder, tmp_path):
    assert not knn(tmp_path, folder).task.notes
    val_is_train(folder)
    found = knn(tmp_path, folder)
    assert found.status == "ok"
    assert any("of 12 test images these are training images too: 12" in note for note in found.task.notes)


def test_lists_that_share_images_are_said_in_the_record(voc, tmp_path):
    lists = voc / "ImageSets/Main"
    for file in ("test.txt", "cat_test.txt", "dog_test.txt"):
        extra = (lists / file.replace("test", "trainval")).read_text().splitlines()[0]
        (lists / file).write_text((lists / file).read_text() + "\n" + extra)
    found = svm(tmp_path, voc)
    assert any("of 9 test images these are training images too: 1, e.g. trainval0.png" in n for n in found.task.notes)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_list_and_a_disk_that_write_an_accent_in_two_ways(voc, tmp_path, form):
    accented = unicodedata.normalize(form, "été")
    other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "été")
    (voc / "JPEGImages/trainval0.png").rename(voc / f"JPEGImages/{accented}.png")
    rewrite(voc, lambda b: b.replace(b"trainval0", other.encode()))
    assert "accents written otherwise (Unicode NFC and NFD)" in svm(tmp_path, voc).reason


@pytest.mark.parametrize(("train", "val"), [("zébra", unicodedata.normalize("NFD", "zébra")), ("ant", "Ant")])
def test_class_folders_that_only_look_alike(folder, train, val):
    (folder / "train/ant").rename(folder / "train" / train)
    (folder / "val/ant").rename(folder / "val" / val)
    with pytest.raises(DataError, match="differ only in capital letters, or in how an accent is written"):
        catalogue.load("imagenet", "test", DataPlaces(None, {"imagenet": folder}))


@pytest.mark.parametrize(
    ("cell", "overrides"),
    [
        ("imagenet_knn", ("k=[5]", "headline_k=5", "data.limit=8")),
        ("imagenet_semi10", ("list=drawn", "epochs=1", "batch=2")),
    ],
)
def test_what_is_passed_over_is_in_the_record_of_a_part_too(folder, tmp_path, cell, overrides):
    (folder / "train/ant/Thumbs.db").write_bytes(b"x")
    (folder / "train/ant/.a.png").write_bytes(b"x")
    found = record(tmp_path, cell, "imagenet", folder, *overrides)
    assert found.status == "ok"
    assert sum(found.data.passed_over["train"].values()) == 2


def test_a_training_does_not_go_on_with_other_images(folder, tmp_path):
    """After the kill, an image of the same size replaced another: the manifest is equal, the state is not."""

    def state_file():
        splits = {"train": catalogue.load("imagenet", "train", DataPlaces(None, {"imagenet": folder}))}
        splits["train"].manifest_sha256()
        ctx = RunContext(splits=splits, seed=0, device=torch.device("cpu"), cache=tmp_path / "cache")
        return ctx.resume_file(backbone, config, 1), splits["train"].manifest_sha256()

    backbone, config = load("random:resnet18", seed=0), load_cell("imagenet_linear", [], "full").config
    file, manifest = state_file()
    assert state_file() == (file, manifest)
    image = folder / "train/ant/train0.png"
    data = bytearray(image.read_bytes())
    data[-20] ^= 1
    image.write_bytes(data)
    os.utime(image, ns=(1, 1))
    assert state_file()[1] == manifest
    assert state_file()[0] != file


@pytest.mark.parametrize(("name", "sound"), [("sub/1.png", True), ("sub/../../../1.png", False), ("sub/2.png", False)])
def test_coco_images_in_folders_below_are_read_everywhere(tmp_path, name, sound):
    picture(tmp_path / "train2017/sub/1.png", 1)
    picture(tmp_path / "1.png", 1)
    images = [{"id": 1, "file_name": name, "width": 36, "height": 36}]
    notes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}]
    content = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cup"}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
    if sound:
        assert coco.read(tmp_path, "train2017").labels.tolist() == [[1]]
        return
    with pytest.raises(DataError, match="images that are not in"):
        coco.read(tmp_path, "train2017")


def test_images_of_separate_folders_share_nothing(folder):
    places = DataPlaces(None, {"imagenet": folder})
    train, test = (catalogue.load("imagenet", role, places) for role in ("train", "test"))
    assert in_both(train, test) == []
    assert in_both(train, train.part(np.array([3, 5]))) == [train.source.name(3), train.source.name(5)]


SPOILT = {
    "a web page": (lambda f: f.write_text("<html>404</html>"), "of no known format); fetch it again, or remove it"),
    "nothing": (lambda f: f.write_bytes(b""), "the file is empty; fetch it again, or remove it"),
    "half": (lambda f: f.write_bytes(f.read_bytes()[:900]), "fetch it again, or remove it"),
    "too many pixels": (
        lambda f: Image.new("1", (20000, 12000)).save(f, "PNG"),
        "more pixels than an image may have; make it smaller, or remove it",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_broken_image_is_named_with_what_to_do(folder, tmp_path, kind):
    spoil, words = SPOILT[kind]
    spoil(folder / "val/bee/val3.png")
    found = knn(tmp_path, folder)
    assert found.status == "failed"
    assert "val/bee/val3.png: " in found.reason
    assert found.reason.endswith(words)


BOXES = {
    "shares of the sides": (lambda x, y, w, h: [v / 36 for v in (x, y, w, h)], "lie in the first pixel"),
    "two corners": (lambda x, y, w, h: [x, y, x + w, y + h], "all would fit as two corners"),
    "x, y, width, height": (lambda *box: list(box), None),
}


@pytest.mark.parametrize("kind", BOXES)
def test_boxes_in_another_form_are_no_number(tmp_path, kind):
    change, words = BOXES[kind]
    boxes = [(20, 18, 10, 12), (15, 20, 20, 15), (1, 2, 30, 30), (25, 25, 8, 8)]
    notes = []
    for number, box in enumerate(boxes, start=1):
        picture(tmp_path / f"train2017/{number}.png", number)
        notes.append({"id": number, "image_id": number, "category_id": 1, "bbox": change(*box), "iscrowd": 0})
    images = [{"id": n, "file_name": f"{n}.png", "width": 36, "height": 36} for n in (1, 2, 3, 4)]
    content = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cup"}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
    if words is None:
        assert [p.instances[0].stated for p in read_coco(tmp_path, "train2017").pictures] == boxes
        return
    with pytest.raises(DataError, match=words):
        read_coco(tmp_path, "train2017")
