"""MMSegmentation 1: FCN and UPerNet on a backbone.

It writes `mmseg_config.py` to the run's folder, a native configuration for MMSegmentation's own tools/train.py and
tools/test.py, with the lists of images and masks (`train.json`, `test.json`), exported weights and checkpoints. The network
trained here is built from that configuration. Its parts read images and masks with our reader, and draw random numbers by
the number of the draw, so that a resumed run, and any number of data workers, see the same crops.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbench import batchnorm, distributed
from backbench.errors import BackbenchError
from backbench.files.atomic import atomic_write_text, make_folder
from backbench.progress import track
from model_zoo.backbone import Backbone
from model_zoo.export import FEATURE_TOLERANCE, ExportError, check_state, feature_difference, in_rgb
from model_zoo.export import mmdet as exporter
from transfer.detection.adapt import mmcv_lite
from transfer.detection.engines import absent, versions
from transfer.detection.job import Job
from transfer.detection.training import checkpoints, course, mmengine_course
from transfer.detection.training.course import Course
from transfer.segmentation import lists
from transfer.segmentation.annotations.split import SegmentationSplit
from transfer.segmentation.dilation import dilated
from transfer.segmentation.engines.mmseg.protocol import configuration, test_pipeline
from transfer.segmentation.spec import SegmentationSpec

NATIVE = "mmseg_config.py"  # a file mmseg.py would shadow the package for Python started in its folder
PACKAGES = ("mmengine", "mmcv", "mmseg", "addict", "yapf", "termcolor", "ftfy", "regex", "prettytable", "scipy")


def prepare() -> None:
    """Apply the adaptations, register missing parts and make MMSegmentation's registries the default scope."""
    mmengine_course.prepare("transfer.segmentation.engines.mmseg.parts", "mmseg")


def missing() -> str | None:
    """Return why the engine cannot be used, or None."""
    return absent(PACKAGES)


def version() -> str:
    """Return the versions of the three packages. FCN and UPerNet call none of mmcv's compiled operators."""
    there = versions(("mmsegmentation", "mmcv", "mmcv-lite", "mmengine"))
    return ", ".join(f"{'mmseg' if name == 'mmsegmentation' else name} {number}" for name, number in there.items())


def compiled() -> bool:
    """True if mmcv has its own operators."""
    return mmcv_lite.is_compiled()


def try_operators() -> None:
    """Compute the loss of a tiny head, forward and backward.

    Raises:
        BackbenchError: the loss is wrong.
    """
    prepare()
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    fields = {"type": "FCNHead", "in_channels": 2, "in_index": 0, "channels": 2, "num_convs": 1, "num_classes": 2}
    head = MODELS.build({**fields, "out_channels": 2, "concat_input": False, "dropout_ratio": 0.0})
    nn.init.zeros_(head.conv_seg.weight)
    nn.init.zeros_(head.conv_seg.bias)
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 8, 8, dtype=torch.int64)))
    loss = head.loss([torch.randn(1, 2, 4, 4)], [sample], {})["loss_ce"]
    loss.backward()
    if not torch.allclose(loss.detach(), torch.tensor(2.0).log()) or not torch.isfinite(head.conv_seg.bias.grad).all():
        raise BackbenchError(f"mmseg's loss of two equal scores is {float(loss)}, not the logarithm of 2")


def unfit(backbone: Backbone) -> str | None:
    """Return why MMSegmentation cannot build this backbone, or None. Its ResNets are MMDetection's."""
    try:
        exporter.refuse(backbone)
    except ExportError as error:
        return f"MMSegmentation builds the ResNets that MMDetection builds: {error}"
    return None


# ---------------------------------------------------------------- training


def train(spec: SegmentationSpec, backbone: Backbone, train: SegmentationSplit, job: Job) -> nn.Module:
    """Train and return a network. Resumes from the folder's last checkpoint.

    Raises:
        BackbenchError: the loaded weights differ from the exported ones, a loss is not finite, or the folder has the
            checkpoint of another run.
    """
    prepare()
    taught = new_course(spec, backbone, train, job)
    return course.run(taught, spec, checkpoints.identity(spec, backbone, train, job), job)


def new_course(spec: SegmentationSpec, backbone: Backbone, train: SegmentationSplit, job: Job) -> Course:
    """Build the network with its optimiser, schedule and loader, and write the native configuration."""
    from transfer.segmentation.engines.mmseg.parts import losses

    cfg = write_native(spec, backbone, train, job)
    return mmengine_course.new(
        "mmseg",
        cfg,
        lambda: build(cfg, backbone, job.device),
        losses,
        lambda start: train_loader(cfg, start, spec, job),
        job.seed,
    )


def write_native(spec: SegmentationSpec, backbone: Backbone, train: SegmentationSplit, job: Job) -> Any:
    """Write `backbone.pth`, `train.json`, `test.json` and `mmseg_config.py` to the job's folder. Return the configuration."""
    folder = make_folder(job.folder).resolve()
    cfg = configuration(spec, backbone, train, job)
    listed = {folder / "train.json": train} | ({folder / "test.json": job.test} if job.test is not None else {})
    for file, split in listed.items():
        if distributed.is_main():
            lists.write(split, file)
        lists.hold(split, file)
    if distributed.is_main():
        exporter.write(backbone, job.folder / "backbone.pth")
        atomic_write_text(job.folder / NATIVE, mmengine_course.native_text(cfg))
    distributed.barrier()
    return cfg


def build(cfg: Any, backbone: Backbone, device: torch.device) -> nn.Module:
    """Build the network with the backbone's weights. Compares tensors and features with the exported ones.

    Raises:
        BackbenchError: a tensor is missing, extra or different, or the trunk's features differ.
    """
    from mmseg.registry import MODELS

    model = mmengine_course.built(cfg, MODELS)
    check_state(exporter.bare(backbone), model.state_dict(), replace(exporter.PLACES, engine="MMSegmentation"))
    trunk: Any = in_rgb(backbone).build()
    reference = dilated(trunk, cfg.model.backbone.strides, cfg.model.backbone.dilations)
    difference = feature_difference(backbone, lambda x: trunk_stages(model.eval(), x), reference)
    if not difference <= FEATURE_TOLERANCE:
        raise ExportError(
            f"MMSegmentation's C2..C5 differ from torchvision's by {difference:.1e} of their largest value"
        )
    return batchnorm.synchronise_batchnorm(model.train(), device).to(device)


def trunk_stages(model: Any, x: Tensor) -> list[Tensor]:
    """Return C2..C5 of a network for normalised RGB (N, 3, H, W)."""
    return list(model.backbone(x))


def train_loader(cfg: Any, start: int, spec: SegmentationSpec, job: Job) -> Iterator[Any]:
    """Return endless batches from iteration `start` on; earlier ones are neither read nor drawn."""
    from mmengine.runner import Runner

    fields = copy.deepcopy(cfg.train_dataloader)
    fields.sampler.update(start=start * spec.batch)
    with contextlib.redirect_stdout(io.StringIO()):
        return iter(Runner.build_dataloader(fields, seed=job.seed))


# ---------------------------------------------------------------- test


@torch.no_grad()
def segment(
    model: Any, spec: SegmentationSpec, test: SegmentationSplit, rows: Sequence[int], job: Job
) -> Iterator[np.ndarray]:
    """Yield the labels (H, W) uint8 of the images in these rows, in the image's own size.

    Raises:
        DataError: an image cannot be decoded, or changed since it was listed.
    """
    prepare()
    from mmengine.dataset import Compose, pseudo_collate

    model.eval()
    load, file = Compose(test_pipeline(spec)), job.folder.resolve() / "test.json"
    lists.hold(test, file)
    for row in track(rows, total=len(rows), label=f"segmenting {test.dataset} {test.split}"):
        loaded = load({"list": str(file), "row": row, "img_path": str(test.file(row))})
        (out,) = model.test_step(pseudo_collate([loaded]))
        yield out.pred_sem_seg.data[0].to(torch.uint8).cpu().numpy()
