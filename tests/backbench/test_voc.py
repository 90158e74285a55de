"""VOC's lists and annotations: the demo's, hand-made ones, broken ones, real ones."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbench.data import catalogue, demo
from backbench.data.catalogue import DataPlaces, is_published
from backbench.data.demo import render
from backbench.data.layouts import voc
from backbench.errors import DataError

LISTS = {
    "cat": {"trainval": "a -1\nb  1\nc  0\n", "test": "d  1\n"},
    "ant": {"trainval": "c  1\nb -1\na  1\n", "test": "d -1\n"},  # another order than the split's
}
OBJECT = """<object><name>{name}</name><truncated>{truncated}</truncated><difficult>{difficult}</difficult>
<bndbox><xmax>{box[2]}</xmax><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><ymax>{box[3]}</ymax></bndbox>{more}</object>"""


def xml(*objects: str) -> str:
    return f"<annotation><size><width>6</width><height>4</height></size>{''.join(objects)}</annotation>"


def thing(name: str, *, difficult: int = 0, box: tuple = (1, 2, 3, 4), truncated: int = 0, more: str = "") -> str:
    return OBJECT.format(name=name, difficult=difficult, box=box, truncated=truncated, more=more)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "voc" / "VOCdevkit" / "VOC2007"
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    for i, name in enumerate("abcd"):
        Image.new("RGB", (6, 4), (10 * i, 0, 0)).save(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations" / f"{name}.xml").write_text(xml(thing("cat")))
    (main(tmp_path / "voc") / "trainval.txt").write_text("a\nb\nc\n")
    (main(tmp_path / "voc") / "test.txt").write_text("d\n")
    for cls, by_split in LISTS.items():
        for split, text in by_split.items():
            (main(tmp_path / "voc") / f"{cls}_{split}.txt").write_text(text)
    return tmp_path / "voc"


def main(root: Path) -> Path:
    return root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"


def test_labels_are_those_of_the_lists(root):
    split = voc.read(root, "trainval")
    assert split.classes == ("ant", "cat")
    assert [split.source.name(i) for i in range(3)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert split.labels.tolist() == [[1, -1], [-1, 1], [1, 0]]
    assert split.labels.dtype == np.int8
    assert voc.read(root, "test").labels.tolist() == [[-1, 1]]
    assert split.source.rgb(2).shape == (4, 6, 3)


def test_the_root_may_be_the_devkit_or_the_year_or_hold_another_year(root):
    expected = voc.read(root, "test").manifest_sha256()
    assert voc.read(root / "VOCdevkit", "test").manifest_sha256() == expected
    assert voc.read(root / "VOCdevkit" / "VOC2007", "test").manifest_sha256() == expected
    with pytest.raises(DataError, match="no VOCdevkit/VOC2012/ImageSets/Main in it"):
        voc.read(root, "test", year=2012)
    (root / "VOCdevkit" / "VOC2007").rename(root / "VOCdevkit" / "VOC2012")
    assert voc.read(root, "test", year=2012).manifest_sha256() == expected


def test_the_manifest_sees_every_label(root):
    before = voc.read(root, "trainval").manifest_sha256()
    (main(root) / "cat_trainval.txt").write_text("a -1\nb  1\nc -1\n")
    assert voc.read(root, "trainval").manifest_sha256() != before


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("trainval.txt", "a\nb\nc\nx\ny\n", r"names images that are not in .*JPEGImages: 2, e\.g\. x, y"),
        ("trainval.txt", "a\nb\nc\na\n", r"names images twice: 1, e\.g\. a"),
        ("trainval.txt", "\n", "names no image"),
        ("trainval.txt", None, "no such file"),
        ("cat_trainval.txt", "a -1\nb 1\n", r"2 rows for 3 images, nothing of 1, e\.g\. c"),
        ("cat_trainval.txt", "a -1\nb 1\nc 0\nx 1\n", r"cat_trainval\.txt:4: image 'x' is not in the split's own list"),
        ("cat_trainval.txt", "a -1\nb 1\nc 0\nb 1\n", r"cat_trainval\.txt:4: image 'b' is there twice"),
        ("cat_trainval.txt", "a -1\nb 2\nc 0\n", r"cat_trainval\.txt:2: 'b 2' is not an image and one of -1, 0, 1"),
        ("cat_trainval.txt", "a -1\nb\nc 0\n", r"cat_trainval\.txt:2: 'b' is not"),
        ("cat_trainval.txt", "a -1\nb 1 1\nc 0\n", r"cat_trainval\.txt:2: 'b 1 1' is not"),
        ("cat_trainval.txt", None, r"cat_trainval\.txt: no such list, though other splits have class 'cat'"),
        ("cat_test.txt", None, r"cat_test\.txt: no such list, though other splits have class 'cat'"),
    ],
)
def test_broken_lists(root, file, text, words):
    if text is None:
        (main(root) / file).unlink()
    else:
        (main(root) / file).write_text(text)
    with pytest.raises(DataError, match=words):
        voc.read(root, "trainval")


def rename_images(root, ending):
    folder = root / "VOCdevkit" / "VOC2007" / "JPEGImages"
    for path in sorted(folder.iterdir()):
        path.rename(path.with_suffix(ending))
    return folder


@pytest.mark.parametrize("ending", [".png", ".JPG", ".jpeg", ".jfif", ".bmp"])
def test_images_of_other_endings(root, ending):
    rename_images(root, ending)
    split = voc.read(root, "trainval")
    assert [split.source.name(i) for i in range(3)] == [f"a{ending}", f"b{ending}", f"c{ending}"]
    assert split.labels.tolist() == [[1, -1], [-1, 1], [1, 0]]


def test_of_two_images_of_one_name_the_jpg_counts(root):
    folder = root / "VOCdevkit" / "VOC2007" / "JPEGImages"
    before = voc.read(root, "trainval").manifest_sha256()
    (folder / "a.png").write_bytes(b"x")
    (folder / "a.JPG").write_bytes(b"x")
    (folder / "._b.jpg").write_bytes(b"x")
    assert voc.read(root, "trainval").manifest_sha256() == before
    (folder / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"JPEGImages: holds a\.JPG and a\.png; which one is image 'a'"):
        voc.read(root, "trainval")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\r\n", "\n\n", " \n", "\r"])
def test_lists_as_other_systems_write_them(root, encoding, end):
    expected = voc.read(root, "trainval")
    for file in main(root).iterdir():
        file.write_bytes(file.read_text().replace("\n", end).encode(encoding))
    split = voc.read(root, "trainval")
    assert split.manifest_sha256() == expected.manifest_sha256()
    assert split.source.paths == expected.source.paths


def test_lists_may_say_the_ending_and_a_label(root):
    expected = voc.read(root, "trainval").manifest_sha256()
    (main(root) / "trainval.txt").write_text("a.jpg\nb.JPG\nc 1\n")
    (main(root) / "cat_trainval.txt").write_text("a.jpg -1\nb.png  1\nc  0\n")
    assert voc.read(root, "trainval").manifest_sha256() == expected


def test_names_with_spaces(root):
    folder = root / "VOCdevkit" / "VOC2007" / "JPEGImages"
    for new, old in (("a 1", "a"), ("a  b 0", "b")):
        (folder / f"{old}.jpg").rename(folder / f"{new}.jpg")
        for file in main(root).glob("*trainval.txt"):
            file.write_text("".join(
                line.replace(old, new, 1) if line.startswith(old) else line
                for line in file.read_text().splitlines(keepends=True)
            ))  # fmt: skip
    (main(root) / "small_trainval.txt").write_text("a 1\na  b 0\n")
    split = voc.read(root, "trainval")
    assert split.source.paths == ("a 1.jpg", "a  b 0.jpg", "c.jpg")
    assert split.classes == ("ant", "cat")
    assert split.labels.tolist() == [[1, -1], [-1, 1], [1, 0]]


@pytest.mark.parametrize("text", ["a\nb\n", "a.jpg\nb.jpg\n", "\ufeffa\r\nb\r\n"])
@pytest.mark.parametrize("name", ["small_trainval.txt", "my_own_test.txt"])
def test_another_list_of_images_is_no_class(root, name, text):
    expected = voc.read(root, "trainval")
    (main(root) / name).write_text(text)
    split = voc.read(root, "trainval")
    assert split.classes == expected.classes
    assert split.manifest_sha256() == expected.manifest_sha256()
    assert voc.read(root, "test").classes == expected.classes
    counted = {voc.NOT_OF_A_CLASS: (1, name)} if name.endswith("trainval.txt") else {}
    assert split.passed_over == counted


def test_half_a_devkit(root, tmp_path):
    for list_file in main(root).glob("*_trainval.txt"):
        list_file.unlink()
    with pytest.raises(DataError, match=r"no lists <class>_trainval\.txt"):
        voc.read(root, "trainval")
    assert len(voc.read(root, "test")) == 1  # what the test archive alone holds
    with pytest.raises(DataError, match="unpack the devkit's tar files there"):
        voc.read(tmp_path, "test")


# ---------------------------------------------------------------- annotations


def annotation(tmp_path, text):
    (tmp_path / "x.xml").write_text(text)
    return voc.annotation(tmp_path / "x.xml")


def test_annotation(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    found = annotation(
        tmp_path,
        xml(thing("dog", box=(1, 2, "45.5", 4), more=part), thing("cat", difficult=1, truncated=1)),
    )
    assert (found.width, found.height) == (6, 4)
    assert [item.name for item in found.objects] == ["dog", "cat"], "parts are not objects"
    assert found.objects[0].box == (1, 2, 45.5, 4)
    assert [(item.difficult, item.truncated) for item in found.objects] == [(False, False), (True, True)]
    assert annotation(tmp_path, xml()).objects == ()


def test_an_object_of_which_nothing_is_said_is_not_difficult(tmp_path):
    """Many tools leave it out."""
    assert not annotation(tmp_path, xml(thing("cat").replace("<difficult>0</difficult>", ""))).objects[0].difficult


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<difficult>0</difficult>", "<difficult/>"),
        ("<difficult>0</difficult>", "<difficult> </difficult>"),
        ("<difficult>0</difficult>", "<difficult>0.0</difficult>"),
        ("<difficult>0</difficult>", "<difficult>False</difficult>"),
        ("<truncated>0</truncated>", "<truncated>Unspecified</truncated>"),
        ("<width>6</width>", "<width>6.0</width>"),
        ("<width>6</width>", "<width>\n  6\n</width>"),
        ("<xmin>1</xmin>", "<xmin> 1.0 </xmin>"),
        ("<annotation>", '<annotation xmlns="http://example.org/voc">'),
        ("<annotation>", '\n<?xml version="1.0"?><annotation>'),
        ("<annotation>", "<!DOCTYPE annotation><annotation><!-- by hand -->"),
        ("object>", "Object>"),
        ("xmin>", "XMin>"),
    ],
)
def test_what_other_tools_write_means_the_same(tmp_path, old, new):
    text = xml(thing("cat"))
    assert old in text
    assert annotation(tmp_path, text.replace(old, new)) == annotation(tmp_path, text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_annotations_of_every_encoding_that_says_which_it_is(tmp_path, encoding):
    (tmp_path / "x.xml").write_bytes(xml(thing("кот")).encode(encoding))
    assert voc.annotation(tmp_path / "x.xml").objects[0].name == "кот"


def test_an_annotation_without_a_size_leaves_it_to_the_image(tmp_path):
    text = xml(thing("cat")).replace("<size><width>6</width><height>4</height></size>", "")
    assert annotation(tmp_path, text) == voc.Annotation(None, None, annotation(tmp_path, xml(thing("cat"))).objects)


def test_the_name_of_a_part_that_comes_first_is_not_the_objects(tmp_path):
    text = thing("person").replace("<object>", "<object><part><name>head</name></part>")
    assert annotation(tmp_path, xml(text)).objects[0].name == "person"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (xml(thing("cat"))[:-10], "not readable as XML"),
        ("", "not readable as XML"),
        (xml(thing("cat")).replace("<width>6</width>", ""), "has no <size><width>"),
        (xml(thing("cat"), thing("")), "object 2 has no <name>"),
        (
            xml(thing("cat").replace("<difficult>0</difficult>", "<difficult>no</difficult>")),
            "<difficult> is 'no', not a",
        ),
        (xml(thing("cat")).replace("<width>6</width>", "<width>6.5</width>"), "<width> is '6.5', not a number"),
        (xml(thing("cat")).replace("<width>6</width>", "<width>nan</width>"), "<width> is 'nan', not a number"),
        (xml(thing("cat")).replace("<width>6</width>", f"<width>{'9' * 5000}</width>"), "not a number"),
        (xml(thing("cat")).replace("<width>6</width>", "<width/>"), "has no <size><width>"),
        (xml(thing("cat").replace("bndbox", "polygon")), "object 1 has no <bndbox><xmin>"),
        ('<!DOCTYPE a [<!ENTITY b "cat">]>' + xml(thing("&b;")), "it declares entities"),
        ("<annotation>" * 100, "not readable as XML"),
        (xml(thing("cat")) + xml(), "not readable as XML"),
        ('<?xml version="1.0" encoding="GBK"?>' + xml(thing("cat")), "not readable as XML"),
        ('<?xml version="1.0" encoding="klingon"?>' + xml(thing("cat")), "not readable as XML"),
        (xml(thing("cat").replace("<ymax>4</ymax>", "")), "object 1 has no <bndbox><ymax>"),
        (xml(thing("cat", box=(1, "two", 3, 4))), "object 1: <bndbox><ymin> is 'two', not a number"),
    ],
)
def test_broken_annotation_names_the_file(tmp_path, text, words):
    with pytest.raises(DataError, match=rf"x\.xml.*{re.escape(words)}"):
        annotation(tmp_path, text)


def test_a_missing_annotation_is_named(tmp_path):
    with pytest.raises(DataError, match=r"y\.xml: not readable"):
        voc.annotation(tmp_path / "y.xml")


def test_states_of_an_image():
    box = (1.0, 1.0, 2.0, 2.0)
    plain, difficult = (voc.Object("cat", box, d, False) for d in (False, True))
    other = voc.Object("dog", box, True, False)
    assert voc.states((difficult, plain, other)) == voc.states((plain, difficult, other)) == {"cat": 1, "dog": 0}
    assert voc.states(()) == {}


# ---------------------------------------------------------------- whole ones


def labels_from_annotations(folder: Path, split) -> np.ndarray:
    """The rule of the devkit, from the XML: a second way to the labels."""
    rows = []
    for i in range(len(split)):
        objects = voc.annotation(folder / "Annotations" / f"{split.source.name(i)[:-4]}.xml").objects
        plain = {item.name for item in objects if not item.difficult}
        named = {item.name for item in objects}
        rows.append([1 if cls in plain else 0 if cls in named else -1 for cls in split.classes])
    return np.array(rows)


def test_the_demos_lists_and_annotations_agree():
    places = DataPlaces(demo.root())
    splits = {role: catalogue.load("voc", role, places) for role in ("train", "test")}
    folder = voc.year_folder(demo.root() / "voc")
    for split in splits.values():
        assert split.classes == render.CLASSES
        assert np.array_equal(split.labels, labels_from_annotations(folder, split))
    assert {-1, 0, 1} == set(np.unique(splits["train"].labels))
    assert not is_published("voc", splits)


def test_real_voc(real_data):
    splits = {role: catalogue.load("voc", role, DataPlaces(real_data)) for role in ("train", "test")}
    assert {role: len(split) for role, split in splits.items()} == {"train": 381, "test": 394}
    assert not is_published("voc", splits)
    folder = voc.year_folder(real_data / "voc")
    for split in splits.values():
        assert len(split.classes) == 20
        assert np.array_equal(split.labels, labels_from_annotations(folder, split))
