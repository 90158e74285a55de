"""Augmented training images: torchvision's transforms, seeded only by (seed, epoch, image)."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from backbench.data.catalogue import DataPlaces, load
from backbench.data.decode import CorruptImage
from model_zoo.architecture import InputSpec
from transfer.augment import SeededViews, crop_and_flip, image_batches, ssl_view
from transfer.protocol import RunContext
from transfer.supervised import Order
from transfer.tasks.uniformity import views_of

CPU = torch.device("cpu")
SPEC = InputSpec(size=24)


@pytest.fixture
def split(image_folder):
    return load("imagenet", "train", DataPlaces(None, {"imagenet": image_folder}))


@pytest.fixture
def ctx(tmp_path):
    return RunContext(splits={}, seed=3, device=CPU, cache=tmp_path)


def batches(split, ctx, *, epochs=2, batch=7, start=0, rows=None, view=None, spec=SPEC):
    order = Order(len(split) if rows is None else len(rows), batch, epochs, ctx.seed)
    return list(image_batches(split, view or crop_and_flip(24), spec, order, ctx, 24, rows)(start))


def byol_view(size):
    return ssl_view(size, blur=1.0, solarize=0.0)


def theirs(size, mode="bilinear", *more):
    """BYOL's view 1 as in MSBReg's Table 9, built from torchvision's classes."""
    more = more or (transforms.GaussianBlur(3 if size < 40 else 23, sigma=(0.1, 2.0)),)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (0.08, 1.0), (3 / 4, 4 / 3), transforms.InterpolationMode(mode)),
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            *more,
        ]
    )


def byols_first(size):
    return theirs(size, "bicubic")


def byols_second(size):
    blur = transforms.GaussianBlur(3 if size < 40 else 23, sigma=(0.1, 2.0))
    return theirs(size, "bicubic", transforms.RandomApply([blur], p=0.1), transforms.RandomSolarize(128, p=0.2))


def table9(size):
    blur = transforms.GaussianBlur(3 if size < 40 else 23, sigma=(0.1, 2.0))
    return theirs(size, "bilinear", blur, transforms.RandomSolarize(128, p=0.2))


def linear_probes_view(size):
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
            transforms.RandomHorizontalFlip(0.5),
        ]
    )


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (crop_and_flip, linear_probes_view),
        (byol_view, theirs),
        (lambda size: views_of("byol_pair", size)[0], byols_first),
        (lambda size: views_of("byol_pair", size)[1], byols_second),
        (lambda size: views_of("table9", size)[0], table9),
        (lambda size: views_of("table9", size)[1], table9),
    ],
)
@pytest.mark.parametrize("size", [24, 224])
def test_a_view_is_torchvisions_under_the_same_seed(split, ours, reference, size):
    image = Image.open(split.source.root / split.source.paths[9]).convert("RGB")
    views = SeededViews(split, ours(size), seed=3)
    for epoch in range(6 if size == 24 else 2):
        pixels, label = views[epoch, 9]
        high, low = (int(word) for word in np.random.SeedSequence((3, epoch, 9)).generate_state(2, np.uint32))
        torch.manual_seed(high * 2**32 + low)
        assert (pixels.shape, pixels.dtype, label) == ((size, size, 3), np.uint8, 1)
        assert np.array_equal(pixels, np.asarray(reference(size)(image)))


def test_views_change_with_seed_epoch_and_image_and_repeat(split):
    keys = [(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in (0, 1)]
    # One image under two numbers, so that only its number differs.
    same = dataclasses.replace(split, source=_Twice(split.source))
    seen = {}
    for seed, epoch, index in keys:
        views = SeededViews(same, byol_view(24), seed)
        seen[seed, epoch, index] = views[epoch, index][0].tobytes()
        assert views[epoch, index][0].tobytes() == seen[seed, epoch, index]
    assert len(set(seen.values())) == len(keys)


def test_several_views_take_turns(split):
    first, second = views_of("byol_pair", 24)
    both, alone, other = (SeededViews(split, views, 0) for views in ((first, second), first, second))
    assert np.array_equal(both[0, 3][0], alone[0, 3][0]) and np.array_equal(both[1, 3][0], other[1, 3][0])
    assert np.array_equal(both[2, 3][0], alone[2, 3][0])


class _Twice:
    def __init__(self, source):
        self.source = source

    def pil(self, index):
        return self.source.pil(0)


def test_the_global_generator_is_left_alone_and_does_not_matter(split, ctx):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = batches(split, ctx, epochs=1)
    # A DataLoader draws a base seed for its workers; the views draw nothing.
    torch.manual_seed(11)
    views = SeededViews(split, byol_view(24), 0)
    for index in range(4):
        views[0, index]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    for (x, _), (again, _) in zip(first, batches(split, ctx, epochs=1), strict=True):
        assert torch.equal(x, again)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(split, ctx, workers):
    alone = batches(split, ctx)
    ctx.workers = workers
    for (x, y), (other, labels) in zip(alone, batches(split, ctx), strict=True):
        assert torch.equal(x, other)
        assert torch.equal(y, labels)


def test_batches_are_the_orders_rows_normalised(split, ctx):
    spec = InputSpec(size=24, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4), order="bgr")
    found = batches(split, ctx, spec=spec)
    views = SeededViews(split, crop_and_flip(24), ctx.seed)
    keys = list(Order(24, 7, 2, ctx.seed).rows())
    assert [len(y) for _, y in found] == [7, 7, 7, 3] * 2
    for (x, y), (epoch, rows) in zip(found, keys, strict=True):
        for pixels, label, index in zip(x, y, rows.tolist(), strict=True):
            blue_first = views[epoch, index][0][:, :, ::-1] / 255
            expected = ((blue_first - spec.mean) / spec.std).transpose(2, 0, 1)
            np.testing.assert_allclose(pixels.numpy(), expected, atol=1e-5)
            assert label == split.labels[index]


def test_epochs_show_every_image_once_and_differently(split, ctx):
    found = batches(split, ctx)
    epochs = [torch.cat([x for x, _ in part]) for part in (found[:4], found[4:])]
    for labels in ([y for _, y in found[:4]], [y for _, y in found[4:]]):
        assert torch.bincount(torch.cat(labels)).tolist() == [8, 8, 8]
    pictures = {x.numpy().tobytes() for epoch in epochs for x in epoch}
    assert len(pictures) == 48, "no view is shown twice"


def test_going_on_from_a_step_gives_the_same_batches(split, ctx):
    whole = batches(split, ctx)
    for start in (1, 4, 6, 8):
        later = batches(split, ctx, start=start)
        assert len(later) == 8 - start
        assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[start:], later, strict=True))


def test_only_the_given_rows_are_shown(split, ctx):
    rows = torch.tensor([0, 8, 9, 16, 17, 18])
    labels = torch.cat([y for _, y in batches(split, ctx, epochs=1, batch=4, rows=rows)])
    assert torch.bincount(labels).tolist() == [1, 2, 3]
    alone = batches(split, ctx, epochs=1, batch=4, rows=rows)[0][0]
    (first, *_) = Order(6, 4, 1, ctx.seed).rows()
    views = SeededViews(split, crop_and_flip(24), ctx.seed)
    mean, std = torch.tensor(SPEC.mean), torch.tensor(SPEC.std)
    shown = torch.from_numpy(views[0, int(rows[first[1][0]])][0])
    torch.testing.assert_close(alone[0], ((shown / 255 - mean) / std).permute(2, 0, 1))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_image_that_cannot_be_read_fails_and_is_named(image_folder, ctx, workers):
    bad = image_folder / "train" / "class1" / "5.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    split = load("imagenet", "train", DataPlaces(None, {"imagenet": image_folder}))
    ctx.workers = workers
    with pytest.raises(CorruptImage, match=r"class1/5\.jpg"):
        batches(split, ctx)


def test_grey_and_transparent_images_become_three_channels(image_folder, ctx):
    folder = image_folder / "train" / "class0"
    Image.new("L", (30, 30), 200).save(folder / "0.jpg")
    stored = io.BytesIO()
    Image.new("RGBA", (30, 30), (10, 20, 30, 40)).save(stored, "PNG")
    (folder / "1.png").write_bytes(stored.getvalue())
    split = load("imagenet", "train", DataPlaces(None, {"imagenet": image_folder}))
    views = SeededViews(split, crop_and_flip(24), seed=0)
    assert len(split) == 25
    for name, colour in (("0.jpg", (200, 200, 200)), ("1.png", (10, 20, 30))):
        index = split.source.paths.index(f"class0/{name}")
        assert np.abs(views[0, index][0].astype(int) - colour).max() <= 2
