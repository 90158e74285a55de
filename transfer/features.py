"""Compute and cache frozen features of all images of a split, in the split's order.

The cache key covers everything that changes a feature. A cached file is used only if its checksum is right
(`transfer.feature_file`); a damaged one is computed again, with a message.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import Subset as TorchSubset

from backbench.config import digest
from backbench.data.splits import ImageSplit
from backbench.distributed import barrier, gather_words, is_main, rank, world_size
from backbench.errors import BackbenchError, DataError, writing
from backbench.files.atomic import make_folder
from backbench.files.hashes import tensors_sha256
from backbench.files.locks import held
from backbench.precision import Precision, autocast, tf32
from backbench.progress import say, track
from model_zoo.architecture import InputSpec
from model_zoo.backbone import Backbone, identity_tensors
from transfer import feature_file
from transfer.feature_spec import USUAL, FeatureSpec
from transfer.pooling import pooled, width_of
from transfer.protocol import RunContext
from transfer.resident import to_host
from transfer.workers import Told

_VERSION = 2  # raise it when the same key would give other features or another kind of file
_BATCH = 128


class FrozenMoved(AssertionError):
    """A frozen backbone changed."""


class NotFinite(BackbenchError, FloatingPointError):
    """Features are not finite, or so large that distances overflow."""


class _EvaluationViews(Dataset[np.ndarray]):
    def __init__(self, split: ImageSplit, spec: FeatureSpec) -> None:
        self.split, self.spec = split, spec

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.spec.view(self.split.source.pil(index))


def normalise(images_NSS3: Tensor, spec: InputSpec, device: torch.device) -> Tensor:
    """Turn (N, S, S, 3) uint8 RGB into the backbone's input: (N, 3, S, S) float32, channels last in memory."""
    x = images_NSS3.to(device, non_blocking=True).float().div_(255)
    mean, std = (torch.tensor(v, device=device) for v in (spec.mean, spec.std))
    if spec.order == "bgr":  # mean and std have the channel order of the backbone
        x = x.flip(-1)
    return x.sub_(mean).div_(std).permute(0, 3, 1, 2)


def extract(backbone: Backbone, split: ImageSplit, ctx: RunContext[ImageSplit], spec: FeatureSpec = USUAL) -> Tensor:
    """Return pooled features (N, C) float32, mapped from the cache file. All ranks share the work; each image counts once.

    Args:
        spec: the views and the pooling.

    Raises:
        CorruptImage: an image cannot be read; evaluation never skips one.
        ConfigError: the crop is larger than the resized image.
        NotFinite: a feature is not finite.
    """
    spec = spec.of(backbone.input)
    key = gather_words([_key(backbone, split, ctx, spec)])[0]  # rank 0's key, even if another rank computes another
    file = make_folder(ctx.cache) / f"{key}.npy"
    shape = (len(split), width_of(backbone, spec.pooling))
    with _lock(file):
        if not _agreed(is_main() and _is_sound(file, shape, key)):
            compute(backbone.build(), backbone.input, split, ctx, spec, file=file)
        return torch.from_numpy(feature_file.mapped(file, shape))


def _key(backbone: Backbone, split: ImageSplit, ctx: RunContext[ImageSplit], spec: FeatureSpec) -> str:
    """Hash everything that changes a feature, including the files' sizes and modification times."""
    import torchvision  # takes seconds to import; done here before any worker starts

    return digest(
        {
            "version": _VERSION,
            "weights": backbone.weights_sha256,
            "arch": backbone.arch.model_dump(mode="json"),
            "input": backbone.input.model_dump(mode="json"),
            "manifest": split.manifest_sha256(),
            "state": split.state_sha256(),  # detects replaced images of the same size; the manifest does not
            "order": digest([split.source.name(i) for i in range(len(split))]),  # the manifest is sorted
            "split": split.split,
            **spec.key(),
            "packages": [str(p.__version__) for p in (torch, torchvision, PIL)],
            "device": ctx.device.type,
            **({"tf32": tf32()} if ctx.device.type == "cuda" else {}),
        }
    )


def compute(
    module: nn.Module,
    given: InputSpec,
    split: ImageSplit,
    ctx: RunContext[ImageSplit],
    spec: FeatureSpec = USUAL,
    *,
    file: Path | None = None,
) -> Tensor:
    """Compute features (N, C) without reading the cache. The module is set to eval mode and must not change.

    Each rank computes a contiguous range of the images into its own file below `ctx.cache` (one folder for all ranks), and
    rank 0 joins the files. The result is mapped from the file, not loaded into memory: 1.28 M x 2048 take 10 GB.

    Args:
        given: the input that the module expects.
        file: where to keep the features; None keeps no file.
    """
    if not len(split):
        raise DataError(f"{split.dataset} {split.split} has no image")
    spec = spec.of(given)
    module = module.eval().requires_grad_(False).to(ctx.device).to(memory_format=torch.channels_last)
    before = tensors_sha256(identity_tensors(module.state_dict()))
    once = file is None
    unique = f"once-{os.getpid()}-{secrets.token_hex(4)}"
    file = Path(gather_words([str(file or make_folder(ctx.cache) / unique)])[0])
    bounds = [len(split) * r // world_size() for r in range(world_size() + 1)]
    parts = [file.with_suffix(f".part{r}") for r in range(world_size())]
    try:
        with torch.no_grad():
            blank = normalise(_blank(spec), given, ctx.device)
            with autocast(ctx.device, spec.precision):
                width = pooled(module, blank, spec.pooling).shape[1]
        rows = range(bounds[rank()], bounds[rank() + 1])
        views = _EvaluationViews(split, spec)
        with feature_file.new_rows(parts[rank()], (len(rows), width), file.stem) as append:
            for part in _batches(module, given, views, rows, ctx):
                append(part)
        if tensors_sha256(identity_tensors(module.state_dict())) != before:
            raise FrozenMoved("the frozen backbone changed while its features were computed")
        barrier()
        if is_main():
            _join(parts, file, [b - a for a, b in itertools.pairwise(bounds)], width)
        barrier()
        features = torch.from_numpy(feature_file.mapped(file, (len(split), width)))
        barrier()
        return features
    finally:
        with contextlib.suppress(OSError):  # an error above has already named the obstacle
            parts[rank()].unlink(missing_ok=True)
        if once and is_main():
            file.unlink(missing_ok=True)  # the mapping stays readable


def _blank(spec: FeatureSpec) -> Tensor:
    """Return one view (1, S, S, 3) uint8 of a blank image."""
    return torch.from_numpy(spec.view(Image.new("RGB", (8, 8))))[None]


def _batches(
    module: nn.Module,
    given: InputSpec,
    views: _EvaluationViews,
    rows: range,
    ctx: RunContext[ImageSplit],
) -> Iterator[np.ndarray]:
    """Yield features (B, C) float32 of the given rows of the split, batch by batch."""
    split = views.split
    loader = DataLoader(
        TorchSubset(views, rows),
        batch_size=_BATCH,
        num_workers=ctx.workers,
        pin_memory=ctx.device.type == "cuda",
    )
    label = f"features of {split.dataset} {split.split}, images"

    def computed() -> Iterator[Tensor]:
        for images in track(Told(loader), total=len(rows), label=label, size=len):
            with torch.no_grad(), autocast(ctx.device, views.spec.precision):
                part = pooled(module, normalise(images, given, ctx.device), views.spec.pooling)
            yield part.float()

    for part in to_host(computed()):
        refuse_not_finite(part, split, views.spec.precision)
        yield part.numpy()


def refuse_not_finite(features_NC: Tensor, split: ImageSplit, precision: Precision = "fp32") -> None:
    """Raise NotFinite unless all features and their squared norms (used for distances) are finite."""
    if not bool(torch.isfinite(features_NC).all()):
        fp16 = "fp16 ends at 65504: set precision=bf16 or fp32, or check the checkpoint"
        doubt = fp16 if precision == "fp16" else "is the checkpoint sound?"
        raise NotFinite(f"features of {split.dataset} {split.split} contain NaN or infinite values: {doubt}")
    if not bool(torch.isfinite(features_NC.pow(2).sum(dim=1)).all()):
        largest = float(features_NC.abs().max())
        raise NotFinite(
            f"features of {split.dataset} {split.split} are as large as {largest:.1g}, so their squares are infinite in "
            "float32: is the checkpoint sound?"
        )


def note_degenerate(features_NC: Tensor, split: ImageSplit, ctx: RunContext[ImageSplit]) -> None:
    """Note in the record if features cannot distinguish images: all the same, or some zero."""
    where = f"of {split.dataset} {split.split}"
    if all(bool((part == features_NC[0]).all()) for part in features_NC.split(65536)):
        ctx.notes.append(f"collapsed: the features {where} are the same for all {len(features_NC)} images")
        return
    zero = sum(int((~part.any(dim=1)).sum()) for part in features_NC.split(65536))
    if zero:
        ctx.notes.append(f"the features {where} are zero for {zero} of {len(features_NC)} images")


def _join(parts: Sequence[Path], file: Path, rows: Sequence[int], width: int) -> None:
    """Join the ranks' files into one and move it into place in one step."""
    if len(parts) == 1:
        feature_file.free_place(file)
        with writing(file):
            parts[0].replace(file)
        return
    temporary = file.with_suffix(".joining")
    with feature_file.new_rows(temporary, (sum(rows), width), file.stem) as append:
        for part, count in zip(parts, rows, strict=True):
            array = feature_file.mapped(part, (count, width))
            for start in range(0, count, 65536):
                append(array[start : start + 65536])
    feature_file.free_place(file)
    with writing(file):
        temporary.replace(file)


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Lock the file through rank 0, so that two jobs compute the same features only once."""
    lock = file.with_name(f"{file.name}.lock")
    feature_file.refuse_folder(lock)
    with held(lock) if is_main() else contextlib.nullcontext():
        yield


def _agreed(answer: bool) -> bool:
    """Return rank 0's answer on every rank."""
    return gather_words([str(answer)])[0] == "True"


def _is_sound(file: Path, shape: tuple[int, int], key: str) -> bool:
    """True if the file exists and is undamaged. A damaged one is named in a message."""
    if not os.path.lexists(file):
        return False
    try:
        feature_file.check(file, shape, key)
    except feature_file.Damaged as damage:
        say(f"computing features again: {file} is damaged: {damage}")
        return False
    return True
