"""Small segmentation data sets in the layouts of the field."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (12, 8)  # width and height


def picture(path: Path, *, seed: int = 0, size=SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, values, *, palette: bool = False, size=SIZE) -> np.ndarray:
    """Write a mask whose pixels take the values in turn; returns them, (H, W) uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.resize(np.array(values, np.uint8), (size[1], size[0]))
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
    image.save(path)
    return pixels


def lines(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def make_voc12(root: Path) -> Path:
    folder = root / "VOCdevkit" / "VOC2012"
    lists = folder / "ImageSets" / "Segmentation"
    lines(lists / "train.txt", "2007_b", "2007_a")
    lines(lists / "val.txt", "2007_v")
    lines(lists / "trainaug.txt", "2008_z", "2007_a", "2008_c", "2007_b")
    for i, name in enumerate(("2007_a", "2007_b", "2007_v", "2008_c", "2008_z", "2009_unused")):
        picture(folder / "JPEGImages" / f"{name}.jpg", seed=i)
        if name.startswith("2007"):
            mask(folder / "SegmentationClass" / f"{name}.png", [0, i + 1, 20, 255], palette=True)
        mask(folder / "SegmentationClassAug" / f"{name}.png", [i + 2, 0])
    return root


def make_cityscapes(root: Path, *, train_ids: bool = False) -> Path:
    for split, names in (("train", ("ulm/ulm_1", "aachen/aachen_2", "aachen/aachen_1")), ("val", ("bonn/bonn_1",))):
        for i, name in enumerate(names):
            picture(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png", seed=i)
            labels = root / "gtFine" / split / name
            mask(labels.with_name(f"{labels.name}_gtFine_labelIds.png"), [7, 33, 0, 9, 24 + i])
            picture(labels.with_name(f"{labels.name}_gtFine_color.png"))
            if train_ids:
                mask(labels.with_name(f"{labels.name}_gtFine_labelTrainIds.png"), [0, 18, 255, 255, 11 + i])
    return root


def make_ade20k(root: Path) -> Path:
    folder = root / "ADEChallengeData2016"
    for split, count in (("training", 3), ("validation", 2)):
        for i in range(count):
            picture(folder / "images" / split / f"ADE_{i}.jpg", seed=i)
            mask(folder / "annotations" / split / f"ADE_{i}.png", [0, 1, 150, i + 2])
    rows = [f"{i}\t0.1\t9\t9\tname{i}, other" for i in range(1, 151)]
    lines(folder / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName", *rows)
    return root


def make_mask_folders(root: Path, *, names=("sky", "sea", "sand"), counts=(4, 2), size=SIZE) -> Path:
    """Images whose pixels tell their class: 40 + 90 times its number in every channel, noise added."""
    rng = np.random.default_rng(0)
    for split, count in zip(("train", "val"), counts, strict=True):
        for i in range(count):
            labels = np.repeat(np.repeat(rng.integers(0, len(names), (2, 2)), size[1] // 2, 0), size[0] // 2, 1)
            grey = 40 + 90 * labels + rng.integers(-9, 10, labels.shape)
            (root / "images" / split / "part").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.repeat(grey[..., None], 3, 2).astype(np.uint8)).save(
                root / "images" / split / "part" / f"{i}.png"
            )
            (root / "masks" / split / "part").mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels.astype(np.uint8)).save(root / "masks" / split / "part" / f"{i}.png")
    lines(root / "classes.txt", *names)
    return root


def png(values: np.ndarray, *, bits: int, colour: int = 0, palette: bytes = b"") -> bytes:
    """A PNG of one number per pixel with 1, 2, 4, 8 or 16 bits; colour 0 is grey, 3 a palette."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"")
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
