"""MMSegmentation as an engine: its own configurations, weights, draws, training, resuming, segmentation, native runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from backbones import make_backbone
from segmented import scenes, tiny

from backbench import distributed
from backbench.errors import BackbenchError, ConfigError, DataError
from model_zoo.architecture import InputSpec
from model_zoo.backbone import Backbone
from model_zoo.export import ExportError
from model_zoo.reading import load_torch
from transfer.detection.job import Job
from transfer.detection.training import checkpoints, course
from transfer.detection.training.accumulation import split
from transfer.segmentation import lists
from transfer.segmentation.engines import mmseg as engine
from transfer.segmentation.engines.mmseg import protocol
from transfer.segmentation.scoring.confusion import Confusion
from transfer.tasks.semantic_segmentation import Config

pytestmark = pytest.mark.slow  # MMSegmentation takes seconds to import
CPU = torch.device("cpu")
PREPARED = ("-m", "transfer.segmentation.engines.mmseg.native")


@pytest.fixture(scope="module", autouse=True)
def _ready():
    if engine.missing():
        pytest.skip(engine.missing())
    engine.prepare()


@pytest.fixture
def train(tmp_path):
    return scenes(tmp_path / "data", 6)


def narrow() -> Backbone:
    return make_backbone("resnet18", 0.25)


def job(folder: Path, **fields) -> Job:
    return Job(folder, **{"seed": 0, "device": CPU, "checkpoint_every": 2, "log_every": 1, **fields})


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- the configuration

OWN = {  # preset -> MMSegmentation's file
    "mmseg_voc12": "fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py",
    "mmseg_cityscapes": "fcn/fcn_r50-d8_4xb2-40k_cityscapes-769x769.py",
    "mmseg_ade20k": "upernet/upernet_r50_4xb4-160k_ade20k-512x512.py",
    "mmseg_ade20k_80k": "upernet/upernet_r50_4xb4-80k_ade20k-512x512.py",
}
# Ours: a backbone with its own stem, weights and input; lists instead of folders; one output per class stated.
OTHER = {"type", "init_cfg", "frozen_stages", "norm_cfg", "num_classes", "out_channels", "ignore_index", "stem_channels",
         "base_channels", "mean", "std", "bgr_to_rgb"}  # fmt: skip


def alike(ours: dict, theirs: dict, where: str) -> None:
    assert set(theirs) <= {*ours, *OTHER}, where
    for key in (ours.keys() & theirs.keys()) - OTHER:
        one, other = (list(v) if isinstance(v, tuple) else v for v in (ours[key], theirs[key]))
        assert one == other, f"{where}.{key}: {one} instead of {other}"


@pytest.mark.parametrize("preset", OWN)
def test_a_preset_is_mmsegmentations_own_file(preset, tmp_path, train):
    from mmengine.config import Config as Native

    spec = Config.PRESETS[preset].fields["spec"]
    ours = engine.configuration(spec, make_backbone("resnet50", 1), train, job(tmp_path, test=train))
    origin = importlib.util.find_spec("mmseg").origin
    theirs = Native.fromfile(Path(origin).parent / ".mim/configs" / OWN[preset])
    for part in ("backbone", "decode_head", "auxiliary_head", "test_cfg", "data_preprocessor"):
        alike(ours.model[part], theirs.model[part], part)
    assert ours.model.decode_head.type == theirs.model.decode_head.type
    assert ours.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer
    assert ours.param_scheduler == theirs.param_scheduler
    assert ours.train_cfg.max_iters == theirs.train_cfg.max_iters
    images = int(re.search(r"4xb(\d)", OWN[preset])[1]) * 4
    assert ours.train_dataloader.batch_size == images
    # 1.x pads VOC's crops with black; 0.x, which its published numbers are of, pads with the mean colour, as the others
    transforms = [t for t in theirs.train_pipeline if t["type"] != "Pad" and not t["type"].startswith("Load")]
    assert [t for t in ours.train_dataloader.dataset.pipeline if not t.type.startswith("Load")] == transforms
    resize = next(t for t in theirs.test_pipeline if t["type"] == "Resize")
    assert ours.test_dataloader.dataset.pipeline[1] == resize


@pytest.mark.parametrize("preset", ["moco_voc12", "moco_cityscapes"])
def test_drops_come_after_70_and_90_percent(preset):
    spec = Config.PRESETS[preset].fields["spec"]
    assert spec.milestones == (spec.iterations * 7 // 10, spec.iterations * 9 // 10)


@pytest.mark.parametrize("schedule", ["steps", "poly"])
def test_the_rate_follows_its_formula(schedule, tmp_path, train):
    fields = {"milestones": (3, 5)} if schedule == "steps" else {"power": 0.9, "lr_min": 1e-3}
    spec = tiny(schedule=schedule, iterations=8, lr=0.01, **{"lr_min": 0.0, **fields})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=spec.lr)
    made = course_schedules(engine.configuration(spec, narrow(), train, job(tmp_path)), optimizer)
    for iteration in range(spec.iterations):
        steps = spec.lr * 0.1 ** sum(iteration >= m for m in spec.milestones)
        poly = (spec.lr - spec.lr_min) * (1 - iteration / (spec.iterations - 1)) ** spec.power + spec.lr_min
        expected = steps if schedule == "steps" else poly
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-6), iteration
        optimizer.step()
        made.step()


def course_schedules(cfg, optimizer):
    from transfer.detection.training.mmengine_course import schedules

    return schedules(cfg, optimizer)


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path, train, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match="batch=4 does not divide by 3 processes"):
        engine.configuration(tiny(), narrow(), train, job(tmp_path))


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("head", ["fcn", "upernet"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.sample(1)
def test_the_network_computes_the_backbones_dilated_features(tmp_path, train, head, arch):
    """`build` compares every tensor and the features; here the weights that it holds, and that nothing is frozen."""
    exported = make_backbone(arch, 0.25, InputSpec(mean=(0.4, 0.45, 0.5), std=(0.2, 0.25, 0.3), order="bgr"))
    model = engine.build(engine.write_native(tiny(head), exported, train, job(tmp_path)), exported, CPU)
    assert all(p.requires_grad for p in model.parameters())
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all(m.training for m in norms)
    frozen = engine.build(engine.write_native(tiny(head, norm="frozen"), exported, train, job(tmp_path)), exported, CPU)
    trunk = [m for m in frozen.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    frozen.train()
    assert not any(m.training or m.weight.requires_grad for m in trunk)
    assert all(m.training for m in frozen.decode_head.modules() if isinstance(m, torch.nn.BatchNorm2d))


BROKEN = {
    "prefix": (lambda s: {f"module.{k}": v for k, v in s.items()}, "backbone. is not in the pretrained model"),
    "missing": (lambda s: {k: v for k, v in s.items() if "layer1.0.conv1" not in k}, "layer1.0.conv1"),
    "statistics": (lambda s: {k: v for k, v in s.items() if "layer4.1.bn2.running_var" not in k}, "running_var"),
    "another value": (lambda s: {**s, "backbone.bn1.bias": s["backbone.bn1.bias"] + 1e-3}, "bn1.bias"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.sample(1)
def test_weights_that_do_not_arrive_are_refused(tmp_path, train, kind):
    change, words = BROKEN[kind]
    trained = narrow()
    cfg = engine.write_native(tiny(), trained, train, job(tmp_path))
    state = torch.load(tmp_path / "backbone.pth")
    torch.save({"state_dict": change(state["state_dict"])}, tmp_path / "backbone.pth")
    with pytest.raises(BackbenchError, match=words):
        engine.build(cfg, trained, CPU)


@pytest.mark.sample(0)
def test_a_trunk_that_computes_something_else_is_refused(tmp_path, train):
    trained = narrow()
    cfg = engine.write_native(tiny(), trained, train, job(tmp_path))
    stages = engine.trunk_stages
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "trunk_stages", lambda model, x: [1.001 * stage for stage in stages(model, x)])
        with pytest.raises(ExportError, match=r"MMSegmentation's C2\.\.C5 differ from torchvision's"):
            engine.build(cfg, trained, CPU)


def test_a_backbone_that_it_cannot_build_is_said():
    assert engine.unfit(make_backbone("resnet50")) is None
    assert "MMSegmentation builds" in engine.unfit(make_backbone(stem="3x3"))


def test_the_version_and_its_operators():
    engine.try_operators()
    assert re.match(r"mmseg 1\.", engine.version())


# ---------------------------------------------------------------- data


def drawn(train, folder: Path, start: int, count: int, **fields) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return the crops and labels of some iterations."""
    spec, where = tiny(colour=True, one_class=0.75), job(folder, **fields)
    cfg = engine.write_native(spec, narrow(), train, where)
    found = []
    for batch in islice(engine.train_loader(cfg, start, spec, where), count):
        labels = [sample.gt_sem_seg.data for sample in batch["data_samples"]]
        found.append(list(zip(batch["inputs"], labels, strict=True)))
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.sample(1)
def test_a_later_start_sees_the_same_crops(tmp_path, train, workers):
    generators = np.random.get_state()[1].copy()
    whole = drawn(train, tmp_path, 0, 5)
    later = drawn(train, tmp_path, 3, 2, workers=workers)
    for one, other in zip(chain(*whole[3:]), chain(*later), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert not torch.equal(whole[0][0][0], whole[1][0][0])
    assert (np.random.get_state()[1] == generators).all(), "the process's own generator is not used"
    other_seed = drawn(train, tmp_path, 0, 1, seed=1)
    assert not torch.equal(other_seed[0][0][0], whole[0][0][0])


def test_ranks_share_the_rows_of_one_process(monkeypatch):
    from transfer.segmentation.engines.mmseg import parts

    whole = list(islice(parts.NumberedSampler(range(10), seed=3), 40))
    assert sorted(code % 10 for code in whole[:10]) == list(range(10)) == sorted(code % 10 for code in whole[10:20])
    assert [code // 10 for code in whole] == list(range(40)), "the draws are counted"
    shares = []
    for rank in range(2):
        monkeypatch.setattr(parts, "get_dist_info", lambda rank=rank: (rank, 2))
        shares.append(list(islice(parts.NumberedSampler(range(10), seed=3, start=4), 18)))
    assert [code for pair in zip(*shares, strict=True) for code in pair] == whole[4:]


def test_labels_move_with_their_pixels(tmp_path):
    """An image whose colour is its label: after scaling, cropping and flipping they agree, and padding is ignored."""
    from PIL import Image

    from backbench.data.splits import Files
    from transfer.segmentation.annotations.split import SegmentationSplit

    labels = np.repeat(np.repeat(np.arange(8, dtype=np.uint8).reshape(2, 4), 24, 0), 24, 1)
    for name, pixels in (("a.png", np.stack([labels * 30] * 3, -1)), ("m.png", labels)):
        Image.fromarray(pixels).save(tmp_path / name)
    split = SegmentationSplit("x", "train", Files(tmp_path, ("a.png",)), Files(tmp_path, ("m.png",)), tuple("abcdefgh"))
    spec = tiny(resize=(96, 48), ratio=(0.5, 2.0))
    cfg = engine.write_native(spec, narrow(), split, job(tmp_path / "run"))
    (batch,) = islice(engine.train_loader(cfg, 0, spec, job(tmp_path / "run")), 1)
    for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        inside = sample.gt_sem_seg.data[0]
        near = (image[0].float() / 30 - inside).abs()
        assert float((near < 0.1).float().mean()) > 0.7, "but for the borders, where the image is interpolated"


def test_a_list_gives_back_its_split(tmp_path, train):
    file = tmp_path / "list.json"
    lists.write(train, file)
    assert lists.read(str(file)) is train, "in this process it is the split that was checked"
    lists._held.clear()
    again = lists.read(str(file))
    assert again.manifest_sha256() == train.manifest_sha256() and again.classes == train.classes
    assert (again.label(3) == train.label(3)).all()


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize(("head", "auxiliary"), [("fcn", True), ("upernet", True), ("fcn", False)])
@pytest.mark.sample(1)
def test_losses_fall_and_labels_have_the_images_size(tmp_path, train, head, auxiliary):
    spec = tiny(head, iterations=30, auxiliary=auxiliary, lr=0.02, norm="sync")
    model = engine.train(spec, narrow(), train, job(tmp_path, checkpoint_every=100))
    lines = records(tmp_path)
    names = {"decode.loss_ce"} | ({"aux.loss_ce"} if auxiliary else set())
    assert [line["iteration"] for line in lines] == list(range(30))
    assert all(set(line) == {"iteration", "total", "lr"} | names for line in lines)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    totals = [line["total"] for line in lines]
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])
    found = list(engine.segment(model, spec, train, [4, 0], job(tmp_path)))
    assert [one.shape for one in found] == [train.label(row).shape for row in (4, 0)]
    assert all(one.dtype == np.uint8 and one.max() < len(train.classes) for one in found)


@pytest.mark.parametrize("fields", [{"resize_test": None}, {"stride_test": (48, 32)}], ids=["own size", "slide"])
@pytest.mark.sample(1)
def test_other_ways_to_test(tmp_path, train, fields):
    spec = tiny(iterations=1, **fields)
    model = engine.train(spec, narrow(), train, job(tmp_path))
    (found,) = engine.segment(model, spec, train, [1], job(tmp_path))
    assert found.shape == train.label(1).shape


def test_losses_of_parts_average_to_that_of_the_batch(tmp_path, train):
    """All crops have one size, so `accumulate` changes nothing but BatchNorm, which is in evaluation mode here."""
    spec, mine = tiny(auxiliary=True), job(tmp_path)
    taught = engine.new_course(spec, narrow(), train, mine)
    (batch,) = islice(taught.loader(0), 1)
    model = taught.model.eval()
    with torch.no_grad():
        whole = taught.losses(model, batch)
        parts = [taught.losses(model, part) for part in split(batch, 4)]
    for name, value in whole.items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), value)


def killed_after(count: int, monkeypatch) -> None:
    """Stop the training before its iteration number `count`."""
    whole, seen = course.backward, iter(range(1000))

    def stops(*arguments):
        if next(seen) == count:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(course, "backward", stops)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.sample(1)
def test_a_killed_run_ends_in_the_same_weights(tmp_path, train, workers, monkeypatch):
    """With dropout, random colours and crops. The checkpoint is after iteration 2, the kill after 3."""
    spec = tiny(dropout=0.3, colour=True, one_class=0.75, auxiliary=True)
    whole = engine.train(spec, narrow(), train, job(tmp_path / "whole", workers=workers))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(3, patch)
        engine.train(spec, narrow(), train, job(tmp_path / "run", workers=workers))
    torch.manual_seed(99)
    mine = job(tmp_path / "run", workers=workers)
    again = engine.train(spec, narrow(), train, mine)
    assert mine.resumed_at == [2] and mine.notes == []
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    monkeypatch.setattr(engine, "train_loader", lambda *_: pytest.fail("a finished run is trained again"))
    engine.train(spec, narrow(), train, job(tmp_path / "run", workers=workers))


@pytest.mark.sample(0)
def test_a_course_of_another_mask_is_refused(tmp_path, train):
    spec = tiny(iterations=1)
    engine.train(spec, narrow(), train, job(tmp_path))
    other = dataclasses.replace(train, values=(*range(12), *[-1] * 243, 255))
    with pytest.raises(BackbenchError, match=r"model_final\.pth is of a run with another manifest_sha256"):
        engine.train(spec, narrow(), other, job(tmp_path))


@pytest.mark.sample(1)
def test_a_loss_that_is_not_finite_stops(tmp_path, train):
    spec = tiny(lr=1e12, iterations=20)
    with pytest.raises(BackbenchError, match=r"not finite (after|at) iteration \d+, rate \S+: "):
        engine.train(spec, narrow(), train, job(tmp_path, checkpoint_every=1))
    assert not (tmp_path / checkpoints.FINAL).exists()
    for kept in checkpoints.under_way(tmp_path):
        assert all(torch.isfinite(tensor).all() for tensor in load_torch(kept)["state_dict"].values())


@pytest.mark.sample(0)
def test_an_image_that_changes_during_the_run_is_an_error(tmp_path, train):
    train.manifest_sha256()
    train.file(0).write_bytes(train.file(1).read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"0\.png"):
        engine.train(tiny(iterations=3), narrow(), train, job(tmp_path))


# ---------------------------------------------------------------- MMSegmentation's own runner, metric and tools


def test_our_scores_are_those_of_its_metric(train):
    from mmseg.evaluation import IoUMetric

    rng = np.random.default_rng(0)
    ours, metric = Confusion(len(train.classes) + 2), IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": [*train.classes, "never", "only predicted"]}
    for row in range(len(train)):
        truth = train.label(row).copy()
        truth[rng.random(truth.shape) < 0.1] = 255
        predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, len(train.classes), truth.shape))
        predicted = np.where(predicted == 255, len(train.classes) + 1, predicted).astype(np.uint8)
        predicted[0, :5] = len(train.classes) + 1
        truth[0, :5] = 0
        ours.add(predicted, truth)
        as_theirs = [torch.from_numpy(labels.astype(np.int64))[None] for labels in (predicted, truth)]
        sample = {"pred_sem_seg": {"data": as_theirs[0]}, "gt_sem_seg": {"data": as_theirs[1]}}
        metric.process({}, [sample])
    theirs = metric.compute_metrics(metric.results)
    assert {name: round(value, 2) for name, value in ours.scores().items()} == pytest.approx(theirs, abs=0.011)


@pytest.mark.parametrize("head", ["fcn", "upernet"])
@pytest.mark.sample(0)
def test_its_own_runner_has_the_same_first_loss(tmp_path, train, head):
    from mmengine.config import Config as Native
    from mmengine.runner import Runner

    spec = tiny(head, iterations=1, auxiliary=True)
    start = engine.new_course(spec, narrow(), train, job(tmp_path)).model.state_dict()
    torch.save({"state_dict": start}, tmp_path / "start.pth")
    engine.train(spec, narrow(), train, job(tmp_path))
    (ours,) = records(tmp_path)
    cfg = Native.fromfile(tmp_path / engine.NATIVE)
    cfg.load_from = str(tmp_path / "start.pth")  # its runner draws a number between two layers' weights
    cfg.default_hooks.logger = {"type": "LoggerHook", "interval": 1}
    runner = Runner.from_cfg(cfg)
    runner.train()
    (scalars,) = (tmp_path / "native").rglob("scalars.json")
    theirs = json.loads(scalars.read_text().splitlines()[0])
    assert theirs["loss"] == pytest.approx(ours["total"], rel=1e-6)
    assert theirs["decode.loss_ce"] == pytest.approx(ours["decode.loss_ce"], rel=1e-6)
    state = load_torch(tmp_path / checkpoints.FINAL)["state_dict"]
    for name, tensor in runner.model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.sample(0)
def test_its_own_tools_train_resume_and_measure_as_we_do(tmp_path, train):
    import mmseg

    test = scenes(tmp_path / "data", 3, first=50, name="val")
    spec, mine = tiny(iterations=2), job(tmp_path, checkpoint_every=1, test=test)
    model = engine.train(spec, narrow(), train, mine)
    confusion = Confusion(len(test.classes))
    for row, predicted in enumerate(engine.segment(model, spec, test, range(3), mine)):
        confusion.add(predicted, test.label(row))
    tools = Path(mmseg.__file__).parent / ".mim/tools"

    def tool(name: str, *arguments: str) -> str:
        words = [*(PREPARED if name == "test.py" else ()), str(tools / name), str(tmp_path / engine.NATIVE), *arguments]
        done = warm.run(words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    tool("train.py")
    assert "iter: 2" in tool("train.py", "--resume", "--cfg-options", "train_cfg.max_iters=3")
    said = tool("test.py", str(tmp_path / checkpoints.FINAL))
    (value,) = re.findall(r"mIoU: ([\d.]+)", said)
    assert float(value) == pytest.approx(confusion.scores()["mIoU"], abs=0.011)


# ---------------------------------------------------------------- processes


def spread(folder: Path) -> None:
    """One rank of a training in two processes."""
    device = distributed.init()
    engine.prepare()
    split = scenes(folder / f"data{distributed.rank()}", 6)
    mine = Job(folder / "run", 0, device, log_every=1)
    model = engine.train(tiny(iterations=3), narrow(), split, mine)
    if distributed.is_main():
        torch.save(model.state_dict(), folder / "two.pth")
    distributed.shutdown()


@pytest.mark.sample(0)
def test_two_processes_give_the_weights_of_one(tmp_path, train):
    code = f"import sys; sys.path[:0] = ['tests/transfer/segmentation', 'tests/builders']\nfrom pathlib import Path\n" \
           f"import test_mmseg\ntest_mmseg.spread(Path({str(tmp_path)!r}))"  # fmt: skip
    with warm.ranks(["-c", code], modules=warm.ENGINES, cwd=Path(__file__).resolve().parents[3]) as ranks:
        assert [rank.wait(250) for rank in ranks] == [0, 0]
    alone = engine.train(tiny(iterations=3), narrow(), train, job(tmp_path / "alone"))
    two = torch.load(tmp_path / "two.pth")
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert protocol.test_pipeline(tiny())[0]["type"] == "LoadListedImage"
