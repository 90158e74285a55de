"""Read PASCAL VOC's annotations: one XML file per image, as the devkit and many tools write them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from backbench.errors import DataError
from backbench.files import Unreadable, read_bytes
from backbench.printable import printable

T = TypeVar("T")
_LARGEST = 64 * 2**20  # bytes of an annotation
_DEPTH = 64  # boxes of an object's parts are 5 levels deep


@dataclass(frozen=True)
class Object:
    """One annotated object."""

    name: str
    box: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax as printed: pixels from 1, the last one included
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class Annotation:
    """An image as its XML file describes it."""

    width: int | None  # None if the file does not state it: the image's own size counts
    height: int | None
    objects: tuple[Object, ...]


def annotation(path: Path) -> Annotation:
    """Read an XML file of `Annotations`; only the image's own objects, not their parts.

    Raises:
        DataError: the file does not parse or lacks a field.
    """
    tree = _parsed(path)
    objects = []
    for number, node in enumerate(tree.findall("object"), start=1):
        where = f"{path}: object {number}"
        x0, y0, x1, y1 = (_value(node, f"bndbox/{key}", float, where) for key in ("xmin", "ymin", "xmax", "ymax"))
        truncated = node.findtext("truncated", "").strip() == "1"  # nothing depends on it
        difficult = _flag(node, "difficult", where)
        objects.append(Object(_value(node, "name", str, where), (x0, y0, x1, y1), difficult, truncated))
    if tree.find("size") is None:
        return Annotation(None, None, tuple(objects))
    width, height = (_value(tree, f"size/{key}", _whole, str(path)) for key in ("width", "height"))
    return Annotation(width, height, tuple(objects))


def states(objects: tuple[Object, ...]) -> dict[str, int]:
    """Return an image's values in the per-class lists: 1 for a class with a plain object, 0 with only difficult ones."""
    found: dict[str, int] = {}
    for item in objects:
        found[item.name] = max(found.get(item.name, 0), int(not item.difficult))
    return found


class _Builder(ET.TreeBuilder):
    """Lower tags and drop their namespaces, which some tools write; limit the depth to that of annotations."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> ET.Element:
        self.depth += 1
        if self.depth > _DEPTH:  # expat's time grows with the square of the depth
            raise ValueError(f"elements within elements, {self.depth} deep")
        return super().start(tag.rpartition("}")[2].lower(), attributes)

    def end(self, tag: str) -> ET.Element:
        self.depth -= 1
        return super().end(tag)


def _parsed(path: Path) -> ET.Element:
    """Return the `<annotation>` element of an XML file."""
    try:
        data = read_bytes(path, limit=_LARGEST)
        if b"<!ENTITY" in data.replace(b"\0", b""):  # also in UTF-16: an entity may expand to gigabytes
            raise ValueError("it declares entities, which no annotation needs")
        tree = ET.fromstring(data.lstrip(b" \t\r\n"), ET.XMLParser(target=_Builder()))
    except Unreadable as error:
        raise DataError(f"{path}: not readable as XML ({str(error).removeprefix(f'{path}: ')})") from None
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two: encodings that expat cannot read
        raise DataError(f"{path}: not readable as XML ({error})") from None
    if tree.tag != "annotation":
        raise DataError(f"{path}: no annotation, but <{printable(tree.tag, 40)}>")
    return tree


def _value(node: ET.Element, key: str, kind: Callable[[str], T], where: str) -> T:
    text = (node.findtext(key) or "").strip()
    if not text:
        raise DataError(f"{where} has no <{key.replace('/', '><')}>")
    try:
        return kind(text)
    except (ValueError, OverflowError):
        raise DataError(f"{where}: <{key.replace('/', '><')}> is '{printable(text)}', not a number") from None


def _flag(node: ET.Element, key: str, where: str) -> bool:
    """Read a flag; an absent or empty element is false: many tools write it so."""
    return bool((node.findtext(key) or "").strip()) and _value(node, key, _truth, where)


def _truth(text: str) -> bool:
    """Parse 0 or 1, also as words. Raises ValueError for any other number: the meaning of 2 is undefined."""
    number = {"true": 1, "false": 0}.get(text.lower())
    number = _whole(text) if number is None else number
    if number not in (0, 1):
        raise ValueError(text)
    return bool(number)


def _whole(text: str) -> int:
    """Parse a whole number, also one written as `64.0`. Raises ValueError or OverflowError."""
    value = float(text)
    if math.isnan(value) or value != int(value):
        raise ValueError(text)
    return int(value)
