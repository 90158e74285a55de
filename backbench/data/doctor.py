"""Report for each data set: present, complete, readable, published; what is missing and where to get it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from backbench.data import catalogue, demo
from backbench.data.catalogue import DataPlaces
from backbench.data.decode import CorruptImage
from backbench.data.layouts import voc
from backbench.data.listing import listed
from backbench.data.masks import faults
from backbench.data.overlap import duplicates
from backbench.data.splits import Files, ImageSplit
from backbench.errors import ConfigError, DataError
from backbench.printable import some
from backbench.progress import track

SAMPLE = 200  # images per split that are checked without --full
_SEED = 0
_CHUNK = 256


@dataclass
class SplitReport:
    """The findings for one split."""

    name: str
    images: int
    published: int
    classes: int
    checked: int = 0
    unreadable: list[str] = field(default_factory=list)
    passed_over: dict[str, tuple[int, str]] = field(default_factory=dict)  # reason -> how many files, the first one


@dataclass
class Report:
    """The findings for one data set. `problems` make it broken; the user decides about `warnings`."""

    name: str
    state: str  # present, incomplete or absent
    folder: str | None
    source: str
    is_published: bool = False
    splits: list[SplitReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def run(places: DataPlaces, *, full: bool = False, as_json: bool = False) -> int:
    """Examine every data set that has a place and print the findings; returns 1 when a present one is broken, else 0.

    Raises:
        ConfigError: no place was given at all.
    """
    names = [name for name in catalogue.known() if places.of(name) is not None]
    if not names:
        raise ConfigError("nothing to look at: use --data-root DIR or --data name=DIR")
    reports = []
    for name in names:
        reports.append(examine(name, places, full=full))
        if not as_json:
            print("\n".join(lines(reports[-1])), flush=True)
    if as_json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
    return 1 if any(report.problems for report in reports) else 0


def examine(name: str, places: DataPlaces, *, full: bool = False) -> Report:
    """Check one data set: a seeded sample of each split, or all of it."""
    folder, known = places.of(name), catalogue.info(name)
    report = Report(name, "absent", str(folder) if folder else None, known.source)
    absent = catalogue.missing(name, places)
    if absent or folder is None or not any(voc.listing(folder)):
        report.warnings.append(absent or f"{folder} is empty ({known.source})")
        return report
    splits = {}
    for own in own_splits(name):
        try:
            splits[own] = catalogue.load(name, own, places)
        except DataError as error:
            report.problems.append(str(error))
    report.state = "incomplete" if report.problems else "present"
    used = {known.train, known.test} - {None}
    measured = {own: split for own, split in splits.items() if own in used}
    report.is_published = len(measured) == len(used) and catalogue.is_published(name, measured)
    for own, split in splits.items():
        report.splits.append(_examine_split(split, known.counts.get(own, known.counts.get("fold", 0)), full=full))
    for found in report.splits:
        if found.unreadable:
            report.problems.append(f"{found.name}: unreadable images: {some(found.unreadable)}")
    if known.layout == "voc":
        for split in splits.values():
            _examine_annotations(split, report, full=full)
    if hasattr(catalogue.layout_of(name), "masks"):
        for split in splits.values():
            _examine_masks(split, folder, report, full=full)
    if known.train in splits and known.test in splits:
        _compare(splits[known.train], splits[known.test], report, full=full)
    _say_what_it_is(report, folder)
    return report


def own_splits(name: str) -> list[str]:
    """Return the splits of a complete data set, as its layout names them, without detection's unions of several years."""
    info = catalogue.info(name)
    counts = info.counts or {split: 0 for split in (info.train, info.test) if split is not None}
    folds = [f"fold{i}" for i in range(10)] if "fold" in counts else []
    return [key for key in counts if key not in ("classes", "fold") and "+" not in key] + folds


def sample(split: ImageSplit, *, full: bool) -> np.ndarray:
    """Return the (N,) rows to check: the same rows each time."""
    if full or len(split) <= SAMPLE:
        return np.arange(len(split))
    return np.sort(np.random.default_rng(_SEED).choice(len(split), SAMPLE, replace=False))


def lines(report: Report) -> Iterator[str]:
    """Return the findings as text."""
    yield f"{report.name:<12} {report.state:<11} {report.folder if report.state != 'absent' else ''}".rstrip()
    for split in report.splits:
        if split.name.startswith("fold") and (split.images == split.published or not report.is_published):
            continue
        as_published = ", as published" if split.images == split.published else f" (published: {split.published})"
        count = f"{split.images} images{as_published if split.published else ''}"
        yield f"    {split.name:<11} {count}; {split.checked} looked at, {len(split.unreadable)} unreadable"
        if split.passed_over:
            yield f"    passed over {split.name}: {listed(split.passed_over)}"
    for problem in report.problems:
        yield f"    BROKEN      {problem}"
    for warning in report.warnings:
        yield f"    note        {warning}"
    if report.state == "incomplete":
        yield f"    get it      {report.source}"


def _examine_split(split: ImageSplit, published: int, *, full: bool) -> SplitReport:
    report = SplitReport(split.split, len(split), published, len(split.classes), passed_over=dict(split.passed_over))
    if split.split.startswith("fold"):  # its images are those of train
        return report
    rows = sample(split, full=full)
    label = f"images of {split.dataset} {split.split}"
    report.checked = len(rows)
    report.unreadable = [error for error in track(_errors(split, rows), total=len(rows), label=label) if error]
    return report


def _errors(split: ImageSplit, rows: np.ndarray) -> Iterator[str | None]:
    """Yield the fault of each image, None for a good one; several threads decode."""

    def error(row: int) -> str | None:
        try:
            split.source.pil(row)
        except CorruptImage as found:
            return str(found)
        return None

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(rows), _CHUNK):  # in chunks: a million futures need a gigabyte
            yield from pool.map(error, rows[first : first + _CHUNK].tolist())


def _examine_annotations(split: ImageSplit, report: Report, *, full: bool) -> None:
    """Check for VOC that every XML file parses, agrees with its image's labels, and names no other class."""
    assert isinstance(split.source, Files) and split.labels is not None
    notes = split.source.root.parent / "Annotations"
    broken, differing = [], []
    rows = sample(split, full=full)
    for row in track(rows.tolist(), total=len(rows), label=f"annotations of {split.dataset} {split.split}"):
        name = Path(split.source.name(row)).stem
        try:
            states = voc.states(voc.annotation(notes / f"{name}.xml").objects)
        except DataError as error:
            broken.append(str(error))
            continue
        expected = [states.pop(cls, -1) for cls in split.classes]
        if states or expected != split.labels[row].tolist():
            differing.append(name)
    if broken:
        report.problems.append(f"{split.split}: unreadable annotations: {some(broken, first=1)}")
    if differing:
        report.warnings.append(f"{split.split}: images whose class lists and XML disagree: {some(differing)}")


def _examine_masks(split: ImageSplit, folder: Path, report: Report, *, full: bool) -> None:
    """Check that every image has a mask of its size, whose pixels hold the data set's classes."""
    assert isinstance(split.source, Files)
    try:
        masks = catalogue.layout_of(report.name).masks(folder, split.split)
    except DataError as error:
        report.problems.append(str(error))
        return
    rows = sample(split, full=full).tolist()
    label = f"masks of {split.dataset} {split.split}"
    if found := list(faults(split.source, masks, track(rows, total=len(rows), label=label))):
        report.problems.append(f"{split.split}: masks that do not fit: {some(found, first=1)}")


def _compare(train: ImageSplit, test: ImageSplit, report: Report, *, full: bool) -> None:
    """Find classes that differ between the splits, and test images (of the sample) that are also in the training split."""
    if train.classes != test.classes:
        names = sorted(set(train.classes) ^ set(test.classes)) or ["another order"]
        report.problems.append(f"{train.split} and {test.split} have different classes: {some(names)}")
    rows = sample(test, full=full)
    looked_at = test.part(rows)
    try:
        pairs = duplicates(train, looked_at)
    except DataError as error:
        report.warnings.append(f"not searched for images that are in both splits: {error}")
        return
    if pairs:
        of = "" if full else f" of the {len(rows)} looked at"
        shown = [f"{test.split}/{b} is {train.split}/{a}" for a, b in pairs]
        report.warnings.append(f"images of {test.split}{of} that are in {train.split} too: {some(shown)}")


def _say_what_it_is(report: Report, folder: Path) -> None:
    """Return a sentence on whether numbers may carry the data set's name."""
    if demo.is_demo(folder):
        report.warnings.append("rendered demo scenes: numbers will be labelled 'demo scenes'")
    elif report.state == "present" and not report.is_published:
        known = catalogue.info(report.name)
        if not known.counts:
            return
        counts = {split.name: split.images for split in report.splits}
        images = "/".join(str(counts[split]) for split in (known.train, known.test) if split is not None)
        label = f"{report.name} layout, {images} images"
        classes = f"{report.splits[0].classes} classes (published: {known.counts['classes']})"
        report.warnings.append(f"not the published data set: numbers will be labelled '{label}'; {classes}")
