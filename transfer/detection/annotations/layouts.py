"""Read annotated splits in VOC's and COCO's layouts, with any classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from backbench.data.decode import header_size
from backbench.data.layouts import coco, voc
from backbench.data.splits import Files
from backbench.errors import DataError
from backbench.progress import say, track
from transfer.detection.annotations import coco_objects
from transfer.detection.annotations.coco_objects import Sized, pixels_of
from transfer.detection.annotations.faults import (
    LEADS_OUT,
    MISSING,
    SIZE,
    TWICE,
    Bad,
    Faults,
    box_fault,
    clipped,
    sound,
)
from transfer.detection.annotations.part import Part
from transfer.detection.annotations.split import DetectionSplit, Instance, Picture


def read_voc(
    root: Path,
    split: str,
    *,
    bad: Bad = "error",
    dataset: str = "voc",
) -> DetectionSplit:
    """Read a split of VOC 2007's layout (any classes), or `trainval07+12`: trainval of 2007, then of 2012.

    Boxes are (xmin - 1, ymin - 1, xmax, ymax) (detectron2 data/datasets/pascal_voc.py). Difficult objects are kept.
    Classes come from the lists `<class>_<split>.txt`, or from the annotations if a year has no such lists.

    Args:
        bad: whether faults in the annotations raise an error or are left out; see `Faults`.

    Raises:
        DataError: an incomplete devkit, faults with `bad="error"`, or no image is left.
    """
    folders, own = _voc_folders(root, split)
    lists = [folder / "ImageSets" / "Main" for folder in folders]
    images = [voc.image_files(folder / "JPEGImages") for folder in folders]
    classes = _voc_classes(folders[0], own, images[0])
    for other, there in zip(lists[1:], images[1:], strict=True):
        if voc.class_names(other, own, there) != classes:
            raise DataError(f"{other}: its classes differ from those of {lists[0]}; both years need the same lists")
    base = folders[0] / "JPEGImages" if len(folders) == 1 else folders[0].parent
    faults = Faults(base, bad)
    paths, pictures = [], []
    for folder, listed, there in zip(folders, lists, images, strict=True):
        ids = voc.image_ids(listed / f"{own}.txt", there)
        for name in track(ids, total=len(ids), label=f"annotations of {folder.name} {own}"):
            image = folder / "JPEGImages" / there.get(name, f"{name}.jpg")
            if name not in there:
                faults.add(MISSING, image.name)
            elif (picture := _voc_picture(folder, name, classes, faults, image)) is not None:
                paths.append(image.relative_to(base).as_posix())
                pictures.append(picture)
    found = DetectionSplit(dataset, split, Files(base, tuple(paths)), tuple(pictures), classes)
    return sound(found, faults)


def read_coco(
    root: Path,
    split: str,
    *,
    bad: Bad = "error",
    masks: bool = False,
    dataset: str = "coco",
    part: Part | None = None,
) -> DetectionSplit:
    """Read a split of COCO's layout: images by id, categories by id without gaps, crowds marked, masks unchanged.

    Images without objects are kept, because the metric counts detections in them.

    Args:
        bad: whether faults in the annotations raise an error or are left out; see `Faults`.
        masks: every object needs a mask.
        part: read only these images; the others may be absent.

    Raises:
        DataError: not COCO's format, faults with `bad="error"`, or no image is left.
    """
    file = coco.annotation_file(root, split)
    known = coco.instances(file, strict=False)
    fields: dict[str, Any] = {"bad": bad, "masks": masks, "dataset": dataset}
    if part is None:
        return of_instances(known, file, Path(root) / split, split, **fields)
    chosen = {known.order[row] for row in part.rows(len(known.images), file)}
    drawn = replace(known, images=tuple(image for image in known.images if image["id"] in chosen))
    found = of_instances(drawn, file, Path(root) / split, split, **fields)
    return replace(found, split=part.named(split), part_of=(split, len(known.images)))


def of_instances(
    known: coco.Instances, file: Path, folder: Path, split: str, *, bad: Bad, masks: bool, dataset: str
) -> DetectionSplit:
    """Return the split of a checked annotation file whose images are in a folder; arguments as in `read_coco`."""
    faults = Faults(file, bad)
    for number, key in known.stray:
        faults.add(f"annotations whose {key} is unknown", f"annotation {number}")
    for names in coco.names_alike(known.categories):
        faults.mend("categories with the same name, kept separate", names)
    labels = {category["id"]: row for row, category in enumerate(known.categories)}
    of_image: dict[Any, list[dict[str, Any]]] = {}
    for annotation in known.annotations:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    there, twice = voc.listing(folder), coco.listed_twice(known.images)
    paths, pictures = [], []
    for image in track(known.images, total=len(known.images), label=f"annotations of {dataset} {split}"):
        name, size = image["file_name"], pixels_of(image)
        fault = _file_fault(name, folder, there) or (TWICE if name in twice else None) or (None if size else SIZE)
        if fault or size is None:
            faults.add(fault or SIZE, name)
            continue
        sized = Sized(image["id"], name, *size)
        items = [
            coco_objects.instance(a, sized, labels[a["category_id"]], faults, masks=masks)
            for a in of_image.get(image["id"], [])
        ]
        paths.append(name)
        pictures.append(Picture(str(image["id"]), *size, tuple(item for item in items if item is not None)))
    classes = tuple(category["name"] for category in known.categories)
    found = DetectionSplit(dataset, split, Files(folder, tuple(paths)), tuple(pictures), classes, annotations=file)
    return sound(found, faults)


def _file_fault(name: str, folder: Path, there: set[str]) -> str | None:
    """Return the fault of a file name, or None. `there` lists the folder; never looks outside the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return LEADS_OUT
    return None if name in there or coco.is_below(name, folder) else MISSING


def _voc_folders(root: Path, split: str) -> tuple[list[Path], str]:
    """Return the folders of the years and the name of their list."""
    if split != "trainval07+12":
        return [voc.year_folder(root)], split
    folders = [voc.year_folder(root, year) for year in (2007, 2012)]
    if folders[0] == folders[1] or folders[0].parent != folders[1].parent:
        raise DataError(f"{root}: {split} needs VOC2007 and VOC2012 side by side in one folder (VOCdevkit)")
    return folders, "trainval"


def _voc_classes(folder: Path, split: str, images: Mapping[str, str]) -> tuple[str, ...]:
    """Return the classes of the devkit's lists, or without such lists the names in all annotations."""
    lists = folder / "ImageSets" / "Main"
    if voc.has_classes(lists, split, images):
        return voc.class_names(lists, split, images)
    found: set[str] = set()
    faults = []
    own = [file for file in lists.glob("*.txt") if not file.name.startswith(".")]  # made by macOS or an editor
    for name in sorted({name for file in own for name in voc.image_ids(file, images)}):
        try:
            found |= {item.name for item in voc.annotation(folder / "Annotations" / f"{name}.xml").objects}
        except DataError as error:  # counted when the split is read
            faults.append(str(error))
    if not found and faults:
        raise DataError(
            f"{lists}: no lists <class>_{split}.txt, and {len(faults)} annotations with faults: {faults[0]}"
        )
    if not found:
        raise DataError(f"{lists}: no lists <class>_{split}.txt, and no object in the annotations")
    say(f"{lists}: no lists <class>_{split}.txt; classes from the annotations: {', '.join(sorted(found))}")
    return tuple(sorted(found))


def _voc_picture(folder: Path, name: str, classes: tuple[str, ...], faults: Faults, image: Path) -> Picture | None:
    try:
        stated = voc.annotation(folder / "Annotations" / f"{name}.xml")
        width, height = stated.width, stated.height
        if width is None or height is None:
            width, height = header_size(image)
    except DataError as error:
        faults.add("annotations that cannot be read", str(error))
        return None
    if width <= 0 or height <= 0:
        faults.add(SIZE, f"{name}.jpg")
        return None
    instances = []
    for item in stated.objects:
        if item.name not in classes:
            faults.add("objects of a class that has no list", f"'{item.name}' in {name}.xml")
            continue
        x0, y0, x1, y1 = item.box
        box = (x0 - 1, y0 - 1, x1, y1)
        fault = box_fault(box, width, height)
        if fault:
            faults.add(fault, f"{name}.xml")
        else:
            box = clipped(box, width, height, f"{name}.xml", faults)
            instances.append(Instance(classes.index(item.name), box, difficult=item.difficult))
    return Picture(name, width, height, tuple(instances))
