"""Pretraining loop, from configuration to `model.pth`. Read `train` first; the functions it calls follow."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbench import batchnorm, distributed, schedules
from backbench.config import dump
from backbench.errors import BackbenchError
from backbench.files.atomic import atomic_write_text
from backbench.processes import stop_on_signal
from backbench.progress import say
from model_zoo import backbone as zoo
from model_zoo.anatomy import feature_dim
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.resnet import build
from pretrain import checkpoint, methods, small_maps
from pretrain.config import PretrainConfig
from pretrain.data import batches, make_loader, open_split, prepare
from pretrain.log import Log
from pretrain.losses import dispersive_losses
from pretrain.method import Ema, Method, StopGradient
from pretrain.monitor import measure_online
from pretrain.networks import HeadSizes, Memory, Online, Outputs, Target
from pretrain.optimizers import build_optimizer
from pretrain.plan import plan_steps
from pretrain.precision import autocast_fields, dtype
from pretrain.probe import Probe
from pretrain.session import claim
from pretrain.watch import Watch, lag

_STOPPING = "stopping after this step, with a checkpoint (signal again to stop now)"


class NonFiniteLoss(BackbenchError):
    """The loss became NaN or infinite."""


def train(config: PretrainConfig, out: Path, *, resume: bool = False) -> Path:
    """Pretrain and return the path of `model.pth`.

    Raises:
        BackbenchError: the folder has a run already, is in use or cannot be written; the data are unusable; NaN.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    device = distributed.init()
    with claim(out, resume) as resume, contextlib.ExitStack() as training:
        split = open_split(config.data)
        plan = plan_steps(config, len(split))
        trained = build_all(config, device)
        online, target, optimizer, scaler = trained
        probe = Probe(online, feature_dim(architecture(config)), split, config, device)
        state: dict[str, Any] = {"step": 0, "corrupt": []}
        if resume and (out / "last.ckpt").exists():
            state = checkpoint.restore(out / "last.ckpt", trained, probe, config=config, split=split)
        refuse_other_step(state["step"], out)
        loader = make_loader(split, config, start=state["step"], stop=plan.total, pin=device.type == "cuda")
        write_config(config, out)
        if config.run.knn_every and split.labels is None:
            say(f"{split.dataset} {split.split} has no labels: no online 20-NN and no online linear probe")
        log = Log(out, config, plan, start=state["step"])
        forward = distributed.wrapped(online, device)
        watch = Watch(device)
        corrupt = list(state["corrupt"])  # distinct unreadable images, over all ranks

        def save(step: int) -> None:
            if not all(bool(torch.isfinite(p).all()) for p in online.parameters()):
                raise NonFiniteLoss(_nan_message(step - 1, optimizer.param_groups[0]["lr"], out))
            if distributed.is_main():
                checkpoint.save(
                    out / "last.ckpt", trained, probe, step=step, config=config, split=split, corrupt=corrupt
                )

        stop_asked = training.enter_context(stop_on_signal(_STOPPING if distributed.is_main() else ""))
        for step, batch in enumerate(batches(loader), start=state["step"]):
            lr = schedules.lr_at(step, total=plan.total, warmup=plan.warmup, peak=config.peak_lr())
            views = prepare(batch, config, device, dtype(config))
            online.begin(step, step / plan.per_epoch)
            p, parts = train_step(forward, target, optimizer, scaler, views, config, step=step, lr=lr)
            probe.learn(batch.rows)
            watch.note(step, lr, parts["loss"], stop=bool(stop_asked), unreadable=batch.unreadable)
            done = step + 1
            save_due = done == plan.total or done % config.run.checkpoint_every == 0
            stop = settle(watch, corrupt, config, out, everything=save_due or log.due(done) or log.due_knn(done))
            if stop:  # its weights are saved, so this step's loss must be finite too
                settle(watch, corrupt, config, out, everything=True)
            seen = {"lr": lr, **follow(target, online, config, step, plan.total), "corrupt": len(corrupt)}
            if log.due(done):
                log.step(step, parts, p, seen | probe.report())
            if log.due_knn(done):
                log.online(step, measure_online(online.backbone, split, config, device))
            if save_due or stop:
                save(done)
            if stop:
                raise KeyboardInterrupt
        distributed.barrier()
        log.close()
        return export(online, config, out)


def refuse_other_step(step: int, out: Path) -> None:
    """Raise BackbenchError on all ranks if another rank resumes at another step."""
    if len(set(distributed.gather(step))) > 1:
        raise BackbenchError(f"the processes do not resume at the same step: {out} must be one folder for all of them")


def train_step(
    forward: nn.Module,
    target: Target | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    views: Sequence[Tensor] | Tensor,
    config: PretrainConfig,
    *,
    step: int,
    lr: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take one optimiser step over the views, each (B, 3, S, S). Return the Q predictions (Q, B, D) and the loss values.

    On a CPU the optimiser does not step when the loss is not finite on this rank. A GPU would have to be waited for: its
    weights are lost then, and the run ends before they are saved.
    """
    method, device = methods.get(config.method.name), views[0].device
    memory = memory_of(forward)
    queries, keys = config.method.queries(), config.method.keys()
    group = config.run.views_per_pass or len(queries)
    autocast = torch.autocast(device.type, **autocast_fields(config))
    with autocast:
        averaged = target(views[keys.start : keys.stop]) if target is not None else None
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    predictions = []
    for first in range(queries.start, queries.stop, group):
        with distributed.accumulating(forward, last=first + group >= queries.stop):
            with autocast:
                outputs: Outputs = forward(views[first : first + group])
            z = _full(targets(method, outputs, averaged, keys))
            loss, parts = losses(outputs, z, config, memory, step=step, first=first)
            share = group / len(queries)  # exact: a loss that does not couple views is a mean over them
            scaler.scale(loss * share).backward()
        for name, value in {"loss": loss, **parts}.items():
            sums[name] = sums.get(name, 0) + value.detach() * share
        predictions.append(outputs.p.detach())
    for parameter in memory.frozen() if memory is not None else ():
        parameter.grad = None  # `requires_grad` cannot change under DDP
    for settings in optimizer.param_groups:
        rate = config.peak_lr() if settings.get("fixed_rate") else lr
        settings["lr"] = rate * settings.get("rate_scale", 1.0)
    p = torch.cat(predictions)
    if lag(device) or bool(torch.isfinite(sums["loss"])):
        scaler.step(optimizer)
        scaler.update()
    if memory is not None:  # in any case: all ranks take part, and one's loss may not be finite
        memory.end(_full(p), z)
    return p, sums


def losses(
    outputs: Outputs, z: Tensor, config: PretrainConfig, memory: Memory | None, *, step: int, first: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the method's loss of some views plus MSBReg's weighted dispersive losses (eq. 2), and the parts of both."""
    method, p = methods.get(config.method.name), _full(outputs.p)
    with_memory = {} if memory is None else {"memory": memory}
    loss, parts = method.losses(p, z, config.method, first=first, **with_memory)
    if not config.method.lambda_s and not config.method.lambda_b:
        return loss, parts
    spread = p if method.disperses == "predictions" else _full(outputs.z)
    dispersion, terms = dispersive_losses(spread, global_noise(config, step, spread), config.method)
    return loss + dispersion, parts | terms


def memory_of(forward: nn.Module) -> Memory | None:
    """Return what the method keeps from step to step; `forward` is the online network, wrapped or not."""
    online = distributed.unwrapped(forward)
    assert isinstance(online, Online)
    return online.memory


def targets(method: Method, outputs: Outputs, averaged: Tensor | None, keys: range) -> Tensor:
    """Return the projections that the losses compare with: (K, B, D), or (0, B, D) for a method without a target."""
    if averaged is not None:
        return averaged
    own = outputs.z.detach()
    return own[keys.start : keys.stop] if isinstance(method.target, StopGradient) else own[:0]


def follow(target: Target | None, online: Online, config: PretrainConfig, step: int, total: int) -> dict[str, float]:
    """Update the moving average after a step. Return {"tau": ...} for the log, or {} without a moving average."""
    optim = config.optim
    if target is None or optim.tau_base is None or optim.tau_final is None:
        return {}
    tau = schedules.tau_at(step, total=total, base=optim.tau_base, final=optim.tau_final)
    target.follow(online, tau)
    return {"tau": tau}


def global_noise(config: PretrainConfig, step: int, p: Tensor) -> Tensor:
    """Return this rank's rows of the global batch's standard normal noise (B, D), seeded by (seed, step).

    B and D are those of the embeddings `p` (V, B, D). The noise does not depend on the number of ranks.
    """
    _, local, outputs = p.shape
    generator = torch.Generator().manual_seed(config.run.seed * 1_000_003 + step)
    noise = torch.randn(config.optim.batch, outputs, generator=generator, dtype=torch.float64)
    mine = noise[distributed.rank() * local : (distributed.rank() + 1) * local]
    mine = mine.to(dtype(config))
    return (mine.pin_memory() if p.is_cuda else mine).to(p.device, non_blocking=True)


def build_all(config: PretrainConfig, device: torch.device) -> checkpoint.Trained:
    """Build the online network, its moving average if the method has one, the optimiser and the loss scaler."""
    method = methods.get(config.method.name)
    arch = architecture(config)
    hidden, outputs = config.model.head_sizes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        backbone = build(arch)
        sizes = HeadSizes(feature_dim(arch), hidden, outputs, config.model.norm)
        heads = method.heads(sizes, config.method)
        memory = method.memory(sizes, config.method, heads) if method.memory is not None else None
        online = Online(backbone, heads, memory)
    batchnorm.synchronise_batchnorm(online, device)  # replaces layers in place
    online = online.to(device, dtype(config))
    if device.type == "cpu" and not config.run.compile:
        small_maps.use_small_maps(online.backbone)
    if config.run.channels_last:
        online = online.to(memory_format=torch.channels_last)
    target = Target(online).train() if isinstance(method.target, Ema) else None
    if config.run.compile:
        for network in (online, target) if target is not None else (online,):
            network.backbone.compile()  # in place: names in checkpoints stay; one graph for all views
    optimizer = build_optimizer(online, method, config.optim)
    scaler = torch.amp.GradScaler(device.type, enabled=config.run.amp == "fp16")
    return checkpoint.Trained(online, target, optimizer, scaler)


def architecture(config: PretrainConfig) -> Architecture:
    """Return the backbone's architecture in a recipe."""
    return Architecture(name=config.model.backbone, stem=config.model.stem)


def export(online: Online, config: PretrainConfig, out: Path) -> Path:
    """Write the online backbone to `model.pth` and return its path."""
    path = out / "model.pth"
    if distributed.is_main():
        spec = InputSpec(size=config.data.size, mean=config.data.mean, std=config.data.std)
        zoo.save(path, online.backbone.state_dict(), architecture(config), spec)
    distributed.barrier()
    return path


def settle(watch: Watch, corrupt: list[str], config: PretrainConfig, out: Path, *, everything: bool) -> bool:
    """Act on the steps that are known on all ranks now: add to `corrupt`, raise NonFiniteLoss; return whether to stop."""
    stop = False
    for step in watch.settled(everything=everything):
        if step.failed:
            raise NonFiniteLoss(_nan_message(step.number, step.lr, out))
        if step.corrupt:
            corrupt += newly_corrupt(distributed.gather_words(step.unreadable), corrupt, config.data.max_corrupt)
        stop = stop or step.stop
    return stop


def newly_corrupt(unreadable: list[str], known: list[str], limit: int) -> list[str]:
    """Return and announce newly found unreadable images. Above the limit it raises BackbenchError on all ranks."""
    new = sorted(set(unreadable) - set(known))
    for message in new:
        say(f"skipped: {message}")
    if len(known) + len(new) > limit:
        raise BackbenchError(
            f"{len(known) + len(new)} unreadable images, more than data.max_corrupt={limit}; the last one: {new[-1]}"
        )
    return new


def _nan_message(step: int, lr: float, out: Path) -> str:
    good = out / "last.ckpt"
    last = f"the last good checkpoint is {good}" if good.exists() else "there is no checkpoint yet"
    cure = "start again with a lower optim.base_lr in another --out"
    return f"the loss is not finite at step {step}, learning rate {lr:g}; {last}; {cure}"


def _full(x: Tensor) -> Tensor:
    """Return at least float32 for the losses, also under autocast."""
    return x if x.dtype == torch.float64 else x.float()


def write_config(config: PretrainConfig, out: Path) -> None:
    """Write the resolved `config.yaml` on rank 0."""
    if distributed.is_main():
        atomic_write_text(out / "config.yaml", dump(config))
