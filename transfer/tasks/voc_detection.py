"""Faster R-CNN R50-C4 on VOC07+12, tested on VOC07 (MSBReg section 8.4, Table 5: "exactly the same as MoCo").

24k iterations of 16 images, rate 0.02, drops after 18k and 22k, warm-up 100, shorter side 480 to 800, BatchNorm
synchronised and unfrozen, an extra norm behind res5, PreciseBN (facebookresearch/moco detection/configs/
pascal_voc_R_50_C4_24k_moco.yaml). AP is the mean over IoU .50:.05:.95 of VOC07's 11-point AP. Difficult objects are
trained on and ignored in the test. `demo` is a short training on the rendered scenes.

ResNet-18 and -34 have basic blocks in the head, on both engines; no published number uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from pydantic import model_validator

from backbench.data.catalogue import DataPlaces
from backbench.printable import some
from model_zoo.backbone import Backbone
from transfer.detection import run as detection
from transfer.detection.annotations.layouts import read_voc
from transfer.detection.annotations.split import DetectionSplit
from transfer.detection.run import DetectionConfig
from transfer.detection.scoring import voc_eval
from transfer.detection.spec import DetectionSpec
from transfer.presets import Preset
from transfer.protocol import DataSpec, Metric, RunContext, Task

_MOCO = DetectionSpec(
    head="c4",
    iterations=24_000,
    batch=16,
    lr=0.02,
    milestones=(18_000, 22_000),
    warmup=100,
    sides_train=tuple(range(480, 801, 32)),
)
# Two and a half to five minutes on two idle CPU cores for a ResNet-18: few and small pictures, few proposals. The rate was
# chosen on scenes rendered from other seeds than the demo's. The length fits the demo's ten minutes.
_DEMO = DetectionSpec(
    head="c4",
    iterations=500,
    batch=2,
    lr=0.01,
    milestones=(375,),
    warmup=20,
    precise_bn=10,
    sides_train=(96,),
    side_test=96,
    side_max=192,
    rois=16,
    proposals_train=(200, 50),
    proposals_test=(200, 30),
)
_PRESETS = {
    "moco": Preset({"spec": _MOCO}),
    "demo": Preset({"spec": _DEMO, "checkpoint_every": 50, "log_every": 10}),
}


class Config(DetectionConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = _PRESETS

    data: DataSpec = DataSpec(name="voc")
    preset: str = "moco"
    spec: DetectionSpec = _MOCO
    train: str = "trainval07+12"  # trainval of 2007 and 2012 together, or a list in ImageSets/Main
    test: str = "test"
    eleven_point: bool = True  # VOC07's AP; false: area under the curve

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.spec.masks:
            raise ValueError(
                "VOC's layout has boxes and no masks; set spec.masks=false, or give the data in COCO's layout"
            )
        detection.check_names(self.train, self.test)
        return self


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return "AP"


def splits(config: Config, places: DataPlaces) -> dict[str, DetectionSplit]:
    """Return the annotated images of both splits.

    Raises:
        DataError: the data are incomplete, or not the published images although `expect` asks for them.
    """
    return detection.read_splits(config, places, (config.train, config.test), partial(read_voc, bad=config.bad))


def run(backbone: Backbone, config: Config, ctx: RunContext[DetectionSplit]) -> dict[str, Metric]:
    """Return `AP`, `AP50` and `AP75`."""
    found = detection.detections(backbone, config, ctx)
    if absent := voc_eval.without_objects(ctx.splits["test"]):
        ctx.notes.append(f"classes without an object that counts have AP 0: {some(absent)}")
    scores = voc_eval.evaluate(ctx.splits["test"], found, eleven_point=config.eleven_point, rounded=True)
    return {name: Metric(scores[name]) for name in ("AP", "AP50", "AP75")}


TASK = Task(
    name="voc_detection",
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
