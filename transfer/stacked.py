"""Training step of many linear heads on fixed inputs: one matrix product for all heads, gradients in closed form.

The inputs need no gradient, so a step is two matrix products: logits = x W^T and dW = (softmax - one_hot)^T x / batch,
where W stacks the heads. Row h of W meets the gradient of head h only: a diverged head cannot influence another one. The
weights equal those of heads trained apart, and those of autograd, up to rounding (1e-9 after six steps in float64).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from backbench import batchnorm, distributed
from transfer.heads import Heads


class Stacked:
    """All heads as one matrix (H * classes, features).

    The parameters of each head become views of the matrix, and their `.grad` views of its gradient. So an optimiser with
    parameter groups per head works unchanged, and state dicts keep their names. The heads' BatchNorms see the same inputs
    and share one set of statistics.

    Args:
        heads: on the device where they train; they must not be moved or converted while this object is in use.
    """

    def __init__(self, heads: Heads, device: torch.device) -> None:
        linear = cast(Sequence[nn.Linear], heads.linear)
        norms = [each for each in heads.norms if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        self.cells = heads.cells
        self.weight, self.weight_grad = _joined([each.weight for each in linear])  # (H, classes, features)
        self.bias, self.bias_grad = _joined([each.bias for each in linear])  # (H, classes)
        self.statistics = _shared_statistics(norms, device) if norms else None
        self.affine = bool(norms) and norms[0].affine
        if self.affine:
            self.scale, self.scale_grad = _joined([each.weight for each in norms])  # (H, channels)
            self.shift, self.shift_grad = _joined([each.bias for each in norms])

    @torch.no_grad()
    def step(self, x_BD: Tensor, y_B: Tensor, size: int) -> Tensor:
        """Set the gradients of the mean loss over a global batch of `size` rows; return this rank's share of every loss (H,).

        Args:
            x_BD: this rank's rows of the batch, may be none.
        """
        z_BD = self._normed(x_BD.to(self.weight.dtype))
        weight_HCD, bias_HC = self.weight, self.bias
        if self.affine:  # W (scale * z + shift) + b = (W * scale) z + (W shift + b)
            scale_HD, shift_HD = self._by_feature(self.scale), self._by_feature(self.shift)
            weight_HCD = self.weight * scale_HD[:, None]
            bias_HC = self.bias + (self.weight @ shift_HD[:, :, None]).squeeze(2)
        heads, classes, _ = weight_HCD.shape
        logits = torch.addmm(bias_HC.flatten(), z_BD, weight_HCD.flatten(0, 1).T).view(-1, heads, classes)
        label = y_B[:, None, None].expand(-1, heads, 1)
        logits = logits.log_softmax(dim=2)
        losses = logits.gather(2, label).sum(dim=(0, 2)).div_(-size)
        error_BHC = (
            logits.exp_().scatter_add_(2, label, logits.new_full((1, 1, 1), -1.0).expand(label.shape)).div_(size)
        )
        torch.mm(error_BHC.flatten(1).T, z_BD, out=self.weight_grad.flatten(0, 1))
        torch.sum(error_BHC, dim=0, out=self.bias_grad)
        if self.affine:
            self._through_affine(scale_HD, shift_HD)
        self._sum_over_ranks()
        return losses

    def _normed(self, x_BD: Tensor) -> Tensor:
        if self.statistics is None:
            return x_BD
        return self.statistics(x_BD.unflatten(1, (-1, self.cells))).flatten(1)

    def _by_feature(self, x_HK: Tensor) -> Tensor:
        """A value per channel, repeated for each of the channel's features."""
        return x_HK.repeat_interleave(self.cells, dim=1)

    def _by_channel(self, x_HD: Tensor) -> Tensor:
        return x_HD.unflatten(1, (-1, self.cells)).sum(dim=2)

    def _through_affine(self, scale_HD: Tensor, shift_HD: Tensor) -> None:
        """From the gradient of W * scale to those of W, scale and shift."""
        product, bias = self.weight_grad, self.bias_grad
        self.scale_grad.copy_(self._by_channel((product * self.weight).sum(dim=1)))
        self.shift_grad.copy_(self._by_channel((bias[:, None] @ self.weight).squeeze(1)))
        product.mul_(scale_HD[:, None]).addcmul_(bias[:, :, None], shift_HD[:, None])

    def _sum_over_ranks(self) -> None:
        if distributed.world_size() > 1:
            grads = [self.weight_grad, self.bias_grad, *([self.scale_grad, self.shift_grad] if self.affine else [])]
            for grad in grads:
                grad.copy_(distributed.all_reduce_sum(grad))


def _joined(parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The parameters stacked, and a tensor for their gradients; each parameter and its `.grad` are views of them."""
    values = torch.stack([each.detach() for each in parameters])
    grads = torch.zeros_like(values)
    for each, value, grad in zip(parameters, values, grads, strict=True):
        each.data = value
        each.grad = grad
    return values, grads


def _shared_statistics(
    norms: list[nn.modules.batchnorm._BatchNorm], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """A BatchNorm without scale and shift, in train mode, whose buffers are those of every given one."""
    first = norms[0]
    alone = nn.BatchNorm1d(first.num_features, first.eps, first.momentum, affine=False).to(first.running_mean)
    alone.load_state_dict(dict(first.named_buffers()))
    (plain,) = batchnorm.synchronise_batchnorm(nn.Sequential(alone), device).children()
    for norm in norms:
        for name, buffer in plain.named_buffers():
            setattr(norm, name, buffer)
    return plain
