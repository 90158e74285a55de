"""Linear probe on augmented images, semi-supervised fine-tuning, uniformity: on small real image files."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from backbench.config import build
from backbench.data import catalogue, subsets
from backbench.data.catalogue import DataPlaces
from backbench.errors import DataError
from backbench.files.hashes import file_sha256
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone
from model_zoo.resnet import build as build_trunk
from transfer import features
from transfer.protocol import RunContext
from transfer.tasks import linear_probe, semi_supervised, uniformity

ANY = {"data": {"name": "imagenet", "expect": "any"}}
AUGMENTED = {"features": "augmented", "epochs": 4, "batch": 12, "rates": [0.3], "holdout": 0.0}


@pytest.fixture(scope="module")
def backbone():
    arch = Architecture(name="resnet18", width=0.25)
    return Backbone("tiny", arch, build_trunk(arch, seed=0).state_dict(), InputSpec(size=32), "test", "backbench")


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """3 classes of very different brightness, 12 and 8 images each."""
    root = tmp_path_factory.mktemp("bright")
    write_images(root, train=12, val=8)
    return root


def write_images(root, *, train, val):
    rng = np.random.default_rng(0)
    for split, counts in (("train", train), ("val", val)):
        for label, count in enumerate((counts,) * 3 if isinstance(counts, int) else counts):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 40, (36, 36, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"c{label}_{i}.png")


@pytest.fixture
def run(backbone, tmp_path):
    """Run a task; `change` may replace its splits."""

    def go(task, folder, fields, *, seed=0, change=lambda splits: splits, backbone=backbone):
        config = build(task.Config, {**ANY, **fields})
        splits = change(task.TASK.splits(config, DataPlaces(None, {"imagenet": folder})))
        ctx = RunContext(splits=splits, seed=seed, device=torch.device("cpu"), cache=tmp_path / "cache")
        metrics = task.run(backbone, config, ctx)
        return {name: metric.value for name, metric in metrics.items()}, ctx

    return go


def relabelled(split, labels):
    return dataclasses.replace(split, labels=np.asarray(labels))


# ---------------------------------------------------------------- linear probe on augmented images


def test_a_separable_set_is_learned_on_augmented_images(run, bright):
    found, ctx = run(linear_probe, bright, AUGMENTED)
    assert found["top1"] >= 95
    assert found["top5"] == 100
    assert ctx.tuned == {}, "one rate, nothing chosen"
    assert not list(ctx.cache.glob("training-*")), "the state of a finished training is gone"


@pytest.mark.slow
def test_shuffled_labels_are_at_chance_on_augmented_images(run, bright):
    def shuffle(splits):
        rng = np.random.default_rng(0)
        return {role: relabelled(split, rng.permutation(split.labels)) for role, split in splits.items()}

    found, _ = run(linear_probe, bright, AUGMENTED, change=shuffle)
    assert found["top1"] < 65, "chance is 33, with a standard deviation of 10"


def test_the_test_split_chooses_nothing_on_augmented_images(run, bright):
    sweep = {**AUGMENTED, "rates": [1e-5, 0.3], "holdout": 0.25, "epochs": 2}
    found, ctx = run(linear_probe, bright, sweep)
    assert ctx.tuned["on"] == "9 images held out of train"
    assert ctx.tuned["lr"] == 0.3
    rotate = lambda splits: splits | {"test": relabelled(splits["test"], (splits["test"].labels + 1) % 3)}  # noqa: E731
    other, other_ctx = run(linear_probe, bright, sweep, change=rotate)
    assert other["top1"] < 50 < found["top1"]
    assert other_ctx.tuned == ctx.tuned
    assert np.array_equal(other_ctx.items["best"], ctx.items["best"])


@pytest.mark.slow
def test_held_out_images_are_not_trained_on(run, bright, monkeypatch):
    """Changed labels of held-out images change the held-out score but not the trained heads."""
    sweep = {**AUGMENTED, "rates": [0.1, 0.3], "holdout": 0.25, "epochs": 2}
    _, ctx = run(linear_probe, bright, sweep)
    config = build(linear_probe.Config, {**ANY, **sweep})
    _, held_out = linear_probe.hold_out(36, config, seed=0)

    def turn(splits):
        labels = splits["train"].labels.copy()
        labels[held_out] = (labels[held_out] + 1) % 3
        return splits | {"train": relabelled(splits["train"], labels)}

    heads = []
    real = linear_probe.fit
    monkeypatch.setattr(
        linear_probe, "fit", lambda model, *a, **k: (real(model, *a, **k), heads.append(model.heads))[0]
    )
    _, again = run(linear_probe, bright, sweep)
    _, turned = run(linear_probe, bright, sweep, change=turn)
    assert again.tuned == ctx.tuned
    assert turned.tuned["top1_there"] != ctx.tuned["top1_there"]
    assert all(torch.equal(a, b) for a, b in zip(heads[0].parameters(), heads[1].parameters(), strict=True))


class _Drifting(Backbone):
    """A backbone with a module that changes a statistic at every call."""

    def build(self):
        def drift(part, args):
            part.bn1.running_mean.add_(1e-3)

        module = super().build()
        module.register_forward_pre_hook(drift)
        return module


@pytest.mark.parametrize(
    ("task", "fields"),
    [(linear_probe, {**AUGMENTED, "epochs": 1}), (semi_supervised, {"list": "drawn", "epochs": 1, "batch": 8})],
)
def test_a_frozen_encoder_that_moves_is_noticed(run, bright, backbone, task, fields):
    values = {field.name: getattr(backbone, field.name) for field in dataclasses.fields(backbone)}
    with pytest.raises(features.FrozenMoved, match="frozen encoder changed"):
        run(task, bright, fields, backbone=_Drifting(**values))


def test_features_in_another_order_are_not_found_in_the_cache(run, bright, backbone):
    """Two seeds can hold out the same images in another order."""
    _, ctx = run(linear_probe, bright, {"epochs": 1, "batch": 16})
    train = ctx.splits["train"]
    rows = np.array([3, 30, 17])
    there = features.extract(backbone, train.part(rows), ctx)
    back = features.extract(backbone, train.part(rows[::-1]), ctx)
    assert not torch.allclose(there[0], there[2])
    torch.testing.assert_close(back, there.flip(0))


# ---------------------------------------------------------------- semi-supervised


@pytest.fixture
def many(tmp_path):
    """Classes of 150, 40 and 10 empty image files: only listed, never decoded."""
    root = tmp_path / "many"
    for split, counts in (("train", (150, 40, 10)), ("val", (2, 2, 2))):
        for label, count in enumerate(counts):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"c{label}_{i:03d}.jpg").touch()
    return root


def semi_splits(folder, **fields):
    config = build(semi_supervised.Config, {**ANY, **fields})
    return semi_supervised.splits(config, DataPlaces(None, {"imagenet": folder}))


def names_of(split):
    return [split.source.name(i) for i in range(len(split))]


@pytest.mark.parametrize(("share", "expected"), [("1%", [2, 1, 1]), ("10%", [15, 4, 1])])
def test_a_drawn_share_has_every_class_in_proportion(many, share, expected):
    splits = semi_splits(many, list="drawn", share=share)
    train = splits["train"]
    assert np.bincount(train.labels).tolist() == expected
    assert [int(name[5]) for name in names_of(train)] == train.labels.tolist(), "a label is its image's"
    assert len(set(names_of(train))) == len(train)
    assert names_of(semi_splits(many, list="drawn", share=share)["train"]) == names_of(train), "always the same ones"
    assert len(splits["test"]) == 6
    assert not train.official_part and not catalogue.is_published("imagenet", splits)


def test_a_drawn_share_is_not_the_first_images(many):
    names = names_of(semi_splits(many, list="drawn", share="10%")["train"])
    numbers = [int(name[-7:-4]) for name in names if name.startswith("class0/")]
    assert len(numbers) == 15 and min(numbers) < 75 < max(numbers)
    assert np.ptp(np.diff(numbers)) > 0, "nor every tenth"


def write_list(path, split, rows):
    path.write_text("".join(f"{split.source.name(row).rpartition('/')[2]}\n" for row in rows))
    return str(path)


def test_a_list_by_path(many, tmp_path):
    whole = catalogue.load("imagenet", "train", DataPlaces(None, {"imagenet": many}))
    rows = [0, 5, 149, 150, 160, 189, 190, 195, 30, 31]
    file = write_list(tmp_path / "mine.txt", whole, rows)
    splits = semi_splits(many, list=file, share="10%")
    assert names_of(splits["train"]) == [whole.source.name(row) for row in sorted(rows)]
    assert splits["train"].labels.tolist() == whole.labels[sorted(rows)].tolist()
    assert len(splits["test"]) == 6
    with pytest.raises(DataError, match="not a 1% list"):
        semi_splits(many, list=file, share="1%")
    with pytest.raises(DataError, match=r"nothing\.txt"):
        semi_splits(many, list=str(tmp_path / "nothing.txt"), share="10%")


def test_the_limit_is_of_the_listed_images(many):
    splits = semi_splits(many, list="drawn", share="10%", data={**ANY["data"], "limit": 5})
    whole = names_of(semi_splits(many, list="drawn", share="10%")["train"])
    assert len(splits["train"]) == len(splits["test"]) == 5
    assert set(names_of(splits["train"])) < set(whole)


@pytest.fixture
def published(many, tmp_path, monkeypatch):
    """Make `many` the published images and a list of 20 of them the official list."""
    known = catalogue.info("imagenet")
    counts = {"train": 200, "val": 6, "classes": 3}
    monkeypatch.setitem(catalogue.OWN, "imagenet", known.model_copy(update={"counts": counts}))
    whole = catalogue.load("imagenet", "train", DataPlaces(None, {"imagenet": many}))
    file = tmp_path / "10percent.txt"
    write_list(file, whole, range(0, 200, 10))
    official = subsets.OfficialList(file.name, file_sha256(file), 20, (0.03, 0.3))
    monkeypatch.setitem(subsets.OFFICIAL, "10%", official)
    monkeypatch.setattr(subsets, "fetch", lambda name: file)
    return file


def test_the_official_list_of_the_published_images_is_published(many, published, tmp_path):
    strict = {"data": {"name": "imagenet"}, "share": "10%"}
    for given in ({}, {"list": str(published)}):
        splits = semi_splits(many, **strict, **given)
        assert len(splits["train"]) == 20
        assert splits["train"].official_part
        assert catalogue.is_published("imagenet", splits)
    limited = semi_splits(many, share="10%", data={"name": "imagenet", "limit": 19})
    assert not catalogue.is_published("imagenet", limited)
    other = tmp_path / "other.txt"
    other.write_text("".join(reversed(published.read_text().splitlines(keepends=True))))
    drawn = semi_splits(many, **strict, list="drawn")
    for splits in (drawn, semi_splits(many, **strict, list=str(other))):
        assert len(splits["train"]) == 20, "as many images, but not the official bytes"
        assert not splits["train"].official_part
        assert not catalogue.is_published("imagenet", splits)


def test_the_official_list_of_other_images_is_not_published(many, published):
    (many / "train" / "class0" / "more.jpg").touch()
    with pytest.raises(DataError, match="published"):
        semi_splits(many, data={"name": "imagenet"}, share="10%")
    splits = semi_splits(many, share="10%")
    assert len(splits["train"]) == 20
    assert not splits["train"].official_part
    assert not catalogue.is_published("imagenet", splits)


@pytest.mark.parametrize("rate", [0.0, 0.001])
def test_the_record_says_whether_the_encoder_was_frozen(run, bright, rate):
    fields = {"list": "drawn", "share": "10%", "epochs": 2, "batch": 4, "rate_head": 0.1, "rate_encoder": rate}
    _, ctx = run(semi_supervised, bright, fields)
    (note,) = ctx.notes
    assert ("frozen" in note) == (rate == 0)
    assert ("fine-tuned at rate 0.001" in note) == (rate > 0)
    assert not list(ctx.cache.glob("*")), "features of a trained encoder are not kept, nor is its state"


@pytest.mark.slow
def test_fine_tuning_learns_a_separable_set_and_leaves_the_backbone_alone(run, tmp_path, backbone):
    write_images(tmp_path / "more", train=60, val=8)
    before = {name: value.clone() for name, value in backbone.state.items()}
    fields = {"list": "drawn", "share": "10%", "epochs": 20, "batch": 9, "rate_head": 0.1, "rate_encoder": 0.001}
    found, ctx = run(semi_supervised, tmp_path / "more", fields)
    assert found["top1"] > 80
    assert found["top1"] == 100 * np.mean(ctx.items["best"][:, 0] == ctx.items["labels"])
    assert all(torch.equal(value, before[name]) for name, value in backbone.state.items())


# ---------------------------------------------------------------- uniformity


def test_uniformity_is_that_of_two_seeded_views_of_every_test_image(run, bright, backbone):
    from transfer.augment import SeededViews

    few = {"data": {**ANY["data"], "limit": 12}}
    found, ctx = run(uniformity, bright, few, seed=4)
    views = SeededViews(ctx.splits["test"], uniformity.views_of("byol_pair", 32), seed=4)
    mean, std = (torch.tensor(v) for v in (backbone.input.mean, backbone.input.std))
    module = backbone.build().eval()
    x = []
    for epoch in range(2):
        pixels = torch.stack([torch.from_numpy(views[epoch, i][0]) for i in range(12)])
        with torch.no_grad():
            x.append(F.normalize(module(((pixels / 255 - mean) / std).permute(0, 3, 1, 2)).double(), dim=1))
    pairs = [math.log(torch.exp(-2 * torch.pdist(view).pow(2)).mean()) for view in x]
    assert found["uniformity"] == pytest.approx(sum(pairs) / 2, abs=1e-4)
    assert found["alignment"] == pytest.approx(float((x[0] - x[1]).norm(dim=1).pow(2).mean()), rel=1e-3)
    assert found["alignment"] > 1e-3 and found["uniformity"] < -1e-3
    assert run(uniformity, bright, few, seed=4)[0] == found
    assert run(uniformity, bright, few, seed=5)[0] != found
    for other in ("crop", "table9", "byol"):
        assert run(uniformity, bright, {**few, "views": other}, seed=4)[0] != found


def test_the_field_t_is_the_potentials(run, bright):
    usual, half = (run(uniformity, bright, {"t": t})[0] for t in (2.0, 1.0))
    assert usual["alignment"] == half["alignment"]
    assert usual["uniformity"] < half["uniformity"] < usual["uniformity"] / 2 + 1e-6, "log mean exp is convex in t"


def test_identical_views_are_aligned(run, bright, monkeypatch):
    def centre(name, size):
        return (lambda image: image.resize((size, size)),) * 2

    monkeypatch.setattr(uniformity, "views_of", centre)
    found, _ = run(uniformity, bright, {})
    assert found["alignment"] == pytest.approx(0, abs=1e-6)
    assert found["uniformity"] < -1e-3


class _Collapsed(Backbone):
    """A network with the same output for every image."""

    def build(self):
        module = super().build()
        module.register_forward_hook(lambda part, args, out: torch.ones_like(out))
        return module


def test_collapsed_features_are_aligned_and_not_uniform(run, bright, backbone):
    values = {field.name: getattr(backbone, field.name) for field in dataclasses.fields(backbone)}
    found, ctx = run(uniformity, bright, {}, backbone=_Collapsed(**values))
    assert ctx.notes == ["collapsed: the features of imagenet val are the same for all 48 images"]
    assert found == {"alignment": pytest.approx(0, abs=1e-6), "uniformity": pytest.approx(0, abs=1e-5)}


def test_uniformity_says_that_lower_is_better(backbone, bright, tmp_path):
    config = build(uniformity.Config, ANY)
    splits = uniformity.TASK.splits(config, DataPlaces(None, {"imagenet": bright}))
    ctx = RunContext(splits=splits, seed=0, device=torch.device("cpu"), cache=tmp_path)
    metrics = uniformity.run(backbone, config, ctx)
    assert {name: (m.higher_is_better, m.unit) for name, m in metrics.items()} == {
        "alignment": (False, ""),
        "uniformity": (False, ""),
    }
    assert uniformity.primary(config) == "uniformity"


def test_one_image_has_no_uniformity(run, bright):
    with pytest.raises(DataError, match="at least two images"):
        run(uniformity, bright, {"data": {**ANY["data"], "limit": 1}})
