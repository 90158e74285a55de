"""Definition of an image's features: resizing, cropping, and pooling of the backbone's maps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from PIL import Image

from backbench.data.transforms import Interpolation, evaluation_view, resize_side, squashed_view, stretched_view
from backbench.errors import ConfigError
from backbench.precision import Precision
from model_zoo.architecture import InputSpec
from transfer.pooling import Pooling

_LATER = {"precision": "fp32", "stretch": False}


@dataclass(frozen=True)
class FeatureSpec:
    """View of an image and pooling of its features. Part of the key of cached features."""

    size: int | None = None  # side of the view in pixels; none: the backbone's
    resize: int | None = None  # shorter side before the crop, in pixels; none: 256/224 of the size
    pooling: Pooling = "gap"
    squash: bool = False  # no crop: resize both sides to `size`
    interpolation: Interpolation = "bilinear"  # of the resizing
    precision: Precision = "fp32"  # of the forward pass; the features are stored in float32 in any case
    stretch: bool = False  # resize both sides to `resize`, then crop

    def of(self, given: InputSpec) -> FeatureSpec:
        """Return this spec with missing sizes filled in from the backbone's input.

        Raises:
            ConfigError: the crop is larger than the resized image.
        """
        size = self.size or given.size
        resize = self.resize or resize_side(size)
        if resize < size and not self.squash:
            raise ConfigError(
                f"a crop of size {size} does not fit into images resized to {resize}: set resize to {size} or more"
            )
        return dataclasses.replace(self, size=size, resize=resize)

    def view(self, image: Image.Image) -> np.ndarray:
        """Return the view (size, size, 3) uint8. Needs a spec with known sizes."""
        assert self.size is not None
        transform = squashed_view if self.squash else stretched_view if self.stretch else evaluation_view
        return transform(image, self.size, resize=self.resize, interpolation=self.interpolation)

    def key(self) -> dict[str, object]:
        """Return the fields, for a hash. Fields that came later are left out at their defaults: the first keys stay valid."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if _LATER.get(name, ...) != value}


USUAL = FeatureSpec()  # the backbone's own size, cropped, globally pooled
