"""K augmented views of one decoded image (Table 9), uint8 in and out.

Every operation works on uint8 and clips as torchvision's does on a Pillow image, so that each can be compared with it.
The random numbers of a view depend on (seed, epoch, sample index, view) alone: no worker has a state to resume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from pretrain.config import ViewsConfig

_INDEX = np.arange(256)
_SOLARIZED = np.where(_INDEX < 128, _INDEX, 255 - _INDEX).astype(np.uint8)


@dataclass(frozen=True)
class ViewParameters:
    """One draw of the distribution: what a view does to an image."""

    box: tuple[int, int, int, int]  # top, left, height, width of the crop, in pixels
    flip: bool
    jitter: tuple[tuple[str, float], ...]  # (operation, factor) in order of application; empty: no jitter
    grayscale: bool
    sigma: float | None  # of the blur, in pixels of the view; None: no blur
    solarize: bool


def generator(seed: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """The random numbers of one view."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, index, view))))


def draw(config: ViewsConfig, height: int, width: int, view: int, rng: np.random.Generator) -> ViewParameters:
    """Draw a view's parameters. `byol` alternates BYOL's two distributions (its Appendix B) over the views."""
    blur, solarize = config.blur, config.solarize
    if config.preset == "byol":
        blur, solarize = (1.0, 0.0) if view % 2 == 0 else (0.1, 0.2)
    box = _crop_box(config, height, width, rng)
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


def _crop_box(config: ViewsConfig, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params: ten tries, then the largest central crop of an allowed ratio."""
    low, high = math.log(config.ratio[0]), math.log(config.ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*config.scale)
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
    """(H, W, 3) uint8 RGB -> (size, size, 3) uint8 RGB."""
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


def make_views(
    image: np.ndarray, config: ViewsConfig, *, views: int, size: int, seed: int, epoch: int, index: int
) -> np.ndarray:
    """(H, W, 3) uint8 -> (K, size, size, 3) uint8: all views of one decoded image."""
    kernel = config.blur_kernel or blur_kernel(size)
    height, width = image.shape[:2]
    out = np.empty((views, size, size, 3), np.uint8)
    for view in range(views):
        parameters = draw(config, height, width, view, generator(seed, epoch, index, view))
        out[view] = apply(image, parameters, size, kernel)
    return out


def blur_kernel(size: int) -> int:
    """23 at 224 px (SimCLR: a tenth of the size), scaled with the size; odd, at least 3."""
    return max(3, 2 * round((size * 23 / 224 - 1) / 2) + 1)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """By area along sides that shrink, so that nothing aliases, and bicubic along those that grow."""
    height, width = image.shape[:2]
    if height > size or width > size:
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    return image if image.shape[:2] == (size, size) else cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply by `factor`."""
    return cv2.LUT(image, np.clip(_INDEX * factor, 0, 255).astype(np.uint8))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean grey level of the view."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.LUT(image, np.clip(mean + factor * (_INDEX - mean), 0, 255).astype(np.uint8))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey version."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Turn the hue by `factor` of the circle, in 256 levels as Pillow's HSV has."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(factor * 255) % 256)  # wraps around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def blur(image: np.ndarray, sigma: float, kernel: int) -> np.ndarray:
    """Gaussian blur. Taps beyond 4 sigma weigh less than 1/255 of a level together: the kernel is cut there."""
    kernel = min(kernel, 2 * math.ceil(4 * sigma) + 1)
    return cv2.GaussianBlur(image, (kernel, kernel), sigma, borderType=cv2.BORDER_REFLECT_101)


_JITTER = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
