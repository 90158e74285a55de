"""Pretraining steps on a GPU beside the same steps on the CPU in float32: every number type, layout and mode."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining import end, smooth_image, start_child, stderr_of, tiny_recipe, write_photos

from model_zoo.architecture import Architecture
from model_zoo.resnet import build
from pretrain import train
from pretrain.config import load
from pretrain.data import to_device

CPU = torch.device("cpu")
Step = tuple[float, dict[str, torch.Tensor]]


def recipe(real, *overrides):
    sizes = ["model.backbone=resnet50", "optim.batch=64"] if real else ["optim.batch=16"]
    return tiny_recipe(Path("unused"), *sizes, "data.size=64", "method.views=4", *overrides)


def step(config, device) -> Step:
    """Loss and gradients of the first step on fixed views."""
    views, batch, size = config.method.views, config.optim.batch, config.data.size
    images = [[smooth_image(size, size, seed=i * views + k) for k in range(views)] for i in range(batch)]
    pixels = to_device(torch.from_numpy(np.array(images)), config.data, device, train.dtype(config))
    online, target, optimizer, scaler = train.build_all(config, device)
    if scaler.is_enabled():  # at torch's own first scale the gradients overflow, and the step is passed over
        scaler.load_state_dict(scaler.state_dict() | {"scale": 1024.0})
    pixels = pixels if config.run.channels_last else pixels.contiguous()
    _, parts = train.train_step(online, target, optimizer, scaler, pixels, config, step=0, lr=0.0)
    return float(parts["loss"]), {name: p.grad.cpu() for name, p in online.named_parameters()}  # unscaled by the step


def gap(mine: Step, expected: Step) -> float:
    """Difference of all gradients, as a share of their length."""
    difference = sum(float((mine[1][n] - g).double().pow(2).sum()) for n, g in expected[1].items())
    return (difference / sum(float(g.double().pow(2).sum()) for g in expected[1].values())) ** 0.5


# Of the loss, and of the gradients. A fresh network gives nearly the same features for all images; its BatchNorms divide by
# the small differences, and with them the rounding grows. On the CPU bf16 has 0.004 and 0.47, fp16 0.0004 and 0.11.
BOUNDS = {"none": (1e-4, 1e-2), "bf16": (0.02, 0.8), "fp16": (0.002, 0.3)}


def assert_near(mine: Step, expected: Step, amp: str) -> None:
    loss, gradients = BOUNDS[amp]
    print(f"{amp}: loss {abs(mine[0] - expected[0]):.2g}, gradients {gap(mine, expected):.2g}")
    assert mine[0] == pytest.approx(expected[0], abs=loss)
    assert gap(mine, expected) < gradients
    assert all(g.dtype == torch.float32 for g in mine[1].values())


@pytest.fixture(scope="module")
def expected(real) -> Step:
    """The CPU's step in float32, contiguous."""
    return step(recipe(real), CPU)


@pytest.mark.parametrize("amp", BOUNDS)
@pytest.mark.parametrize("channels_last", ["false", "true"])
def test_a_step_agrees_with_the_cpus(device, real, expected, amp, channels_last):
    found = step(recipe(real, f"run.amp={amp}", f"run.channels_last={channels_last}"), device)
    assert_near(found, expected, amp)


@pytest.mark.parametrize("amp", BOUNDS)
def test_a_compiled_step_agrees_with_the_cpus(device, real, expected, amp, monkeypatch):
    if not real:  # the whole compiler takes minutes on a CPU: its front end captures the graphs, torch runs them
        whole = torch.nn.Module.compile
        monkeypatch.setattr(torch.nn.Module, "compile", lambda self: whole(self, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = step(recipe(real, f"run.amp={amp}", "run.channels_last=true", "run.compile=true"), device)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "a graph was compiled"
    assert_near(found, expected, amp)


def test_views_one_by_one_give_the_gradients_of_all_at_once(device, real):
    whole, parts = (step(recipe(real, f"run.views_per_pass={n}"), device) for n in (0, 1))
    assert_near(parts, whole, "none")


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_a_resumed_run_equals_the_uninterrupted_one(device, real, tmp_path, amp):
    """Bit for bit on the CPU, and on a GPU with deterministic algorithms within 2% of the way that the weights went."""
    root = write_photos(tmp_path / "photos")
    config = tiny_recipe(root, "optim.trust_coefficient=0.1", f"run.amp={amp}", "run.checkpoint_every=2")
    first = {n: p.detach().cpu().clone() for n, p in train.build_all(config, CPU).online.named_parameters()}
    real_init, train.distributed.init = train.distributed.init, lambda: device
    real_step, done = train.train_step, []

    def killed(*args, **kwargs):
        done.append(kwargs["step"])
        if len(done) == 4:
            raise _Killed
        return real_step(*args, **kwargs)

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        train.train(config, tmp_path / "whole")
        train.train_step = killed
        with pytest.raises(_Killed):
            train.train(config, tmp_path / "cut")
        train.train_step = real_step
        train.train(config, tmp_path / "cut", resume=True)
    finally:
        torch.use_deterministic_algorithms(False)
        train.distributed.init, train.train_step = real_init, real_step
    a, b = (torch.load(tmp_path / name / "last.ckpt", weights_only=True)["online"] for name in ("cut", "whole"))
    a, b = ({name: state[name].cpu() for name in first} for state in (a, b))
    lost = sum(float((a[n] - b[n]).double().pow(2).sum()) for n in first) ** 0.5
    way = sum(float((b[n] - first[n]).double().pow(2).sum()) for n in first) ** 0.5
    print(f"{amp}: resumed run {lost / way:.2g} of the way off")
    assert way > 0
    assert lost <= (0.02 * way if real else 0)


class _Killed(Exception):
    pass


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_of_a_job(device, real, tmp_path, ranks):
    """NCCL and SyncBN on GPUs, gloo and our BatchNorm on the CPU: the losses of one process alone."""
    if real and ranks > torch.cuda.device_count():
        pytest.skip(f"{ranks} ranks need {ranks} GPUs: there are {torch.cuda.device_count()}")
    root = write_photos(tmp_path / "photos")
    config = tiny_recipe(root, "optim.trust_coefficient=0.1", "run.float64=true")  # rounding does not grow
    hidden = {} if real else {"CUDA_VISIBLE_DEVICES": ""}
    port = str(29_650 + os.getpid() % 200)
    job = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    single = start_child(config, tmp_path / "alone", **hidden)
    processes = [single]
    try:
        single.join()
        together = [
            start_child(config, tmp_path / "job", **job, RANK=str(rank), LOCAL_RANK=str(rank), **hidden)
            for rank in range(ranks)
        ]
        processes += together
        for process in together:
            process.join()
    finally:
        end(processes)
    assert [p.exitcode for p in processes] == [0] * (ranks + 1), stderr_of(processes[-1], tmp_path / "job")
    ends = [torch.load(tmp_path / name / "last.ckpt", weights_only=True)["online"] for name in ("job", "alone")]
    for name, expected in ends[1].items():
        torch.testing.assert_close(
            ends[0][name].cpu(), expected.cpu(), rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_synchronised_norms_train_on_a_gpu(device, real):
    """SyncBatchNorm in a job of one process is BatchNorm; torch has none for the CPU."""
    if not real:
        pytest.skip("torch.nn.SyncBatchNorm needs a GPU; the ranks' test rehearses our own on the CPU")
    norm = torch.nn.BatchNorm2d(8).to(device)
    sync = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.Sequential(norm))[0]
    x = torch.randn(4, 8, 5, 5, device=device, requires_grad=True)
    torch.testing.assert_close(sync(x), torch.nn.functional.batch_norm(x, None, None, training=True))
    sync(x).sum().backward()
    assert sync.weight.grad is not None


def peak(group: int, device: torch.device) -> float:
    """GiB of a step of batch 64, K=4, 224 px, `group` views a pass (0: all). On the CPU: of the saved tensors alone."""
    config = load("imagenet_r50_300ep", [f"run.views_per_pass={group}", "optim.batch=64", "run.amp=none"])
    if device.type == "cpu":
        return saved(group or 4)
    online, target, optimizer, scaler = train.build_all(config, device)
    views = torch.randn(4, 64, 3, 224, 224, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    train.train_step(online, target, optimizer, scaler, views, config, step=0, lr=0.1)
    found = torch.cuda.max_memory_allocated(device) / 2**30
    del online, target, optimizer, scaler, views
    torch.cuda.empty_cache()
    return found


def saved(views: int) -> float:
    """GiB that the backbone's forward passes of so many views keep for the backward pass; nothing is computed."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network = build(Architecture(name="resnet50")).train()
        outputs = [network(torch.empty(64, 3, 224, 224)) for _ in range(views)]
    assert len(outputs) == views
    return sum(storage.nbytes() for storage in kept.values()) / 2**30


def test_memory_of_resnet50_with_four_views(device):
    """Float32: one view a pass needs below 14 GiB, and less than half of all four at once."""
    one, whole = peak(1, device), peak(0, device)
    print(f"{one:.1f} GiB one view a pass, {whole:.1f} all at once")
    assert 2 < one < 14
    assert one < whole / 2
