"""Test which images each step and rank takes, and how unreadable images are handled."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from backbench.errors import DataError
from pretrain import data, views
from pretrain.config import ViewsConfig
from pretrain.data import EpochSampler, make_loader, open_split, to_device
from pretrain.views import make_views


def place_on(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(data, "rank", lambda: rank)
    monkeypatch.setattr(data, "world_size", lambda: world_size)


def batches(length: int, batch: int, *, start: int = 0, stop: int, seed: int = 0) -> list[list[tuple[int, int]]]:
    return list(EpochSampler(length, batch, seed, start, stop))


@pytest.mark.parametrize("length, batch", [(12, 4), (13, 4), (7, 7)])
def test_an_epoch_repeats_no_image(length, batch):
    per_epoch = length // batch
    drawn = batches(length, batch, stop=3 * per_epoch)
    assert [len(b) for b in drawn] == [batch] * 3 * per_epoch
    orders = []
    for epoch in range(3):
        keys = [key for b in drawn[epoch * per_epoch : (epoch + 1) * per_epoch] for key in b]
        assert {e for e, _ in keys} == {epoch}
        indices = [i for _, i in keys]
        assert len(set(indices)) == per_epoch * batch and set(indices) <= set(range(length))
        orders.append(tuple(indices))
    assert len(set(orders)) == 3  # another order in every epoch


def test_images_of_the_incomplete_batch_come_in_other_epochs():
    drawn = batches(13, 4, stop=3 * 20)
    assert {i for b in drawn for _, i in b} == set(range(13))


def test_the_order_depends_on_the_seed():
    assert batches(12, 4, stop=3, seed=1) == batches(12, 4, stop=3, seed=1)
    assert batches(12, 4, stop=3, seed=1) != batches(12, 4, stop=3, seed=2)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ranks_slices_are_the_global_batch(monkeypatch, ranks):
    whole = batches(21, 8, stop=5)
    slices = []
    for rank in range(ranks):
        place_on(monkeypatch, rank, ranks)
        slices.append(batches(21, 8, stop=5))
    for step in range(5):
        assert [len(s[step]) for s in slices] == [8 // ranks] * ranks
        assert [key for s in slices for key in s[step]] == whole[step]


@pytest.mark.parametrize("start", [1, 3, 4, 7])
def test_starting_at_a_step_equals_skipping(start):
    sampler = EpochSampler(13, 4, 0, start, 8)
    assert list(sampler) == batches(13, 4, stop=8)[start:]
    assert len(sampler) == 8 - start


def test_fewer_images_than_a_batch_is_an_error():
    with pytest.raises(DataError, match=r"only 7 images.*batch of 8.*optim\.batch"):
        EpochSampler(7, 8, 0, 0, 1)


def test_a_batch_that_does_not_divide_is_an_error(monkeypatch):
    place_on(monkeypatch, 0, 3)
    with pytest.raises(DataError, match=r"optim\.batch 8 does not divide among 3"):
        EpochSampler(20, 8, 0, 0, 1)


def load(config, *, start: int = 0, stop: int = 6) -> list[data.Batch]:
    return list(make_loader(open_split(config.data), config, start=start, stop=stop, pin=False))


def test_batches_are_views_of_the_samplers_images(shared_photos, recipe):
    config = recipe(shared_photos, "method.views=3")
    split = open_split(config.data)
    ((batch, small), unreadable, rows), *_ = load(config, stop=1)
    assert small.shape[1] == 0
    assert rows.tolist() == [index for _, index in batches(30, 6, stop=1)[0]]
    assert batch.shape == (6, 3, 32, 32, 3) and batch.dtype == torch.uint8 and unreadable == []
    for row, (epoch, index) in zip(batch, batches(30, 6, stop=1)[0], strict=True):
        rgb = split.source.rgb(index)
        expected = make_views(rgb, config.views, views=3, size=32, seed=0, epoch=epoch, index=index)
        assert np.array_equal(row.numpy(), expected)


def test_batches_from_a_later_step_are_those_of_the_whole_run(shared_photos, recipe):
    config = recipe(shared_photos)
    for ((late, _), *_), ((whole, _), *_) in zip(load(config, start=4), load(config)[4:], strict=True):
        assert torch.equal(late, whole)


@pytest.mark.slow
def test_batches_do_not_depend_on_the_workers(photos, recipe):
    (photos / "train/class0/03.jpg").write_bytes(b"")
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (23, 23), 1.0)  # threads that a fork leaves behind
    alone, helped = load(recipe(photos)), load(recipe(photos, "data.workers=2"))
    assert len(alone) == len(helped) == 6
    for ((a, _), a_names, a_rows), ((b, _), b_names, b_rows) in zip(alone, helped, strict=True):
        assert torch.equal(a, b) and a_names == b_names and torch.equal(a_rows, b_rows)
    assert sum(len(batch.unreadable) for batch in helped) > 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(b""), cut, lambda p: p.write_bytes(b"<html>" * 50)])
def test_a_corrupt_image_is_replaced_by_the_next_and_named(photos, recipe, spoil):
    config = recipe(photos)
    split = open_split(config.data)
    good = data.Views(split, config)[(0, 3)]
    assert good[1] == []
    spoil(photos / "train" / split.source.name(3))
    (views, _), unreadable, row = data.Views(split, config)[(0, 3)]
    assert row == 4 and good[2] == 3
    assert len(unreadable) == 1 and split.source.name(3) in unreadable[0]
    following = make_views(split.source.rgb(4), config.views, views=2, size=32, seed=0, epoch=0, index=3)
    assert np.array_equal(views, following)
    assert not np.array_equal(views, good[0][0])


def test_the_last_image_is_replaced_by_the_first(photos, recipe):
    config = recipe(photos)
    split = open_split(config.data)
    cut(photos / "train" / split.source.name(29))
    (views, _), _, row = data.Views(split, config)[(0, 29)]
    assert row == 0
    first = make_views(split.source.rgb(0), config.views, views=2, size=32, seed=0, epoch=0, index=29)
    assert np.array_equal(views, first)


def test_corrupt_images_in_a_row_stop_above_the_limit(photos, recipe):
    config = recipe(photos, "data.max_corrupt=2")
    split = open_split(config.data)
    for index in (3, 4):
        cut(photos / "train" / split.source.name(index))
    _, unreadable, _ = data.Views(split, config)[(0, 3)]
    assert [split.source.name(i) in text for i, text in zip((3, 4), unreadable, strict=True)] == [True, True]
    cut(photos / "train" / split.source.name(5))
    with pytest.raises(DataError, match=split.source.name(3)):
        data.Views(split, config)[(0, 3)]


def test_no_readable_image_at_all_is_an_error_that_ends(photos, recipe):
    config = recipe(photos, "data.max_corrupt=1000")
    split = open_split(config.data)
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="30 unreadable images"):
        data.Views(split, config)[(0, 0)]


@pytest.mark.slow
def test_a_workers_error_is_one_sentence(photos, recipe):
    config = recipe(photos, "data.max_corrupt=0", "data.workers=1")
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        list(data.batches(make_loader(open_split(config.data), config, start=0, stop=1, pin=False)))
    assert "the file is empty" in str(caught.value)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_normalisation_and_layout_on_the_device(recipe, shared_photos):
    config = recipe(shared_photos).data
    views = torch.randint(0, 256, (5, 2, 4, 4, 3), dtype=torch.uint8)
    found = to_device(views, config, torch.device("cpu"), torch.float64)
    assert found.shape == (2, 5, 3, 4, 4)
    for channel in range(3):
        expected = (views[..., channel].double() / 255 - config.mean[channel]) / config.std[channel]
        torch.testing.assert_close(found[:, :, channel], expected.transpose(0, 1))
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in found)


def test_data_that_are_not_there_are_named(tmp_path, recipe, photos):
    with pytest.raises(DataError, match=r"data\.root: no folder .*missing"):
        open_split(recipe(tmp_path / "missing").data)
    with pytest.raises(DataError, match=r"data\.root is not set: where is 'imagefolder'"):
        open_split(recipe(photos, "data.root=null").data.model_copy(update={"root": None}))
    with pytest.raises(DataError, match="no folder 'validation'"):
        open_split(recipe(photos, "data.split=validation").data)
    assert len(open_split(recipe(photos, "data.split=all").data)) == len(
        list(photos.rglob("*.jpg"))
    )  # no labels needed
    shutil.rmtree(photos / "train" / "class1")
    (photos / "train" / "class1").mkdir()
    with pytest.raises(DataError, match=r"no image, e\.g\. class1"):
        open_split(recipe(photos).data)


def test_small_views_follow_the_large_ones(shared_photos, recipe):
    plain, cropped = recipe(shared_photos), recipe(shared_photos, "method.small_views=3", "data.small_size=16")
    ((large, small), *_), *_ = load(cropped, stop=1)
    assert torch.equal(large, load(plain, stop=1)[0].views[0]), "large views stay as they are"
    assert small.shape == (6, 3, 16, 16, 3) and small.float().std() > 1
    prepared = data.prepare(load(cropped, stop=1)[0], cropped, torch.device("cpu"), torch.float32)
    assert [tuple(view.shape) for view in prepared] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)] * 3


def test_small_views_show_a_small_part(photo):
    sizes, areas = views.Sizes(2, 32, 3, 16), []
    for index in range(40):
        plan = views.ViewPlan(ViewsConfig(), sizes, seed=0, epoch=0, index=index)
        plan.reduction(*photo.shape[:2])
        areas.append([p.box[2] * p.box[3] / photo[..., 0].size for p in plan._drawn])
    large, small = np.array(areas)[:, :2], np.array(areas)[:, 2:]
    assert small.min() > 0.04 and small.max() < 0.16 and large.max() > 0.5
