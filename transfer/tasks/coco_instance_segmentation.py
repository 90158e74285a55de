"""Mask R-CNN R50-FPN on COCO 2017, 90k iterations of 16 images (MSBReg section 8.4, Table 10).

Preset `msbreg`: rate 0.05, warm-up 50 (the paper prints both; no reference code has the pair); `moco`: 0.02 and 1000
(facebookresearch/moco#34). Backbone and FPN with synchronised BatchNorm, two fully connected layers, four mask
convolutions, PreciseBN. pycocotools computes box and mask AP on val2017.

`share` trains on 1, 5 or 10% of the training images, drawn by the seed `fold` as in Soft Teacher (Xu et al. 2021,
microsoft/SoftTeacher tools/dataset/semi_coco.py). The iterations are those of all images: its supervised baseline
(configs/baseline/faster_rcnn_r50_caffe_fpn_coco_partial_180k.py) takes 180k iterations of 8 images for every share, with
drops after 120k and 160k, which the linear rule makes 90k of 16. Unlike it, BatchNorm trains and colours are not augmented.

`lvis` is LVIS v1 (detectron2 configs/LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml): 180k iterations, 300 detections,
images of rare classes repeated (`repeats`), federated AP (`lvis_eval`). Unlike that file, BatchNorm trains, as in `moco`.
`cityscapes` is for the eight classes of Cityscapes with instances: 24k iterations of 8 images (detectron2
configs/Cityscapes/mask_rcnn_R_50_FPN.yaml, which starts from a detector trained on COCO; here BatchNorm trains). Its AP is
COCO's, as in mmdet configs/cityscapes, not the one of cityscapesscripts.

`demo` runs a few iterations on the rendered scenes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from backbench.data.catalogue import DataPlaces, info
from backbench.errors import DataError
from model_zoo.backbone import Backbone
from transfer.detection import run as detection
from transfer.detection.annotations.cityscapes import read_cityscapes
from transfer.detection.annotations.layouts import read_coco
from transfer.detection.annotations.lvis import read_lvis
from transfer.detection.annotations.part import Part
from transfer.detection.annotations.split import DetectionSplit
from transfer.detection.run import DetectionConfig
from transfer.detection.scoring import coco_eval, lvis_eval
from transfer.detection.spec import DetectionSpec
from transfer.presets import Preset
from transfer.protocol import DataSpec, Metric, RunContext, Task

_MSBREG = DetectionSpec(
    head="fpn",
    masks=True,
    iterations=90_000,
    batch=16,
    lr=0.05,
    milestones=(60_000, 80_000),
    warmup=50,
    sides_train=tuple(range(640, 801, 32)),
    proposals_train=(2000, 1000),
    proposals_test=(1000, 1000),
)
_MOCO = _MSBREG.model_copy(update={"lr": 0.02, "warmup": 1000})
_LVIS = _MOCO.model_copy(
    update={"iterations": 180_000, "milestones": (120_000, 160_000), "detections": 300, "score_threshold": 1e-4}
)
_CITYSCAPES = _MOCO.model_copy(
    update={
        "iterations": 24_000,
        "batch": 8,
        "lr": 0.01,
        "milestones": (18_000,),
        "sides_train": tuple(range(800, 1025, 32)),
        "side_test": 1024,
        "side_max": 2048,
    }
)
# Seconds on two CPU cores: shows that boxes, masks and metric work. Too short to find anything, because FPN and head start
# untrained.
_DEMO = DetectionSpec(
    head="fpn",
    masks=True,
    iterations=16,
    batch=2,
    lr=0.005,
    warmup=2,
    precise_bn=4,
    sides_train=(96, 128),
    side_test=112,
    side_max=192,
    rois=32,
    proposals_train=(200, 50),
    proposals_test=(200, 50),
)
_PRESETS = {
    "msbreg": Preset({"spec": _MSBREG}),
    "moco": Preset({"spec": _MOCO}),
    "lvis": Preset({"spec": _LVIS, "oversample": 1e-3}),
    "cityscapes": Preset({"spec": _CITYSCAPES}),
    "demo": Preset({"spec": _DEMO, "log_every": 1}),
}
_READERS = {"lvis": read_lvis, "cityscapes": read_cityscapes}  # of other layouts than COCO's


class Config(DetectionConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = _PRESETS
    LATER: ClassVar[frozenset[str]] = frozenset({"share", "fold"})

    data: DataSpec = DataSpec(name="coco")
    preset: str = "msbreg"
    spec: DetectionSpec = _MSBREG
    train: str = "train2017"  # <split> of instances_<split>.json and of the image folder
    test: str = "val2017"
    share: Literal["1%", "5%", "10%", "100%"] = "100%"  # of the training images, as Soft Teacher draws them
    fold: Annotated[int, Field(ge=0)] = 1  # seed of the draw; the literature averages over 1 to 5

    @model_validator(mode="after")
    def _fits(self) -> Config:
        detection.check_names(self.train, self.test)
        if self.share == "100%" and self.fold != 1:
            raise ValueError(
                f"fold={self.fold} draws a part, and all training images are used; set share=1%, 5% or 10%"
            )
        return self

    def part(self) -> Part | None:
        """Return the draw of the training images; None for all."""
        return Part(int(self.share.rstrip("%")), self.fold) if self.share != "100%" else None


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return "box_AP"


def splits(config: Config, places: DataPlaces) -> dict[str, DetectionSplit]:
    """Return the annotated images of both splits.

    Raises:
        DataError: the data are incomplete, or not the published images although `expect` asks for them.
    """
    part, layout = config.part(), info(config.data.name).layout
    if part is not None and layout in _READERS:
        raise DataError(f"'{config.data.name}': share={config.share} is drawn from COCO's images only; leave it out")

    def read(root: Path, name: str) -> DetectionSplit:
        if layout in _READERS:
            return _READERS[layout](root, name, bad=config.bad, masks=config.spec.masks)
        mine = part if name == config.train else None
        return read_coco(root, name, bad=config.bad, masks=config.spec.masks, part=mine)

    return detection.read_splits(config, places, (config.train, config.test), read)


def run(backbone: Backbone, config: Config, ctx: RunContext[DetectionSplit]) -> dict[str, Metric]:
    """Return `box_AP`, `mask_AP` and their parts: 50, 75, small, medium, large; of LVIS also rare, common, frequent."""
    found = detection.detections(backbone, config, ctx)
    test = ctx.splits["test"]
    if info(config.data.name).layout == "cityscapes":
        ctx.notes.append("COCO's metric; Cityscapes' own instance AP counts otherwise and is not computed")
    scores = (lvis_eval if test.frequencies else coco_eval).evaluate(test, found, masks=config.spec.masks)
    return {name: Metric(value) for name, value in scores.items()}


TASK = Task(
    name="coco_instance_segmentation",
    version=1,
    Config=Config,
    primary=primary,
    smoke=detection.smoke_fields,
    splits=splits,
    run=run,
    missing=detection.missing,
    unfit=detection.unfit,
    engine_version=detection.engine_version,
)
