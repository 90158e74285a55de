"""Trained protocols and frozen features: two processes equal one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from backbones import initial, tiny
from PIL import Image
from torch import nn

from backbench import distributed
from backbench.config import build
from backbench.data.catalogue import DataPlaces, load
from backbench.data.splits import ImageSplit, Subset
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone, save
from transfer import features, supervised
from transfer.heads import Classifier, Heads
from transfer.protocol import RunContext
from transfer.supervised import Order, SgdConfig, batches_of, fit
from transfer.tasks import attentive, linear_probe, semi_supervised, uniformity

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FITS = {  # images, batch, rate of the encoder (None: no encoder), norm of the heads, optimiser
    "fine-tuned, 5 + 5 + 3": (13, 5, 0.05, "none", "sgd"),
    "fine-tuned, 5 + 5 + 1": (11, 5, 0.05, "affine", "sgd"),
    "fine-tuned, 7 + 2, LARS": (9, 7, 0.05, "affine", "lars"),
    "fine-tuned ResNet, 5 + 5 + 3": (13, 5, 0.001, "none", "sgd"),
    "frozen, 5 + 5 + 1": (11, 5, 0.0, "none", "sgd"),
    "features, 5 + 5 + 3, norms": (13, 5, None, "plain", "sgd"),
    "features, 5 + 5 + 1, norms": (11, 5, None, "affine", "sgd"),
    "features, 5 + 5 + 1, Adam": (11, 5, None, "none", "adam"),
}
SPLITS = (24, 7, 1)  # images
# A BatchNorm over seven values multiplies rounding a thousandfold a step: in float32 only a small rate keeps the answers.
GENTLE = {"rate_encoder": 1e-6, "rate_head": 0.1}


class _Killed(Exception):
    pass


def tiny_encoder() -> nn.Module:
    torch.manual_seed(2)
    conv = nn.Conv2d(3, 4, 3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def train(case: str, resume: Path | None = None, killed_after: int | None = None) -> dict[str, torch.Tensor]:
    """Train two epochs in float64 and return weights and buffers."""
    images, batch, rate, norm, optimizer = FITS[case]
    generator = torch.Generator().manual_seed(1)
    resnet = "ResNet" in case
    shape = (4,) if rate is None else (3, 32, 32) if resnet else (3, 6, 6)
    x = torch.randn(images, *shape, generator=generator, dtype=torch.float64) * 2 + 1
    y = torch.arange(images) % 3
    encoder = None if rate is None else backbone().build() if resnet else tiny_encoder()
    heads = Heads(128 if resnet else 4, 3, (0.5, 0.05), 0, norm)
    model = Classifier(encoder, heads, rate_encoder=rate or 0.0).double()
    config = SgdConfig(batch=batch, epochs=2, optimizer=optimizer, weight_decay=1e-3)
    order = Order(images, batch, 2, seed=0)

    def batches(start):
        for step, one in enumerate(batches_of(x, y, order)(start), start=start):
            if step == killed_after:
                raise _Killed
            yield one

    curve = fit(model, batches, config, order, device=CPU, resume=resume)
    values = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return values | {"curve": torch.tensor(curve.points, dtype=torch.float64)}


def train_killed(folder: Path) -> dict[str, torch.Tensor]:
    """The first case, killed in its second epoch and started again."""
    supervised._SAVE_EVERY_S = -1.0
    case = next(iter(FITS))
    file = folder / "state.ckpt"
    try:
        train(case, resume=file, killed_after=4)
    except _Killed:
        assert file.exists()
    distributed.barrier()
    return train(case, resume=file)


def backbone() -> Backbone:
    arch = Architecture(name="resnet18", width=0.25)
    return tiny(arch)


class _Counting:
    """A source that records which images were decoded."""

    def __init__(self, source: object) -> None:
        self.source, self.decoded = source, []

    def __len__(self):
        return len(self.source)

    def __getattr__(self, name):
        return getattr(self.source, name)

    def pil(self, index):
        self.decoded.append(index)
        return self.source.pil(index)


def extracted(folder: Path) -> dict[str, object]:
    """Compute features of splits of several sizes, cached and not, and the images that this process decoded."""
    whole = load("imagenet", "train", DataPlaces(None, {"imagenet": folder / "images"}))
    ctx = RunContext(splits={}, seed=0, device=CPU, cache=folder / f"features{distributed.world_size()}")
    out: dict[str, object] = {}
    for count in SPLITS:
        rows = np.arange(count)
        source = _Counting(Subset(whole.source, rows))
        split = ImageSplit("imagenet", "train", source, whole.labels[rows], whole.classes)
        out[f"extract {count}"] = features.extract(backbone(), split, ctx).clone()
        out[f"decoded {count}"] = list(source.decoded)
        again = features.extract(backbone(), split, ctx)
        assert torch.equal(again, out[f"extract {count}"]) and out[f"decoded {count}"] == source.decoded, "a hit"
        out[f"compute {count}"] = features.compute(backbone().build(), InputSpec(size=32), split, ctx).clone()
    distributed.barrier()
    out["files"] = sorted(path.suffix for path in ctx.cache.iterdir() if path.suffix != ".lock")
    return out


def measured(folder: Path) -> dict[str, object]:
    """Return the numbers of every protocol that trains or draws views."""
    places = DataPlaces(None, {"imagenet": folder / "images"})
    out: dict[str, object] = {}
    tasks = {
        "uniformity": (uniformity, {}),
        "augmented": (linear_probe, {"features": "augmented", "epochs": 1, "batch": 50, "rates": [0.1, 1.0]}),
        "cached": (linear_probe, {"epochs": 1, "batch": 50, "rates": [0.1, 1.0]}),
        "attentive": (
            attentive,
            {"optimizer": "adamw", "steps": 3, "warmup": 1, "batch": 7, "rates": [0.1, 1.0], "decays": [0.1]},
        ),
        "frozen": (semi_supervised, {"share": "10%", "list": "drawn", "epochs": 2, "batch": 7}),
        "fine-tuned": (semi_supervised, {"share": "10%", "list": "drawn", "epochs": 2, "batch": 7, **GENTLE}),
    }
    for name, (task, values) in tasks.items():
        config = build(task.Config, {"data": {"name": "imagenet", "expect": "any"}, **values})
        cache = folder / f"cache{distributed.world_size()}"
        ctx = RunContext(splits=task.TASK.splits(config, places), seed=0, device=CPU, cache=cache)
        metrics = task.run(backbone(), config, ctx)
        out[name] = {key: metric.value for key, metric in metrics.items()} | {"tuned": ctx.tuned, "notes": ctx.notes}
        out[name] |= {"best": torch.as_tensor(ctx.items["best"])} if ctx.items else {}
    return out


def everything(folder: Path) -> dict[str, object]:
    torch.set_num_threads(1)
    out: dict[str, object] = {case: train(case) for case in FITS}
    out["killed"] = train_killed(folder)
    return out | {"extracted": extracted(folder), "measured": measured(folder)}


def worker(folder: str) -> None:
    """One of two ranks: joins by torchrun's environment and writes its results."""
    distributed.init()
    try:
        torch.save(everything(Path(folder)), Path(folder) / f"{distributed.rank()}.pt")
        distributed.barrier()
    finally:
        distributed.shutdown()


def make_images(root: Path, train: int, val: int) -> None:
    """Make images with one brightness per class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (40, 48, 3)) + 60 * label
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    make_images(folder / "images", train=40, val=5)
    return folder


@pytest.fixture(scope="module")
def two_ranks(folder):
    with warm.ranks([__file__, str(folder)]) as ranks:
        assert [process.wait(280) for process in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one_process(folder):
    return {case: train(case) for case in FITS} | {"extracted": extracted(folder), "measured": measured(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("case", FITS)
@pytest.mark.sample(0)
def test_training_in_two_processes_equals_one(two_ranks, one_process, case):
    images, batch, rate, norm, _ = FITS[case]
    expected = one_process[case]
    for out in two_ranks:
        assert set(out[case]) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(out[case][name], value, rtol=1e-6, atol=1e-6, msg=f"{case}: {name}")
    if rate or norm != "none":
        (count,) = {int(v) for name, v in expected.items() if name.endswith("num_batches_tracked")}
        steps = -(-images // batch)
        assert count == 2 * (steps - (images % batch == 1)), "one image has no statistics"


@pytest.mark.slow
def test_a_training_of_two_processes_goes_on_after_a_kill(two_ranks, folder):
    for out in two_ranks:
        for name, value in out[next(iter(FITS))].items():
            assert torch.equal(out["killed"][name], value), name
    assert not (folder / "state.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("count", SPLITS)
def test_features_of_two_processes_equal_those_of_one(two_ranks, one_process, count):
    for how in ("extract", "compute"):
        expected = one_process["extracted"][f"{how} {count}"]
        assert len(expected) == count
        for out in two_ranks:
            torch.testing.assert_close(out["extracted"][f"{how} {count}"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", SPLITS)
def test_every_image_is_decoded_by_one_process(two_ranks, count):
    decoded = [out["extracted"][f"decoded {count}"] for out in two_ranks]
    assert sorted(decoded[0] + decoded[1]) == list(range(count))
    assert abs(len(decoded[0]) - len(decoded[1])) <= 1


@pytest.mark.slow
def test_only_the_kept_features_are_left(two_ranks):
    assert [out["extracted"]["files"] for out in two_ranks] == [[".npy"] * len(SPLITS)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniformity", "augmented", "cached", "attentive", "frozen", "fine-tuned"])
def test_a_protocol_in_two_processes_gives_the_numbers_of_one(two_ranks, one_process, name):
    expected = dict(one_process["measured"][name])
    best = expected.pop("best", None)
    for out in two_ranks:
        found = dict(out["measured"][name])
        if best is not None:
            assert torch.equal(found.pop("best"), best)
        assert {key: found[key] for key in ("tuned", "notes")} == {key: expected[key] for key in ("tuned", "notes")}
        for key in set(expected) - {"tuned", "notes"}:
            assert found[key] == pytest.approx(expected[key], rel=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "fields"),
    [
        ("imagenet_linear", ["epochs=2", "batch=50", "rates=[0.1,1.0]"]),
        ("imagenet_semi10", ["epochs=2", "batch=7", "list=drawn", *(f"{k}={v}" for k, v in GENTLE.items())]),
    ],
)
@pytest.mark.sample(1)
def test_a_job_of_two_processes_writes_one_record(folder, tmp_path, cell, fields):
    state = initial(Architecture(name="resnet18", width=0.25))
    save(tmp_path / "tiny.pth", state, Architecture(name="resnet18", width=0.25), InputSpec(size=32))
    more = ["--ckpt", "tiny.pth", "--cell", cell, "--data", f"imagenet={folder / 'images'}", "--workers", "0"]
    more += ["data.expect=any", *fields]
    script = str(ROOT / "benchmarks" / "run_one.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = {}
    for name in ("one", "two"):
        arguments = ["--out", name, *more]
        done = (
            warm.run([script, *arguments], cwd=tmp_path)
            if name == "one"
            else subprocess.run(
                [*torchrun, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
            )
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(f"{cell} seed 0: top1") == 1, "one process speaks"
        found[name] = sorted((tmp_path / name).glob("*/*/seed*.*"))
    from benchmarks.records import store

    names = [[path.relative_to(tmp_path / name) for path in paths] for name, paths in found.items()]
    assert names[0] == names[1]
    assert [path.name for path in names[0]] == ["seed0.items.npz", "seed0.json"]
    logs = [next((tmp_path / name).rglob("losses.jsonl")).read_text().splitlines() for name in found]
    curves = [[json.loads(line) for line in log] for log in logs]
    assert curves[0] == [pytest.approx(point, rel=1e-4) for point in curves[1]] != []
    for one, two in zip(*found.values(), strict=True):
        if one.suffix == ".json":
            first, second = store.read(one), store.read(two)
            assert (first.status, first.metrics) == ("ok", second.metrics)
            assert first.identity() == second.identity()
        else:
            with np.load(one) as a, np.load(two) as b:
                assert all(np.array_equal(a[key], b[key], equal_nan=True) for key in {*a.files, *b.files})


if __name__ == "__main__":
    worker(sys.argv[1])
