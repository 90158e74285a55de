"""K augmented views of one decoded image (Table 9), uint8 in and out.

Every operation works on uint8 and clips like torchvision's on a Pillow image, so that the two can be compared. The random
numbers of a view depend only on (seed, epoch, sample index, view): no worker has a state to resume.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from pretrain.config import ViewsConfig

_INDEX = np.arange(256)
VERSION = 2  # raised when the same parameters give other pixels; a run resumes with the version it was started with
_MARGIN = 1.5  # pixels of a reduced crop for each of its view
_TRUNCATE = -0.499  # OpenCV rounds to the nearest level, Pillow drops the fraction
_GREY = np.tile(np.array([0.299, 0.587, 0.114], np.float32), (3, 1))  # ITU-R 601-2, as in Pillow
_SOLARIZED = np.where(_INDEX < 128, _INDEX, 255 - _INDEX).astype(np.uint8)


@dataclass(frozen=True)
class ViewParameters:
    """Parameters of one view, drawn from the distribution."""

    box: tuple[int, int, int, int]  # top, left, height, width of the crop, in pixels
    flip: bool
    jitter: tuple[tuple[str, float], ...]  # (operation, factor) in order of application; empty: no jitter
    grayscale: bool
    sigma: float | None  # of the blur, in pixels of the view; None: no blur
    solarize: bool


def generator(seed: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """Return the random generator of one view."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, index, view))))


@dataclass(frozen=True)
class Sizes:
    """The views of an image: `large` of side `size`, then `small` of side `small_size` (multi-crop), in pixels."""

    large: int
    size: int
    small: int = 0
    small_size: int = 0

    def of(self, view: int) -> int:
        """The side of a view."""
        return self.size if view < self.large else self.small_size


def draw(
    config: ViewsConfig, height: int, width: int, view: int, rng: np.random.Generator, *, small: bool = False
) -> ViewParameters:
    """Draw a view's parameters. `byol` alternates BYOL's two distributions (Appendix B) over the views."""
    blur, solarize = config.blur, config.solarize
    if config.preset == "byol":
        blur, solarize = (1.0, 0.0) if view % 2 == 0 else (0.1, 0.2)
    box = _crop_box(config, height, width, rng, config.small_scale if small else config.scale)
    flip = rng.random() < config.flip
    jitter: tuple[tuple[str, float], ...] = ()
    if rng.random() < config.jitter:
        bounds = (("brightness", config.brightness), ("contrast", config.contrast), ("saturation", config.saturation))
        factors = [(name, rng.uniform(max(0.0, 1 - bound), 1 + bound)) for name, bound in bounds if bound]
        if config.hue:
            factors.append(("hue", rng.uniform(-config.hue, config.hue)))
        jitter = tuple(factors[i] for i in rng.permutation(len(factors)))
    grayscale = rng.random() < config.grayscale
    sigma = rng.uniform(*config.blur_sigma) if rng.random() < blur else None
    return ViewParameters(box, flip, jitter, grayscale, sigma, rng.random() < solarize)


def _crop_box(
    config: ViewsConfig, height: int, width: int, rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw a crop as torchvision's RandomResizedCrop.get_params: ten tries, then the largest central crop of allowed ratio."""
    low, high = math.log(config.ratio[0]), math.log(config.ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    ratio = width / height
    w, h = width, height
    if ratio < config.ratio[0]:
        h = min(height, max(1, round(width / config.ratio[0])))
    elif ratio > config.ratio[1]:
        w = min(width, max(1, round(height * config.ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def apply(image: np.ndarray, p: ViewParameters, size: int, kernel: int) -> np.ndarray:
    """Turn (H, W, 3) uint8 RGB into a (size, size, 3) uint8 RGB view."""
    top, left, height, width = p.box
    view = resize(image[top : top + height, left : left + width], size)
    if p.flip:
        view = cv2.flip(view, 1)
    for name, factor in p.jitter:
        view = _JITTER[name](view, factor)
    if p.grayscale:
        view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if p.sigma is not None:
        view = blur(view, p.sigma, kernel)
    if p.solarize:
        view = cv2.LUT(view, _SOLARIZED)
    return view


class ViewPlan:
    """The views of one image: `reduction` draws them once the image's size is known, `make` cuts them from its pixels."""

    def __init__(self, config: ViewsConfig, sizes: Sizes, *, seed: int, epoch: int, index: int) -> None:
        self.config, self.sizes = config, sizes
        self._key = seed, epoch, index
        self._drawn: list[ViewParameters] = []
        self._shape = 0, 0

    def reduction(self, height: int, width: int) -> int:
        """Draw the views of an image of this size; return how far a JPEG may be reduced while it is decoded.

        Returns:
            1, 2, 4 or 8: the largest factor that leaves every crop at least 1.5 times as large as its view. At 1.5 such a view
            differs from one of the whole image by 1.4 levels on average; bicubic and bilinear by 1.7 (VOC's photographs).
        """
        seed, epoch, index = self._key
        self._shape = height, width
        self._drawn = [
            draw(self.config, height, width, view, generator(seed, epoch, index, view), small=view >= self.sizes.large)
            for view in range(self.sizes.large + self.sizes.small)
        ]
        smallest = min(min(p.box[2:]) / self.sizes.of(view) for view, p in enumerate(self._drawn))
        return next(factor for factor in (8, 4, 2, 1) if factor == 1 or smallest >= _MARGIN * factor)

    def make(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8, perhaps reduced -> (K, size, size, 3) and (V, small_size, small_size, 3) uint8."""
        large = np.empty((self.sizes.large, self.sizes.size, self.sizes.size, 3), np.uint8)
        small = np.empty((self.sizes.small, self.sizes.small_size, self.sizes.small_size, 3), np.uint8)
        for view, parameters in enumerate(self._drawn):
            if image.shape[:2] != self._shape:
                parameters = replace(parameters, box=_scaled(parameters.box, self._shape, image.shape[:2]))
            size = self.sizes.of(view)
            made = apply(image, parameters, size, self.config.blur_kernel or blur_kernel(size))
            if view < self.sizes.large:
                large[view] = made
            else:
                small[view - self.sizes.large] = made
        return large, small


def _scaled(box: tuple[int, ...], drawn_on: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Scale a crop from an image of shape `drawn_on` to the same image reduced to `shape`, to the nearest pixel."""
    top, left, height, width = box
    rows, columns = shape[0] / drawn_on[0], shape[1] / drawn_on[1]
    top, left, bottom, right = (
        round(top * rows),
        round(left * columns),
        round((top + height) * rows),
        round((left + width) * columns),
    )
    return top, left, bottom - top, right - left


def make_views(
    image: np.ndarray, config: ViewsConfig, *, views: int, size: int, seed: int, epoch: int, index: int
) -> np.ndarray:
    """Return K views of one size, (K, size, size, 3) uint8, of one decoded image (H, W, 3) uint8."""
    plan = ViewPlan(config, Sizes(views, size), seed=seed, epoch=epoch, index=index)
    plan.reduction(*image.shape[:2])
    return plan.make(image)[0]


def blur_kernel(size: int) -> int:
    """Return the kernel size: 23 at 224 px (SimCLR: a tenth of the size), scaled with the size; odd, at least 3."""
    return max(3, 2 * round((size * 23 / 224 - 1) / 2) + 1)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to (size, size, 3), bicubic with antialiasing as in torchvision and Pillow, with torch's uint8 kernel."""
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]  # channels stay last
    resized = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return cv2.merge(list(resized[0].numpy()))  # its planes; OpenCV is slow on pixels that are not side by side


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply by `factor`."""
    return cv2.convertScaleAbs(image, alpha=factor, beta=_TRUNCATE)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean grey level of the view."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.addWeighted(image, factor, image, 0, mean * (1 - factor) + _TRUNCATE)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey version."""
    return cv2.transform(image, factor * np.eye(3, dtype=np.float32) + (1 - factor) * _GREY)


def hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Rotate the hue by `factor` of the circle, in 256 levels as in Pillow's HSV."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv.reshape(len(hsv), -1)
    rows += _turn(int(factor * 255) % 256, image.shape[1])  # wraps around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


@functools.lru_cache(maxsize=1024)
def _turn(levels: int, width: int) -> np.ndarray:
    """A row of pixels (width * 3,) that turns the hue only."""
    return np.tile(np.array([levels, 0, 0], np.uint8), width)


def blur(image: np.ndarray, sigma: float, kernel: int) -> np.ndarray:
    """Apply a Gaussian blur. Taps beyond 4 sigma together weigh less than 1/255 of a level, so the kernel ends there."""
    taps = cv2.getGaussianKernel(min(kernel, 2 * math.ceil(4 * sigma) + 1), sigma, cv2.CV_32F)
    return cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)  # GaussianBlur takes twice as long


_JITTER = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
