"""Lists of a folder's images; other files are counted and named."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from PIL import Image

from backbench.data import doctor, listing
from backbench.data.catalogue import DataPlaces
from backbench.data.layouts import imagefolder
from backbench.errors import DataError
from benchmarks.measuring import describe_data
from benchmarks.records.schema import DataRecord


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (len(path.name), 9, 9)).save(path, "PNG")
    return path


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            for i in range(2):
                picture(tmp_path / f"data/{split}/{name}/{i}.png")
    return tmp_path / "data"


def names(root, split="train"):
    found = imagefolder.read(root, split)
    return list(found.source.paths), {reason: count for reason, (count, _) in found.passed_over.items()}


FOUR = ["ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png"]


def test_a_link_to_a_folder_is_followed(root, tmp_path):
    picture(tmp_path / "extra/x.png")
    picture(tmp_path / "extra/deep/y.png")
    (root / "train/ant/more").symlink_to(tmp_path / "extra")
    assert names(root) == (sorted([*FOUR, "ant/more/x.png", "ant/more/deep/y.png"]), {})


def test_a_link_to_a_class_folder_is_that_class(root, tmp_path):
    (root / "train/bee").rename(tmp_path / "elsewhere")
    (root / "train/bee").symlink_to(tmp_path / "elsewhere")
    assert names(root) == (FOUR, {})


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_a_circle_of_links_ends(root, target):
    (root / "train/ant/again").symlink_to(target)
    assert names(root) == (FOUR, {listing.FOLDER_AGAIN: 1})


def test_a_folder_that_is_linked_beside_itself_is_read_once(root):
    picture(root / "train/ant/z/2.png")
    (root / "train/ant/a").symlink_to("z")
    assert names(root) == (sorted([*FOUR, "ant/z/2.png"]), {listing.FOLDER_AGAIN: 1})


def test_an_image_and_a_link_to_it_are_one(root, tmp_path):
    outside = picture(tmp_path / "x.png")
    (root / "train/ant/a.png").symlink_to("0.png")
    (root / "train/ant/b.png").symlink_to(outside)
    (root / "train/ant/c.png").symlink_to(outside)
    assert names(root) == (sorted([*FOUR, "ant/b.png"]), {listing.IMAGE_AGAIN: 2})


def test_a_data_set_of_links_is_whole(root, tmp_path):
    for path in sorted((root / "train").rglob("*.png")):
        link = tmp_path / "links/train" / path.relative_to(root / "train")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert names(tmp_path / "links") == (FOUR, {})
    linked, plain = (imagefolder.read(place, "train") for place in (tmp_path / "links", root))
    assert linked.manifest_sha256() == plain.manifest_sha256()


def test_one_folder_cannot_be_two_classes(root):
    (root / "train/wasp").symlink_to("bee")
    with pytest.raises(DataError, match=r"wasp: is or leads to a folder of class 'bee'.*remove one"):
        imagefolder.read(root, "train")
    (root / "train/wasp").unlink()
    (root / "train/ant/more").symlink_to("../bee")
    with pytest.raises(DataError, match=r"bee: is or leads to a folder of class 'ant'"):
        imagefolder.read(root, "train")


@pytest.mark.parametrize("place", ["train/wasp", "train/ant/more"])
@pytest.mark.parametrize("target", ["/nowhere/at/all", "itself"])
def test_a_link_that_leads_nowhere_may_be_a_folder_that_is_missing(root, place, target):
    (root / place).symlink_to((root / place) if target == "itself" else target)
    with pytest.raises(DataError, match=rf"{place}: a link that cannot be followed \(.*is a disk not mounted"):
        imagefolder.read(root, "train")


@pytest.mark.parametrize("folder", ["@eaDir", "@EADIR", "__MACOSX", "#recycle", "lost+found", "$RECYCLE.BIN"])
def test_folders_of_systems_hold_no_images_and_are_no_classes(root, folder):
    picture(root / f"train/ant/{folder}/0.png/SYNOFILE_THUMB_M.png")
    picture(root / f"train/{folder}/ant/thumb.png")
    (root / f"train/{folder}/ant/SYNOINDEX").touch()
    assert names(root) == (FOUR, {listing.SYSTEM: 3})


def test_hidden_files_are_counted(root):
    for name in ("ant/._0.png", "ant/.thumbnails/a.png", "ant/.ipynb_checkpoints/b.png", ".cache/c.png"):
        picture(root / "train" / name)
    (root / "train/bee/.DS_Store").touch()
    (root / "train/bee/.empty").mkdir()
    assert names(root) == (FOUR, {listing.HIDDEN: 5})


@pytest.mark.parametrize(
    "ending", [".jfif", ".JPE", ".jp2", ".Tif", ".TIFF", ".webp", ".gif", ".avif", ".pbm", ".JPEG"]
)
def test_endings_that_can_be_read(root, ending):
    picture(root / f"train/ant/x{ending}")
    assert names(root) == (sorted([*FOUR, f"ant/x{ending}"]), {})
    assert len(imagefolder.read_unlabelled(root / "train", dataset="x")) == 5


def test_other_files_and_images_in_the_wrong_place_are_counted(root):
    for name in ("ant/Thumbs.db", "ant/notes.txt", "ant/x.heic", "ant/x.jpg.1", "ant/noending", "labels.csv"):
        (root / "train" / name).touch()
    picture(root / "train/stray.png")
    assert names(root) == (FOUR, {listing.OTHER: 6, listing.BESIDE: 1})


def test_folders_that_are_named_like_images_are_folders(root):
    picture(root / "train/ant/photo.jpg/x.png")
    assert names(root) == (sorted([*FOUR, "ant/photo.jpg/x.png"]), {})


def test_without_classes_the_same_rules_hold(root, tmp_path):
    picture(tmp_path / "extra/x.png")
    (root / "train/ant/more").symlink_to(tmp_path / "extra")
    (root / "train/again").symlink_to(".")
    picture(root / "train/@eaDir/x.png")
    found = imagefolder.read_unlabelled(root / "train", dataset="x")
    assert list(found.source.paths) == sorted([*FOUR, "ant/more/x.png"])
    assert found.passed_over == {listing.SYSTEM: (1, "@eaDir"), listing.FOLDER_AGAIN: (1, "again")}


def test_a_class_whose_images_are_all_passed_over_says_why(root):
    picture(root / "train/wasp/.x.png")
    (root / "train/wasp/y.heic").touch()
    with pytest.raises(
        DataError, match=r"hold no image, e\.g\. wasp \(passed over: 1 hidden files \(wasp/\.x\.png\), 1 "
    ):
        imagefolder.read(root, "train")


def test_a_folder_that_cannot_be_read_is_no_empty_one(root, monkeypatch):
    real = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    picture(root / "train/ant/deep/x.png")
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"ant/deep: cannot be read \(Permission denied\)"):
        imagefolder.read(root, "train")


def test_names_that_are_not_utf8(root):
    for split in ("train", "val"):
        picture(root / split / os.fsdecode(b"ant/caf\xe9.png"))
    found = imagefolder.read(root, "train")
    assert len(found) == 5
    assert len(found.manifest_sha256()) == len(found.state_sha256()) == 64
    assert found.source.rgb(2).shape == (4, 4, 3)
    (root / "train" / os.fsdecode(b"ant/caf\xe9.png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"caf\\udce9\.png: the file is empty") as error:
        imagefolder.read(root, "train").source.stored(2)
    str(error.value).encode()


def test_the_record_tells_it(root):
    picture(root / "train/ant/@eaDir/x.png")
    splits = {"train": imagefolder.read(root, "train"), "test": imagefolder.read(root, "val")}
    cell = SimpleNamespace(config=SimpleNamespace(data=SimpleNamespace(name="imagenet")))
    data = describe_data(cell, splits, DataPlaces(named={"imagenet": root}))
    assert data.passed_over == {"train": {listing.SYSTEM: 1}}
    assert DataRecord.model_validate(data.model_dump(exclude={"passed_over"})).passed_over == {}


def test_the_doctor_tells_it(root, capsys):
    picture(root / "train/ant/@eaDir/x.png")
    (root / "val/ant/\x1b[2Jx.heic").touch()
    assert doctor.run(DataPlaces(named={"imagenet": root})) == 0
    out = capsys.readouterr().out
    assert "passed over train: 1 files of thumbnails and system folders (ant/@eaDir)" in out
    assert r"passed over val: 1 files of another ending than images have (ant/\x1b[2Jx.heic)" in out
    doctor.run(DataPlaces(named={"imagenet": root}), as_json=True)
    assert '"passed_over": {' in capsys.readouterr().out
