"""Online linear probe: a linear classifier on the backbone's features of every step. The network never sees its gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbench import distributed
from backbench.data.splits import ImageSplit
from pretrain.config import PretrainConfig
from pretrain.networks import Online
from pretrain.precision import dtype

RATE, MOMENTUM = 1.0, 0.9  # of SGD on L2-normalised features: stable for any features, since their length is 1


class Probe:
    """Weights and bias of the classifier, the same on all ranks. Does nothing without labels, or when it is switched off."""

    def __init__(
        self, online: Online, features: int, split: ImageSplit, config: PretrainConfig, device: torch.device
    ) -> None:
        self.labels: Tensor | None = None
        if split.labels is None or split.labels.ndim > 1 or not config.run.linear_probe:
            return
        self.labels = torch.from_numpy(split.labels)
        self._device, self._features = device, list[Tensor]()
        outputs = len(split.classes)
        self.weight = torch.zeros(
            outputs, features + 1, device=device, dtype=dtype(config)
        )  # the last column is the bias
        self.momentum = torch.zeros_like(self.weight)
        self.tally = torch.zeros(
            2, device=device, dtype=dtype(config)
        )  # right answers and answers since the last report
        online.projector.register_forward_pre_hook(self._keep)

    def _keep(self, _module: nn.Module, given: tuple[Any, ...]) -> None:
        self._features.append(given[0].detach())

    @torch.no_grad()
    def learn(self, rows: Tensor) -> None:
        """Take one step on the features of the last step's views (V, B, F); `rows` (B,) are its images in the split."""
        if self.labels is None:
            return
        x = F.normalize(torch.stack(self._features).to(self.weight.dtype), dim=2)
        self._features.clear()
        labels = self.labels[rows]
        if self._device.type == "cuda":
            labels = labels.pin_memory()
        y = labels.to(self._device, non_blocking=True).expand(len(x), -1).flatten()  # -1: an image without a label
        x = F.pad(x.flatten(0, 1), (0, 1), value=1.0)
        known = (y >= 0).to(x.dtype)
        logits = x @ self.weight.T
        right = ((logits.argmax(dim=1) == y) * known).sum()
        # the gradient of the cross-entropy's sum: probabilities minus one-hot labels, times the features
        wrong = logits.softmax(dim=1).sub_(F.one_hot(y.clamp_min(0), len(self.weight))) * known[:, None]
        sums = distributed.all_reduce_sum(torch.cat([(wrong.T @ x).flatten(), right[None], known.sum()[None]]))
        self.tally += sums[-2:]
        self.momentum.mul_(MOMENTUM).add_(sums[:-2].view_as(self.weight) / sums[-1].clamp_min(1))
        self.weight.sub_(RATE * self.momentum)

    def report(self) -> dict[str, float]:
        """{"online_linear": percent right, before learning from them, of the images since the last report}, or {}."""
        if self.labels is None:
            return {}
        right, seen = self.tally.tolist()
        self.tally.zero_()
        return {"online_linear": 100 * right / seen} if seen else {}

    def state(self) -> dict[str, Tensor]:
        """What the next step and the next report depend on."""
        if self.labels is None:
            return {}
        return {"weight": self.weight, "momentum": self.momentum, "tally": self.tally}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`; from the start where it is empty. Raises RuntimeError when it is of another shape."""
        for name, mine in self.state().items() if state else ():
            if not isinstance(state.get(name), Tensor) or state[name].shape != mine.shape:
                raise RuntimeError(f"the online probe's {name} has another shape")
            mine.copy_(state[name])
