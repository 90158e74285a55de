"""The views against torchvision: the distribution of each parameter, and each operation on a Pillow image."""

from __future__ import annotations

import io
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from backbench.data.decode import decode_rgb
from pretrain import views
from pretrain.config import ViewsConfig
from pretrain.views import Sizes, ViewParameters, ViewPlan, draw, generator, make_views

DRAWS = 3000
HEIGHT, WIDTH = 120, 180


def draws(config: ViewsConfig, view: int = 0, seed: int = 0) -> list[ViewParameters]:
    return [draw(config, HEIGHT, WIDTH, view, generator(seed, 0, index, view)) for index in range(DRAWS)]


@pytest.fixture(scope="module")
def table9() -> list[ViewParameters]:
    return draws(ViewsConfig())


def assert_frequency(count: int, probability: float, total: int = DRAWS) -> None:
    """The means agree within four standard errors."""
    assert abs(count / total - probability) <= 4 * np.sqrt(probability * (1 - probability) / total), count / total


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def distance(ours: np.ndarray, theirs: Image.Image) -> np.ndarray:
    """Grey levels between each pair of values."""
    assert ours.dtype == np.uint8
    return np.abs(ours.astype(int) - pixels(theirs))


@pytest.mark.parametrize(
    "config", [ViewsConfig(), ViewsConfig(scale=(0.2, 0.6), ratio=(0.5, 1.2))], ids=["table9", "other"]
)
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (60, 200)])  # the second often needs the tenth try or the fallback
def test_crop_boxes_are_distributed_as_torchvisions(config, shape):
    torch.manual_seed(0)
    image = torch.empty(3, *shape)
    scale, ratio = list(config.scale), list(config.ratio)
    theirs = np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(DRAWS)], dtype=float)
    ours = np.array([draw(config, *shape, 0, generator(0, 0, i, 0)).box for i in range(DRAWS)], dtype=float)
    columns = {"top": 0, "left": 1, "height": 2, "width": 3}
    for name, column in columns.items():
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3, name
    for name, of in {
        "area": lambda x: x[:, 2] * x[:, 3],
        "ratio": lambda x: x[:, 3] / x[:, 2],
        "bottom": lambda x: x[:, 0] + x[:, 2],
        "right": lambda x: x[:, 1] + x[:, 3],
    }.items():
        assert stats.ks_2samp(of(ours), of(theirs)).pvalue > 1e-3, name
        np.testing.assert_allclose(of(ours).mean(), of(theirs).mean(), rtol=0.03)
    assert (ours >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= shape[0]).all() and (ours[:, 1] + ours[:, 3] <= shape[1]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 200), (90, 20)])
def test_crop_falls_back_to_torchvisions_central_crop(shape):
    config = ViewsConfig().model_copy(update={"scale": (30.0, 40.0)})  # no try can fit: only the fallback is left
    expected = RandomResizedCrop.get_params(torch.empty(3, *shape), [30.0, 40.0], list(config.ratio))
    assert draw(config, *shape, 0, generator(0, 0, 0, 0)).box == tuple(expected)


def test_frequencies_are_table_9s(table9):
    assert_frequency(sum(p.flip for p in table9), 0.5)
    assert_frequency(sum(bool(p.jitter) for p in table9), 0.8)
    assert_frequency(sum(p.grayscale for p in table9), 0.2)
    assert_frequency(sum(p.solarize for p in table9), 0.2)
    assert all(p.sigma is not None for p in table9)


def test_frequencies_are_fields():
    found = draws(ViewsConfig(flip=0.1, jitter=0.3, grayscale=0.6, solarize=0.9, blur=0.4))
    assert_frequency(sum(p.flip for p in found), 0.1)
    assert_frequency(sum(bool(p.jitter) for p in found), 0.3)
    assert_frequency(sum(p.grayscale for p in found), 0.6)
    assert_frequency(sum(p.solarize for p in found), 0.9)
    assert_frequency(sum(p.sigma is not None for p in found), 0.4)


def test_operations_are_drawn_independently(table9):
    columns = np.array([[p.flip, bool(p.jitter), p.grayscale, p.solarize, p.sigma > 1.05] for p in table9], dtype=float)
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 4 / np.sqrt(DRAWS)


@pytest.mark.parametrize(
    "name, low, high", [("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("saturation", 0.8, 1.2), ("hue", -0.1, 0.1)]
)
def test_jitter_factors_are_uniform(table9, name, low, high):
    factors = np.array([dict(p.jitter)[name] for p in table9 if p.jitter])
    assert factors.min() >= low and factors.max() <= high
    assert stats.kstest((factors - low) / (high - low), "uniform").pvalue > 1e-3


def test_a_jitter_above_one_is_cut_at_zero_and_none_is_left_out():
    found = draws(ViewsConfig(jitter=1.0, brightness=3.0, contrast=0.0))
    assert all({name for name, _ in p.jitter} == {"brightness", "saturation", "hue"} for p in found)
    factors = np.array([dict(p.jitter)["brightness"] for p in found])
    assert factors.min() >= 0
    assert stats.kstest(factors / 4, "uniform").pvalue > 1e-3


def test_jitter_order_is_uniform(table9):
    counts = Counter(tuple(name for name, _ in p.jitter) for p in table9 if p.jitter)
    orders = list(itertools.permutations(["brightness", "contrast", "saturation", "hue"]))
    assert set(counts) == set(orders)
    assert stats.chisquare([counts[order] for order in orders]).pvalue > 1e-3


def test_blur_sigma_is_uniform(table9):
    sigmas = np.array([p.sigma for p in table9])
    assert sigmas.min() >= 0.1 and sigmas.max() <= 2.0
    assert stats.kstest((sigmas - 0.1) / 1.9, "uniform").pvalue > 1e-3


def test_one_distribution_for_all_views_of_table_9():
    first, third = draws(ViewsConfig(), view=0), draws(ViewsConfig(), view=3)
    for of in (lambda p: p.box[2] * p.box[3], lambda p: p.sigma, lambda p: float(p.solarize)):
        assert stats.ks_2samp([of(p) for p in first], [of(p) for p in third]).pvalue > 1e-3
    same = sum(a.flip == b.flip for a, b in zip(first, third, strict=True))
    assert_frequency(same, 0.5)  # independent of one another


def test_byol_preset_has_two_distributions():
    config = ViewsConfig(preset="byol")
    for view in (0, 2):
        found = draws(config, view)
        assert all(p.sigma is not None and not p.solarize for p in found)
    for view in (1, 3):
        found = draws(config, view)
        assert_frequency(sum(p.sigma is not None for p in found), 0.1)
        assert_frequency(sum(p.solarize for p in found), 0.2)
    assert_frequency(sum(p.grayscale for p in found), 0.2)
    assert_frequency(sum(p.flip for p in found), 0.5)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
def test_brightness_is_torchvisions(photo, factor):
    assert distance(views.brightness(photo, factor), TF.adjust_brightness(Image.fromarray(photo), factor)).max() <= 1


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
def test_contrast_is_torchvisions(photo, factor):
    assert distance(views.contrast(photo, factor), TF.adjust_contrast(Image.fromarray(photo), factor)).max() <= 2


@pytest.mark.parametrize("factor", [0.0, 0.8, 1.0, 1.2])
def test_saturation_is_torchvisions(photo, factor):
    assert distance(views.saturation(photo, factor), TF.adjust_saturation(Image.fromarray(photo), factor)).max() <= 2


@pytest.mark.parametrize("factor", [-0.5, -0.1, -0.03, 0.0, 0.05, 0.1])
def test_hue_is_torchvisions(photo, factor):
    """Both round to 256 hues differently: close to Pillow's, and as close to the exact rotation as Pillow."""
    ours, theirs = views.hue(photo, factor), TF.adjust_hue(Image.fromarray(photo), factor)
    found = distance(ours, theirs)
    assert found.mean() < 2 and np.quantile(found, 0.99) <= 10
    turn = (int(factor * 255) % 256) / 256
    exact = TF.adjust_hue(torch.from_numpy(photo).permute(2, 0, 1).double() / 255, turn if turn <= 0.5 else turn - 1)
    error = np.abs(ours - exact.permute(1, 2, 0).numpy() * 255)
    assert error.mean() < 1 and np.quantile(error, 0.99) <= 7


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kernel", [3, 9, 23])
def test_blur_is_torchvisions(photo, sigma, kernel):
    theirs = TF.gaussian_blur(Image.fromarray(photo), [kernel, kernel], [sigma, sigma])
    assert distance(views.blur(photo, sigma, kernel), theirs).max() <= 1


def test_blur_of_an_edge_is_torchvisions():
    edge = np.zeros((32, 32, 3), np.uint8)
    edge[:, 16:] = 255
    theirs = TF.gaussian_blur(Image.fromarray(edge), [9, 9], [1.5, 1.5])
    assert distance(views.blur(edge, 1.5, 9), theirs).max() <= 1
    assert not np.array_equal(views.blur(edge, 1.5, 9), edge)


@pytest.mark.parametrize("height, width, size", [(60, 70, 96), (40, 30, 64), (64, 64, 64), (96, 128, 32), (24, 96, 48)])
def test_resize_is_pillows_bicubic(photo, height, width, size):
    """Growing sides, shrinking sides (Pillow then widens its cubic kernel against aliasing), and one of each."""
    noise = np.random.default_rng(0).normal(0, 25, photo.shape)
    crop = (photo + noise).clip(0, 255).astype(np.uint8)[:height, :width]
    theirs = TF.resize(Image.fromarray(crop), [size, size], InterpolationMode.BICUBIC)
    found = distance(views.resize(crop, size), theirs)
    assert found.max() <= 1 and found.mean() < 0.02


def parameters(**changes) -> ViewParameters:
    identity = {"box": (0, 0, 64, 64), "flip": False, "jitter": (), "grayscale": False, "sigma": None}
    return ViewParameters(**{**identity, "solarize": False, **changes})


def test_apply_crops_flips_and_solarizes_as_torchvision(photo):
    image = Image.fromarray(photo)
    box = (7, 11, 64, 64)
    crop = TF.crop(image, *box)
    assert distance(views.apply(photo, parameters(box=box), 64, 7), crop).max() == 0
    assert distance(views.apply(photo, parameters(box=box, flip=True), 64, 7), TF.hflip(crop)).max() == 0
    assert distance(views.apply(photo, parameters(box=box, solarize=True), 64, 7), TF.solarize(crop, 128)).max() == 0
    grey = views.apply(photo, parameters(box=box, grayscale=True), 64, 7)
    assert distance(grey, TF.rgb_to_grayscale(crop, 3)).max() <= 1


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_apply_composes_in_torchvisions_order(photo, order):
    factors = [("brightness", 1.3), ("contrast", 0.7), ("saturation", 1.2), ("hue", 0.08)]
    jitter = tuple(factors[i] for i in order)
    expected = TF.hflip(TF.crop(Image.fromarray(photo), 5, 9, 64, 64))
    for name, factor in jitter:
        expected = getattr(TF, f"adjust_{name}")(expected, factor)
    expected = TF.solarize(TF.gaussian_blur(expected, [7, 7], [1.2, 1.2]), 128)
    drawn = parameters(box=(5, 9, 64, 64), flip=True, jitter=jitter, sigma=1.2, solarize=True)
    found = distance(views.apply(photo, drawn, 64, 7), expected)
    assert found.mean() < 2 and np.quantile(found, 0.99) <= 7


@pytest.mark.parametrize("size, kernel", [(224, 23), (96, 9), (64, 7), (32, 3), (8, 3)])
def test_blur_kernel_scales_with_the_size(size, kernel):
    assert views.blur_kernel(size) == kernel


def make(photo: np.ndarray, **changes) -> np.ndarray:
    arguments = {"views": 3, "size": 32, "seed": 1, "epoch": 2, "index": 3} | changes
    return make_views(photo, ViewsConfig(), **arguments)


def test_views_depend_on_seed_epoch_index_and_view_alone(photo):
    found = make(photo)
    np.random.seed(5)
    torch.manual_seed(5)
    assert np.array_equal(make(photo), found)
    assert np.array_equal(make(photo, views=5)[:3], found)
    for change in ({"seed": 2}, {"epoch": 3}, {"index": 4}):
        other = make(photo, **change)
        assert not any(np.array_equal(other[j], found[j]) for j in range(3)), change
    assert not np.array_equal(found[0], found[1]) and not np.array_equal(found[1], found[2])


def test_neighbouring_keys_are_unrelated():
    """Swapped or shifted keys must not give the same numbers: (epoch 1, index 2) is not (epoch 2, index 1)."""
    keys = list(itertools.product(range(3), repeat=4))
    assert len({generator(*key).random() for key in keys}) == len(keys)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3), (300, 40), (96, 96)])
def test_views_are_uint8_whatever_the_images_shape(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    before = image.copy()
    for index in range(20):
        found = make(image, index=index)
        assert found.shape == (3, 32, 32, 3) and found.dtype == np.uint8
    assert np.array_equal(image, before)  # every view starts from the same pixels


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.mark.parametrize(
    "size, scale, factor", [(22, (0.9, 1.0), 8), (24, (0.08, 0.1), 2), (44, (0.9, 1.0), 4), (136, (0.9, 1.0), 1)]
)
def test_a_jpeg_is_reduced_as_far_as_every_crop_allows(photo, size, scale, factor):
    """Views of the reduced image equal views of the whole image nearly pixel by pixel."""
    large = np.asarray(Image.fromarray(photo).resize((391, 303), Image.Resampling.BICUBIC))
    config = ViewsConfig(scale=scale, blur=0, jitter=0, grayscale=0, solarize=0)

    def plan() -> ViewPlan:
        return ViewPlan(config, Sizes(6, size), seed=0, epoch=0, index=0)

    used: list[int] = []
    reduced_plan = plan()

    def reduction(height: int, width: int) -> int:
        used.append(reduced_plan.reduction(height, width))
        return used[-1]

    pixels = decode_rgb(jpeg(large), "photo", reduction)
    assert used == [factor] and pixels.shape == (-(-303 // factor), -(-391 // factor), 3)
    whole = plan()
    whole.reduction(303, 391)
    (ours, _), (theirs, _) = reduced_plan.make(pixels), whole.make(decode_rgb(jpeg(large), "photo"))
    apart = np.abs(ours.astype(int) - theirs).mean()
    beside = np.abs(theirs[:, :, 1:].astype(int) - theirs[:, :, :-1]).mean()  # of views that lie a pixel apart
    assert apart < 4 and apart < beside / 2


def test_a_png_is_never_reduced_but_its_size_is_asked(photo):
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG")
    asked = []
    pixels = decode_rgb(file.getvalue(), "photo", lambda height, width: asked.append((height, width)) or 8)
    assert np.array_equal(pixels, photo) and asked == [photo.shape[:2]]
