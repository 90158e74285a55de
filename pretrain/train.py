"""The pretraining loop, from configuration to `model.pth`. Read `train`; what it calls is below it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from timm.optim import Lars
from torch import Tensor, nn

from backbench import distributed, schedules
from backbench.config import dump
from backbench.errors import BackbenchError
from backbench.files.atomic import atomic_write_text
from backbench.processes import stop_on_signal
from backbench.progress import say
from model_zoo import backbone as zoo
from model_zoo.anatomy import feature_dim
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.resnet import build
from pretrain import checkpoint, methods
from pretrain.config import PretrainConfig
from pretrain.data import batches, make_loader, open_split, to_device
from pretrain.log import Log
from pretrain.monitor import online_knn
from pretrain.networks import Online, Target
from pretrain.plan import plan_steps
from pretrain.precision import autocast_fields, dtype
from pretrain.session import claim


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
    with claim(out, resume), contextlib.ExitStack() as training:
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
        forward = distributed.wrapped(online, device)
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
            views = to_device(batch, config.data, device, dtype(config))
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
    return mine.to(views.device, dtype(config))


def build_all(
    config: PretrainConfig, device: torch.device
) -> tuple[Online, Target, torch.optim.Optimizer, torch.amp.GradScaler]:
    """Both networks, the optimiser and the loss scaler, initialised from the recipe's seed."""
    arch = architecture(config)
    hidden, outputs = config.model.head_sizes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        online = Online(build(arch), feature_dim(arch), hidden, outputs, config.model.norm)
    online = distributed.synchronise_batchnorm(online, device).to(device, dtype(config))
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


def _full(x: Tensor) -> Tensor:
    """Losses in float32 at least, whatever autocast made of the network."""
    return x if x.dtype == torch.float64 else x.float()


def write_config(config: PretrainConfig, out: Path) -> None:
    """The resolved `config.yaml`, from rank 0."""
    if distributed.is_main():
        atomic_write_text(out / "config.yaml", dump(config))
