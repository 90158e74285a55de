"""BatchNorm over the global batch of a job, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbench import distributed


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the global batch by a differentiable all-reduce, on any device.

    `torch.nn.SyncBatchNorm` raises on the CPU. Centres before it squares (raw second moments cancel in float32); the
    running variance is the unbiased one of the global batch, as in a single process.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {x.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) of this rank -> the same shape, normalised by the statistics of all ranks."""
        self._check_input_dim(x)
        if not self.training or distributed.world_size() == 1:
            use_batch = self.training or self.running_mean is None
            if self.training and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 0.0
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, use_batch, momentum, self.eps
            )
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        dtype = x.dtype  # statistics in float32 at least, as BatchNorm's own kernels keep them
        x = x.float() if dtype in (torch.float16, torch.bfloat16) else x
        sums = distributed.all_reduce_sum(torch.cat([x.sum(axes), x.new_tensor([x.numel() / x.shape[1]])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = distributed.all_reduce_sum(centred.pow(2).sum(axes)) / count
        with torch.no_grad():
            assert self.num_batches_tracked is not None and self.momentum is not None, "`__init__` sets both"
            assert self.running_mean is not None and self.running_var is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        x = centred * (variance + self.eps).rsqrt().view(shape)
        x = x * self.weight.view(shape) + self.bias.view(shape) if self.affine else x
        return x.to(dtype)


def synchronise_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm by one over the global batch; keep weights and buffers. One process: no change."""
    if distributed.world_size() == 1:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            norm = GlobalBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            norm.to(next(child.buffers()).device, next(child.buffers()).dtype)
            norm.load_state_dict(child.state_dict())
            norm.weight, norm.bias = child.weight, child.bias  # the same objects: frozen ones stay frozen
            norm.train(child.training)
            setattr(module, name, norm)
        else:
            synchronise_batchnorm(child, device)
    return module
