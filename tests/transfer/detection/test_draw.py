"""The grid: objects beside detections, at the right places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from backbench.data.splits import Files
from backbench.errors import ConfigError, DataError
from transfer.detection.annotations.split import Detections, DetectionSplit, Instance, Picture
from transfer.detection.scoring import draw

BLACK = (0, 0, 0)


@pytest.fixture
def split(tmp_path) -> DetectionSplit:
    """Black images of 200 x 100 pixels with a cup on the left."""
    for i in range(3):
        Image.new("RGB", (200, 100), BLACK).save(tmp_path / f"{i}.png")
    pictures = tuple(Picture(str(i), 200, 100, (Instance(0, (20.0, 40.0, 60.0, 80.0)),)) for i in range(3))
    return DetectionSplit("voc", "test", Files(tmp_path, ("0.png", "1.png", "2.png")), pictures, ("cup", "bus"))


def found(*items: tuple, masks: list | None = None) -> Detections:
    return Detections(
        np.array([item[1] for item in items], np.float32).reshape(-1, 4),
        np.array([item[0] for item in items], np.float32),
        np.array([item[2] for item in items], np.int64),
        masks,
    )


def drawn(split: DetectionSplit, detections: list[Detections], indices: list[int], path: Path, **fields) -> np.ndarray:
    draw.grid(split, detections, indices, path, **fields)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def panels(page: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return both images of a page with one pair, and their scale."""
    side = (1200 - 3 * draw._GAP) // 2
    top = draw._GAP + draw._TITLE
    left = page[top : top + side // 2, draw._GAP : draw._GAP + side]
    right = page[top : top + side // 2, 2 * draw._GAP + side : 2 * draw._GAP + 2 * side]
    return left, right, side / 200


def test_boxes_lie_where_they_are_said_to(split, tmp_path):
    detections = [found((0.9, (120, 40, 160, 80), 1))] * 3
    left, right, scale = panels(drawn(split, detections, [1], tmp_path / "grid.png"))
    x, y = round(20 * scale), round(60 * scale)  # on the left edge of the object's box, halfway down
    assert tuple(left[y, x]) == draw._GREEN
    assert tuple(left[y, x + 20]) == BLACK, "the box is not filled"
    assert tuple(right[y, x]) == BLACK, "objects are on the left only"
    x = round(120 * scale)
    assert tuple(right[y, x]) == draw._COLOURS[1]
    assert tuple(left[y, x]) == BLACK


def test_only_detections_above_the_threshold(split, tmp_path):
    detections = [found((0.6, (120, 40, 160, 80), 1), (0.4, (120, 40, 160, 80), 0))] * 3
    for threshold, expected in ((0.7, set()), (0.5, {1}), (0.3, {0, 1})):
        page = drawn(split, detections, [0], tmp_path / "grid.png", threshold=threshold)
        right = panels(page)[1]
        assert {label for label in (0, 1) if (right == draw._COLOURS[label]).all(axis=2).any()} == expected


@pytest.mark.parametrize("kind", ["polygons", "runs", "packed"])
def test_masks_are_translucent(split, tmp_path, kind):
    polygons = [[120, 40, 160, 40, 160, 80, 120, 80]]
    packed = coco_mask.merge(coco_mask.frPyObjects(polygons, 100, 200))
    runs = np.diff(np.flatnonzero(np.diff(coco_mask.decode(packed).ravel(order="F"), prepend=0, append=0))).tolist()
    first = int(np.flatnonzero(coco_mask.decode(packed).ravel(order="F"))[0])
    counts = [first, *runs]
    uncompressed = {"size": [100, 200], "counts": [*counts, 200 * 100 - sum(counts)]}
    mask = {"polygons": polygons, "runs": uncompressed, "packed": packed}[kind]
    detections = [found((0.9, (100, 20, 180, 95), 1), masks=[mask])] * 3
    _, right, scale = panels(drawn(split, detections, [0], tmp_path / "grid.png"))
    inside, outside = right[round(60 * scale), round(140 * scale)], right[round(60 * scale), round(110 * scale)]
    assert inside == pytest.approx(np.array(draw._COLOURS[1]) * 110 / 255, abs=2)
    assert tuple(outside) == BLACK


def test_a_page_is_1200_wide_and_has_two_images_a_row(split, tmp_path):
    detections = [found()] * 3
    heights = [drawn(split, detections, list(range(n)), tmp_path / "x/grid.png").shape for n in (1, 2, 3)]
    assert [shape[1] for shape in heights] == [1200] * 3
    assert heights[2][0] - heights[1][0] == heights[1][0] - draw._GAP


def test_a_name_hides_no_other_where_there_is_room():
    taken = [draw._place((50, 50, 90, 90), 40, (200, 100), [])]
    taken.append(draw._place((50, 50, 90, 90), 40, (200, 100), taken))
    assert taken[0] != taken[1]
    assert taken[1][1] >= taken[0][3] or taken[1][0] >= taken[0][2]
    for x0, y0, x1, y1 in (*taken, draw._place((190, -20, 230, 10), 40, (200, 100), [])):
        assert 0 <= x0 < x1 < 200
        assert 0 <= y0 < y1 < 100


@pytest.mark.parametrize("indices", [[], [3], [-1]])
def test_what_is_not_there_is_not_drawn(split, tmp_path, indices):
    with pytest.raises(ConfigError, match="it has 0 to 2"):
        draw.grid(split, [found()] * 3, indices, tmp_path / "grid.png")


def test_a_broken_image_is_named(split, tmp_path):
    split.file(1).write_bytes(b"x")
    with pytest.raises(DataError, match=r"1\.png"):
        draw.grid(split, [found()] * 3, [1], tmp_path / "grid.png")
