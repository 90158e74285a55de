"""Two steps of every method on any number of ranks, with all that the ranks must agree on."""

from __future__ import annotations

import multiprocessing
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pretraining import MADE_SMALL, job_of_two, tiny_recipe
from torch import Tensor

from backbench import distributed
from pretrain.config import PretrainConfig
from pretrain.train import build_all, follow, train_step

BATCH, STEPS = 6, 2

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pretrain.train"])


def recipe_of(method: str) -> PretrainConfig:
    """Return a recipe in double precision; its data are never read."""
    fields = f"method.name={method}", f"optim.batch={BATCH}", "optim.trust_coefficient=0.1", "run.float64=true"
    return tiny_recipe(Path("nowhere"), *fields, *MADE_SMALL.get(method, ()))


def steps_of(method: str) -> dict[str, Any]:
    """Return the losses of this rank, the gradients of the last step, and the buffers at the end, a queue among them.

    The images of a step are the same for any number of ranks; each takes its rows. The last step's gradients depend on the
    first step's update, targets and memory.
    """
    config = recipe_of(method)
    trained = build_all(config, torch.device("cpu"))
    forward = distributed.wrapped(trained.online, torch.device("cpu"))
    local, first = BATCH // distributed.world_size(), distributed.rank() * (BATCH // distributed.world_size())
    losses: list[float] = []
    for step in range(STEPS):
        views = _views(config, step)[:, first : first + local]
        trained.online.begin(step, step / STEPS)
        _, parts = train_step(
            forward, trained.target, trained.optimizer, trained.scaler, views, config, step=step, lr=config.peak_lr()
        )
        losses.append(float(parts["loss"]))
        follow(trained.target, trained.online, config, step, 10 * STEPS)
    gradients = {name: p.grad for name, p in trained.online.named_parameters() if p.grad is not None}
    buffers = dict(torch.nn.ModuleList([trained.online, trained.target or torch.nn.Identity()]).named_buffers())
    return {"losses": losses, "gradients": gradients, "buffers": buffers}


def _views(config: PretrainConfig, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    shape = config.method.views, BATCH, 3, config.data.size, config.data.size
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def on_two_ranks(methods: Sequence[str], place: Path) -> None:
    """Write what two processes find, `<rank>-<method>.pt`; rank 1 writes a checksum of its gradients."""
    processes = [_CONTEXT.Process(target=_rank, args=(job, list(methods), place)) for job in job_of_two()]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0], f"exit codes {codes}; what they printed is above"


def _rank(job: dict[str, str], methods: list[str], place: Path) -> None:
    os.environ.update(job)
    torch.set_num_threads(1)
    with distributed.joined():
        for method in methods:
            found = steps_of(method)
            if distributed.rank():
                found["gradients"] = checksums(found["gradients"])
            torch.save(found, place / f"{distributed.rank()}-{method}.pt")


def checksums(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Return a checksum of each tensor's bytes."""
    return {name: zlib.crc32(tensor.contiguous().numpy()) for name, tensor in tensors.items()}
