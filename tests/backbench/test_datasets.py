"""Readers of the layouts, identity of a split, and the embedded demo scenes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from backbench.data import catalogue, demo
from backbench.data.catalogue import DataPlaces, is_published
from backbench.data.decode import CorruptImage
from backbench.data.demo import render, write
from backbench.data.layouts import imagefolder, stl10
from backbench.data.overlap import duplicates
from backbench.data.splits import Files, ImageSplit, Subset
from backbench.errors import ConfigError, DataError

# ---------------------------------------------------------------- image folders


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    write_image(root / "train/cat/b.png", 1)
    write_image(root / "train/cat/a.PNG", 2)
    write_image(root / "train/ant/x/deep/1.png", 3)
    write_image(root / "train/ant/2.bmp", 4)
    write_image(root / "val/cat/1.png", 5)
    write_image(root / "val/ant/1.png", 6)
    return root


def test_labels_follow_the_sorted_class_names(folder):
    split = imagefolder.read(folder, "train")
    assert split.classes == ("ant", "cat")
    labels = {split.source.name(i): int(split.labels[i]) for i in range(len(split))}
    assert labels == {"ant/x/deep/1.png": 0, "ant/2.bmp": 0, "cat/a.PNG": 1, "cat/b.png": 1}
    assert split.labels.dtype == np.int64


def test_the_order_is_the_same_however_the_files_were_made(folder, tmp_path):
    names = [imagefolder.read(folder, "train").source.name(i) for i in range(4)]
    for name in reversed(names):
        write_image(tmp_path / "other" / "train" / name)
    again = imagefolder.read(tmp_path / "other", "train")
    assert [again.source.name(i) for i in range(4)] == names


def test_pixels_and_sizes_belong_to_the_names(folder):
    split = imagefolder.read(folder, "train")
    values = {"cat/b.png": 1, "cat/a.PNG": 2, "ant/x/deep/1.png": 3, "ant/2.bmp": 4}
    for i in range(len(split)):
        name = split.source.name(i)
        for pixels in (split.source.rgb(i), np.asarray(split.source.pil(i))):
            assert pixels.shape == (4, 6, 3)
            assert (pixels == (values[name], 0, 255 - values[name])).all()
        assert split.source.size(i) == (folder / "train" / name).stat().st_size


def test_hidden_and_other_files_are_not_images(folder):
    write_image(folder / "train/cat/.hidden.png")
    write_image(folder / "train/.trash/x.png")
    (folder / "train/cat/notes.txt").write_text("x")
    (folder / "train/README.md").write_text("x")
    split = imagefolder.read(folder, "train")
    assert split.classes == ("ant", "cat")
    assert len(split) == 4


def test_a_hidden_folder_within_a_class_holds_no_images(folder):
    write_image(folder / "train/cat/.ipynb_checkpoints/a-checkpoint.png")
    assert len(imagefolder.read(folder, "train")) == 4


def test_a_class_without_images_is_named(folder):
    for file in (folder / "train/ant").rglob("*.*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(DataError, match=r"1 of 2 class folders hold no image, e\.g\. ant"):
        imagefolder.read(folder, "train")


def test_a_missing_split_names_what_is_there(folder):
    with pytest.raises(DataError, match=r"no folder 'test' in it \(found: train, val\)"):
        imagefolder.read(folder, "test")


def test_images_without_class_folders(tmp_path):
    write_image(tmp_path / "train/1.png")
    with pytest.raises(DataError, match="no class folders"):
        imagefolder.read(tmp_path, "train")


def test_splits_with_different_classes(folder):
    write_image(folder / "val/bee/1.png")
    with pytest.raises(DataError, match=r"different classes; 1 in one only, e\.g\. bee"):
        imagefolder.read(folder, "val")
    write_image(folder / "train/bee/1.png")
    assert imagefolder.read(folder, "val").classes == imagefolder.read(folder, "train").classes == ("ant", "bee", "cat")


def test_an_unreadable_image_is_named(folder):
    (folder / "train/cat/b.png").write_bytes(b"")
    split = imagefolder.read(folder, "train")
    with pytest.raises(CorruptImage, match=r"cat/b\.png: the file is empty"):
        split.source.rgb(3)


def test_subset(folder):
    split = imagefolder.read(folder, "train")
    subset = Subset(split.source, np.array([3, 0]))
    assert len(subset) == 2
    assert [subset.name(i) for i in range(2)] == [split.source.name(3), split.source.name(0)]
    assert subset.size(0) == split.source.size(3)
    assert np.array_equal(subset.rgb(1), split.source.rgb(0))
    assert np.array_equal(np.asarray(subset.pil(0)), split.source.rgb(3))


# ---------------------------------------------------------------- STL-10


def picture(seed: int) -> np.ndarray:
    """(96, 96, 3) without symmetry: rows, columns and channels all differ."""
    y, x = np.mgrid[:96, :96]
    return np.stack([y + seed, 2 * x, np.full_like(x, 10 * seed)], axis=2).astype(np.uint8)


def binary(pictures: list[np.ndarray]) -> bytes:
    """Bytes in the order of the data set's page: red, green, blue planes in turn, each plane column by column."""
    out = bytearray()
    for p in pictures:
        for channel in range(3):
            for column in range(96):
                out += bytes(p[:, column, channel].tolist())
    return bytes(out)


@pytest.fixture
def stl(tmp_path):
    root = tmp_path / "stl10"
    files = root / "stl10_binary"
    files.mkdir(parents=True)
    (files / "train_X.bin").write_bytes(binary([picture(1), picture(2), picture(3)]))
    (files / "train_y.bin").write_bytes(bytes([1, 10, 3]))
    (files / "test_X.bin").write_bytes(binary([picture(4)]))
    (files / "test_y.bin").write_bytes(bytes([2]))
    (files / "unlabeled_X.bin").write_bytes(binary([picture(5), picture(6)]))
    (files / "class_names.txt").write_text("\n".join("abcdefghij") + "\n")
    return root


def test_stl10_pixels_stand_upright(stl):
    split = stl10.read(stl, "train")
    assert len(split) == 3
    for i in range(3):
        assert np.array_equal(split.source.rgb(i), picture(i + 1))
        assert np.array_equal(np.asarray(split.source.pil(i)), picture(i + 1))
        assert split.source.rgb(i).flags["C_CONTIGUOUS"]


def test_stl10_labels_count_from_zero(stl):
    split = stl10.read(stl, "train")
    assert split.labels.tolist() == [0, 9, 2]
    assert split.labels.dtype == np.int64
    assert split.classes == tuple("abcdefghij")
    assert stl10.read(stl, "test").labels.tolist() == [1]


def test_stl10_unlabelled(stl):
    alone = stl10.read(stl, "unlabeled")
    assert alone.labels is None
    both = stl10.read(stl, "train+unlabeled")
    assert both.labels.tolist() == [*stl10.read(stl, "train").labels, *[-1] * len(alone)]
    assert len(both) == 5
    assert np.array_equal(both.source.rgb(2), picture(3))
    assert np.array_equal(both.source.rgb(3), picture(5))


def test_stl10_files_may_lie_in_the_folder_itself(stl):
    assert len(stl10.read(stl / "stl10_binary", "test")) == 1


def test_stl10_without_class_names(stl):
    (stl / "stl10_binary/class_names.txt").unlink()
    assert len(stl10.read(stl, "test").classes) == 10


@pytest.mark.parametrize("data", [b"", bytes(3 * 96 * 96 - 1), bytes(3 * 96 * 96 + 1)])
def test_stl10_file_of_a_wrong_size(stl, data):
    (stl / "stl10_binary/train_X.bin").write_bytes(data)
    for split in ("train", "train+unlabeled"):
        with pytest.raises(DataError, match=rf"train_X\.bin: {len(data)} bytes"):
            stl10.read(stl, split)


@pytest.mark.parametrize(
    ("labels", "words"),
    [(b"\x01\x02", "expected 3 labels"), (b"\x00\x01\x02", "outside 1 to 10"), (b"\x01\x0b\x02", "outside 1 to 10")],
)
def test_stl10_wrong_labels(stl, labels, words):
    (stl / "stl10_binary/train_y.bin").write_bytes(labels)
    with pytest.raises(DataError, match=words):
        stl10.read(stl, "train")


def test_stl10_missing_files(stl):
    (stl / "stl10_binary/train_y.bin").unlink()
    with pytest.raises(DataError, match=r"train_y\.bin"):
        stl10.read(stl, "train")
    with pytest.raises(DataError, match=r"val_X\.bin: no such file"):
        stl10.read(stl, "val")


# ---------------------------------------------------------------- by name


def test_places(tmp_path):
    assert DataPlaces().of("imagenet") is None
    assert DataPlaces(tmp_path).of("imagenet") == tmp_path / "imagenet"
    named = DataPlaces(tmp_path, {"imagenet": Path("/elsewhere")})
    assert named.of("imagenet") == Path("/elsewhere")
    assert named.of("stl10") == tmp_path / "stl10"


def test_missing_says_why(tmp_path):
    assert "--data-root" in catalogue.missing("imagenet", DataPlaces())
    assert str(tmp_path / "imagenet") in catalogue.missing("imagenet", DataPlaces(tmp_path))
    (tmp_path / "imagenet").mkdir()
    assert catalogue.missing("imagenet", DataPlaces(tmp_path)) is None
    with pytest.raises(DataError, match=r"no folder .*stl10"):
        catalogue.load("stl10", "train", DataPlaces(tmp_path))


def test_an_unknown_data_set_names_the_nearest(tmp_path):
    for call in (catalogue.info, lambda name: catalogue.load(name, "train", DataPlaces(tmp_path))):
        with pytest.raises(DataError, match=r"unknown data set 'imagnet'; did you mean 'imagenet'\?"):
            call("imagnet")


def test_places_from_the_command_line():
    named = catalogue.parse_places(["voc=/a/b=c", "stl10=~/x"])
    assert named == {"voc": Path("/a/b=c"), "stl10": Path.home() / "x"}
    for wrong in ("voc", "voc="):
        with pytest.raises(ConfigError, match="expected name=PATH"):
            catalogue.parse_places([wrong])
    with pytest.raises(DataError, match="did you mean 'voc'"):
        catalogue.parse_places(["vox=/a"])


def test_published_counts():
    # VOC: the devkit's own tables; Places205, iNaturalist 2018 and COCO 2017: their pages
    counts = {
        name: tuple(known.counts[k] for k in (known.train, known.test, "classes"))
        for name, known in catalogue.known().items()
        if known.train is not None
    }
    assert counts["voc"] == (5011, 4952, 20)
    assert counts["places205"] == (2448873, 20500, 205)
    assert counts["inat18"] == (437513, 24426, 8142)
    assert counts["coco"] == (118287, 5000, 80)


def test_load_translates_the_protocols_names_of_splits(folder, stl):
    places = DataPlaces(None, {"imagenet": folder, "stl10": stl})
    assert catalogue.load("imagenet", "test", places).split == "val"
    assert catalogue.load("imagenet", "test", places).dataset == "imagenet"
    assert len(catalogue.load("imagenet", "train", places)) == 4
    assert len(catalogue.load("stl10", "unlabeled", places)) == 2
    assert catalogue.load("stl10", "test", places).labels.tolist() == [1]


class Numbered:
    """A source with a given number of items and no pixels."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


def split_of(name, own, count, classes):
    return ImageSplit(name, own, Numbered(count), None, tuple(map(str, range(classes))))


@pytest.mark.parametrize(
    ("train", "test", "classes", "published"),
    [
        (1_281_167, 50_000, 1000, True),
        (1_281_166, 50_000, 1000, False),
        (1_281_167, 49_999, 1000, False),
        (1_281_167, 50_000, 999, False),
        (600, 50_000, 1000, False),
    ],
)
def test_is_published_needs_every_count(train, test, classes, published):
    splits = {
        "train": split_of("imagenet", "train", train, classes),
        "test": split_of("imagenet", "val", test, classes),
    }
    assert is_published("imagenet", splits) is published


def test_is_published_of_stl10():
    assert is_published("stl10", {"train": split_of("stl10", "train", 5000, 10)})
    assert not is_published("stl10", {"train": split_of("stl10", "train", 3, 10)})
    assert not is_published("stl10", {"train": split_of("stl10", "test", 5000, 10)})


# ---------------------------------------------------------------- identity


def test_the_manifest_is_the_stated_digest(folder):
    rows = [
        (name, (folder / "train" / name).stat().st_size, label)
        for name, label in [("ant/x/deep/1.png", 0), ("ant/2.bmp", 0), ("cat/a.PNG", 1), ("cat/b.png", 1)]
    ]
    text = "\n".join(sorted(f"{name}\t{size}\t{label}" for name, size, label in rows))
    assert imagefolder.read(folder, "train").manifest_sha256() == hashlib.sha256(text.encode()).hexdigest()


def test_the_manifest_is_blind_to_the_place_and_to_the_order(folder, tmp_path):
    before = imagefolder.read(folder, "train")
    sha = before.manifest_sha256()
    folder.rename(tmp_path / "moved")
    after = imagefolder.read(tmp_path / "moved", "train")
    assert after.manifest_sha256() == sha
    turned = Files(after.source.root, after.source.paths[::-1])
    assert ImageSplit("x", "y", turned, after.labels[::-1], after.classes).manifest_sha256() == sha


def test_a_split_that_is_replaced_has_a_manifest_of_its_own(folder):
    split = imagefolder.read(folder, "train")
    before = split.manifest_sha256()
    other = dataclasses.replace(split, labels=split.labels * 0)
    assert other.manifest_sha256() != before == split.manifest_sha256()
    assert other.manifest_sha256() == dataclasses.replace(other).manifest_sha256()


def test_the_manifest_sees_names_sizes_labels_and_numbers(folder):
    def sha():
        return imagefolder.read(folder, "train").manifest_sha256()

    seen = [sha()]
    file = folder / "train/cat/b.png"
    file.write_bytes(file.read_bytes() + b"\0")
    seen.append(sha())
    file = file.rename(file.with_name("c.png"))
    seen.append(sha())
    write_image(folder / "train/cat/d.png")
    seen.append(sha())
    split = imagefolder.read(folder, "train")
    seen.append(ImageSplit("x", "y", split.source, 1 - split.labels, split.classes).manifest_sha256())
    seen.append(ImageSplit("x", "y", split.source, None, split.classes).manifest_sha256())
    assert len(set(seen)) == len(seen)


def test_the_manifest_of_several_labels_per_image(folder):
    source = imagefolder.read(folder, "train").source
    labels = np.array([[1, -1, 0], [-1, 1, 1], [0, 0, 0], [1, 1, -1]], np.int8)
    rows = [f"{source.name(i)}\t{source.size(i)}\t[{', '.join(str(int(v)) for v in labels[i])}]" for i in range(4)]
    expected = hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()
    assert ImageSplit("x", "y", source, labels, ("a", "b", "c")).manifest_sha256() == expected
    turned = Files(source.root, source.paths[::-1])
    assert ImageSplit("x", "y", turned, labels[::-1], ("a", "b", "c")).manifest_sha256() == expected
    labels[2, 1] = 1
    assert ImageSplit("x", "y", source, labels, ("a", "b", "c")).manifest_sha256() != expected


# ---------------------------------------------------------------- images in both splits


def test_duplicates_are_the_images_with_the_same_bytes(folder):
    train, val = (imagefolder.read(folder, split) for split in ("train", "val"))
    assert duplicates(train, val) == []
    for name in ("cat/copy.png", "ant/copy.png"):
        (folder / "val" / name).write_bytes((folder / "train/cat/b.png").read_bytes())
    same_size = bytearray((folder / "train/cat/a.PNG").read_bytes())
    same_size[-1] ^= 1
    (folder / "val/cat/other.png").write_bytes(bytes(same_size))
    found = duplicates(train, imagefolder.read(folder, "val"))
    assert sorted(found) == [("cat/b.png", "ant/copy.png"), ("cat/b.png", "cat/copy.png")]


def test_only_images_of_equal_size_are_read(folder):
    train, val = (imagefolder.read(folder, split) for split in ("train", "val"))
    file = folder / "val/cat/1.png"
    file.write_bytes(file.read_bytes() + bytes(1000))
    sizes = {train.source.size(i) for i in range(len(train))}
    read = []

    class Watched(Files):
        def stored(self, index):
            read.append(self.name(index))
            return super().stored(index)

    watched = ImageSplit("x", "val", Watched(val.source.root, val.source.paths), val.labels, val.classes)
    duplicates(train, watched)
    assert read == [name for i, name in enumerate(val.source.paths) if val.source.size(i) in sizes]
    assert "cat/1.png" not in read


def test_a_subset_gives_the_stored_bytes(folder):
    split = imagefolder.read(folder, "train")
    assert Subset(split.source, np.array([3])).stored(0) == (folder / "train/cat/b.png").read_bytes()


# ---------------------------------------------------------------- demo scenes


@pytest.fixture(scope="module")
def root():
    return demo.root()


def test_rendering_depends_on_the_key_only():
    for label in (0, 4, 9):
        first, second, other = (render.render_single(label, render.seeded("a", label, i)) for i in (0, 0, 1))
        assert first.shape == (render.SIDE, render.SIDE, 3)
        assert first.dtype == np.uint8
        assert np.array_equal(first, second)
        assert not np.array_equal(first, other)
    (pixels, placed), (pixels2, placed2) = (render.render_scene(render.seeded("voc", 7)) for _ in range(2))
    assert np.array_equal(pixels, pixels2)
    assert [(p.label, p.box, p.difficult) for p in placed] == [(p.label, p.box, p.difficult) for p in placed2]


def test_the_files_are_the_rendered_scenes(root, tmp_path):
    for split, label, i in (("train", 3, 0), ("train", 3, 1), ("val", 7, 99)):
        name = render.CLASSES[label]
        write._save(tmp_path / "x.jpg", render.render_single(label, render.seeded("imagenet", split, label, i)))
        stored = root / "imagenet" / split / name / f"{name}_{i:04d}.jpg"
        assert stored.read_bytes() == (tmp_path / "x.jpg").read_bytes()


def test_no_two_demo_pictures_are_the_same(root):
    # A picture of a training split that lies in a test split too would make every number on it worthless.
    first: dict[bytes, str] = {}
    twice = []
    for path in sorted(root.rglob("*.jpg")):
        name = path.relative_to(root).as_posix()
        other = first.setdefault(hashlib.sha256(path.read_bytes()).digest(), name)
        if other != name:
            twice.append((other, name))
    assert len(first) > 3000
    assert twice == []


def test_two_classes_differ_at_the_same_key():
    pixels = [render.render_single(label, render.seeded("same")) for label in range(len(render.CLASSES))]
    assert len({p.tobytes() for p in pixels}) == len(render.CLASSES)


def test_demo_is_recognised_as_such(root, tmp_path):
    assert demo.is_demo(root)
    assert demo.is_demo(root / "imagenet")
    assert demo.is_demo(root / "voc" / "VOCdevkit" / "VOC2007")
    assert not demo.is_demo(tmp_path)


def test_root_is_made_once_and_replaces_what_is_half_there(tmp_path, monkeypatch):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "x").write_text("")

    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(write, "make", make)
    half = tmp_path / "cache" / f"demo-v{demo.VERSION}"
    half.mkdir(parents=True)
    (half / "left over").write_text("")
    assert demo.root() == demo.root() == half
    assert sorted(p.name for p in half.iterdir()) == [demo.MARKER, "x"]
    assert len(made) == 1
    assert sorted(p.name for p in half.parent.iterdir()) in ([half.name], [half.name, f"{half.name}.1.lock"])


def test_a_demo_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def make(folder):
        (folder / "x").write_text("")
        raise RuntimeError("stopped")

    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(write, "make", make)
    with pytest.raises(RuntimeError):
        demo.root()
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_colour_does_not_identify_a_demo_picture(root):
    rendered = [render.render_single(label, render.seeded("tint", label, i)) for label in range(10) for i in range(4)]
    rendered += [render.render_scene(render.seeded("tint", i))[0] for i in range(20)]
    stored = [np.asarray(Image.open(p)) for p in sorted(root.rglob("*.jpg"))[::60]]
    for pictures, tolerance in ((rendered, 0.01), (stored, 0.015)):
        means = np.array([p.reshape(-1, 3).mean(axis=0, dtype=np.float64) for p in pictures])
        assert np.ptp(means[:, 1]) > 30, "brightness does vary"
        chroma = means[:, [0, 2]] / means[:, [1]]
        assert np.abs(chroma - np.median(chroma, axis=0)).max() < tolerance


def test_demo_image_folder(root):
    for split, per_class in write.PER_CLASS.items():
        read = catalogue.load("imagenet", {"val": "test"}.get(split, split), DataPlaces(root))
        assert read.split == split
        assert read.classes == render.CLASSES
        assert np.bincount(read.labels).tolist() == [per_class] * len(render.CLASSES)
        assert read.source.rgb(0).shape == (render.SIDE, render.SIDE, 3)
    assert not is_published("imagenet", {"test": read})


def test_demo_imagenet100(root):
    train, val = (catalogue.load("imagenet100", role, DataPlaces(root)) for role in ("train", "test"))
    assert train.classes == val.classes == render.CLASSES[:4]
    assert np.bincount(train.labels).tolist() == [20] * 4
    assert np.bincount(val.labels).tolist() == [10] * 4


def test_demo_voc(root):
    voc = root / "voc" / "VOCdevkit" / "VOC2007"
    seen = set()
    names = {split: (voc / "ImageSets/Main" / f"{split}.txt").read_text().split() for split in ("trainval", "test")}
    assert not set(names["trainval"]) & set(names["test"])
    for split, members in names.items():
        present: dict[str, dict[str, list[bool]]] = {}
        for name in members:
            tree = ET.parse(voc / "Annotations" / f"{name}.xml").getroot()
            width, height = (int(tree.findtext(f"size/{k}")) for k in ("width", "height"))
            assert Image.open(voc / "JPEGImages" / tree.findtext("filename")).size == (width, height)
            assert tree.findtext("filename") == f"{name}.jpg"
            objects = tree.findall("object")
            assert objects
            for node in objects:
                x0, y0, x1, y1 = (int(node.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
                assert 1 <= x0 < x1 <= width
                assert 1 <= y0 < y1 <= height
                present.setdefault(name, {}).setdefault(node.findtext("name"), []).append(
                    node.findtext("difficult") == "1"
                )
        for cls in render.CLASSES:
            rows = [line.split() for line in (voc / "ImageSets/Main" / f"{cls}_{split}.txt").read_text().splitlines()]
            assert [name for name, _ in rows] == members
            for name, state in rows:
                difficult = present[name].get(cls)
                expected = -1 if difficult is None else 0 if all(difficult) else 1
                assert int(state) == expected
                seen.add(int(state))
            assert any(int(state) == 1 for _, state in rows), f"{cls} never occurs in {split}"
    assert seen == {-1, 0, 1}


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_demo_coco(root, split, capsys):
    coco = COCO(str(root / "coco" / "annotations" / f"instances_{split}.json"))
    categories = coco.getCatIds()
    assert [c["name"] for c in coco.loadCats(categories)] == list(render.CLASSES)
    assert categories != list(range(1, 11)), "the real ids have gaps"
    assert len(coco.getImgIds()) == len(list((root / "coco" / split).glob("*.jpg")))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert {a["image_id"] for a in annotations} == set(coco.getImgIds())
    assert {a["category_id"] for a in annotations} == set(categories)
    assert len({a["id"] for a in annotations}) == len(annotations)
    for a in annotations:
        image = coco.loadImgs(a["image_id"])[0]
        assert a["area"] > 0
        x, y, w, h = a["bbox"]
        assert w > 1
        assert h > 1
        assert x >= 0
        assert y >= 0
        assert x + w <= image["width"] + 0.02
        assert y + h <= image["height"] + 0.02
        for polygon in a["segmentation"]:
            assert len(polygon) >= 6
            assert len(polygon) % 2 == 0
            xs, ys = np.array(polygon[::2]), np.array(polygon[1::2])
            assert np.allclose([xs.min(), ys.min(), xs.max(), ys.max()], [x, y, x + w, y + h], atol=0.03)
        area = float(coco_mask.area(coco.annToRLE(a)))
        assert area == pytest.approx(a["area"], rel=0.1, abs=40)


def test_demo_coco_pictures_have_the_stated_size(root):
    record = json.loads((root / "coco/annotations/instances_val2017.json").read_text())
    for image in record["images"]:
        assert Image.open(root / "coco/val2017" / image["file_name"]).size == (image["width"], image["height"])


def test_demo_places205(root):
    places = root / "places205"
    lines = {split: (places / f"{split}_places205.csv").read_text().splitlines() for split in ("train", "val")}
    rows = {split: [line.rsplit(" ", 1) for line in found] for split, found in lines.items()}
    for split, per_class in (("train", 20), ("val", 10)):
        assert all((places / "images" / path).is_file() for path, _ in rows[split])
        assert np.bincount([int(label) for _, label in rows[split]]).tolist() == [per_class] * len(render.CLASSES)
        assert all(render.CLASSES[int(label)] == path.split("/")[-2] for path, label in rows[split])
    assert not {p for p, _ in rows["train"]} & {p for p, _ in rows["val"]}


def test_demo_inat18(root):
    inat = root / "inat18"
    used = []
    for split, per_class in (("train", 20), ("val", 10)):
        record = json.loads((inat / f"{split}2018.json").read_text())
        files = {image["id"]: image["file_name"] for image in record["images"]}
        assert len(files) == len(record["images"]) == len(record["annotations"]) == per_class * len(render.CLASSES)
        assert {a["image_id"] for a in record["annotations"]} == set(files)
        assert {c["id"] for c in record["categories"]} == {a["category_id"] for a in record["annotations"]}
        for a in record["annotations"]:
            path = Path(files[a["image_id"]])
            assert (inat / path).is_file()
            assert path.parent.name == str(a["category_id"])
        used += files
    assert len(set(used)) == len(used), "train and val share no id"


def test_a_folder_without_labels_is_every_image_below_it(tmp_path):
    for name in ("a.jpg", "deep/er/b.png", ".hidden/c.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="JPEG")
    split = imagefolder.read_unlabelled(tmp_path, dataset="mine")
    assert split.source.paths == ("a.jpg", "deep/er/b.png")
    assert split.labels is None
    assert split.source.rgb(1).shape == (8, 8, 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in it"):
        imagefolder.read_unlabelled(tmp_path / "empty", dataset="mine")
