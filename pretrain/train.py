"""The pretraining loop, from configuration to `model.pth`. Read `train`; what it calls is below it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import Timeout
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core import distributed, schedules
from core.artifacts import atomic_write_text, held, make_folder
from core.config import dump
from core.datasets import ImageSplit
from core.embeddings import knn_accuracy
from core.errors import BackbenchError
from core.images import CorruptImage
from core.locks import holder
from core.processes import stop_on_signal
from core.progress import say
from model_zoo import backbone as zoo
from model_zoo.anatomy import feature_dim
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.resnet import build
from pretrain import checkpoint, methods
from pretrain.config import PretrainConfig
from pretrain.data import batches, make_loader, open_split, to_device
from pretrain.log import Log
from pretrain.networks import Online, Target
from pretrain.plan import plan_steps


class NonFiniteLoss(BackbenchError):
    """The loss became NaN or infinite."""


def train(config: PretrainConfig, out: Path, *, resume: bool = False) -> Path:
    """Pretrain and return the path of `model.pth`.

    Raises:
        BackbenchError: the folder holds a run already, is in use, or cannot be written; the data are unusable; NaN.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    device = distributed.init()
    with _claim(out, resume), contextlib.ExitStack() as training:
        split = open_split(config.data)
        plan = plan_steps(config, len(split))
        online, target, optimizer, scaler = build_all(config, device)
        state: dict[str, Any] = {"step": 0, "corrupt": []}
        if resume and (out / "last.ckpt").exists():
            modules = {"online": online, "target": target, "optimizer": optimizer, "scaler": scaler}
            state = checkpoint.restore(out / "last.ckpt", **modules, config=config, split=split)
        if len(set(distributed.gather_words([str(state["step"])]))) > 1:
            raise BackbenchError(
                f"the processes do not resume at the same step: {out} must be one folder for all of them"
            )
        loader = make_loader(split, config, start=state["step"], stop=plan.total, pin=device.type == "cuda")
        write_config(config, out)
        if config.run.knn_every and split.labels is None:
            say(f"{split.dataset} {split.split} has no labels: no online 20-NN")
        log = Log(out, config, plan, start=state["step"])
        forward = _distributed(online, device)
        corrupt = list(state["corrupt"])  # distinct images that cannot be read, of all ranks

        def save(step: int) -> None:
            if not all(bool(torch.isfinite(p).all()) for p in online.parameters()):
                raise NonFiniteLoss(_nan_message(step - 1, optimizer.param_groups[0]["lr"], out))
            if distributed.is_main():
                modules = {"online": online, "target": target, "optimizer": optimizer, "scaler": scaler}
                checkpoint.save(out / "last.ckpt", step=step, **modules, config=config, split=split, corrupt=corrupt)

        stopping = "stopping after this step, with a checkpoint (again: at once)" if distributed.is_main() else ""
        stop_asked = training.enter_context(stop_on_signal(stopping))
        for step, (batch, unreadable) in enumerate(batches(loader), start=state["step"]):
            lr = schedules.lr_at(step, total=plan.total, warmup=plan.warmup, peak=config.peak_lr())
            tau = schedules.tau_at(step, total=plan.total, base=config.optim.tau_base)
            views = to_device(batch, config.data, device, _dtype(config))
            views = views if config.run.channels_last else views.contiguous()
            p, parts = train_step(forward, target, optimizer, scaler, views, config, step=step, lr=lr)
            failed, stop, passed_over = distributed.any_rank(
                torch.tensor(
                    [not bool(torch.isfinite(parts["loss"])), bool(stop_asked), bool(unreadable)], device=device
                )
            ).tolist()
            if failed:
                raise NonFiniteLoss(_nan_message(step, lr, out))
            if passed_over:
                corrupt += newly_corrupt(distributed.gather_words(unreadable), corrupt, config.data.max_corrupt)
            target.follow(online, tau)
            log.step(step, parts, p, {"lr": lr, "tau": tau, "corrupt": len(corrupt)})
            done = step + 1
            if log.due_knn(done):
                log.knn(step, online_knn(online.backbone, split, config, device))
            if done == plan.total or done % config.run.checkpoint_every == 0 or stop:
                save(done)
            if stop:
                raise KeyboardInterrupt
        distributed.barrier()
        log.close()
        return export(online, config, out)


def train_step(
    forward: nn.Module,
    target: Target,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    views: Tensor,
    config: PretrainConfig,
    *,
    step: int,
    lr: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One optimiser step over (K, B, 3, S, S) views: the predictions (K, B, D), the losses' values.

    The optimiser is not stepped when the loss is not finite on this rank: the weights are still those of the last step.
    """
    compute = methods.losses(config.method.name)
    group = config.run.views_per_pass or config.method.views
    noise = global_noise(config, step, views)
    autocast = torch.autocast(views.device.type, **autocast_fields(config))
    with autocast:
        z = target(views)
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    predictions = []
    for first in range(0, len(views), group):
        last = first + group >= len(views)
        no_sync = contextlib.nullcontext() if last or not hasattr(forward, "no_sync") else forward.no_sync()
        with no_sync:
            with autocast:
                p = forward(views[first : first + group])
            loss, parts = compute(_full(p), _full(z), noise, config.method, first=first)
            share = group / len(views)  # every loss is a mean over views: exact to accumulate
            scaler.scale(loss * share).backward()
        for name, value in {"loss": loss, **parts}.items():
            sums[name] = sums.get(name, 0) + value.detach() * share
        predictions.append(p.detach())
    for settings in optimizer.param_groups:
        settings["lr"] = lr
    if bool(torch.isfinite(sums["loss"])):
        scaler.step(optimizer)
        scaler.update()
    return torch.cat(predictions), sums


def global_noise(config: PretrainConfig, step: int, views: Tensor) -> Tensor:
    """This rank's rows of the global batch's standard normal (B, D): seeded by (seed, step), whatever the ranks."""
    _, outputs = config.model.head_sizes()
    local = views.shape[1]
    generator = torch.Generator().manual_seed(config.run.seed * 1_000_003 + step)
    noise = torch.randn(config.optim.batch, outputs, generator=generator, dtype=torch.float64)
    mine = noise[distributed.rank() * local : (distributed.rank() + 1) * local]
    return mine.to(views.device, _dtype(config))


def build_all(
    config: PretrainConfig, device: torch.device
) -> tuple[Online, Target, torch.optim.Optimizer, torch.amp.GradScaler]:
    """Both networks, the optimiser and the loss scaler, initialised from the recipe's seed."""
    arch = architecture(config)
    hidden, outputs = config.model.head_sizes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        online = Online(build(arch), feature_dim(arch), hidden, outputs, config.model.norm)
    online = distributed.synchronise_batchnorm(online, device).to(device, _dtype(config))
    if config.run.channels_last:
        online = online.to(memory_format=torch.channels_last)
    target = Target(online).train()
    groups = schedules.parameter_groups(online, config.optim.weight_decay)
    optimizer = Lars(
        groups, lr=0.0, momentum=config.optim.momentum, trust_coeff=config.optim.trust_coefficient, nesterov=False
    )
    return online, target, optimizer, torch.amp.GradScaler(device.type, enabled=config.run.amp == "fp16")


def architecture(config: PretrainConfig) -> Architecture:
    """The backbone of a recipe."""
    return Architecture(name=config.model.backbone, stem=config.model.stem)


def export(online: Online, config: PretrainConfig, out: Path) -> Path:
    """Write `model.pth` from the online backbone."""
    path = out / "model.pth"
    if distributed.is_main():
        spec = InputSpec(size=config.data.size, mean=config.data.mean, std=config.data.std)
        zoo.save(path, online.backbone.state_dict(), architecture(config), spec)
    distributed.barrier()
    return path


@torch.no_grad()
def online_knn(backbone: nn.Module, split: ImageSplit, config: PretrainConfig, device: torch.device) -> float | None:
    """20-NN accuracy within the *training* split (four fifths the bank), in percent; None without labels. A monitor.

    Of a split that is labelled in part (STL-10's), on that part.
    """
    from core.transforms import evaluation_view  # Pillow transforms: not needed by a step

    if split.labels is None or not distributed.is_main():
        return None
    labelled = torch.from_numpy(np.flatnonzero(split.labels >= 0))
    order = labelled[torch.randperm(len(labelled), generator=torch.Generator().manual_seed(0))[: config.run.knn_images]]
    backbone.eval()
    views, kept, features = [], [], []
    for row in order.tolist():
        with contextlib.suppress(CorruptImage):  # announced when a step comes to it
            views.append(evaluation_view(split.source.pil(row), config.data.size))
            kept.append(row)
    for start in range(0, len(views), 128):
        images = torch.from_numpy(np.stack(views[start : start + 128]))[:, None]
        with torch.autocast(device.type, **autocast_fields(config)):
            features.append(backbone(to_device(images, config.data, device, _dtype(config))[0]).float())
    backbone.train()
    labels = torch.from_numpy(split.labels)[kept].to(device)
    cut = len(kept) * 4 // 5
    if cut < 20:
        return None
    x = torch.cat(features)
    return knn_accuracy(x[cut:], labels[cut:], x[:cut], labels[:cut], ks=[20], classes=len(split.classes))[20]


@contextlib.contextmanager
def _claim(out: Path, resume: bool) -> Iterator[None]:
    """Take the run's folder for this job (rank 0): two runs in one folder are an error, so is a finished one."""
    refused = None
    with contextlib.ExitStack() as claimed:
        if distributed.is_main():
            try:  # the data workers of a run just killed hold it for up to 5 s more
                claimed.enter_context(held(make_folder(out) / ".lock", timeout=6))
                _refuse_taken(out, resume)
            except Timeout:
                who = holder(out / ".lock")
                refused = BackbenchError(
                    f"{out}: another process is training in this folder; give another --out ({who})"
                )
            except BackbenchError as error:
                refused = error
        if bool(distributed.any_rank(torch.tensor([refused is not None], device=distributed.device()))):
            raise refused or SystemExit(2)  # the other ranks leave without a word: rank 0 has said it
        yield


def _refuse_taken(out: Path, resume: bool) -> None:
    """BackbenchError when a run in the folder would be mixed with another, or its model overwritten."""
    if not resume and any((out / name).exists() for name in ("last.ckpt", "model.pth", "metrics.jsonl")):
        raise BackbenchError(f"{out}: holds a run already; continue it with --resume, or give another --out")
    if (out / "model.pth").exists() and not (out / "last.ckpt").exists():
        raise BackbenchError(
            f"{out}: holds a model.pth and no last.ckpt to go on from; it would be overwritten: give another --out"
        )


def _distributed(online: Online, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return online
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # torch 2.14 has another name for the argument, which those before do not know
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(online, device_ids=devices, broadcast_buffers=False)


def newly_corrupt(unreadable: list[str], known: list[str], limit: int) -> list[str]:
    """Images not known as unreadable so far, each announced once; an error above the limit, on all ranks alike."""
    new = sorted(set(unreadable) - set(known))
    for message in new:
        say(f"passed over: {message}")
    if len(known) + len(new) > limit:
        raise BackbenchError(
            f"{len(known) + len(new)} unreadable images, more than data.max_corrupt={limit}; the last: {new[-1]}"
        )
    return new


def _nan_message(step: int, lr: float, out: Path) -> str:
    good = out / "last.ckpt"
    last = f"the last good checkpoint is {good}" if good.exists() else "there is no checkpoint yet"
    cure = "start anew with a lower optim.base_lr in another --out"
    return f"the loss is not finite at step {step}, learning rate {lr:g}; {last}; {cure}"


def _dtype(config: PretrainConfig) -> torch.dtype:
    return torch.float64 if config.run.float64 else torch.float32


def autocast_fields(config: PretrainConfig) -> dict[str, Any]:
    """Arguments of `torch.autocast` for the recipe."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.run.amp)
    return {"dtype": dtype or torch.bfloat16, "enabled": dtype is not None}


def _full(x: Tensor) -> Tensor:
    """Losses in float32 at least, whatever autocast made of the network."""
    return x if x.dtype == torch.float64 else x.float()


def write_config(config: PretrainConfig, out: Path) -> None:
    """The resolved `config.yaml`, from rank 0."""
    if distributed.is_main():
        atomic_write_text(out / "config.yaml", dump(config))
