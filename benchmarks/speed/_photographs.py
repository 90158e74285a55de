"""Provide images for rows that read files: the user's photographs, or rendered JPEGs of a photograph's size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from backbench.errors import BackbenchError
from benchmarks.speed import Setup

if TYPE_CHECKING:
    from backbench.data.splits import ImageSplit

_WIDTH, _HEIGHT = 500, 375  # the median of ImageNet


@contextmanager
def photographs(setup: Setup, count: int) -> Iterator[list[Path]]:
    """Paths of up to `count` images of `--images`, or of `count` rendered ones that leave at the end.

    Raises:
        BackbenchError: the folder has no images.
    """
    if setup.images is not None:
        from backbench.data.decode import EXTENSIONS

        found = sorted(p for p in setup.images.rglob("*") if p.suffix.lower() in EXTENSIONS)[:count]
        if not found:
            raise BackbenchError(f"--images {setup.images}: no images in it; name a folder of photographs")
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="backbench-speed-") as folder:
        yield [_render(Path(folder) / f"{index:05}.jpg", index) for index in range(count)]


def described(setup: Setup, paths: list[Path]) -> str:
    """How many images of which kind, in words."""
    return f"{len(paths)} {'photographs' if setup.images else f'rendered JPEGs of {_WIDTH} x {_HEIGHT}'}"


def as_split(paths: list[Path]) -> ImageSplit:
    """The images as a split of one class."""
    import numpy as np

    from backbench.data.splits import Files, ImageSplit

    root = Path(paths[0].anchor)
    files = Files(root, tuple(str(path.absolute().relative_to(root)) for path in paths))
    return ImageSplit("photographs", "all", files, np.zeros(len(paths), np.int64), ("any",))


def _render(path: Path, seed: int) -> Path:
    """Noise of every scale, the finer the weaker (as in photographs): about 60 kB at quality 90."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    image = np.zeros((_HEIGHT, _WIDTH, 3), np.float32)
    for level in range(1, 9):
        grid = rng.standard_normal((2**level, 2**level, 3)).astype(np.float32)
        image += cv2.resize(grid, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC) * 2.0 ** (-level / 2)
    image = 128 + 48 * image / image.std()
    cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return path
