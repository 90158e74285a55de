"""Write the same images and labels as WebDataset's tar files, as HuggingFace's parquet files, or as an image folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pretraining import smooth_image

CLASSES = ("oak", "yew")
LAYOUTS = ("imagefolder", "webdataset", "hf_parquet")


def pictures(count: int) -> list[tuple[bytes, int]]:
    """Return (PNG, label) of each image, sorted by label as in an image folder."""
    found = []
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(smooth_image(24 + i % 3, 30 - i % 5, seed=i)).save(file, "PNG")
        found.append((file.getvalue(), i * len(CLASSES) // count))
    return found


def write(root: Path, layout: str, count: int, split: str = "train") -> Path:
    """Write a split of `count` images; each shard contains 10, the last one the rest."""
    images = pictures(count)
    folder = root / split if layout == "imagefolder" else root
    folder.mkdir(parents=True, exist_ok=True)
    parts = [images[i : i + 10] for i in range(0, count, 10)]
    if layout == "imagefolder":
        for number, (data, label) in enumerate(images):
            place = folder / CLASSES[label] / f"{number:04d}.png"
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(data)
    elif layout == "webdataset":
        (root / "classes.txt").write_text("\n".join(CLASSES))
        for number, part in enumerate(parts):
            _write_tar(root / f"{split}-{number:06d}.tar", part)
    else:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        for number, part in enumerate(parts):
            rows = pa.array([{"bytes": data, "path": None} for data, _ in part], kind)
            table = pa.table({"image": rows, "label": pa.array([CLASSES[label] for _, label in part])})
            pq.write_table(table, root / f"{split}-{number:05d}-of-{len(parts):05d}.parquet", row_group_size=4)
    return root


def _write_tar(file: Path, part: list[tuple[bytes, int]]) -> None:
    with tarfile.open(file, "w") as tar:
        for number, (data, label) in enumerate(part):
            for name, content in ((f"{number:04d}.png", data), (f"{number:04d}.cls", str(label).encode())):
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
