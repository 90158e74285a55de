"""When the monitors of core.embeddings mean collapse, and what to say."""

from __future__ import annotations

from collections.abc import Mapping

# On 3,000 photographs at 32 pixels MSBReg with BatchNorm heads never falls below 0.13; without its two dispersive losses
# 0.01 to 0.07 are reached within 20 steps, and 20-NN ends at 18 to 23% instead of 29 to 35%, though the spread may come
# back later: below the limit something is wrong, above it the online kNN is the judge.
SPREAD_LIMIT = 0.1
RANK_LIMIT = 1.5
PATIENCE = 2  # logged steps in a row: an untrained network's first steps may dip


def verdict(monitored: Mapping[str, float]) -> str | None:
    """A sentence when the predictions have collapsed, None while they have not.

    `std` is core.embeddings.std_per_dimension of the predictions, `effective_rank` that of one view (when measured).
    """
    if monitored.get("std", 1.0) < SPREAD_LIMIT:
        return (
            f"collapse: the predictions' spread is {monitored['std']:.3f} (an even spread is 1, the limit {SPREAD_LIMIT}): "
            "all images get nearly the same embedding; raise method.lambda_b, lower optim.base_lr or use model.norm=batch"
        )
    if monitored.get("effective_rank", RANK_LIMIT) < RANK_LIMIT:
        return (
            f"collapse: the predictions' effective rank is {monitored['effective_rank']:.2f}: they lie on a line; "
            "raise method.lambda_s or lower optim.base_lr"
        )
    return None
