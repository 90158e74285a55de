"""Unpack archives that the user downloaded into the layouts that the readers expect.

Safe to repeat: an existing file of the right size is kept; every file is written under a temporary name, then renamed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from backbench.data import catalogue, imagenet_labels
from backbench.data.archives import DAMAGED, Member, members
from backbench.errors import DataError, nearest, writing
from backbench.files import opened
from backbench.files.atomic import make_folder
from backbench.printable import some
from backbench.progress import say, track

Route = Callable[[str], str | None]  # a member's name -> its path below the data set's folder; None: not needed
_MEGABYTE = 2**20


@dataclass
class Tally:
    """The result of unpacking an archive."""

    written: int = 0
    kept: int = 0  # existed already
    unneeded: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        return (
            f"{self.written} files ({self.bytes / 1e6:.1f} MB), {self.kept} there already, {self.unneeded} not needed"
        )


def prepare(
    name: str, archives: Sequence[Path], folder: Path, *, val_labels: Path | None = None, dry_run: bool = False
) -> dict[Path, Tally]:
    """Unpack each archive into the data set's folder; with `dry_run` only count.

    ImageNet's validation images go to the folders of their classes by its devkit, given as an archive or beside one.

    Raises:
        DataError: the data set is unknown; an archive is missing, cut short, unsafe or without files of the data set, or
            has a published name and other bytes.
    """
    archives, devkit = [Path(archive) for archive in archives], None
    if name == "imagenet":
        archives, devkit = imagenet_labels.without_devkit(archives)
    for archive in archives:
        check_md5(archive, name)
    route = route_of(name, val_labels, devkit)
    tallies = {}
    for archive in archives:
        tallies[archive] = unpack(Path(archive), Path(folder), route, dry_run=dry_run)
        verb = "would be unpacked" if dry_run else "unpacked"
        say(f"{archive}: {verb} into {folder}: {tallies[archive]}")
    return tallies


def check_md5(archive: Path, name: str) -> None:
    """Raise DataError if an archive has a published file's name and other bytes."""
    published = {known.file: known.md5 for known in catalogue.info(name).archives if known.md5}
    expected = published.get(archive.name)
    if expected is None:
        return
    found = hashlib.md5(usedforsecurity=False)
    with opened(archive, DataError) as file:
        size = os.fstat(file.fileno()).st_size
        chunks = iter(lambda: file.read(_MEGABYTE), b"")
        for chunk in track(chunks, total=size // _MEGABYTE, label=f"checking {archive.name}, MB"):
            found.update(chunk)
    if found.hexdigest() != expected:
        raise DataError(
            f"{archive}: its md5 is {found.hexdigest()}; published: {expected}. Was the download cut short? Download it "
            "again; if it is another file on purpose, rename it"
        )


def unpack(archive: Path, folder: Path, route: Route, *, dry_run: bool = False) -> Tally:
    """Unpack one archive (tar, compressed or not; zip), or copy one plain file (`archives.PLAIN`).

    Raises:
        DataError: as `prepare`; files that were already unpacked stay.
    """
    if not archive.is_file():
        raise DataError(f"{archive}: no such file")
    tally = Tally()
    seen: list[str] = []
    try:
        with archive.open("rb") as raw:
            steps = _unpack(archive, raw, folder, route, tally, seen, dry_run=dry_run)
            for _ in track(steps, total=archive.stat().st_size // _MEGABYTE, label=f"{archive.name}, MB"):
                pass
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno:  # gzip's and bz2's own errors have none
            raise DataError(f"{archive}: cannot be unpacked into {folder}: {error}") from None
        raise DataError(
            f"{archive}: not a whole archive, cut short? ({' '.join(str(error).split())}); unpacked so far: {tally}. "
            "They stay: run again with a whole archive to complete them"
        ) from None
    if not tally.written + tally.kept:
        raise DataError(f"{archive}: holds nothing that this data set needs ({some(seen) if seen else 'it is empty'})")
    return tally


def _unpack(
    archive: Path, raw: IO[bytes], folder: Path, route: Route, tally: Tally, seen: list[str], *, dry_run: bool
) -> Iterator[None]:
    """Unpack; yield once for each megabyte of the archive that was read."""
    done = 0
    for member in members(archive, raw):
        seen.append(member.name)
        del seen[3:]
        place = route(member.name)
        target = folder / place if place else None
        if target is None:
            tally.unneeded += 1
        elif target.is_file() and target.stat().st_size == member.size:
            tally.kept += 1
        else:
            if not dry_run:
                _write(member, target, archive)
            tally.written += 1
            tally.bytes += member.size
        while done < raw.tell() // _MEGABYTE:
            done += 1
            yield


def _write(member: Member, target: Path, archive: Path) -> None:
    """Copy a member through a temporary file; no more bytes than it declares."""
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.part")
    try:
        with member.open() as source:
            chunk = source.read(_MEGABYTE)
            with writing(target), temporary.open("wb") as file:
                written = 0
                while chunk:
                    written += len(chunk)
                    if written > member.size:
                        raise DataError(
                            f"{archive}: '{member.name}' holds more than the {member.size} bytes it declares"
                        )
                    file.write(chunk)
                    chunk = source.read(_MEGABYTE)
        if written != member.size:
            raise EOFError(f"'{member.name}' ends after {written} of {member.size} bytes")
        with writing(target):
            os.replace(temporary, target)  # noqa: PTH105 (the name of the operation matters here)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------- layouts


def route_of(name: str, val_labels: Path | None = None, devkit: Path | None = None) -> Route:
    """Return the route of a data set's members. Raises DataError for a data set without archives."""
    routes = {
        "voc": _after("VOCdevkit/", keep="VOCdevkit/"),
        "coco": _coco,
        "inat18": _inat18,
        "places205": _places205,
        "stl10": _after("stl10_binary/", keep="stl10_binary/"),
        "imagenet": imagenet_labels.route(val_labels, devkit),
        "food101": _after("food-101/", keep="food-101/"),
        "cifar10": _after("cifar-10-batches-py/", keep="cifar-10-batches-py/"),
        "cifar100": _after("cifar-100-python/", keep="cifar-100-python/"),
        "birdsnap": _matching(r"(?:^|/)((?:download/)?images/.+|(?:species|images|test_images)\.txt)$"),
        "sun397": _matching(
            r"(?:^|/)(ClassName\.txt|(?:Training|Testing)_01\.txt|[a-z]/[^/]+/.*\.jpg)$", keep="SUN397/"
        ),
        "stanford_cars": _matching(
            r"(?:^|/)(cars_(?:train|test)/[^/]+\.jpg|devkit/.+\.mat|cars_test_annos_withlabels\.mat)$"
        ),
        "fgvc_aircraft": _after("fgvc-aircraft-2013b/", keep="fgvc-aircraft-2013b/"),
        "dtd": _after("dtd/", keep="dtd/"),
        "oxford_pets": _matching(r"(?:^|/)(images/[^/]+\.jpg|annotations/(?:trainval|test|list)\.txt)$"),
        "caltech101": _matching(r"(?:^|/)(101_ObjectCategories/.+\.jpg|(?:train|test)\.txt)$"),
        "oxford_flowers": _matching(r"(?:^|/)(jpg/[^/]+\.jpg|imagelabels\.mat|setid\.mat)$"),
        "imagenet_v2": _after(
            "imagenetv2-matched-frequency-format-val/", keep="imagenetv2-matched-frequency-format-val/"
        ),
        "imagenet_a": _after("imagenet-a/", keep="imagenet-a/"),
        "imagenet_r": _after("imagenet-r/", keep="imagenet-r/"),
        "imagenet_sketch": _after("sketch/", keep="sketch/"),
        "imagenet_real": _matching(r"(?:^|/)(real\.json)$"),
        "eurosat": _matching(r"(?:^|/)(2750/.+\.jpg|eurosat-(?:train|val|test)\.txt)$"),
        "voc12": _voc12,
        "cityscapes": _matching(
            r"(?:^|/)(leftImg8bit/(?:train|val)/[^/]+/[^/]+_leftImg8bit\.png"
            r"|gtFine/(?:train|val)/[^/]+/[^/]+_gtFine_(?:label(?:Train)?|instance)Ids\.png)$"
        ),
        "ade20k": _matching(
            r"(?:^|/)ADEChallengeData2016/((?:images|annotations)/(?:training|validation)/[^/]+\.(?:jpg|png)"
            r"|objectInfo150\.txt)$",
            keep="ADEChallengeData2016/",
        ),
    }
    if name not in routes:
        raise DataError(f"no archives are known for data set '{name}'{nearest(name, routes)}")
    return routes[name]


def _after(folder: str, *, keep: str) -> Route:
    """Route everything below `folder`, at any depth of the archive, to `keep`."""

    def route(member: str) -> str | None:
        _, found, rest = f"/{member}".partition(f"/{folder}")
        return keep + rest if found and rest else None

    return route


def _matching(pattern: str, *, keep: str = "") -> Route:
    """Route members that a pattern finds to its first group, below `keep`."""

    def route(member: str) -> str | None:
        found = re.search(pattern, member)
        return keep + found[1] if found else None

    return route


def _voc12(member: str) -> str | None:
    folder = "VOCdevkit/VOC2012/"
    own = re.search(r"(?:^|/)VOC2012/((?:JPEGImages|SegmentationClass|ImageSets/Segmentation)/[^/.][^/]*)$", member)
    if own:
        return folder + own[1]
    added = re.search(r"(?:^|/)(?:(SegmentationClassAug/[^/.][^/]*\.png)|(train_?aug\.txt))$", member)
    if added:
        return folder + (added[1] or f"ImageSets/Segmentation/{added[2]}")
    return None


def _coco(member: str) -> str | None:
    found = re.search(r"(?:^|/)((?:train|val)2017/[^/]+\.jpg|annotations/instances_(?:train|val)2017\.json)$", member)
    return found[1] if found else None


def _inat18(member: str) -> str | None:
    found = re.search(r"(?:^|/)(train_val2018/.+|(?:train|val)2018\.json)$", member)
    return found[1] if found else None


def _places205(member: str) -> str | None:
    found = re.search(r"(?:^|/)((?:train|val)_places205\.csv)$", member)
    if found:
        return found[1]
    return _after("images256/", keep="images/")(member) or _after("images/", keep="images/")(member)
