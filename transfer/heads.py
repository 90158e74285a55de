"""Train and score many linear classifiers at once, on features or on images through an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

HeadInit = Literal["normal", "linear"]


class Heads(nn.Module):
    """One linear classifier per learning rate, all with the same initialisation.

    Args:
        norm: the BatchNorm before each head: `affine` (VISSL's eval_mlp) or `plain`, without scale and shift (OBoW).
        init: `normal`: N(0, 0.01), bias 0 (MoCo main_lincls); `linear`: PyTorch's default for nn.Linear, weight and bias
            uniform within 1/sqrt(features) (VISSL, SwAV's eval_semisup, W-MSE).
        cells: positions per channel that one BatchNorm normalises together (VISSL's 2 x 2: 4). The positions of a channel
            are adjacent.
    """

    in_closed_form: ClassVar[bool] = True  # linear on fixed inputs, so that `transfer.stacked` can train them

    def __init__(
        self,
        features: int,
        classes: int,
        rates: Sequence[float],
        seed: int,
        norm: Literal["none", "plain", "affine"] = "none",
        *,
        init: HeadInit = "normal",
        cells: int = 1,
    ) -> None:
        super().__init__()
        self.rates, self.cells, self.norm = tuple(rates), cells, norm
        generator = torch.Generator().manual_seed(seed)
        if init == "linear":
            bound = features**-0.5
            weight = torch.empty(classes, features).uniform_(-bound, bound, generator=generator)
            bias = torch.empty(classes).uniform_(-bound, bound, generator=generator)
        else:
            weight, bias = torch.randn(classes, features, generator=generator) * 0.01, torch.zeros(classes)
        linear = [nn.Linear(features, classes) for _ in rates]
        self.linear = nn.ModuleList(linear)
        for head in linear:
            with torch.no_grad():
                head.weight.copy_(weight)
                head.bias.copy_(bias)
        affine, channels = norm == "affine", features // cells
        self.norms = nn.ModuleList(
            nn.Identity() if norm == "none" else nn.BatchNorm1d(channels, affine=affine) for _ in rates
        )

    def forward(self, x_BC: Tensor) -> list[Tensor]:
        """Return the logits (B, classes) of every head."""
        return [head(self._normed(norm, x_BC)) for head, norm in zip(self.linear, self.norms, strict=True)]

    def alone(self, index: int) -> Heads:
        """Return one head by itself, a copy."""
        linear, norm = cast(nn.Linear, self.linear[index]), self.norms[index]
        alone = Heads(linear.in_features, linear.out_features, [self.rates[index]], 0, self.norm, cells=self.cells)
        alone.linear[0].load_state_dict(linear.state_dict())
        alone.norms[0].load_state_dict(norm.state_dict())
        return alone

    def _normed(self, norm: nn.Module, x_BC: Tensor) -> Tensor:
        return norm(x_BC) if self.cells == 1 else norm(x_BC.unflatten(1, (-1, self.cells))).flatten(1)

    @property
    def names(self) -> tuple[str, ...]:
        """Return a word for every head: its rate."""
        return tuple(map(str, self.rates))

    @property
    def sound(self) -> list[bool]:
        """For every head: True if all its parameters are finite."""
        pairs = zip(self.linear, self.norms, strict=True)
        return [all(bool(torch.isfinite(p).all()) for p in (*a.parameters(), *b.parameters())) for a, b in pairs]


class Classifier(nn.Module):
    """Heads on an encoder's features of images, or without an encoder on given features.

    An encoder with rate 0 is frozen: eval mode, no gradient.
    """

    def __init__(self, encoder: nn.Module | None, heads: Heads, *, rate_encoder: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.heads, self.rate_encoder = encoder, heads, rate_encoder
        if encoder is not None:
            encoder.requires_grad_(rate_encoder > 0)

    def train(self, mode: bool = True) -> Classifier:
        """Set train mode. A frozen encoder stays in eval mode."""
        super().train(mode)
        if self.encoder is not None and not self.rate_encoder:
            self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return every head's logits for features (B, C) or normalised images (B, 3, S, S)."""
        return self.heads(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Return the heads' inputs (B, C) for features (B, C) or normalised images (B, 3, S, S)."""
        if self.encoder is None:
            return x
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.rate_encoder > 0):
            return cast(Tensor, self.encoder(x))

    @property
    def has_norms(self) -> bool:
        """True if a BatchNorm uses the statistics of the batch."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.modules())

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return parameter groups with their peak `rate`. Norms have no weight decay, and LARS does not adapt them."""
        decayed = {"weight_decay": weight_decay, "always_adapt": True}  # timm adapts only with decay or this flag
        plain = {"weight_decay": 0.0, "always_adapt": False}
        groups = []
        for head, norm, rate in zip(self.heads.linear, self.heads.norms, self.heads.rates, strict=True):
            groups.append({"params": list(head.parameters()), "rate": rate, **decayed})
            groups.append({"params": list(norm.parameters()), "rate": rate, **plain})
        if self.encoder is not None and self.rate_encoder:
            weights = [p for p in self.encoder.parameters() if p.ndim > 1]
            others = [p for p in self.encoder.parameters() if p.ndim <= 1]
            groups.append({"params": weights, "rate": self.rate_encoder, **decayed})
            groups.append({"params": others, "rate": self.rate_encoder, **plain})
        return [group for group in groups if group["params"]]


@torch.no_grad()
def best_classes(heads: Heads, features_NC: Tensor, *, device: torch.device) -> list[Tensor]:
    """Return each head's 5 highest-scoring classes, best first: (N, 5), or (N, classes) if there are fewer than 5."""
    heads.to(device).eval()
    parts: list[list[Tensor]] = [[] for _ in heads.rates]
    for x in features_NC.split(4096):
        for found, logits in zip(parts, heads(x.to(device)), strict=True):
            logits = torch.nan_to_num(logits, nan=-torch.inf)
            found.append(logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu())
    return [torch.cat(found) for found in parts]


def accuracies(heads: Heads, features_NC: Tensor, labels: Tensor, *, device: torch.device) -> list[dict[str, float]]:
    """Return top1 and top5 in percent for every head. Each row counts once."""
    return [hits(best, labels) for best in best_classes(heads, features_NC, device=device)]


def hits(best_N5: Tensor, labels: Tensor) -> dict[str, float]:
    """Return top1 and top5 in percent."""
    right = best_N5 == labels.cpu()[:, None]
    return {"top1": 100.0 * int(right[:, 0].sum()) / len(right), "top5": 100.0 * int(right.sum()) / len(right)}


def items_of(best_NR: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """Return the arrays stored per test item (best classes, label) and top-1 per class in percent (NaN without items)."""
    right = (best_NR[:, 0] == labels).double()
    count = torch.bincount(labels, minlength=classes)
    per_class = torch.bincount(labels, weights=right, minlength=classes) / count
    return {
        "best": best_NR.to(torch.int32).numpy(),
        "labels": labels.to(torch.int32).numpy(),
        "per_class_top1": (100 * per_class).float().numpy(),
    }
