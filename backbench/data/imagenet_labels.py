"""Classes of ImageNet's validation images, from the devkit or a list: the archive of images does not contain them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from backbench.errors import DataError
from backbench.files import read_text
from backbench.printable import printable

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def without_devkit(archives: Sequence[Path]) -> tuple[list[Path], Path | None]:
    """Return the archives of images, and the devkit: one of the archives, else a file beside one of them."""
    given = [archive for archive in archives if archive.name == DEVKIT]
    beside = [archive.parent / DEVKIT for archive in archives if (archive.parent / DEVKIT).is_file()]
    return [archive for archive in archives if archive.name != DEVKIT], next(iter([*given, *beside]), None)


def of_devkit(devkit: Path) -> list[str]:
    """Return the WordNet id of each validation image, in the order of file names, with torchvision's parser.

    Raises:
        DataError: not the published file, or it cannot be parsed.
    """
    import torch
    from torchvision.datasets.imagenet import META_FILE, parse_devkit_archive

    with tempfile.TemporaryDirectory() as folder:  # the parser writes beside the archive
        (Path(folder) / DEVKIT).symlink_to(devkit.resolve())
        try:
            parse_devkit_archive(folder, DEVKIT)  # checks the md5 before it unpacks
            _, wnids = torch.load(Path(folder) / META_FILE, weights_only=True)
        except (RuntimeError, OSError, ValueError, KeyError, IndexError) as error:
            raise DataError(f"{devkit}: not ImageNet's devkit ({printable(' '.join(str(error).split()), 200)}); download "
                            "it again") from None  # fmt: skip
    return [str(wnid) for wnid in wnids]


def of_list(file: Path) -> list[str]:
    """Read WordNet ids, one per validation image in the order of file names (imagenet_2012_validation_synset_labels.txt).

    Raises:
        DataError: the file cannot be read or contains a word that is not a WordNet id.
    """
    names = read_text(Path(file)).split()
    for number, name in enumerate(names, start=1):
        if not re.fullmatch(r"n\d{8}", name):
            raise DataError(
                f"{file}:{number}: '{printable(name)}' is not a WordNet id such as n01440764; the devkit's ground truth "
                f"holds class numbers instead: give the devkit itself, --from {DEVKIT}"
            )
    return names


def route(val_labels: Path | None = None, devkit: Path | None = None) -> Callable[[str], str | None]:
    """Return the place of a member of ImageNet's archives: `train/<class>/...` or `val/<class>/...`."""
    source = val_labels or devkit
    wnids = of_list(val_labels) if val_labels is not None else None

    def place(member: str) -> str | None:
        nonlocal wnids
        train = re.search(r"(?:^|/)(n\d{8}/n\d{8}_\d+\.JPEG)$", member)
        if train:
            return f"train/{train[1]}"
        val = re.search(r"(?:^|/)(ILSVRC2012_val_(\d{8})\.JPEG)$", member)
        if not val:
            return None
        if wnids is None and devkit is not None:
            wnids = of_devkit(devkit)
        if wnids is None:
            raise DataError(f"the validation images are not sorted by class: give the devkit too, --from {DEVKIT} (or "
                            "--val-labels FILE, 50,000 WordNet ids)")  # fmt: skip
        number = int(val[2])
        if not 1 <= number <= len(wnids):
            raise DataError(f"{source}: has {len(wnids)} lines, none for {val[1]}")
        return f"val/{wnids[number - 1]}/{val[1]}"

    return place
