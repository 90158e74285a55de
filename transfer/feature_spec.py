"""The definition of an image's features: how it is resized and cropped, and how the backbone's maps are pooled."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from PIL import Image

from backbench.data.transforms import Interpolation, evaluation_view, resize_side, squashed_view
from backbench.errors import ConfigError
from backbench.precision import Precision
from model_zoo.architecture import InputSpec
from transfer.pooling import Pooling


@dataclass(frozen=True)
class FeatureSpec:
    """The view of an image, and the pooling of its features. Part of the key of cached features."""

    size: int | None = None  # pixels of the view; none: the backbone's
    resize: int | None = None  # of the shorter side before it; none: 256/224 of the size
    pooling: Pooling = "gap"
    squash: bool = False  # no crop: both sides to `size`, whatever the proportions
    interpolation: Interpolation = "bilinear"  # of the resizing
    precision: Precision = "fp32"  # of the forward pass; the features are stored in float32 in any case

    def of(self, given: InputSpec) -> FeatureSpec:
        """With the sizes that a backbone's input gives.

        Raises:
            ConfigError: the crop is larger than what it is cut from.
        """
        size = self.size or given.size
        resize = self.resize or resize_side(size)
        if resize < size and not self.squash:
            raise ConfigError(
                f"a crop of size {size} does not fit into images resized to {resize}: set resize to {size} or more"
            )
        return dataclasses.replace(self, size=size, resize=resize)

    def view(self, image: Image.Image) -> np.ndarray:
        """(size, size, 3) uint8, of a spec whose sizes are known."""
        assert self.size is not None
        transform = squashed_view if self.squash else evaluation_view
        return transform(image, self.size, resize=self.resize, interpolation=self.interpolation)

    def key(self) -> dict[str, object]:
        """Its fields, for a hash. Features of `fp32` keep the key that they had before there were others."""
        fields = dataclasses.asdict(self)
        if self.precision == "fp32":
            del fields["precision"]
        return fields


USUAL = FeatureSpec()  # the backbone's own size, cropped, globally pooled
