"""Many attentive probes at once: cross-attention of one learned query with an image's tokens, then a linear classifier.

facebookresearch/capi eval_classification.py, `AttnPoolClassifier`: the query meets keys and values of the tokens, `head_width`
channels to an attention head, without a projection of the query or of the output, norm or residual. Weights and query are drawn
from N(0, 0.02) cut off at 2 (not at two standard deviations: `trunc_normal_`'s default), biases are 0.

With one query, keys and values of the tokens need not be computed: q . (K x) = (K^T q) . x, and as the weights of the
attention add up to 1, the mean of the values is the value of the mean. The result is the same up to rounding, for a fraction of
the memory and time. A bias of the keys, which the source has, adds the same to every token's score and so changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from transfer.heads import Classifier, Heads

_STD = 0.02


class AttentionPool(nn.Module):
    """One learned query's cross-attention, (B, T, C) to (B, C).

    Args:
        width: C.
        head_width: channels of an attention head; a divisor of C.
    """

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.query = nn.Parameter(torch.empty(width))
        self.key = nn.Parameter(torch.empty(width, width))
        self.value = nn.Parameter(torch.empty(width, width))
        self.bias = nn.Parameter(torch.zeros(width))  # of the values

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return the attended values (B, C)."""
        query_HD = self.query.view(self.heads, -1)
        key_HDC, value_HDC = (weight.view(self.heads, query_HD.shape[1], -1) for weight in (self.key, self.value))
        asked_HC = torch.einsum("hd,hdc->hc", query_HD, key_HDC) * query_HD.shape[1] ** -0.5
        attention_BTH = (x_BTC @ asked_HC.T).softmax(dim=1)
        mean_BHC = attention_BTH.transpose(1, 2) @ x_BTC
        return torch.einsum("bhc,hdc->bhd", mean_BHC, value_HDC).flatten(1) + self.bias


class AttentiveHeads(Heads):
    """An attentive probe for each pair of a rate and a weight decay, all with the same initialisation.

    Args:
        features: C of the tokens.
        rates: one for each probe, as `decays`.
    """

    in_closed_form: ClassVar[bool] = False

    def __init__(
        self, features: int, classes: int, rates: Sequence[float], decays: Sequence[float], seed: int, head_width: int
    ) -> None:
        super().__init__(features, classes, rates, seed)
        self.decays = tuple(decays)
        self.pools = nn.ModuleList(AttentionPool(features, head_width) for _ in self.rates)
        generator = torch.Generator().manual_seed(seed)
        first = self._probe(0)
        for weight in first[:4]:
            nn.init.trunc_normal_(weight, std=_STD, generator=generator)
        for index in range(1, len(self.rates)):
            with torch.no_grad():
                for mine, drawn in zip(self._probe(index), first, strict=True):
                    mine.copy_(drawn)

    def _probe(self, index: int) -> list[Tensor]:
        """Return the query and the weights, then the biases, of one probe."""
        pool, linear = cast(AttentionPool, self.pools[index]), cast(nn.Linear, self.linear[index])
        return [pool.query, pool.key, pool.value, linear.weight, pool.bias, linear.bias]

    def forward(self, x_BTC: Tensor) -> list[Tensor]:
        """Return the logits (B, classes) of every probe."""
        return [linear(pool(x_BTC)) for pool, linear in zip(self.pools, self.linear, strict=True)]

    @property
    def sound(self) -> list[bool]:
        """For every probe: True if all its parameters are finite."""
        return [all(bool(torch.isfinite(p).all()) for p in self._probe(i)) for i in range(len(self.rates))]

    @property
    def names(self) -> tuple[str, ...]:
        """Return `0.001, decay 0.05` for every probe."""
        return tuple(f"{rate:g}, decay {decay:g}" for rate, decay in zip(self.rates, self.decays, strict=True))

    def groups(self) -> list[dict[str, Any]]:
        """Return parameter groups with their peak `rate`: each probe's decay, none for biases."""
        found = []
        for index, (rate, decay) in enumerate(zip(self.rates, self.decays, strict=True)):
            probe = self._probe(index)
            found.append({"params": probe[:4], "rate": rate, "weight_decay": decay})
            found.append({"params": probe[4:], "rate": rate, "weight_decay": 0.0})
        return found


class AttentiveClassifier(Classifier):
    """Attentive probes on a frozen encoder's tokens."""

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the probes' groups, each with its own weight decay."""
        return cast(AttentiveHeads, self.heads).groups()


class Answers(nn.Module):
    """The 5 highest-scoring classes of every probe for images: (N, 5 * probes) as float32, which holds them exactly."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_N3SS: Tensor) -> Tensor:
        """Return each probe's classes, best first, side by side; a diverged probe's are arbitrary."""
        logits = [torch.nan_to_num(each, nan=-torch.inf) for each in self.model(x_N3SS)]
        return torch.cat([each.topk(min(5, each.shape[1]), dim=1).indices for each in logits], dim=1).float()


def points(rates: Sequence[float], decays: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the rate and the decay of every probe: all pairs, rates first."""
    pairs = list(itertools.product(rates, decays))
    return tuple(rate for rate, _ in pairs), tuple(decay for _, decay in pairs)
