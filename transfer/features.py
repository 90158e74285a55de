"""Frozen features of every image of a split, in the split's order, cached under all that changes a feature."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import Subset as TorchSubset

from core.artifacts import held, make_folder, tensors_sha256, writing
from core.config import digest
from core.datasets import ImageSplit
from core.distributed import barrier, gather_words, is_main, rank, world_size
from core.errors import ConfigError
from core.progress import track
from core.transforms import evaluation_view, resize_side, squashed_view
from model_zoo.architecture import InputSpec
from model_zoo.backbone import Backbone, identity_tensors
from transfer.protocol import RunContext

Pooling = Literal["gap", "res5_2x2"]

_VERSION = 1  # raised whenever the same key would give other features
_BATCH = 128


class FrozenMoved(AssertionError):
    """A backbone that should be frozen changed."""


class _EvaluationViews(Dataset):
    def __init__(self, split: ImageSplit, size: int, resize: int, squash: bool) -> None:
        self.split, self.size, self.resize = split, size, resize
        self.view = squashed_view if squash else evaluation_view

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.view(self.split.source.pil(index), self.size, resize=self.resize)


def normalise(images_NSS3: Tensor, spec: InputSpec, device: torch.device) -> Tensor:
    """(N, S, S, 3) uint8 RGB -> what the backbone wants: (N, 3, S, S) float32, channels last in memory."""
    x = images_NSS3.to(device, non_blocking=True).float().div_(255)
    mean, std = (torch.tensor(v, device=device) for v in (spec.mean, spec.std))
    if spec.order == "bgr":  # mean and std are given in the order the backbone sees
        x = x.flip(-1)
    return x.sub_(mean).div_(std).permute(0, 3, 1, 2)


def pooled(module: nn.Module, x_N3SS: Tensor, pooling: Pooling) -> Tensor:
    """`gap`: the module's own output (N, C); `res5_2x2`: C5 averaged in overlapping windows to 2x2, flattened (N, 4C).

    A window's side is one less than C5's: AvgPool2d(6, stride 1) on the 7x7 of 224 pixels, as in VISSL's and FAIR's VOC07.

    Raises:
        ConfigError: C5 is a single cell.
    """
    if pooling == "gap":
        return module(x_N3SS)
    c5 = module.stages(x_N3SS)[-1]
    height, width = c5.shape[-2:]
    if min(height, width) < 2:
        raise ConfigError(f"feature res5_2x2 needs a C5 of 2x2 cells or more, not {height}x{width}: set a larger size")
    return F.avg_pool2d(c5, (height - 1, width - 1), stride=1).flatten(1)


def extract(
    backbone: Backbone,
    split: ImageSplit,
    ctx: RunContext,
    *,
    size: int | None = None,
    resize: int | None = None,
    pooling: Pooling = "gap",
    squash: bool = False,
) -> Tensor:
    """Pooled features (N, C), float32, mapped from the cache file; every image once, in order, by all ranks together.

    Args:
        size: pixels of the centre crop; the backbone's own input size unless given.
        resize: of the shorter side before it; 256/224 of the size unless given.
        pooling: see `pooled`.
        squash: no crop, both sides to `size` whatever the proportions.

    Raises:
        CorruptImage: an image cannot be read; evaluation never passes over one.
    """
    size = size or backbone.input.size
    resize = resize or resize_side(size)
    key = digest(
        {
            "version": _VERSION,
            "weights": backbone.weights_sha256,
            "arch": backbone.arch.model_dump(mode="json"),
            "input": backbone.input.model_dump(mode="json"),
            "manifest": split.manifest_sha256(),
            "order": digest([split.source.name(i) for i in range(len(split))]),  # which the manifest does not see
            "split": split.split,
            "size": size,
            "resize": resize,
            "pooling": pooling,
            "squash": squash,
            "packages": [str(p.__version__) for p in (torch, torchvision, PIL)],
            "device": ctx.device.type,
        }
    )
    file = make_folder(ctx.cache) / f"{key}.npy"
    with _lock(file):
        if not _agreed(_is_whole(file, len(split))):
            options = {"size": size, "resize": resize, "pooling": pooling, "squash": squash}
            compute(backbone.build(), backbone.input, split, ctx, **options, file=file)
        return _open(file)


def compute(
    module: nn.Module,
    spec: InputSpec,
    split: ImageSplit,
    ctx: RunContext,
    *,
    size: int,
    resize: int,
    pooling: Pooling = "gap",
    squash: bool = False,
    file: Path | None = None,
) -> Tensor:
    """Features (N, C) without looking for them first. The module is put into eval mode, and must not change.

    Every rank computes a run of the images into a file of its own below `ctx.cache` (one folder for all ranks); rank 0
    joins them. The answer is mapped from the file, not held in memory: 1.28 M x 2048 are 10 GB.

    Args:
        file: where to keep them; nowhere unless given.
    """
    module = module.eval().requires_grad_(False).to(ctx.device, memory_format=torch.channels_last)
    before = tensors_sha256(identity_tensors(module.state_dict()))
    once = file is None
    file = Path(gather_words([str(file or make_folder(ctx.cache) / f"once-{os.getpid()}")])[0])
    bounds = [len(split) * r // world_size() for r in range(world_size() + 1)]
    parts = [file.with_suffix(f".part{r}") for r in range(world_size())]
    parts[rank()].unlink(missing_ok=True)  # of a job that was killed
    try:
        rows = range(bounds[rank()], bounds[rank() + 1])
        views = _EvaluationViews(split, size, resize, squash)
        _compute_rows(module, spec, views, rows, ctx, pooling=pooling, file=parts[rank()])
        if tensors_sha256(identity_tensors(module.state_dict())) != before:
            raise FrozenMoved("the frozen backbone changed while its features were computed")
        barrier()
        if is_main():
            _join(parts, file, len(split))
        barrier()
        features = _open(file)
        barrier()
        return features
    finally:
        parts[rank()].unlink(missing_ok=True)
        if once and is_main():
            file.unlink(missing_ok=True)  # what is mapped stays readable


def _compute_rows(
    module: nn.Module,
    spec: InputSpec,
    views: _EvaluationViews,
    rows: range,
    ctx: RunContext,
    *,
    pooling: Pooling,
    file: Path,
) -> None:
    """Features of some images of the split into a .npy file; of none no file."""
    if not rows:
        return
    split = views.split
    with torch.no_grad():
        width = pooled(module, torch.zeros(1, 3, views.size, views.size, device=ctx.device), pooling).shape[1]
    loader = DataLoader(
        TorchSubset(views, rows),
        batch_size=_BATCH,
        num_workers=ctx.workers,
        pin_memory=ctx.device.type == "cuda",
    )
    with _new_array(file, (len(rows), width)) as append, torch.no_grad():
        for images in track(loader, total=len(loader), label=f"features of {split.dataset} {split.split}"):
            part = pooled(module, normalise(images, spec, ctx.device), pooling).float().cpu()
            if not bool(torch.isfinite(part).all()):
                raise FloatingPointError(f"features of {split.dataset} {split.split} hold NaN or infinite values")
            append(part.numpy())


@contextlib.contextmanager
def _new_array(file: Path, shape: tuple[int, int]) -> Iterator[Callable[[np.ndarray], None]]:
    """A .npy file of float32 rows, given piece by piece; every row once.

    Written, not mapped: where the disk is full, a mapped page ends the process without a word.

    Raises:
        BackbenchError: the disk is full or not writable.
    """
    done = 0
    with writing(file):
        out = file.open("wb")
    try:

        def append(part: np.ndarray) -> None:
            nonlocal done
            with writing(file):
                out.write(np.ascontiguousarray(part, np.float32))
            done += len(part)

        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
        with writing(file):
            np.lib.format.write_array_header_1_0(out, header)
        yield append
        assert done == shape[0], "every image is counted once"
        with writing(file):
            out.flush()
            os.fsync(out.fileno())
    finally:
        with contextlib.suppress(OSError):
            out.close()


def _join(parts: Sequence[Path], file: Path, rows: int) -> None:
    """One .npy file of several, moved into place whole."""
    if len(parts) == 1:
        with writing(file):
            parts[0].replace(file)
        return
    arrays = [np.load(part, mmap_mode="r") for part in parts if part.exists()]
    temporary = file.with_suffix(".joining")
    with _new_array(temporary, (rows, arrays[0].shape[1])) as append:
        for array in arrays:
            for start in range(0, len(array), 65536):
                append(array[start : start + 65536])
    with writing(file):
        temporary.replace(file)


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Rank 0 holds the lock for the job: two jobs compute the same features once."""
    with held(file.with_name(f"{file.name}.lock")) if is_main() else contextlib.nullcontext():
        yield


def _agreed(answer: bool) -> bool:
    """Rank 0's answer, on every rank."""
    return gather_words([str(answer)])[0] == "True"


def _is_whole(file: Path, rows: int) -> bool:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return False
    return array.ndim == 2 and len(array) == rows


def _open(file: Path) -> Tensor:
    return torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))
