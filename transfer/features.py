"""Frozen features of every image of a split, in the split's order, cached under all that changes a feature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from core.artifacts import atomic_write, make_folder, tensors_sha256
from core.config import digest
from core.datasets import ImageSplit
from core.progress import track
from core.transforms import evaluation_view, resize_side
from model_zoo.architecture import InputSpec
from model_zoo.backbone import Backbone, identity_tensors
from transfer.protocol import RunContext

_VERSION = 1  # raised whenever the same key would give other features
_BATCH = 128


class FrozenMoved(AssertionError):
    """A backbone that should be frozen changed."""


class _EvaluationViews(Dataset):
    def __init__(self, split: ImageSplit, size: int, resize: int) -> None:
        self.split, self.size, self.resize = split, size, resize

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> np.ndarray:
        return evaluation_view(self.split.source.pil(index), self.size, resize=self.resize)


def normalise(images_NSS3: Tensor, spec: InputSpec, device: torch.device) -> Tensor:
    """(N, S, S, 3) uint8 RGB -> what the backbone wants: (N, 3, S, S) float32, channels last in memory."""
    x = images_NSS3.to(device, non_blocking=True).float().div_(255)
    mean, std = (torch.tensor(v, device=device) for v in (spec.mean, spec.std))
    if spec.order == "bgr":  # mean and std are given in the order the backbone sees
        x = x.flip(-1)
    return x.sub_(mean).div_(std).permute(0, 3, 1, 2)


def extract(
    backbone: Backbone, split: ImageSplit, ctx: RunContext, *, size: int | None = None, resize: int | None = None
) -> Tensor:
    """Pooled features (N, C), float32 on the CPU; every image once, in order.

    Args:
        size: pixels of the centre crop; the backbone's own input size unless given.
        resize: of the shorter side before it; 256/224 of the size unless given.

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
            "split": split.split,
            "size": size,
            "resize": resize,
            "packages": [str(p.__version__) for p in (torch, torchvision, PIL)],
            "device": ctx.device.type,
        }
    )
    file = make_folder(ctx.cache) / f"{key}.npy"
    with FileLock(str(file) + ".lock"):
        cached = _read(file, len(split))
        if cached is not None:
            return cached
        features = compute(backbone.build(), backbone.input, split, ctx, size=size, resize=resize)
        array = features.numpy()
        atomic_write(file, lambda handle: np.save(handle, array))
    return features


def compute(
    module: nn.Module, spec: InputSpec, split: ImageSplit, ctx: RunContext, *, size: int, resize: int
) -> Tensor:
    """Features without the cache. The module is put into eval mode, and must not change."""
    module = module.eval().requires_grad_(False).to(ctx.device, memory_format=torch.channels_last)
    before = tensors_sha256(identity_tensors(module.state_dict()))
    loader = DataLoader(
        _EvaluationViews(split, size, resize),
        batch_size=_BATCH,
        num_workers=ctx.workers,
        pin_memory=ctx.device.type == "cuda",
    )
    features = torch.empty(0)
    done = 0
    with torch.no_grad():
        for images in track(loader, total=len(loader), label=f"features of {split.dataset} {split.split}"):
            part = module(normalise(images, spec, ctx.device)).float().cpu()
            features = features if done else torch.empty(len(split), part.shape[1])  # once: at 1.28 M x 2048, 10 GB
            features[done : done + len(part)] = part
            done += len(part)
    if tensors_sha256(identity_tensors(module.state_dict())) != before:
        raise FrozenMoved("the frozen backbone changed while its features were computed")
    assert done == len(split), "every image is counted once"
    if not bool(torch.isfinite(features).all()):
        raise FloatingPointError(f"features of {split.dataset} {split.split} hold NaN or infinite values")
    return features


def _read(file: Path, rows: int) -> Tensor | None:
    """The cached features; None when there are none, or the file is not whole."""
    if not file.exists():
        return None
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    return torch.from_numpy(array) if array.ndim == 2 and len(array) == rows else None
