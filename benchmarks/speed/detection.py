"""Time a detector's training step through our layer and through the engine's own loop, on the same batches.

Both sides share the detector, the optimiser and the schedule, and train in turn. Ours is the loop of every detection cell
(`transfer.detection.training.course.iterate`) with its log and checks. The other side is Detectron2's SimpleTrainer with the
schedule's hook, or mmengine's `train_step` followed by the schedule. Reading and augmenting images is not measured. On a CPU
the CPU time of the process counts.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed import Comparison, Row, Setup, in_turn, seconds

if TYPE_CHECKING:
    from transfer.detection.annotations.split import DetectionSplit
    from transfer.detection.spec import DetectionSpec
    from transfer.detection.training.course import Course

_STEPS = 8  # per round and side


def detectron2(setup: Setup) -> Comparison:
    """Compare Faster R-CNN C4 with SimpleTrainer."""
    return _beside(setup, "detectron2", "SimpleTrainer", _simple_trainer)


def mmdet(setup: Setup) -> Comparison:
    """Compare Faster R-CNN C4 with mmengine's train_step."""
    return _beside(setup, "mmdet", "train_step", _train_step)


def _beside(setup: Setup, name: str, other: str, theirs: Callable[[Course, list[Any]], None]) -> Comparison:
    import torch

    from backbench.progress import logged
    from model_zoo.load import load
    from transfer.detection import engines
    from transfer.detection.job import Job
    from transfer.detection.training import course

    if setup.device == "cpu":
        torch.set_num_threads(1)
    engine: Any = engines.get(name)  # a module, with more than every engine must offer
    backbone = load("random:resnet50" if setup.device == "cuda" else "random:resnet18")
    spec, steps = _spec(setup), 1 if setup.quick else _STEPS
    with tempfile.TemporaryDirectory(prefix="backbench-speed-") as folder, logged("", Path(folder) / "log.txt"):
        job: Job[DetectionSplit] = Job(Path(folder), 0, torch.device(setup.device))
        engine.prepare()
        taught = engine.new_course(spec, backbone, _scenes(Path(folder) / "images"), job)
        batches = list(itertools.islice(taught.loader(0), steps))
        taught.loader = lambda _start: batches
        taught.model.train()

        def ours() -> None:
            with _storage(name):
                course.iterate(taught, spec.model_copy(update={"iterations": steps}), {}, 0, job)

        def per_step(run: Callable[[], None]) -> Callable[[], float]:
            return lambda: (_cpu_seconds(run) if setup.device == "cpu" else seconds(run, setup.device)) / steps

        pairs = in_turn(setup, per_step(ours), per_step(lambda: theirs(taught, batches)))
    quantity = "CPU seconds per step" if setup.device == "cpu" else "seconds per step"
    setting = f"{backbone.arch.name} C4, {spec.batch} images of {spec.sides_train[0]} px, {setup.device}"
    note = "; scaled down from 16 images of 480 to 800 px" if setup.device == "cpu" else ""
    return Comparison(quantity, setting + note, "backbench", other, pairs, "times as long")


def _spec(setup: Setup) -> DetectionSpec:
    from transfer.detection.spec import DetectionSpec

    sizes: dict[str, Any] = {"sides_train": (96,), "rois": 32, "proposals_train": (400, 100)}
    if setup.quick:
        sizes = {"sides_train": (32,), "rois": 4, "proposals_train": (50, 10)}
    elif setup.device == "cuda":
        sizes = {"sides_train": (800,)}
    fields = {"head": "c4", "iterations": 1_000_000, "batch": 2, "lr": 1e-5, "precise_bn": 0, **sizes}
    return DetectionSpec.model_validate(fields)


def _scenes(folder: Path) -> DetectionSplit:
    """Rendered scenes of 160 x 128 pixels; the engine resizes them."""
    import numpy as np
    from PIL import Image

    from backbench.data.demo import render
    from backbench.data.splits import Files
    from transfer.detection.annotations.split import DetectionSplit, Instance, Picture

    folder.mkdir()
    pictures = []
    for number in range(8):
        pixels, placed = render.render_scene(np.random.default_rng(number))
        Image.fromarray(pixels).save(folder / f"{number}.png")
        objects = tuple(Instance(p.label, p.box) for p in placed)
        pictures.append(Picture(str(number), *render.SCENE, objects))
    files = Files(folder, tuple(f"{p.id}.png" for p in pictures))
    return DetectionSplit("scenes", "train", files, tuple(pictures), render.CLASSES)


def _storage(name: str) -> Any:
    """The context that Detectron2's models write to; SimpleTrainer opens its own."""
    from contextlib import nullcontext

    if name != "detectron2":
        return nullcontext()
    from detectron2.utils.events import EventStorage

    return EventStorage()


def _simple_trainer(taught: Course, batches: list[Any]) -> None:
    from detectron2.engine import SimpleTrainer
    from detectron2.engine.hooks import LRScheduler

    trainer = SimpleTrainer(taught.model, batches, taught.optimizer)
    trainer.register_hooks([LRScheduler(taught.optimizer, taught.parts["scheduler"])])
    trainer.train(0, len(batches))


def _train_step(taught: Course, batches: list[Any]) -> None:
    from mmengine.optim import OptimWrapper

    wrapper = OptimWrapper(taught.optimizer)
    model: Any = taught.model
    for batch in batches:
        model.train_step(batch, optim_wrapper=wrapper)
        taught.advance()


def _cpu_seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _without(name: str) -> Callable[[Setup], str | None]:
    def missing(_setup: Setup) -> str | None:
        from transfer.detection import engines

        return engines.get(name).missing()

    return missing


ROWS = tuple(
    Row(
        f"detection_{name}",
        f"detection step through our layer, against {loop}",
        run,
        at_most=1.02,
        missing=_without(name),
    )
    for name, loop, run in (
        ("detectron2", "Detectron2's SimpleTrainer", detectron2),
        ("mmdet", "mmengine's train_step", mmdet),
    )
)
