"""Definition of a pretraining method: fields, heads, target and losses in one `Method` value.

Each module of `pretrain/methods` (or of a plug-in folder) defines one, named `METHOD`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field
from torch import Tensor

from backbench.config import Config
from pretrain.networks import Heads, HeadSizes, Memory, two_mlps


class MethodConfig(Config):
    """Fields of every method. A method adds its own in a subclass.

    MSBReg's two dispersive losses can be added to every method; their weights are 0 unless the method states others.
    """

    name: str = ""  # the method's name; `pretrain.config.recipe` fills it in
    views: Annotated[int, Field(ge=2)] = 2  # K, of data.size
    small_views: Annotated[int, Field(ge=0)] = 0  # V, of data.small_size (multi-crop)
    target_views: Literal["large", "all"] = "large"  # the views that the target sees
    lambda_s: Annotated[float, Field(ge=0)] = 0.0  # weight of the singular value loss
    lambda_b: Annotated[float, Field(ge=0)] = 0.0  # weight of the Brownian diffusive loss
    normalize: bool = False  # normalise the embeddings in the singular value loss; eq. 5 prints them raw

    def queries(self) -> range:
        """The views that the online network sees: all. Views are numbered from 0, large ones first."""
        return range(self.views + self.small_views)

    def keys(self) -> range:
        """The views that the target sees."""
        return range(self.views + (self.small_views if self.target_views == "all" else 0))


@dataclass(frozen=True)
class Ema:
    """The target is a second network, the moving average of the online backbone and projector (BYOL).

    tau goes from `base` to `final` (`backbench.schedules.tau_at`), the defaults of `optim.tau_base` and `optim.tau_final`.
    """

    base: float = 0.99
    final: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.base <= 1:
            raise ValueError(f"Ema({self.base}): base must be above 0 and at most 1; for 0 use StopGradient()")


@dataclass(frozen=True)
class StopGradient:
    """The targets are the online network's projections from the same forward pass, without gradient (SimSiam)."""


@dataclass(frozen=True)
class NoTarget:
    """The method has no targets: its loss compares the online network's outputs with each other (VICReg, SimCLR)."""


class Losses(Protocol):
    """`losses(p, z, config, first=0) -> (loss, its named parts)`.

    p: (V, B, D) raw predictions of V of the query views, from number `first` on; projections if there is no predictor.
    z: (K, B, D) raw projections of the key views by the target, without gradient; (0, B, D) with `NoTarget`.
    config: the method's `Config`.
    """

    def __call__(self, p: Tensor, z: Tensor, config: Any, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss as a mean over the V views, and its parts."""
        ...


class LossesWithMemory(Protocol):
    """`Losses` of a method with a `memory`."""

    def __call__(
        self, p: Tensor, z: Tensor, config: Any, *, first: int = 0, memory: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `Losses` returns."""
        ...


@dataclass(frozen=True)
class Method:
    """One pretraining method."""

    name: str  # the module's name, as written in recipes
    losses: Losses | LossesWithMemory
    Config: type[MethodConfig]
    target: Ema | StopGradient | NoTarget
    heads: Callable[[HeadSizes, Any], Heads] = two_mlps  # called with the method's Config
    couples_views: bool = False  # the loss compares the views in `p` with each other, not only with `z`
    memory: Callable[[HeadSizes, Any, Heads], Memory] | None = None  # called with the method's Config
    disperses: Literal["predictions", "projections"] = "predictions"  # what MSBReg's dispersive losses spread
    fixed_predictor_rate: bool = False  # the predictor trains at the peak rate throughout (SimSiam section 4.2)

    @property
    def accumulates(self) -> bool:
        """True if gradients accumulated over groups of views (`run.views_per_pass`) equal those of one pass."""
        return not self.couples_views and not isinstance(self.target, StopGradient)
