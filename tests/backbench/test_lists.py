"""The 1% and 10% lists: the images they choose, and every kind of wrong list."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from backbench import http
from backbench.data import subsets
from backbench.data.__main__ import main
from backbench.data.splits import ImageSplit, Subset
from backbench.errors import BackbenchError, DataError

CLASSES = tuple("abcd")
PER_CLASS = 50


class Named:
    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]

    def size(self, index):
        return index


@pytest.fixture
def split():
    names = [f"{cls}/{cls}_{i}.JPEG" for cls in CLASSES for i in range(PER_CLASS)]
    return ImageSplit("imagenet", "train", Named(names), np.repeat(np.arange(4), PER_CLASS), CLASSES)


@pytest.fixture
def listed(tmp_path):
    def to(*names):
        (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
        return str(tmp_path / "list.txt")

    return to


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \t\n\n"])
def test_lists_as_other_systems_write_them(split, tmp_path, encoding, end):
    names = [f"{cls}_1.JPEG" for cls in CLASSES]
    (tmp_path / "list.txt").write_bytes("".join(name + end for name in names).encode(encoding))
    part = subsets.subset(split, str(tmp_path / "list.txt"))
    assert [part.source.name(i) for i in range(4)] == [f"{cls}/{cls}_1.JPEG" for cls in CLASSES]


@pytest.mark.parametrize("where", ["~nobody-of-this-name/list.txt", "a" * 5000, "/dev/zero", "/tmp"])
def test_what_cannot_be_a_list(split, where):
    with pytest.raises(DataError, match=r"write the whole path|not a readable list of file names"):
        subsets.subset(split, where)


def of_each(count):
    return [f"{cls}_{i}.JPEG" for cls in CLASSES for i in range(count)]


def test_the_named_images_with_their_labels(split, listed):
    names = ["d_7.JPEG", "a_3.JPEG", "b/b_49.JPEG", "c_0.JPEG", "a_1.JPEG"]
    part = subsets.subset(split, listed(*names))
    assert isinstance(part.source, Subset)
    chosen = {part.source.name(i): int(part.labels[i]) for i in range(len(part))}
    assert chosen == {"a/a_1.JPEG": 0, "a/a_3.JPEG": 0, "b/b_49.JPEG": 1, "c/c_0.JPEG": 2, "d/d_7.JPEG": 3}
    assert part.classes == split.classes
    assert (part.dataset, part.split) == ("imagenet", "train")


def test_the_order_of_the_list_does_not_matter(split, listed):
    first = subsets.subset(split, listed(*of_each(2)))
    again = subsets.subset(split, listed(*reversed(of_each(2)), ""))
    assert first.labels.tolist() == again.labels.tolist() == sorted(first.labels)
    assert first.manifest_sha256() == again.manifest_sha256()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            [*of_each(1), "x_1.JPEG", "a/b_1.JPEG"],
            r"names that 'imagenet' train does not have: 2, e\.g\. x_1\.JPEG, a/b_1\.JPEG",
        ),
        ([*of_each(1), "a_0.JPEG"], r"images that are there twice: 1, e\.g\. a/a_0\.JPEG"),
        ([*of_each(1), "a/a_0.JPEG"], r"images that are there twice: 1, e\.g\. a/a_0\.JPEG"),
        ([f"{cls}_0.JPEG" for cls in "ac"], r"leaves classes without any image: 2, e\.g\. b, d"),
        ([], "names no image"),
    ],
)
def test_broken_lists(split, listed, names, words):
    with pytest.raises(DataError, match=rf"list\.txt: {words}"):
        subsets.subset(split, listed(*names))


def test_names_of_several_images_need_their_folder(listed):
    names = [f"{cls}/{i}.jpg" for cls in "ab" for i in range(3)]
    split = ImageSplit("imagenet", "train", Named(names), np.repeat(np.arange(2), 3), ("a", "b"))
    with pytest.raises(DataError, match=r"names of several images: 1, e\.g\. 1\.jpg; write them as <class>/<file>"):
        subsets.subset(split, listed("1.jpg", "b/2.jpg"))
    assert subsets.subset(split, listed("a/1.jpg", "b/2.jpg")).labels.tolist() == [0, 1]


def test_splits_without_one_class_per_image_are_refused(split, listed):
    for labels in (None, np.ones((200, 4), np.int8)):
        other = ImageSplit("voc", "trainval", split.source, labels, CLASSES)
        with pytest.raises(DataError, match="'voc' is not one"):
            subsets.subset(other, listed(*of_each(1)))


@pytest.mark.parametrize(
    ("per_class", "expected", "accepted"),
    [(1, "1%", True), (2, "1%", False), (5, "1%", False), (1, "10%", False), (5, "10%", True), (20, "10%", False)],
)
def test_a_list_of_another_size_than_asked_for(split, listed, per_class, expected, accepted):
    file = listed(*of_each(per_class))  # of 50 a class: 1 is 2%, 2 are 4%, 5 are 10%, 20 are 40%
    if accepted:
        assert len(subsets.subset(split, file, expected=expected)) == 4 * per_class
    else:
        with pytest.raises(DataError, match=rf"names {4 * per_class} of 200 training images, .* not a {expected} list"):
            subsets.subset(split, file, expected=expected)
    assert len(subsets.subset(split, file)) == 4 * per_class  # nothing was asked for


@pytest.fixture
def official(monkeypatch, tmp_path):
    """Replace the official lists by small ones, 2% and 10% of the split; returns the bytes that the network gives."""
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))
    texts = {name: "".join(f"{n}\n" for n in of_each(count)).encode() for name, count in (("1%", 1), ("10%", 5))}
    small = {
        name: subsets.OfficialList(o.file, hashlib.sha256(texts[name]).hexdigest(), 0, o.fractions)
        for name, o in subsets.OFFICIAL.items()
    }
    online = {small[name].url: text for name, text in texts.items()}
    asked = []

    def fake(request):
        asked.append(request.url)
        if request.url not in online:
            raise BackbenchError(f"{request.url}: cannot reach it")
        request.part.write_bytes(online[request.url])

    monkeypatch.setattr(subsets, "OFFICIAL", small)
    monkeypatch.setattr(http, "retrieve", fake)
    return online, asked, texts


@pytest.mark.parametrize(("given", "expected"), [("1%", "10%"), ("10%", "1%")])
def test_one_official_list_given_as_the_other(split, official, tmp_path, given, expected):
    (tmp_path / "mine.txt").write_bytes(official[2][given])
    with pytest.raises(DataError, match=rf"mine\.txt: is the official {given} list; the {expected} list was asked for"):
        subsets.subset(split, str(tmp_path / "mine.txt"), expected=expected)
    with pytest.raises(DataError, match=f"the {given} list was given where the {expected} list is expected"):
        subsets.subset(split, given, expected=expected)
    assert len(subsets.subset(split, str(tmp_path / "mine.txt"), expected=given)) == len(subsets.subset(split, given))


def test_an_official_list_is_fetched_once(split, official, tmp_path):
    _, asked, texts = official
    for _ in range(2):
        assert len(subsets.subset(split, "1%")) == 4
    assert len(asked) == 1
    assert (tmp_path / "cache/lists/1percent.txt").read_bytes() == texts["1%"]
    assert not list((tmp_path / "cache/lists").glob("*.part"))


def test_a_damaged_copy_is_fetched_anew(official, tmp_path):
    file = subsets.fetch("10%")
    file.write_bytes(file.read_bytes()[:-5])
    assert subsets.fetch("10%").read_bytes() == official[2]["10%"]


def test_offline_says_what_to_do(official, tmp_path):
    online, _, _ = official
    online.clear()
    place = tmp_path / "cache/lists/1percent.txt"
    with pytest.raises(
        DataError, match=rf"cannot fetch https://.*/1percent\.txt .*download it to {place} by other means"
    ):
        subsets.fetch("1%")
    assert not place.exists()


def test_other_bytes_than_published_are_not_kept(official, tmp_path):
    online, _, _ = official
    online.update(dict.fromkeys(online, b"<html>log in</html>"))
    with pytest.raises(DataError, match="other bytes arrived than were published"):
        subsets.fetch("1%")
    assert [p.name for p in (tmp_path / "cache/lists").iterdir() if p.suffix != ".lock"] == []


def test_the_command_fetches_both(official, tmp_path, capsys):
    assert main(["lists"]) == 0
    assert sorted(p.name for p in (tmp_path / "cache/lists").glob("*.txt")) == ["10percent.txt", "1percent.txt"]
    assert "verified" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["/no/such/list.txt", "5%"])
def test_neither_a_list_nor_a_file(split, where):
    with pytest.raises(DataError, match=rf"{where}: not a readable list .* give 1%, 10% or a text file"):
        subsets.subset(split, where)


def test_the_published_lists():
    assert {name: o.count for name, o in subsets.OFFICIAL.items()} == {"1%": 12_811, "10%": 128_116}
    for name, o in subsets.OFFICIAL.items():
        low, high = o.fractions
        others = [other.count / 1_281_167 for key, other in subsets.OFFICIAL.items() if key != name]
        assert low < o.count / 1_281_167 <= high
        assert not any(low < other <= high for other in others)
