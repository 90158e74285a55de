"""Ranks, differentiable all-reduce and the DDP wrapper. The only file that sets up torch.distributed."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from backbench import elastic, job
from backbench.errors import BackbenchError, JobError
from backbench.process_table import start_of
from backbench.rendezvous import fresh

_SETTLE_S = 2.0  # a lost connection may be noticed this long before the other process has ended
_peers: list[tuple[str, int]] = []  # (host, process) of every rank, once all have joined


def rank() -> int:
    """This process's number in the job, 0 outside a job."""
    if dist.is_initialized():
        return dist.get_rank()
    text = os.environ.get("RANK", "")
    return int(text) if text.isascii() and text.isdigit() else 0  # `init` reports a wrong value


def world_size() -> int:
    """Number of processes in the job, 1 outside a job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and prints messages."""
    return rank() == 0


def device() -> torch.device:
    """This process's GPU (by torchrun's LOCAL_RANK), or the CPU.

    Raises:
        BackbenchError: more processes than GPUs.
    """
    local = job.local_rank(os.environ)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    there = torch.cuda.device_count()
    if local >= there:
        raise BackbenchError(
            f"process {local + 1} of this machine has no GPU: there are {there}; lower --nproc_per_node"
        )
    return torch.device("cuda", local)


def init() -> torch.device:
    """Join the job that torchrun's environment describes (NCCL on GPUs, gloo on CPUs); return this process's device.

    Raises:
        ConfigError: the environment describes an impossible job.
        JobError: the other processes did not join in time.
    """
    described = job.from_environment(os.environ)
    mine = device()
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
    if described and not dist.is_initialized():
        _join(described, "nccl" if mine.type == "cuda" else "gloo")
    return mine


def _join(described: job.Job, backend: str) -> None:
    """Set up the process group with the other processes; a message says how many it waits for."""
    size, place = described.size, f"{described.address}:{described.port}"
    others = f"{size - 1} other process{'es' if size > 2 else ''}"
    patience = job.patience(os.environ)
    try:
        with job.waiting(f"waiting for {others} of this job at {place} (WORLD_SIZE={size}), {patience} s at most"):
            store, _, _ = next(dist.rendezvous("env://", described.rank, size, timeout=timedelta(seconds=patience)))
            store.set_timeout(timedelta(seconds=patience))
            # An hour: the other ranks wait while rank 0 measures the online kNN.
            dist.init_process_group(
                backend,
                store=fresh(store, described.rank, size, patience),
                rank=described.rank,
                world_size=size,
                timeout=timedelta(hours=1),
            )
            _peers[:] = gather((socket.gethostname(), os.getpid()))
    except (RuntimeError, ValueError, OSError) as error:  # torch's errors of networks are RuntimeErrors
        shutdown()
        reason = " ".join(str(error).split())[:200]
        raise JobError(
            f"the {others} of this job did not meet this one, rank {described.rank}, at {place}; is a single process "
            f"meant, `unset WORLD_SIZE RANK`; else start all by torchrun, or set {job.RENDEZVOUS} to more seconds ({reason})"
        ) from None


@contextlib.contextmanager
def joined() -> Iterator[torch.device]:
    """Join the environment's job for the body: `init` before it, `shutdown` after it.

    Raises:
        JobError: the connection to another process broke while the body ran.
    """
    try:
        yield init()
    except RuntimeError as error:
        if world_size() == 1 or not _is_loss(error):
            raise
        if job.is_ours(os.environ):
            raise SystemExit(job.LOST) from None  # the launcher reports which rank ended, and how
        raise JobError(_lost()) from None
    finally:
        shutdown()


def _is_loss(error: BaseException) -> bool:
    """Whether an error means that another process of the job has ended."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout")
    return type(error).__name__.startswith("Dist") or any(word in str(error) for word in words)


def _lost() -> str:
    here = [(i, pid) for i, (host, pid) in enumerate(_peers) if host == socket.gethostname()]
    deadline = time.monotonic() + _SETTLE_S
    while not (gone := [f"rank {i} (process {pid})" for i, pid in here if not start_of(pid)]):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    who = " and ".join(gone) or "another rank"
    has = "have" if len(gone) > 1 else "has"
    again = "torchrun starts the ranks again, --max-restarts times" if elastic.agent() else "start the job again"
    return (
        f"{who} of {world_size()} {has} ended, so that rank {rank()} cannot continue; see what it printed, and killed "
        f"or out of memory it prints nothing; {again}"
    )


def shutdown() -> None:
    """Leave the job, if this process is in one."""
    _peers.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes of the job."""
    if world_size() > 1:
        dist.barrier()


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's x, so the gradient of x sums over ranks. DDP divides by the number
        # of ranks afterwards: together, the gradient of the mean of the ranks' losses.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` over all ranks; differentiable, the backward pass sums over ranks too. The identity outside a job."""
    return _AllReduceSum.apply(x) if world_size() > 1 else x


def gather_rows(x_ND: Tensor) -> Tensor:
    """Rows of all ranks, in rank order. Every rank must give the same number. For monitors: no gradient."""
    if world_size() == 1:
        return x_ND
    parts = [torch.empty_like(x_ND) for _ in range(world_size())]
    dist.all_gather(parts, x_ND.contiguous())
    return torch.cat(parts)


class _GatherViews(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.detach().contiguous())
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)  # the sum over ranks, as in _AllReduceSum
        dist.all_reduce(total)
        return total.chunk(world_size(), dim=1)[rank()]


def gather_views(x_VBD: Tensor) -> Tensor:
    """(V, B, D) of each rank -> (V, ranks x B, D), in rank order; differentiable, the backward pass sums over ranks.

    The identity outside a job. All ranks must have the same shape.
    """
    return _GatherViews.apply(x_VBD) if world_size() > 1 else x_VBD


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that was given to `wrapped`."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


def gather_words(words: list[str]) -> list[str]:
    """The words of all ranks, in rank order."""
    return [word for part in gather(words) for word in part]


def gather(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(flags: Tensor) -> Tensor:
    """Element-wise: whether the flag is set on any rank. All ranks get the same answer, so all act at the same step."""
    flags = flags.float()
    if world_size() > 1:
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return flags > 0


def wrapped(module: nn.Module, device: torch.device, *, unused: bool = False) -> nn.Module:
    """Return the module with gradients averaged over all processes; in a job of one process, the module unchanged.

    Buffers are not broadcast: BatchNorm's already come from the global batch.

    Args:
        unused: some parameters may get no gradient in a step.
    """
    if world_size() == 1:
        return module
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # torch 2.14 renamed the argument; earlier versions do not know the new name
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return nn.parallel.DistributedDataParallel(
            module, device_ids=devices, broadcast_buffers=False, find_unused_parameters=unused
        )


def accumulating(forward: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context in which gradients stay on this rank, unless this is the last part of a step."""
    if last or not isinstance(forward, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return forward.no_sync()
