"""Layouts of the field's data sets, built in small: labels and order are torchvision's; lists that do not fit are refused."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as published
from PIL import Image
from scipy.io import savemat

from backbench.data import catalogue, doctor, layouts
from backbench.data.catalogue import DataPlaces
from backbench.data.layouts import (
    birdsnap,
    caltech101,
    cifar,
    eurosat,
    oxford_pets,
    stanford_cars,
    sun397,
)
from backbench.errors import DataError
from benchmarks import plan


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (len(path.name), 0, 9)).save(path)
    return path


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def names_of(split) -> list[str]:
    files = getattr(split.source, "source", split.source)  # of a part of the split
    return [str(files.root / split.source.name(i)) for i in range(len(split))]


# ---------------------------------------------------------------- each in small; classes and images in no order


def make_food101(root):
    parts = {
        "train": {"sushi": ["sushi/3", "sushi/1"], "cake": ["cake/2"]},
        "test": {"cake": ["cake/9"], "sushi": ["sushi/7"]},
    }
    for split, images in parts.items():
        (root / "food-101/meta").mkdir(parents=True, exist_ok=True)
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(images))
        for image in itertools.chain(*images.values()):
            picture(root / f"food-101/images/{image}.jpg")


def make_dtd(root, inner="dtd/dtd"):
    parts = {
        "train": ("dotted/b.jpg", "banded/a.jpg"),
        "val": ("banded/c.jpg", "dotted/d.jpg"),
        "test": ("dotted/e.jpg", "banded/f.jpg"),
    }
    for split, images in parts.items():
        write(root / inner / f"labels/{split}1.txt", *images)
        for image in images:
            picture(root / inner / "images" / image)


def make_fgvc_aircraft(root):
    data = root / "fgvc-aircraft-2013b/data"
    write(data / "variants.txt", "Boeing 707", "A310")
    parts = {"train": ("3 A310", "1 Boeing 707"), "val": ("2 Boeing 707",), "test": ("5 A310", "4 Boeing 707")}
    parts["trainval"] = ("1 Boeing 707", "2 Boeing 707", "3 A310")
    for split, rows in parts.items():
        write(data / f"images_variant_{split}.txt", *rows)
        for row in rows:
            picture(data / f"images/{row.partition(' ')[0]}.jpg")


def make_oxford_pets(root, inner="oxford-iiit-pet"):
    parts = {
        "trainval": ("pug_2 2 2 1", "Bengal_cat_10 1 1 1", "pug_1 2 2 1"),
        "test": ("Bengal_cat_7 1 1 1", "pug_9 2 2 1"),
    }
    for split, rows in parts.items():
        write(root / inner / f"annotations/{split}.txt", *rows)
        for row in rows:
            picture(root / inner / f"images/{row.partition(' ')[0]}.jpg")


def make_oxford_flowers(root, inner="flowers-102"):
    (root / inner).mkdir(parents=True)
    savemat(root / inner / "imagelabels.mat", {"labels": np.array([[2, 1, 2, 1, 3, 3]], np.uint8)})
    ids = {"trnid": [3, 2], "valid": [1, 5], "tstid": [6, 4]}
    savemat(root / inner / "setid.mat", {name: np.array([rows], np.uint16) for name, rows in ids.items()})
    for number in range(1, 7):
        picture(root / inner / f"jpg/image_{number:05d}.jpg")


def make_stanford_cars(root):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["Audi A3", "BMW X1", "Fiat 500"], object)})
    parts = {"devkit/cars_train_annos.mat": ("cars_train", [(3, "00001.jpg"), (1, "00002.jpg")]),
             "cars_test_annos_withlabels.mat": ("cars_test", [(2, "00002.jpg"), (1, "00001.jpg")])}  # fmt: skip
    for file, (images, rows) in parts.items():
        fields = [("bbox_x1", object), ("class", object), ("fname", object)]
        savemat(folder / file, {"annotations": np.array([(1, label, name) for label, name in rows], fields)})
        for _, name in rows:
            picture(folder / images / name)


def make_sun397(root):
    write(root / "SUN397/ClassName.txt", "/b/bar", "/a/abbey", "/a/art/outdoor")
    images = ("/a/art/outdoor/sun_1.jpg", "/b/bar/sun_2.jpg", "/a/abbey/sun_3.jpg")
    write(root / "SUN397/Training_01.txt", *images)
    write(root / "SUN397/Testing_01.txt", "/b/bar/sun_4.jpg")
    for image in (*images, "/b/bar/sun_4.jpg"):
        picture(root / f"SUN397{image}")


def make_caltech101(root):
    parts = {"train": ("BACKGROUND_Google/image_0002.jpg 0", "ant/image_0001.jpg 1", "bass/image_0001.jpg 2"),
             "test": ("bass/image_0002.jpg 2", "BACKGROUND_Google/image_0001.jpg 0")}  # fmt: skip
    for split, rows in parts.items():
        write(root / f"caltech101/{split}.txt", *rows)
        for row in rows:
            picture(root / f"caltech101/101_ObjectCategories/{row.partition(' ')[0]}")


def make_eurosat(root):
    parts = {
        "train": ("River_2.jpg", "Forest_1.jpg"),
        "val": ("Forest_2.jpg",),
        "test": ("Forest_3.jpg", "River_1.jpg"),
    }
    for split, images in parts.items():
        write(root / f"eurosat/eurosat-{split}.txt", *images)
        for image in images:
            picture(root / f"eurosat/2750/{image.partition('_')[0]}/{image}")


def make_birdsnap(root):
    folder = root / "birdsnap"
    write(folder / "species.txt", "id\tcommon\tscientific\tdir", "2\tBlue Jay\tC. c.\tBlue_Jay", "1\tWren\tT. a.\tWren")
    rows = ("Wren/1.jpg\t1", "Blue_Jay/2.jpg\t2", "Wren/3.jpg\t1", "Blue_Jay/4.jpg\t2")
    write(folder / "images.txt", "url\tmd5\tpath\tspecies_id", *(f"http://x\tabc\t{row}" for row in rows))
    write(folder / "test_images.txt", "path", "Wren/3.jpg")
    for name in ("Wren/1", "Blue_Jay/2", "Wren/3"):  # the fourth address is gone
        picture(folder / f"download/images/{name}.jpg")


def make_cifar10(root, *, per_file=2):
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        values = {
            "data": rng.integers(0, 256, (per_file, 3072), np.uint8),
            "labels": rng.integers(10, size=per_file).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(values, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}, protocol=2))


def make_cifar100(root):
    rng = np.random.default_rng(1)
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        values = {
            "data": rng.integers(0, 256, (5, 3072), np.uint8),
            "fine_labels": [7, 0, 99, 3, 3],
            "coarse_labels": [1] * 5,
        }
        (folder / name).write_bytes(pickle.dumps(values))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))


MAKE = {name.removeprefix("make_"): make for name, make in globals().items() if name.startswith("make_")}
SPLITS = {  # layout -> (train, test); with a published validation part: the number of its images
    **dict.fromkeys(("food101", "sun397", "caltech101", "stanford_cars", "birdsnap"), ("train", "test", None)),
    "dtd": ("trainval", "test", 2), "fgvc_aircraft": ("trainval", "test", 1), "oxford_flowers": ("trainval", "test", 2),
    "eurosat": ("trainval", "test", 1), "oxford_pets": ("trainval", "test", None),
}  # fmt: skip
INNER = {"dtd": "dtd", "eurosat": "eurosat"}  # torchvision puts these a folder deeper


@pytest.fixture
def made(tmp_path):
    def make(layout):
        MAKE[layout](tmp_path)
        return tmp_path / INNER.get(layout, "")

    return make


@pytest.mark.parametrize("layout", SPLITS)
def test_a_layout_is_recognised_and_read(layout, made):
    root = made(layout)
    train, test, marked = SPLITS[layout]
    assert layouts.recognise(root) == (layout, train, test)
    parts = [layouts.get(layout).read(root, split) for split in (train, test)]
    assert parts[0].classes == parts[1].classes and len(set(parts[0].classes)) == len(parts[0].classes) > 1
    assert {label for part in parts for label in part.labels.tolist()} <= set(range(len(parts[0].classes)))
    for part in parts:
        assert all(Path(name).is_file() for name in names_of(part))
        assert part.source.pil(0).size == (6, 4) and part.labels.dtype == np.int64
    assert parts[1].validation is None
    assert (None if parts[0].validation is None else parts[0].validation.sum()) == marked
    assert not set(names_of(parts[0])) & set(names_of(parts[1]))


@pytest.mark.parametrize("layout", ["dtd", "fgvc_aircraft", "oxford_flowers", "eurosat"])
def test_the_validation_part_of_trainval_is_val(layout, made):
    root, module = made(layout), layouts.get(layout)
    whole, val, train = (module.read(root, split) for split in ("trainval", "val", "train"))
    rows = np.flatnonzero(whole.validation)
    assert sorted(names_of(whole.part(rows))) == sorted(names_of(val))
    assert sorted(names_of(whole.part(np.flatnonzero(~whole.validation)))) == sorted(names_of(train))
    by_name = dict(zip(names_of(val), val.labels.tolist(), strict=True))
    assert [by_name[name] for name in names_of(whole.part(rows))] == whole.labels[rows].tolist()
    assert whole.part(rows[:1]).validation.tolist() == [True], "a part of the split keeps the marks"


def pairs(files, labels):
    return list(zip(map(str, files), map(int, labels), strict=True))


THEIRS = {  # (files, labels) and classes of torchvision's data set
    "food101": lambda root, split: published.Food101(root, split),
    "dtd": lambda root, split: published.DTD(root, split),
    "fgvc_aircraft": lambda root, split: published.FGVCAircraft(root, split),
    "oxford_flowers": lambda root, split: published.Flowers102(root, split),
}


@pytest.mark.parametrize(
    ("layout", "split"),
    [
        *(("food101", split) for split in ("train", "test")),
        *((name, split) for name in ("dtd", "oxford_flowers") for split in ("train", "val", "test")),
        *(("fgvc_aircraft", split) for split in ("train", "val", "trainval", "test")),
    ],
)
def test_labels_and_order_are_torchvisions(layout, split, made, tmp_path, monkeypatch):
    monkeypatch.setattr(published.Flowers102, "_check_integrity", lambda self: True)  # of the published bytes
    ours = layouts.get(layout).read(made(layout), split)
    theirs = THEIRS[layout](tmp_path, split)
    assert pairs(names_of(ours), ours.labels) == pairs(theirs._image_files, theirs._labels)
    if layout != "oxford_flowers":  # torchvision adds names that the published files do not have
        assert list(ours.classes) == theirs.classes


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_pets_are_torchvisions(split, made, tmp_path):
    ours, theirs = oxford_pets.read(made("oxford_pets"), split), published.OxfordIIITPet(tmp_path, split)
    assert pairs(names_of(ours), ours.labels) == pairs(theirs._images, theirs._labels)
    assert [name.replace("_", " ").title() for name in ours.classes] == theirs.classes == ["Bengal Cat", "Pug"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_cars_are_torchvisions(split, made, tmp_path):
    ours, theirs = stanford_cars.read(made("stanford_cars"), split), published.StanfordCars(tmp_path, split)
    assert pairs(names_of(ours), ours.labels) == [(str(Path(file)), label) for file, label in theirs._samples]
    assert list(ours.classes) == theirs.classes


def test_the_scenes_have_torchvisions_classes(made, tmp_path):
    theirs = published.SUN397(made("sun397"))
    labels = dict(pairs(theirs._image_files, theirs._labels))
    for split, images in (("train", ["sun_1", "sun_2", "sun_3"]), ("test", ["sun_4"])):
        ours = sun397.read(tmp_path, split)
        assert [Path(name).stem for name in names_of(ours)] == images
        assert pairs(names_of(ours), ours.labels) == [(name, labels[name]) for name in names_of(ours)]
        assert list(ours.classes) == theirs.classes


def test_caltechs_classes_are_torchvisions_and_the_background(made, tmp_path):
    theirs = published.Caltech101(made("caltech101"))
    ours = caltech101.read(tmp_path, "train")
    assert list(ours.classes) == ["BACKGROUND_Google", *theirs.categories]
    assert [ours.classes[label] for label in ours.labels] == ["BACKGROUND_Google", "ant", "bass"]


def test_eurosats_classes_are_torchvisions(made, tmp_path):
    root = made("eurosat")
    theirs = published.EuroSAT(tmp_path)
    labels = dict(theirs.samples)
    for split in ("train", "val", "test", "trainval"):
        ours = eurosat.read(root, split)
        assert pairs(names_of(ours), ours.labels) == [(name, labels[name]) for name in names_of(ours)]
        assert list(ours.classes) == theirs.classes


@pytest.mark.parametrize(("make", "kind"), [("cifar10", published.CIFAR10), ("cifar100", published.CIFAR100)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifars_pictures_are_torchvisions(make, kind, split, tmp_path, monkeypatch):
    MAKE[make](tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # of the published bytes
    ours, theirs = cifar.read(tmp_path, split), kind(tmp_path, train=split == "train")
    assert layouts.recognise(tmp_path) == ("cifar", "train", "test")
    assert ours.labels.tolist() == theirs.targets and list(ours.classes) == theirs.classes
    assert len(ours) == len(theirs) and len({ours.source.name(i) for i in range(len(ours))}) == len(ours)
    for i in range(len(ours)):
        assert np.array_equal(np.asarray(ours.source.pil(i)), theirs.data[i])
        assert np.array_equal(ours.source.rgb(i), theirs.data[i])
        assert ours.source.size(i) == 3072 == len(ours.source.stored(i))


def test_birdsnap_reads_the_images_that_are_left(made):
    root = made("birdsnap")
    train, test = (birdsnap.read(root, split) for split in ("train", "test"))
    assert train.classes == ("Blue_Jay", "Wren") and train.labels.tolist() == [1, 0] and test.labels.tolist() == [1]
    assert [train.source.name(i) for i in range(2)] == ["Wren/1.jpg", "Blue_Jay/2.jpg"]
    assert train.passed_over == {birdsnap.GONE: (1, "Blue_Jay/4.jpg")} and not test.passed_over


# ---------------------------------------------------------------- lists that do not fit


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


BROKEN = [  # layout, split, what is done to the folder, words of the error
    ("food101", "test", lambda r: replaced(r / "food-101/meta/test.json", "cake", "pie"), "class 'pie' is not one of the 2"),
    ("food101", "train", lambda r: (r / "food-101/meta/train.json").write_text("[1]"), "expected .*download the data set"),
    ("food101", "test", lambda r: (r / "food-101/meta/test.json").unlink(), r"test\.json"),
    ("dtd", "val", lambda r: replaced(r / "dtd/labels/val1.txt", "banded/c", "new/c"), "class 'new' is not one of the 2"),
    ("dtd", "trainval", lambda r: replaced(r / "dtd/labels/val1.txt", "banded/c", "banded/a"), "lists of train and of val"),
    ("dtd", "test", lambda r: replaced(r / "dtd/labels/test1.txt", "banded/f.jpg", "../f.jpg"), "not one of the 2|leads out"),
    ("fgvc_aircraft", "test", lambda r: replaced(r / "fgvc-aircraft-2013b/data/images_variant_test.txt", "4 Boeing 707", "4"),
     "'4' has 1 fields, not 2"),
    ("fgvc_aircraft", "train", lambda r: write(r / "fgvc-aircraft-2013b/data/variants.txt", "A310", "A310"), "the same name"),
    ("oxford_pets", "test", lambda r: replaced(r / "oxford-iiit-pet/annotations/test.txt", "pug_9 2", "pug_9 1"),
     "'pug_9' has number 1, its breed 2"),
    ("oxford_pets", "trainval", lambda r: replaced(r / "oxford-iiit-pet/annotations/trainval.txt", "pug_1 2", "pug_1 x"),
     "'x' for the number"),
    ("oxford_flowers", "test", lambda r: savemat(r / "flowers-102/setid.mat", {"tstid": [[7]]}), "numbers from 1 to 6"),
    ("oxford_flowers", "test", lambda r: (r / "flowers-102/imagelabels.mat").write_bytes(b"MATLAB 5.0"), "not a whole MATLAB"),
    ("stanford_cars", "test", lambda r: (r / "stanford_cars/cars_test_annos_withlabels.mat").unlink(), "withlabels"),
    ("stanford_cars", "train", lambda r: savemat(r / "stanford_cars/devkit/cars_meta.mat", {"x": [1, 2]}), "'class_names'"),
    ("sun397", "train", lambda r: (r / "SUN397/Training_01.txt").unlink(), r"Partitions\.zip"),
    ("sun397", "val", lambda r: None, "no split 'val'"),
    ("caltech101", "test", lambda r: (r / "caltech101/test.txt").unlink(), "ssl-transfer"),
    ("caltech101", "test", lambda r: replaced(r / "caltech101/test.txt", "0002.jpg 2", "0002.jpg 1"), "number 1, its class 2"),
    ("eurosat", "test", lambda r: (r / "eurosat/eurosat-test.txt").unlink(), "TorchGeo"),
    ("birdsnap", "train", lambda r: replaced(r / "birdsnap/images.txt", "Wren/1.jpg\t1", "Wren/1.jpg\t7"), "species 7"),
    ("birdsnap", "test", lambda r: (r / "birdsnap/download/images/Wren/3.jpg").unlink(), "none of the 1 test images"),
    ("birdsnap", "test", lambda r: replaced(r / "birdsnap/images.txt", "path", "file"), "no column 'path'"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "split", "change", "words"), BROKEN)
def test_lists_that_do_not_fit_are_refused(layout, split, change, words, tmp_path):
    MAKE[layout](tmp_path)
    root = tmp_path / "dtd" if layout == "dtd" else tmp_path
    change(root)
    with pytest.raises(DataError, match=words):
        layouts.get(layout).read(root, split)


class Gadget:
    def __reduce__(self):
        return (print, ("never",))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (Gadget(), "it asks for __builtin__.print"),
        ([1], "not one of CIFAR's files"),
        ({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}, "no pictures of 3 x 32 x 32"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "a number for each of its 2"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "outside 0 to 9"),
    ],
)
def test_a_pickle_that_is_not_cifars_is_refused(values, words, tmp_path, capsys):
    make_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(values, protocol=2))
    with pytest.raises(DataError, match=words):
        cifar.read(tmp_path, "test")
    assert "never" not in capsys.readouterr().out


def test_a_cut_pickle_is_refused(tmp_path):
    make_cifar10(tmp_path)
    file = tmp_path / "cifar-10-batches-py/data_batch_3"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"data_batch_3: cannot be read .* unpack the archive again"):
        cifar.read(tmp_path, "train")


# ---------------------------------------------------------------- ImageNet's test sets


def test_a_test_set_has_the_classes_of_its_folders(tmp_path):
    """v2's folders are numbers: 2 is before 10; -A's lie in a folder of the archive, beside its README."""
    for name in ("10/b", "2/a", "0/c", "2/d"):
        picture(tmp_path / f"v2/imagenetv2-matched-frequency-format-val/{name}.jpeg")
    found = catalogue.load("imagenet_v2", "test", DataPlaces(tmp_path, {"imagenet_v2": tmp_path / "v2"}))
    assert found.classes == ("0", "2", "10") and found.labels.tolist() == [0, 1, 1, 2]
    for name in ("n01498041/1", "n01440764/2"):
        picture(tmp_path / f"imagenet_a/imagenet-a/{name}.jpg")
    write(tmp_path / "imagenet_a/imagenet-a/README.txt", "x")
    found = catalogue.load("imagenet_a", "test", DataPlaces(tmp_path))
    assert found.classes == ("n01440764", "n01498041") and found.labels.tolist() == [0, 1]
    assert catalogue.load(
        "imagenet_a", "test", DataPlaces(tmp_path / "x", {"imagenet_a": tmp_path / "imagenet_a/imagenet-a"})
    )


def test_real_labels_are_those_of_the_images_numbers(tmp_path):
    for number, name in ((3, "n01"), (1, "n02"), (2, "n01")):
        picture(tmp_path / f"val/{name}/ILSVRC2012_val_{number:08d}.JPEG")
    (tmp_path / "real.json").write_text("[[1], [], [0, 1]]")
    places = DataPlaces(None, {"imagenet_real": tmp_path})
    found = catalogue.load("imagenet_real", "test", places)
    by_name = {found.source.name(i)[-8:-5]: found.labels[i].tolist() for i in range(3)}
    assert by_name == {"001": [-1, 1], "002": [-1, -1], "003": [1, 1]} and found.classes == ("n01", "n02")
    for text, words in (
        ("[[1], []]", "2 entries, none for"),
        ("[[1], [], [2]]", "class 2 of 2"),
        ("{}", "a list of lists"),
    ):
        (tmp_path / "real.json").write_text(text)
        with pytest.raises(DataError, match=words):
            catalogue.load("imagenet_real", "test", places)


def test_test_sets_make_no_cells_and_have_no_training_split(tmp_path):
    picture(tmp_path / "imagenet_r/n01/1.jpg")
    with pytest.raises(DataError, match="'imagenet_r' is a test set: it has no split to learn from"):
        catalogue.load("imagenet_r", "train", DataPlaces(tmp_path))
    assert not [
        name for name in plan.cell_names() if name.startswith(("imagenet_r_", "imagenet_v2_", "imagenet_real_"))
    ]
    report = doctor.examine("imagenet_r", DataPlaces(tmp_path))
    assert report.state == "present" and not report.is_published and not report.problems
    assert "imagenet_r layout, 1 images" in report.warnings[0]
