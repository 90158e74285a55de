"""Linear segmentation: maps of frozen backbones, views, training against plain loops, kills, sliding windows, two processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import warm
from backbones import make_backbone
from masked import make_mask_folders, mask
from PIL import Image
from torch import nn

from backbench import distributed
from backbench.config import build
from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.errors import ConfigError, DataError
from benchmarks import plan
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone
from model_zoo.load import load
from transfer.features import FrozenMoved
from transfer.protocol import RunContext
from transfer.segmentation import dense, linear, views
from transfer.segmentation.annotations.reading import read
from transfer.segmentation.annotations.split import IGNORE
from transfer.segmentation.inference import Looking, predict, segment, windows
from transfer.supervised import Diverged, Order
from transfer.tasks import linear_segmentation
from transfer.tasks.linear_segmentation import Config

CPU = torch.device("cpu")
SPEC = InputSpec(size=32)
VIT = "timm:test_vit?pretrained=false"


class _Killed(Exception):
    pass


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize(("stride", "replaced"), [(32, (False, False)), (16, (False, True)), (8, (True, True))])
def test_a_dilated_resnet_is_torchvisions(stride, replaced):
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    theirs = ResNet(Bottleneck, [2, 2, 2, 2], replace_stride_with_dilation=[False, *replaced]).eval()
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    backbone = Backbone("r26", Architecture(name="resnet26"), state, InputSpec(), "test", "backbench")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(
            theirs.conv1(x))))))))  # fmt: skip
        found = dense.build(backbone, stride, 64)(x)
    assert found.shape == (1, 2048, 64 // stride, 64 // stride)
    torch.testing.assert_close(found, expected)


def test_a_dilated_resnet_follows_leoparts_rule():
    """Leopart's src/resnet.py: of layer4 the strided 3x3 has dilation 1, the other 3x3 have 2, and nothing has a stride."""
    stages = dense.build(make_backbone("resnet50"), 16, 64).trunk
    kernels = [m for m in stages.layer4.modules() if isinstance(m, nn.Conv2d)]
    assert {m.stride for m in kernels} == {(1, 1)}
    assert [m.dilation for m in kernels if m.kernel_size == (3, 3)] == [(1, 1), (2, 2), (2, 2)]
    assert all(m.dilation == m.padding for m in kernels if m.kernel_size == (3, 3))


def test_a_vits_map_is_timms():
    backbone = load(VIT)
    patch = backbone.module.patch_embed.patch_size[0]
    side = 3 * patch
    encoder = dense.build(backbone, 16, side)
    other = backbone.build()
    other.set_input_size(img_size=(side, side))
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        (expected,) = other.eval().forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        torch.testing.assert_close(encoder(x), expected)
    assert dense.width_of(encoder, side) == backbone.feature_dim
    with pytest.raises(ConfigError, match=f"patches of {patch} pixels do not tile {side + 1}: set crop={side}"):
        dense.build(backbone, 16, side + 1)


def test_the_map_is_of_the_backbones_weights():
    backbone = make_backbone("resnet18")
    encoder = dense.build(backbone, 16, 64)
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    for name, value in encoder.trunk.state_dict().items():
        assert torch.equal(value, backbone.state[name])


@pytest.mark.parametrize(
    ("fields", "stride", "words"),
    [
        ({"stem": "3x3-nopool"}, 16, "has stride 8: set stride=8"),
        ({"stem": "3x3"}, 32, "has stride 16: set stride=16"),
        ({"conv_padding": "same"}, 8, "not defined for stride 8: set stride=16"),
        ({"stem": "3x3"}, 8, None),
        ({"conv_padding": "same"}, 16, None),
        ({"avg_down": True}, 8, None),
        ({"stride_in_1x1": True}, 8, None),
    ],
)
@pytest.mark.sample(3)
def test_strides_that_a_backbone_cannot_have_are_refused(fields, stride, words):
    backbone = make_backbone("resnet50", **fields)
    reason = dense.unfit(backbone, stride, 64)
    assert (reason is None) == (words is None) and (words is None or words in reason)
    if words is None:
        assert dense.build(backbone, stride, 64)(torch.zeros(1, 3, 64, 64)).shape[-1] == 64 // stride


def test_other_networks_are_refused_with_the_reason():
    backbone = load("timm:convnext_atto?pretrained=false")
    reason = linear_segmentation.TASK.unfit(backbone, Config())
    assert "no C5 of a ResNet and no patch tokens of a timm ViT" in reason


# ---------------------------------------------------------------- views


def pair(height=60, width=90, seed=0):
    """An image that shows its labels: 60 times the class in every channel."""
    labels = np.repeat(np.repeat(np.random.default_rng(seed).integers(0, 4, (4, 6)), height // 4, 0), width // 6, 1)
    return Image.fromarray(np.repeat((60 * labels)[..., None], 3, 2).astype(np.uint8)), labels.astype(np.uint8)


@pytest.mark.parametrize("kind", ["resized", "scaled"])
def test_a_mask_moves_with_its_image(kind):
    view = (
        views.resized_crop(48, (0.4, 1.0))
        if kind == "resized"
        else views.scaled_crop(48, (0.5, 2.0), SPEC, photometric=False)
    )
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, labels = view(*pair())
        assert image.shape == (48, 48, 3) and labels.shape == (48, 48) and image.dtype == labels.dtype == np.uint8
        counted = labels != IGNORE
        assert (np.rint(image[..., 0] / 60).astype(int)[counted] == labels[counted]).mean() > 0.85, "but for edges"
        if not counted.all():
            assert (image[~counted] == [124, 116, 104]).all(), "padded with ImageNet's mean"
        seen.add((counted.mean() < 1, labels.tobytes()))
    assert len(seen) == 12
    assert any(padded for padded, _ in seen) == (kind == "scaled")


def test_a_view_depends_on_seed_epoch_and_index_alone(tmp_path):
    split = read("mask_folders", make_mask_folders(tmp_path, size=(48, 32)), "train", dataset="mine")
    view = views.scaled_crop(32, (0.5, 2.0), SPEC, photometric=True)
    first = views.SeededPairs(split, view, 0)[3, 1]
    torch.manual_seed(99)
    assert all(np.array_equal(a, b) for a, b in zip(first, views.SeededPairs(split, view, 0)[3, 1], strict=True))
    for seed, key in ((1, (3, 1)), (0, (4, 1)), (0, (3, 2))):
        assert not np.array_equal(first[0], views.SeededPairs(split, view, seed)[key][0])


def test_a_crop_of_one_class_is_drawn_again():
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 40:] = 1
    view = views.scaled_crop(32, (2.0, 2.0), SPEC, photometric=False)  # 64 x 64: the size stays
    image = Image.new("RGB", (64, 64))
    shares = []
    for seed in range(40):
        torch.manual_seed(seed)
        shares.append((view(image, labels)[1] == 0).mean())
    assert np.mean([0.25 < share < 0.75 for share in shares]) > 0.9, "a third of the places would do by chance"


def test_colours_are_distorted_and_stay_bytes():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    found = [views.distorted(x) for _ in range(20)]
    assert all(y.dtype == torch.uint8 and y.shape == x.shape for y in found)
    assert 10 < sum(not torch.equal(x, y) for y in found) <= 20


# ---------------------------------------------------------------- training


def tiny_encoder() -> nn.Module:
    torch.manual_seed(2)
    return nn.Conv2d(3, 6, 4, stride=4).requires_grad_(False).eval()


def made_batches(order: Order, size: int = 16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(order.images, 3, size, size, generator=generator)
    y = torch.randint(0, 3, (order.images, size, size), generator=generator)
    y[torch.rand(y.shape, generator=generator) < 0.2] = IGNORE

    def from_step(start):
        for _, rows in order.rows(start):
            yield x[rows], y[rows]

    return from_step


def course(preset: str, **fields) -> Config:
    values = {**Config.PRESETS[preset].fields, "preset": preset, "batch": 4, "iterations": 9, "rate": 0.05, **fields}
    return build(Config, values)


def trained(config: Config, resume: Path, *, batches=None, log=None) -> linear.PixelHead:
    order = Order(10, config.batch, 3, 0, most=config.iterations)
    head = linear.PixelHead(6, 3, 0, norm=config.head_norm, dropout=config.dropout, init=config.head_init)
    linear.fit(head, tiny_encoder(), batches or made_batches(order), config, order, device=CPU, resume=resume, log=log)
    return head


def test_dinov3s_training_is_a_plain_loop(tmp_path):
    config = course("dinov3", warmup=4, dropout=0.0)
    found = trained(config, tmp_path / "state.ckpt")
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1))
    start = linear.PixelHead(6, 3, 0, norm=True, dropout=0.0, init="normal").conv
    net[1].load_state_dict(start.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1.0, betas=(0.9, 0.999), weight_decay=1e-3)
    encoder, order = tiny_encoder(), Order(10, 4, 3, 0, most=9)
    for i, (x, y) in enumerate(made_batches(order)(0)):
        t = i - 1 if i else 0
        rise, fall = 1e-6 + (1 - 1e-6) * t / 4, 1 - t / 9
        lr = rise * fall if t < 4 else (1 + np.cos(np.pi * (t + 1) / 9)) / 2
        optimizer.param_groups[0]["lr"] = 0.05 * lr
        logits = F.interpolate(net(encoder(x)), size=(16, 16), mode="bilinear")
        losses = F.cross_entropy(logits, y, ignore_index=255, reduction="none")
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    torch.testing.assert_close(found.conv.weight, net[1].weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.norm.running_var, net[0].running_var)
    assert not torch.allclose(found.conv.weight, start.weight, atol=1e-3)


def test_leoparts_training_is_a_plain_loop(tmp_path):
    """As the source writes it: features are interpolated, then classified; torch's loss is the mean of what counts."""
    config = course("leopart", loss_side=7, milestones=(2 / 3,))
    found = trained(config, tmp_path / "state.ckpt")
    conv = nn.Conv2d(6, 3, 1)
    conv.load_state_dict(linear.PixelHead(6, 3, 0, norm=False, dropout=0.0, init="linear").conv.state_dict())
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=6, gamma=0.1)
    criterion, encoder, order = nn.CrossEntropyLoss(ignore_index=255), tiny_encoder(), Order(10, 4, 3, 0, most=9)
    for x, y in made_batches(order)(0):
        features = F.interpolate(encoder(x), size=(7, 7), mode="bilinear")
        masks = F.interpolate(y[:, None].float(), size=(7, 7), mode="nearest")
        loss = criterion(conv(features), masks.long().squeeze(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(found.conv.weight, conv.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.conv.bias, conv.bias, rtol=1e-4, atol=1e-6)


def test_dropout_is_of_whole_channels_and_scales_the_rest():
    kept = linear.kept_channels(5, 400, 10, 0.3, seed=1)
    assert kept.shape == (400, 10) and abs(float(kept.float().mean()) - 0.7) < 0.03
    assert torch.equal(kept, linear.kept_channels(5, 400, 10, 0.3, seed=1))
    assert not torch.equal(kept, linear.kept_channels(6, 400, 10, 0.3, seed=1))
    assert linear.kept_channels(5, 400, 10, 0.0, seed=1) is None
    head = linear.PixelHead(10, 3, 0, norm=False, dropout=0.3, init="linear")
    x = torch.randn(4, 10, 2, 2)
    expected = head.conv(x * kept[:4, :, None, None] / 0.7)
    torch.testing.assert_close(head(x, kept[:4]), expected)


@pytest.mark.parametrize("preset", ["dinov3", "leopart"])
def test_a_killed_training_goes_on_bit_for_bit(preset, tmp_path, monkeypatch):
    monkeypatch.setattr(linear, "_SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(linear, "_LOG_EVERY", 1)
    config = course(preset, warmup=2) if preset == "dinov3" else course(preset)
    whole = trained(config, tmp_path / "a.ckpt", log=tmp_path / "a/losses.jsonl")
    assert not (tmp_path / "a.ckpt").exists()
    order = Order(10, config.batch, 3, 0, most=config.iterations)

    def dying(start):
        for step, one in enumerate(made_batches(order)(start), start=start):
            if step == 5:
                raise _Killed
            yield one

    with pytest.raises(_Killed):
        trained(config, tmp_path / "b.ckpt", batches=dying, log=tmp_path / "b/losses.jsonl")
    with (tmp_path / "b/losses.jsonl").open("a") as file:
        file.write('{"iteration": 6, "total": 99.0}\n{"iter')  # of iterations that are done again, and a cut line
    again = trained(config, tmp_path / "b.ckpt", log=tmp_path / "b/losses.jsonl")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    logs = [(tmp_path / name / "losses.jsonl").read_text() for name in "ab"]
    assert logs[0] == logs[1] and [json.loads(line)["iteration"] for line in logs[0].splitlines()] == [*range(1, 10)]


def test_a_damaged_state_is_named_and_the_training_starts_again(tmp_path, capsys):
    whole = trained(course("dinov3", warmup=2), tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(b"cut")
    again = trained(course("dinov3", warmup=2), tmp_path / "b.ckpt")
    assert "starting from step 0: the saved state of the training is damaged" in capsys.readouterr().err
    assert torch.equal(whole.conv.weight, again.conv.weight)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(Diverged, match=r"by iteration 9: rate 1e\+38 is too high"):
        trained(course("leopart", rate=1e38), tmp_path / "state.ckpt")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("train=val", "train and test are both 'val'"),
        ("test=../x", "'../x' is not the name of a split"),
        ("scale=[2.0,1.0]", "give the smaller number first"),
        ("view=resized_crop", "of resized_crop at most 1"),
        ("schedule=steps", "schedule 'steps' needs milestones"),
        ("window_stride=600", "leaves gaps between windows of 512 pixels"),
    ],
)
def test_fields_that_do_not_fit_are_refused(field, words):
    with pytest.raises(ConfigError, match=words):
        build(Config, {"train": "train", "test": "val"}, [field])


# ---------------------------------------------------------------- sliding windows


@pytest.mark.parametrize(("height", "width", "side", "stride"), [(20, 33, 20, 13), (20, 20, 20, 13), (40, 25, 20, 20)])
def test_windows_cover_the_image_and_end_at_its_border(height, width, side, stride):
    covered = np.zeros((height, width), int)
    for top, left in windows(height, width, side, stride):
        assert 0 <= top <= height - side and 0 <= left <= width - side
        covered[top : top + side, left : left + side] += 1
    assert covered.min() == 1


def test_sliding_windows_are_averaged_as_in_a_loop():
    torch.manual_seed(0)
    encoder, head = tiny_encoder(), linear.PixelHead(6, 3, 0, norm=True, dropout=0.1, init="linear").eval()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 40, 3), np.uint8)
    found = predict(head, encoder, pixels, (24, 60), Looking("slide", 16, 11), SPEC, CPU)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - torch.tensor(SPEC.mean)[:, None, None]
    x = x / torch.tensor(SPEC.std)[:, None, None]
    total, count = torch.zeros(1, 3, 16, 40), torch.zeros(40)
    with torch.no_grad():
        for left in (0, 11, 22, 24):
            part = head(encoder(x[..., left : left + 16]))
            total[..., left : left + 16] += F.interpolate(part, size=(16, 16), mode="bilinear")
            count[left : left + 16] += 1
    expected = F.interpolate(total / count, size=(24, 60), mode="bilinear")[0].argmax(0)
    assert found.shape == (24, 60) and (found == expected.numpy()).mean() > 0.999


def test_squashed_images_are_scored_at_the_squares_size(tmp_path):
    split = read("mask_folders", make_mask_folders(tmp_path, size=(48, 32)), "val", dataset="mine")
    head = linear.PixelHead(6, 3, 0, norm=False, dropout=0.0, init="linear")
    ctx = RunContext({}, 0, CPU, tmp_path)
    found = segment(head, tiny_encoder(), split, Looking("squash", 20, 1), SPEC, ctx, [1])
    assert found.shown[1].shape == (20, 20) and list(found.shown) == [1]
    assert found.confusion.counts.sum() == 2 * 400
    slid = segment(head, tiny_encoder(), split, Looking("slide", 32, 20), SPEC, ctx, [0])
    assert slid.shown[0].shape == (32, 48) and slid.confusion.counts.sum() == 2 * 32 * 48
    assert slid.areas["truth"].sum(1).tolist() == [32 * 48] * 2


# ---------------------------------------------------------------- the cell

TINY = ["crop=32", "window_stride=24", "stride=16", "batch=4", "iterations=60", "warmup=5", "rate=0.05", "scale=[0.8,1.5]",
        "photometric=false", "dropout=0.0"]  # fmt: skip


def prepared(root: Path, folder: Path, fields=()):
    catalogue.parse_places([f"mine={root}"])
    cell = plan.load_cell("mine_linear_segmentation", [*TINY, *fields])
    splits = cell.task.splits(cell.config, DataPlaces(None, {"mine": root}))
    return cell, RunContext(splits, 0, CPU, folder / "cache", folder / "run")


def test_a_cell_learns_classes_that_colours_tell(tmp_path):
    root = make_mask_folders(tmp_path / "mine", counts=(12, 4), size=(64, 48))
    backbone = make_backbone("resnet18", width=0.25, spec=SPEC)
    cell, ctx = prepared(root, tmp_path)
    found = cell.task.run(backbone, cell.config, ctx)
    assert set(found) == {"mIoU", "mAcc", "aAcc"} and found["mIoU"].value > 50, "chance is a fifth"
    iou = ctx.items["intersection"].sum(0) / ctx.items["union"].sum(0)
    assert 100 * np.nanmean(iou) == pytest.approx(found["mIoU"].value)
    assert ctx.items["per_class_IoU"] == pytest.approx(100 * iou, nan_ok=True)
    assert ctx.items["truth"].sum(1).tolist() == [48 * 64] * 4
    assert Image.open(tmp_path / "run/pictures.png").width == 1200
    last = json.loads((tmp_path / "run/losses.jsonl").read_text().splitlines()[-1])
    assert last["iteration"] == 60 and not list((tmp_path / "cache").glob("*.ckpt"))


def test_a_backbone_that_moves_stops_the_cell(tmp_path, monkeypatch):
    root = make_mask_folders(tmp_path / "mine", size=(48, 32))
    cell, ctx = prepared(root, tmp_path, ["iterations=1"])
    real = linear.fit

    def moving(head, encoder, *args, **kwargs):
        done = real(head, encoder, *args, **kwargs)
        next(encoder.parameters()).data.add_(1)
        return done

    monkeypatch.setattr(linear, "fit", moving)
    with pytest.raises(FrozenMoved):
        cell.task.run(make_backbone("resnet18", spec=SPEC), cell.config, ctx)


def test_a_mask_that_does_not_fit_stops_the_cell_before_the_training(tmp_path):
    root = make_mask_folders(tmp_path / "mine", size=(48, 32))
    mask(root / "masks/val/part/1.png", [0], size=(10, 10))
    cell, ctx = prepared(root, tmp_path)
    with pytest.raises(DataError, match=r"mine val: .*1\.png: has 10x10 pixels, but its image 1\.png 48x32"):
        cell.task.run(make_backbone("resnet18", spec=SPEC), cell.config, ctx)
    assert not (tmp_path / "run").exists()


def test_the_cells_of_the_field_have_their_presets():
    voc, ade = (plan.load_cell(f"{name}_linear_segmentation").config for name in ("voc12", "ade20k"))
    assert (voc.preset, voc.train, voc.test, voc.crop, voc.iterations) == ("leopart", "train_aug", "val", 448, 2200)
    assert (ade.preset, ade.train, ade.test, ade.crop, ade.iterations) == (
        "dinov3", "training", "validation", 512, 40_000
    )  # fmt: skip
    assert [round(voc.factor(step), 9) for step in (0, 1759, 1760, 2199)] == [1, 1, 0.1, 0.1]
    assert plan.load_cell("cityscapes_linear_segmentation").config.preset == "dinov3"


# ---------------------------------------------------------------- two processes


def measured(folder: Path) -> dict[str, object]:
    """Train with dropout and BatchNorm on batches of 3 of 4 images, and segment 3 images."""
    cell, ctx = prepared(folder / "mine", folder, ["batch=3", "iterations=5", "dropout=0.2", "warmup=0", "rate=0.001"])
    ctx.cache = folder / f"cache{distributed.world_size()}"
    metrics = cell.task.run(make_backbone("resnet18", spec=SPEC), cell.config, ctx)
    return {"metrics": {name: metric.value for name, metric in metrics.items()},
            "truth": torch.from_numpy(ctx.items["truth"])}  # fmt: skip


def worker(folder: str) -> None:
    with distributed.joined():
        torch.save(measured(Path(folder)), Path(folder) / f"{distributed.rank()}.pt")


@pytest.mark.slow
@pytest.mark.sample(0)
@pytest.mark.parametrize("processes", [2])
def test_two_processes_give_the_numbers_of_one(tmp_path, processes):
    make_mask_folders(tmp_path / "mine", counts=(4, 3), size=(48, 32))
    expected = measured(tmp_path)
    with warm.ranks([__file__, str(tmp_path)]) as ranks:
        assert [process.wait(280) for process in ranks] == [0] * processes
    for rank in range(processes):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["metrics"] == pytest.approx(expected["metrics"], abs=0.5)
        assert torch.equal(found["truth"], expected["truth"])


if __name__ == "__main__":
    worker(sys.argv[1])
