"""Image data sets as HuggingFace stores them: `<split>-00000-of-00005.parquet` or `<split>/0000.parquet`, images inside.

Needs pyarrow (`pip install 'backbench[parquet]'`). A row group is read at a time and the last ones are kept, so images in
their order cost little; in random order, as pretraining and fine-tuning read them, each costs a row group.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbench.data.decode import CorruptImage, Reduction, decode_rgb, open_rgb
from backbench.data.shards import shards, test_split
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from backbench.files import Changed, Status, status_of
from backbench.printable import printable, some

LABELS = frozenset({"class"})
_KEPT_GROUPS = 4


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and a test split: `test` when its labels are public, else `validation`, `valid` or `val`."""
    found = shards(root, ".parquet")
    if "train" not in found or test_split(found) is None:
        return None
    if "test" in found and len(found) > 2 and (_labels(found["test"])[0] < 0).all():
        del found["test"]
    return "train", str(test_split(found))


def read(root: Path, split: str, *, dataset: str = "hf_parquet") -> ImageSplit:
    """List a split. Classes are the names stated in the files, else the sorted labels of the training images.

    Raises:
        DataError: pyarrow is not installed, no such split, parts are missing, or a file is not of such a data set.
    """
    found = shards(Path(root), ".parquet")
    if split not in found:
        there = ", ".join(found) or "none"
        raise DataError(
            f"{root}: no files of split '{split}', such as {split}-00000-of-00001.parquet (splits: {there})"
        )
    values, stated = _labels(found[split])
    classes = stated or _sorted_labels(_labels(found.get("train", found[split]))[0])
    labels = _numbers(values, classes, found[split], by_number=bool(stated) and values.dtype.kind in "iu")
    return ImageSplit(dataset, split, _source(Path(root), found[split]), labels, classes)


@dataclass(frozen=True)
class _Rows:
    """Images in the rows of parquet files."""

    root: Path
    files: tuple[Path, ...]
    listed: tuple[Status, ...]  # of each file
    column: str
    groups: tuple[tuple[int, int, int], ...]  # file, row group, its first row
    ends: np.ndarray  # (groups,) rows up to the end of each group

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def name(self, index: int) -> str:
        """`train-00000-of-00001.parquet#12`: the file and the row."""
        file, _, first, row = self._place(index)
        return f"{self.files[file].relative_to(self.root).as_posix()}#{first + row}"

    def size(self, index: int) -> int:
        """Bytes of the image; the first one of a row group reads the group."""
        file, group, _, row = self._place(index)
        return int(_sizes(self.files[file], group, self.column, self.listed[file])[row])

    def status(self, index: int) -> Status:
        """Its size, and the times of its file."""
        return self.size(index), *self.listed[self._place(index)[0]][1:]

    def stored(self, index: int) -> bytes:
        """The image file's bytes, not decoded. Raises CorruptImage, and Changed."""
        file, group, _, row = self._place(index)
        if status_of(self.files[file]) != self.listed[file]:
            raise Changed(f"{self.files[file]}: changed during the run; run again, on data that nobody writes to")
        data = _images(self.files[file], group, self.column, self.listed[file])[row].as_py()
        if not data:
            raise CorruptImage(
                f"{self.name(index)}: the row holds no image's bytes; images by their paths are not read"
            )
        return bytes(data)

    def pil(self, index: int) -> Image.Image:
        """Pillow image in mode RGB. Raises CorruptImage."""
        return open_rgb(self.stored(index), self.name(index))

    def rgb(self, index: int, reduction: Reduction | None = None) -> np.ndarray:
        """(H, W, 3) uint8. Raises CorruptImage."""
        return decode_rgb(self.stored(index), self.name(index), reduction)

    def _place(self, index: int) -> tuple[int, int, int, int]:
        """File, row group, the group's first row in the file, row in the group."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        file, group, first = self.groups[number]
        return file, group, first, index - (int(self.ends[number - 1]) if number else 0)


def _source(root: Path, files: list[Path]) -> _Rows:
    groups: list[tuple[int, int, int]] = []
    ends: list[int] = []
    for number, path in enumerate(files):
        metadata, first = _open(path).metadata, 0
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            groups.append((number, group, first))
            first += count
            ends.append(count + (ends[-1] if ends else 0))
    listed = tuple(status_of(path) for path in files)
    return _Rows(root, tuple(files), listed, _image_column(files[0]), tuple(groups), np.asarray(ends, np.int64))


@functools.cache
def _sizes(path: Path, group: int, column: str, listed: Status) -> np.ndarray:
    """(rows,) int64 bytes of a row group's images."""
    import pyarrow.compute as pc

    lengths = pc.binary_length(_images(path, group, column, listed))
    return np.asarray(pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False), np.int64)


@functools.lru_cache(maxsize=_KEPT_GROUPS)
def _images(path: Path, group: int, column: str, listed: Status) -> Any:
    """An array of the bytes of a row group's images."""
    del listed  # part of the cache key: a changed file is read again
    import pyarrow as pa

    try:
        table = _open(path).read_row_group(group, columns=[column], use_threads=False)
        images = table.column(0).combine_chunks()
        images = images.chunk(0) if isinstance(images, pa.ChunkedArray) else images
        return images.field("bytes") if pa.types.is_struct(images.type) else images
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: row group {group} cannot be read ({_reason(error)}); fetch the file again") from None


def _open(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            f"{path}: parquet files need pyarrow; install it with: pip install 'backbench[parquet]'"
        ) from None
    try:
        return pq.ParquetFile(path, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole parquet file ({_reason(error)}); fetch it again") from None


def _image_column(path: Path) -> str:
    """Return the column declared as an image, else the one of bytes or of a struct with bytes."""
    import pyarrow as pa

    schema = _open(path).schema_arrow
    stated = [name for name, feature in _features(schema).items() if feature.get("_type") == "Image"]
    fitting = [
        field.name
        for field in schema
        if pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
        or (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    return _the_one([name for name in stated if name in fitting] or fitting, "of images", path, schema)


def _label_column(path: Path, schema: Any) -> tuple[str, tuple[str, ...]]:
    """Return the column of classes, and their names when the file states them."""
    import pyarrow as pa

    features = _features(schema)
    stated = [
        name for name, feature in features.items() if feature.get("_type") == "ClassLabel" and name in schema.names
    ]
    usual = [name for name in ("label", "labels") if name in schema.names]
    whole = [f.name for f in schema if pa.types.is_integer(f.type) or pa.types.is_string(f.type)]
    preferred = [name for name in stated if name in usual] or stated or usual or whole
    name = _the_one(preferred, "of labels", path, schema)
    return name, tuple(str(word) for word in features.get(name, {}).get("names", ()))


def _the_one(names: list[str], what: str, path: Path, schema: Any) -> str:
    if len(names) != 1:
        which = f"several columns {what} ({some(names)})" if names else f"no column {what} ({some(schema.names)})"
        raise DataError(f"{path}: has {which}; keep one, as `image` and `label`")
    return names[0]


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return the column types that HuggingFace's `datasets` wrote."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _labels(files: list[Path]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels (N,) of a split, numbers or words, and the class names when they are stated."""
    name, classes = _label_column(files[0], _open(files[0]).schema_arrow)
    parts = []
    for path in files:
        file = _open(path)
        if name not in file.schema_arrow.names:
            raise DataError(f"{path}: no column '{name}', which {files[0].name} has")
        parts.append(file.read(columns=[name], use_threads=False).column(0).to_numpy())
    values = np.concatenate(parts)
    if values.dtype.kind == "f":  # integers with missing values
        raise DataError(f"{files[0]}: images without a label in column '{name}'")
    return values, classes


def _sorted_labels(values: np.ndarray) -> tuple[str, ...]:
    return tuple(str(value) for value in sorted(set(values.tolist())))


def _numbers(values: np.ndarray, classes: tuple[str, ...], files: list[Path], *, by_number: bool) -> np.ndarray:
    """Return labels (N,) int64. Raises DataError when an image has no label or one outside the classes."""
    names = classes if not by_number else tuple(str(number) for number in range(len(classes)))
    number = {name: label for label, name in enumerate(names)}
    words = [str(value) for value in values.tolist()]
    if unknown := sorted(set(words) - set(number)):
        where = f"{files[0].parent}: {files[0].name} and the files of its split"
        if unknown == ["-1"]:
            raise DataError(f"{where}: {words.count('-1')} of {len(words)} images have no label (-1); are they public?")
        raise DataError(f"{where}: labels that are not among the {len(classes)} classes: "
                        f"{some([printable(word) for word in unknown])}")  # fmt: skip
    return np.asarray([number[word] for word in words], np.int64)


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split()), 200)
