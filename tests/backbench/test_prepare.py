"""Unpack archives into layouts: every published kind, cut and hostile ones, and a second run."""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backbench.data import catalogue, demo, imagenet_labels, unpack
from backbench.data.__main__ import main
from backbench.data.catalogue import DataPlaces
from backbench.errors import DataError


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path):
    def of(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return of


@pytest.fixture(autouse=True)
def any_bytes(monkeypatch):
    """Drop the published md5s: the archives made here have published names and other bytes."""
    for name, known in catalogue.described().found.items():
        monkeypatch.setitem(catalogue.OWN, name, known.model_copy(update={"archives": ()}))


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- layouts


PUBLISHED = [  # data set, archive, members that keep their place, those that move (None: not needed)
    ("food101", "food-101.tar.gz", ["food-101/images/a/1.jpg", "food-101/meta/train.json"], {}),
    ("cifar10", "cifar-10-python.tar.gz", ["cifar-10-batches-py/test_batch"], {}),
    ("cifar100", "cifar-100-python.tar.gz", ["cifar-100-python/meta"], {}),
    ("birdsnap", "birdsnap.tgz", [], {"birdsnap/images.txt": "images.txt", "birdsnap/get_birdsnap.py": None}),
    ("sun397", "SUN397.tar.gz", ["SUN397/ClassName.txt", "SUN397/a/b/in/sun_1.jpg"], {}),
    ("sun397", "Partitions.zip", [], {"Training_01.txt": "SUN397/Training_01.txt", "Testing_02.txt": None}),
    ("stanford_cars", "cars_test.tgz", ["cars_test/00001.jpg"], {}),
    ("stanford_cars", "car_devkit.tgz", ["devkit/cars_meta.mat"], {"devkit/README.txt": None}),
    ("stanford_cars", "cars_test_annos_withlabels.mat", ["cars_test_annos_withlabels.mat"], {}),
    ("fgvc_aircraft", "fgvc-aircraft-2013b.tar.gz", ["fgvc-aircraft-2013b/data/variants.txt"], {}),
    ("dtd", "dtd-r1.0.1.tar.gz", ["dtd/labels/test1.txt", "dtd/images/a/1.jpg"], {}),
    ("oxford_pets", "images.tar.gz", ["images/pug_1.jpg"], {"images/pug_1.mat": None}),
    ("oxford_pets", "annotations.tar.gz", ["annotations/test.txt"], {"annotations/trimaps/pug_1.png": None}),
    ("caltech101", "train.txt", ["train.txt"], {}),
    ("oxford_flowers", "102flowers.tgz", ["jpg/image_00001.jpg"], {}),
    ("oxford_flowers", "setid.mat", ["setid.mat"], {}),
    ("imagenet_v2", "imagenetv2-matched-frequency.tar.gz", ["imagenetv2-matched-frequency-format-val/7/a.jpeg"], {}),
    ("imagenet_a", "imagenet-a.tar", ["imagenet-a/n01498041/0.jpg", "imagenet-a/README.txt"], {}),
    ("imagenet_r", "imagenet-r.tar", ["imagenet-r/n01443537/art_0.jpg"], {}),
    ("imagenet_sketch", "ImageNet-Sketch.zip", ["sketch/n01440764/sketch_0.JPEG"], {}),
    ("imagenet_real", "real.json", ["real.json"], {}),
    ("eurosat", "EuroSAT.zip", ["2750/River/River_1.jpg"], {}),
    ("eurosat", "eurosat-val.txt", ["eurosat-val.txt"], {}),
    ("voc12", "VOCtrainval_11-May-2012.tar",
     ["VOCdevkit/VOC2012/SegmentationClass/1.png", "VOCdevkit/VOC2012/JPEGImages/1.jpg"],
     {"VOCdevkit/VOC2012/Annotations/1.xml": None, "VOCdevkit/VOC2012/ImageSets/Main/train.txt": None}),
    ("voc12", "SegmentationClassAug.zip", [], {"SegmentationClassAug/1.png": "VOCdevkit/VOC2012/SegmentationClassAug/1.png",
                                              "__MACOSX/SegmentationClassAug/._1.png": None}),
    ("cityscapes", "leftImg8bit_trainvaltest.zip", ["leftImg8bit/train/ulm/a_leftImg8bit.png"],
     {"leftImg8bit/test/bonn/a_leftImg8bit.png": None}),
    ("cityscapes", "gtFine_trainvaltest.zip", ["gtFine/val/ulm/a_gtFine_labelIds.png",
     "gtFine/val/ulm/a_gtFine_instanceIds.png"],
     {"gtFine/val/ulm/a_gtFine_color.png": None}),
    ("ade20k", "ADEChallengeData2016.zip", ["ADEChallengeData2016/images/training/a.jpg",
     "ADEChallengeData2016/annotations/validation/a.png", "ADEChallengeData2016/objectInfo150.txt"],
     {"ADEChallengeData2016/sceneCategories.txt": None}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "kept", "moved"), PUBLISHED)
def test_the_fields_data_sets(name, file, kept, moved, archive, tmp_path):
    places = {**{member: member for member in kept}, **moved}
    inside = {member: member.encode() for member in places}
    data = inside[kept[0]] if kept == [file] else zip_of(inside) if file.endswith(".zip") else tar_of(inside, "w:gz")
    (tally,) = unpack.prepare(name, [archive(file, data)], tmp_path / name).values()
    assert tree(tmp_path / name) == {place: inside[member] for member, place in places.items() if place}
    assert tally.unneeded == sum(place is None for place in places.values())
    described = {known.file for known in catalogue.described().found[name].archives}
    assert file in described, "the description names the archive"


def test_sbds_list_goes_to_vocs_lists(archive, tmp_path):
    unpack.prepare("voc12", [archive("trainaug.txt", b"2008_a\n")], tmp_path / "voc12")
    assert tree(tmp_path / "voc12") == {"VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt": b"2008_a\n"}


def test_a_tar_in_a_zip_is_unpacked(archive, tmp_path):
    """Caltech-101's archive: a zip with compressed tars."""
    image = "101_ObjectCategories/ant/image_0001.jpg"
    inner = {
        "caltech-101/101_ObjectCategories.tar.gz": tar_of({image: b"a"}, "w:gz"),
        "caltech-101/Annotations.tar": b"x",
    }
    unpack.prepare("caltech101", [archive("caltech-101.zip", zip_of(inner))], tmp_path / "set")
    assert tree(tmp_path / "set") == {image: b"a"}


def test_voc(archive, tmp_path):
    first = archive("VOCtrainval_06-Nov-2007.tar", tar_of({"VOCdevkit/VOC2007/JPEGImages/1.jpg": b"a"}))
    second = archive("VOCtest_06-Nov-2007.tar", tar_of({"VOCdevkit/VOC2007/JPEGImages/2.jpg": b"b"}))
    third = archive(
        "VOCtrainval_11-May-2012.tar", tar_of({"./VOCdevkit/VOC2012/Annotations/3.xml": b"c", "README": b"x"})
    )
    tallies = unpack.prepare("voc", [first, second, third], tmp_path / "voc")
    assert tree(tmp_path / "voc") == {
        "VOCdevkit/VOC2007/JPEGImages/1.jpg": b"a",
        "VOCdevkit/VOC2007/JPEGImages/2.jpg": b"b",
        "VOCdevkit/VOC2012/Annotations/3.xml": b"c",
    }
    assert [(t.written, t.unneeded) for t in tallies.values()] == [(1, 0), (1, 0), (1, 1)]


def test_coco(archive, tmp_path):
    parts = [
        archive("train2017.zip", zip_of({"train2017/": b"", "train2017/1.jpg": b"a"})),
        archive("val2017.zip", zip_of({"val2017/2.jpg": b"b"})),
        archive(
            "annotations_trainval2017.zip",
            zip_of(
                {f"annotations/{k}_{s}2017.json": b"{}" for k in ("instances", "captions") for s in ("train", "val")}
            ),
        ),
    ]
    unpack.prepare("coco", parts, tmp_path / "coco")
    assert sorted(tree(tmp_path / "coco")) == [
        "annotations/instances_train2017.json",
        "annotations/instances_val2017.json",
        "train2017/1.jpg",
        "val2017/2.jpg",
    ]


def test_inat18(archive, tmp_path):
    parts = [
        archive("train_val2018.tar.gz", tar_of({"train_val2018/Aves/2/1.jpg": b"a"}, "w:gz")),
        archive("train2018.json.tar.gz", tar_of({"train2018.json": b"{}"}, "w:gz")),
        archive("val2018.json", b"[]"),
    ]
    unpack.prepare("inat18", parts, tmp_path / "inat18")
    assert tree(tmp_path / "inat18") == {
        "train_val2018/Aves/2/1.jpg": b"a",
        "train2018.json": b"{}",
        "val2018.json": b"[]",
    }


def test_places205(archive, tmp_path):
    deep = "data/vision/torralba/deeplearning/images256/a/abbey/1.jpg"
    lists = {f"trainvalsplit_places205/{s}_places205.csv": s.encode() for s in ("train", "val", "test")}
    parts = [
        archive("imagesPlaces205_resize.tar.gz", tar_of({deep: b"a"}, "w:gz")),
        archive("trainvalsplit_places205.tar.gz", tar_of(lists, "w:gz")),
    ]
    unpack.prepare("places205", parts, tmp_path / "places205")
    assert tree(tmp_path / "places205") == {
        "images/a/abbey/1.jpg": b"a",
        "train_places205.csv": b"train",
        "val_places205.csv": b"val",
    }


def test_stl10(archive, tmp_path):
    file = archive("stl10_binary.tar.gz", tar_of({"stl10_binary/train_y.bin": b"\1", "stl10_binary": b""}, "w:gz"))
    unpack.prepare("stl10", [file], tmp_path / "stl10")
    assert tree(tmp_path / "stl10") == {"stl10_binary/train_y.bin": b"\1"}


TRAIN = {f"n0000000{c}.tar": tar_of({f"n0000000{c}_{i}.JPEG": b"%d%d" % (c, i) for i in range(3)}) for c in (1, 2)}
VAL = {f"ILSVRC2012_val_0000000{i}.JPEG": b"v%d" % i for i in (3, 1, 2)}  # not in order


def test_imagenet(archive, tmp_path):
    labels = archive("synset_labels.txt", b"n00000002\nn00000001\nn00000002\n")
    parts = [archive("ILSVRC2012_img_train.tar", tar_of(TRAIN)), archive("ILSVRC2012_img_val.tar", tar_of(VAL))]
    unpack.prepare("imagenet", parts, tmp_path / "imagenet", val_labels=labels)
    assert tree(tmp_path / "imagenet") == {
        **{f"train/n0000000{c}/n0000000{c}_{i}.JPEG": b"%d%d" % (c, i) for c in (1, 2) for i in range(3)},
        "val/n00000002/ILSVRC2012_val_00000001.JPEG": b"v1",
        "val/n00000001/ILSVRC2012_val_00000002.JPEG": b"v2",
        "val/n00000002/ILSVRC2012_val_00000003.JPEG": b"v3",
    }


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, r"give the devkit too, --from ILSVRC2012_devkit_t12\.tar\.gz"),
        (b"n00000002\nn00000001\n", r"labels\.txt: has 2 lines, none for ILSVRC2012_val_00000003\.JPEG"),
        (b"n00000002\n490\n361\n", r"labels\.txt:2: '490' is not a WordNet id .* the devkit's ground truth"),
    ],
)
def test_imagenet_validation_labels(archive, tmp_path, labels, words):
    file = archive("labels.txt", labels) if labels else None
    with pytest.raises(DataError, match=words):
        unpack.prepare("imagenet", [archive("val.tar", tar_of(VAL))], tmp_path / "imagenet", val_labels=file)


def devkit(archive, monkeypatch):
    """Make an archive like ImageNet's devkit: classes 1 and 2, class 3 with children, and labels of three images."""
    from scipy.io import savemat
    from torchvision.datasets import imagenet

    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    rows = [(1, "n00000001", "a, b", "x", 0), (2, "n00000002", "c", "x", 0), (3, "n00000003", "d", "x", 2)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, fields)})
    data = {"data/meta.mat": meta.getvalue(), "data/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n2\n"}
    file = archive(imagenet_labels.DEVKIT, tar_of({f"ILSVRC2012_devkit_t12/{k}": v for k, v in data.items()}, "w:gz"))
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setitem(imagenet.ARCHIVE_META, "devkit", (imagenet_labels.DEVKIT, md5))
    return file


@pytest.mark.parametrize("beside", [False, True])
def test_the_devkit_states_the_classes_of_the_validation_images(archive, tmp_path, monkeypatch, beside):
    file = devkit(archive, monkeypatch)
    given = [archive("val.tar", tar_of(VAL)), *([] if beside else [file])]
    unpack.prepare("imagenet", given, tmp_path / "imagenet")
    assert tree(tmp_path / "imagenet") == {
        "val/n00000002/ILSVRC2012_val_00000001.JPEG": b"v1",
        "val/n00000001/ILSVRC2012_val_00000002.JPEG": b"v2",
        "val/n00000002/ILSVRC2012_val_00000003.JPEG": b"v3",
    }
    assert not (file.parent / "meta.bin").exists(), "nothing is left beside the archive"
    file.write_bytes(b"another file")
    with pytest.raises(DataError, match=r"devkit_t12\.tar\.gz: not ImageNet's devkit"):
        unpack.prepare("imagenet", given, tmp_path / "again")


def test_a_published_name_needs_the_published_bytes(archive, tmp_path, monkeypatch):
    data = tar_of({"VOCdevkit/VOC2007/JPEGImages/1.jpg": b"a"})
    file = archive("VOCtest_06-Nov-2007.tar", data)
    catalogue.OWN.clear()
    with pytest.raises(DataError, match=r"its md5 is \w+; published: b6e924de25625d8de591ea690078ad9f.*rename it"):
        unpack.prepare("voc", [file], tmp_path / "voc")
    assert not (tmp_path / "voc").exists(), "checked before anything is written"
    known = catalogue.Archive(file=file.name, md5=hashlib.md5(data).hexdigest())
    monkeypatch.setitem(catalogue.OWN, "voc", catalogue.info("voc").model_copy(update={"archives": (known,)}))
    unpack.prepare("voc", [file], tmp_path / "voc")
    unpack.prepare("voc", [file.rename(tmp_path / "mine.tar")], tmp_path / "voc")


def test_unknown_data_set_and_wrong_archives(archive, tmp_path):
    with pytest.raises(DataError, match="no archives are known for data set 'imagenet100'; did you mean 'imagenet'"):
        unpack.prepare("imagenet100", [], tmp_path)
    with pytest.raises(DataError, match=r"none\.tar: no such file"):
        unpack.prepare("voc", [tmp_path / "none.tar"], tmp_path)
    other = archive("stl10.tar", tar_of({"stl10_binary/train_y.bin": b"x"}))
    with pytest.raises(
        DataError, match=r"holds nothing that this data set needs \(1, e\.g\. stl10_binary/train_y\.bin\)"
    ):
        unpack.prepare("voc", [other], tmp_path / "voc")
    with pytest.raises(DataError, match=r"page\.tar: not a whole archive"):
        unpack.prepare("voc", [archive("page.tar", b"<html>" + bytes(2000))], tmp_path / "voc")
    assert not (tmp_path / "voc").exists()


# ---------------------------------------------------------------- cut and resumed

FILES = {f"VOCdevkit/VOC2007/JPEGImages/{i}.jpg": np.random.default_rng(i).bytes(700 + i) for i in range(20)}
MEMBER = 512 + 1024  # bytes: a header, and a file that is padded to two blocks


def is_whole_or_absent(folder: Path) -> None:
    """Check that every file is complete and none has a temporary name."""
    for name, data in tree(folder).items():
        assert FILES[name] == data


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_cut_archive_is_named_and_completed_by_a_whole_one(archive, tmp_path, kind):
    whole = tar_of(FILES, kind)
    end = 20 * MEMBER if kind == "w" else len(whole) - 1  # an uncompressed tar ends with padding
    for cut in (*range(1, end, end // 12), end):
        shutil.rmtree(tmp_path / "voc", ignore_errors=True)
        with pytest.raises(DataError, match=r"part\.tar: not a whole archive, cut short\?.*unpacked so far: \d+ files"):
            unpack.prepare("voc", [archive("part.tar", whole[:cut])], tmp_path / "voc")
        is_whole_or_absent(tmp_path / "voc")
        before = len(tree(tmp_path / "voc"))
        tally = unpack.unpack(archive("whole.tar", whole), tmp_path / "voc", unpack.route_of("voc"))
        assert (tally.kept, tally.written) == (before, 20 - before)
        assert tree(tmp_path / "voc") == FILES


def test_a_tar_that_ends_between_two_members_is_cut(archive, tmp_path):
    whole = tar_of(FILES)
    with pytest.raises(DataError, match=r"not a whole archive.*unpacked so far: 5 files"):
        unpack.prepare("voc", [archive("part.tar", whole[: 5 * MEMBER])], tmp_path / "voc")
    assert len(tree(tmp_path / "voc")) == 5


def test_a_tar_with_a_damaged_header_is_not_whole(archive, tmp_path):
    whole = bytearray(tar_of(FILES))
    whole[5 * MEMBER] ^= 1
    with pytest.raises(DataError, match=r"not a whole archive.*\(a damaged header\).*unpacked so far: 5 files"):
        unpack.prepare("voc", [archive("part.tar", whole)], tmp_path / "voc")


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz"])
def test_a_flipped_bit_of_a_compressed_archive_is_found(archive, tmp_path, kind):
    whole = tar_of(FILES, kind)
    for place in range(20, len(whole), len(whole) // 10):  # past gzip's header, which no checksum covers
        data = bytearray(whole)
        data[place] ^= 4
        with pytest.raises(DataError, match=r"part\.tar: not a whole archive"):
            unpack.prepare("voc", [archive("part.tar", data)], tmp_path / str(place))


def test_a_cut_tar_within_a_tar(archive, tmp_path):
    inner = {**TRAIN, "n00000003.tar": TRAIN["n00000002.tar"][:1537]}
    with pytest.raises(DataError, match=r"not a whole archive.*unpacked so far: 7 files"):
        unpack.prepare("imagenet", [archive("train.tar", tar_of(inner))], tmp_path / "imagenet")
    unpack.prepare("imagenet", [archive("train.tar", tar_of(TRAIN))], tmp_path / "imagenet")


def test_a_cut_zip_and_a_damaged_one(archive, tmp_path):
    whole = zip_of({"val2017/1.jpg": b"abcdefgh" * 50, "val2017/2.jpg": b"x"})
    with pytest.raises(DataError, match=r"not a whole archive.*unpacked so far: 0 files"):
        unpack.prepare("coco", [archive("val2017.zip", whole[:-10])], tmp_path / "coco")
    with pytest.raises(DataError, match=r"not a whole archive.*CRC"):
        unpack.prepare("coco", [archive("val2017.zip", whole.replace(b"abcd", b"abce", 1))], tmp_path / "coco")
    assert not tree(tmp_path / "coco")


def test_a_file_of_the_wrong_size_is_written_again_and_others_are_not_touched(archive, tmp_path):
    file = archive("voc.tar", tar_of(FILES))
    unpack.prepare("voc", [file], tmp_path / "voc")
    first, second = (tmp_path / "voc" / name for name in list(FILES)[:2])
    first.write_bytes(b"half")
    second.write_bytes(bytes(len(second.read_bytes())))
    (tally,) = unpack.prepare("voc", [file], tmp_path / "voc").values()
    assert (tally.written, tally.kept) == (1, 19)
    assert first.read_bytes() == FILES[next(iter(FILES))]
    assert not any(second.read_bytes()), "the right size: kept"


def test_dry_run_writes_nothing(archive, tmp_path, capsys):
    file = archive("voc.tar", tar_of(FILES))
    code = main(["prepare", "voc", "--from", str(file), "--data-root", str(tmp_path / "data"), "--dry-run"])
    assert code == 0
    assert not (tmp_path / "data").exists()
    assert "would be unpacked into" in (said := capsys.readouterr().err)
    assert "20 files" in said


# ---------------------------------------------------------------- hostile archives


def raw_tar(**fields: object) -> bytes:
    """Make a tar of a good member and one with the given header fields."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        good = tarfile.TarInfo("VOCdevkit/VOC2007/a.txt")
        good.size = 1
        tar.addfile(good, io.BytesIO(b"a"))
        item = tarfile.TarInfo("VOCdevkit/x")
        for key, value in fields.items():
            setattr(item, key, value)
        tar.addfile(item, io.BytesIO(bytes(item.size)))
    return buffer.getvalue()


HOSTILE = [
    raw_tar(name="VOCdevkit/../../evil", size=1),
    raw_tar(name="../VOCdevkit/evil", size=1),
    raw_tar(name="/VOCdevkit/evil", size=1),
    raw_tar(name="VOCdevkit\\..\\evil", size=1),
    raw_tar(name="VOCdevkit/evil", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    raw_tar(name="VOCdevkit/evil", type=tarfile.SYMTYPE, linkname="../../.."),
    raw_tar(name="VOCdevkit/evil", type=tarfile.LNKTYPE, linkname="../outside"),
    raw_tar(name="VOCdevkit/evil", type=tarfile.CHRTYPE),
    raw_tar(name="VOCdevkit/evil", type=tarfile.FIFOTYPE),
    tar_of({"VOCdevkit/VOC2007/a.txt": b"a", "inner.tar": tar_of({"VOCdevkit/../../evil": b"x"})}),
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_tar_is_refused_and_writes_nothing_outside(archive, tmp_path, data):
    file = archive("bad.tar", data)
    with pytest.raises(DataError, match=r"bad\.tar: '.*' (points out of the folder|is a link or a device); refused"):
        unpack.prepare("voc", [file], tmp_path / "deep" / "er" / "voc")
    assert tree(tmp_path) == {"bad.tar": data, "deep/er/voc/VOCdevkit/VOC2007/a.txt": b"a"}
    assert not any(p.is_symlink() for p in tmp_path.rglob("*"))


def zip_link() -> bytes:
    item = zipfile.ZipInfo("val2017/1.jpg")
    item.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(item, "/etc/passwd")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda: zip_of({"val2017/../../1.jpg": b"x"}),
        lambda: zip_of({"/val2017/1.jpg": b"x"}),
        lambda: zip_of({"C:/val2017/1.jpg": b"x"}),
        zip_link,
    ],
)
def test_a_hostile_zip_is_refused(archive, tmp_path, make: Callable[[], bytes]):
    data = make()
    with pytest.raises(DataError, match=r"bad\.zip: '.*' (points out of the folder|is a link or a device); refused"):
        unpack.prepare("coco", [archive("bad.zip", data)], tmp_path / "deep" / "coco")
    assert tree(tmp_path) == {"bad.zip": data}


def test_no_more_bytes_than_declared(archive, tmp_path, monkeypatch):
    bomb = unpack.Member("VOCdevkit/a", 10, lambda: io.BytesIO(bytes(10_000_000)))
    monkeypatch.setattr(unpack, "members", lambda *_: iter([bomb]))
    with pytest.raises(DataError, match="'VOCdevkit/a' holds more than the 10 bytes it declares"):
        unpack.prepare("voc", [archive("x.tar", b"x")], tmp_path / "voc")
    assert tree(tmp_path / "voc") == {}


def test_a_zip_that_lies_about_its_size(archive, tmp_path):
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("val2017/1.jpg", bytes(1_000_000))
        lying = buffer.getvalue().replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    with pytest.raises(DataError, match=r"bad\.zip: "):
        unpack.prepare("coco", [archive("bad.zip", lying)], tmp_path / "coco")
    assert tree(tmp_path / "coco") == {}


# ---------------------------------------------------------------- the whole way


def test_the_command_unpacks_and_ends_with_the_doctor(archive, tmp_path, capsys):
    source = demo.root() / "voc"
    wanted = [p for p in sorted(source.rglob("*")) if p.is_file()]
    file = archive("voc.tar", tar_of({p.relative_to(source).as_posix(): p.read_bytes() for p in wanted}))
    assert main(["prepare", "voc", "--from", str(file), "--data-root", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    assert "voc          present" in said
    assert "not the published data set" in said
    again = catalogue.load("voc", "test", DataPlaces(tmp_path / "data"))
    assert again.manifest_sha256() == catalogue.load("voc", "test", DataPlaces(demo.root())).manifest_sha256()


def test_the_command_fails_when_the_doctor_does(archive, tmp_path):
    file = archive("voc.tar", tar_of(FILES))
    assert main(["prepare", "voc", "--from", str(file), "--data-root", str(tmp_path / "data")]) == 1
