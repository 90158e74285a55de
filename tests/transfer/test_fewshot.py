"""Few-shot episodes: the source's prototypes, scikit-learn's regressions, and what the episodes contain."""

import numpy as np
import pytest
import torch
from made_splits import Rows
from sklearn.linear_model import LogisticRegression

from backbench.config import build
from backbench.data.splits import ImageSplit
from backbench.data.transforms import stretched_view
from backbench.errors import DataError
from transfer import logistic, tasks
from transfer.feature_spec import FeatureSpec
from transfer.protocol import RunContext
from transfer.tasks import fewshot


def made(classes, each, features=30, *, seed=0, lean=0.7):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    x = np.abs(rng.normal(size=(len(labels), features)) + lean * rng.normal(size=(classes, features))[labels])
    return torch.from_numpy(x.astype(np.float32)), labels


def episodes(count, ways, images, features, seed=1):
    x, _ = made(count * ways, images, features, seed=seed)
    return x.view(count, ways, images, features)


def source_answers(support_WSC, queries_MC):
    """few_shot.py's distances, written out: the squared difference to each class mean, summed."""
    prototypes = support_WSC.mean(axis=1)
    return [int(np.argmin([((query - one) ** 2).sum() for one in prototypes])) for query in queries_MC]


@pytest.mark.parametrize("shots", [1, 5])
def test_the_nearest_prototype_is_the_sources(shots):
    x = episodes(4, 3, shots + 6, 12)
    found = fewshot.nearest_prototypes(x, shots)
    for one, answers in zip(x.double().numpy(), found.tolist(), strict=True):
        assert answers == source_answers(one[:, :shots], one[:, shots:].reshape(-1, 12))
    assert found.shape == (4, 18) and len(set(found.flatten().tolist())) == 3


@pytest.mark.parametrize("features", [40, 8], ids=["few rows", "more rows than features"])
@pytest.mark.sample(1)
def test_regressions_are_scikit_learns(features):
    """Rows of length 1 and C = 1, as Tian et al. fit them."""
    x = episodes(3, 4, 5 + 8, features)
    found, unfinished = fewshot.logistic_answers(x, 5)
    same = 0
    for one, answers in zip(x.double().numpy(), found.tolist(), strict=True):
        one = one / np.linalg.norm(one, axis=2, keepdims=True)
        loop = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000)
        loop.fit(one[:, :5].reshape(-1, features), np.repeat(np.arange(4), 5))
        same += sum(np.array(answers) == loop.predict(one[:, 5:].reshape(-1, features)))
    assert unfinished == 0 and same >= 3 * 32 - 1


def test_regressions_on_rows_of_their_own_equal_single_ones():
    x = torch.nn.functional.normalize(episodes(5, 3, 6, 20), dim=3)
    support, queries = x[:, :, :4].flatten(1, 2), x[:, :, 4:].flatten(1, 2)
    y = torch.arange(3).repeat_interleave(4)
    found, unfinished = logistic.scores_apart(support, y.expand(5, -1), queries, 3, 0.1, iterations=100)
    assert unfinished == 0 and found.shape == (6, 5, 3)
    for b in range(5):
        rows = logistic.Rows(support[b], torch.device("cpu"))
        (fit,) = logistic.fit_path(rows, y[:, None], 3, [0.1], iterations=100)
        torch.testing.assert_close(found[:, b], fit.scores(rows.project(queries[b]))[:, 0], rtol=0.01, atol=0.01)


# ---------------------------------------------------------------- the task


@pytest.fixture
def measure(monkeypatch):
    def run(train, test, *, seed=0, **fields):
        classes = tuple(str(i) for i in range(int(train[1].max()) + 1))
        parts = {"train": train, "test": test}
        splits = {role: ImageSplit("made", role, Rows(len(y)), y, classes) for role, (_, y) in parts.items()}
        monkeypatch.setattr(fewshot, "extract", lambda b, split, ctx, spec: parts[split.split][0])
        config = build(fewshot.Config, {"size": 32, "episodes": 30, "episodes_all": 5, **fields})
        ctx = RunContext(splits=splits, seed=seed, device=torch.device("cpu"), cache=None)
        return {name: metric.value for name, metric in fewshot.run(None, config, ctx).items()}, ctx

    return run


def test_every_number_of_ways_and_shots_has_a_mean_and_an_interval(measure):
    found, ctx = measure(made(7, 20), made(7, 10, seed=2), shots=(1, 5))
    names = {
        f"top1_{ways}way_{shots}shot{kind}" for ways in ("5", "all") for shots in (1, 5) for kind in ("", "_logistic")
    }
    assert set(found) == names | {f"{name}_ci95" for name in names}
    for name in names:
        accuracy = ctx.items[name]
        assert len(accuracy) == (30 if "5way" in name else 5)
        assert found[name] == pytest.approx(accuracy.mean())
        assert found[f"{name}_ci95"] == pytest.approx(1.96 * np.std(accuracy) / np.sqrt(len(accuracy)))
    assert found["top1_5way_1shot"] < found["top1_5way_5shot"], "more shots help"
    assert found["top1_allway_5shot"] < found["top1_5way_5shot"], "more classes are harder"
    assert found["top1_5way_1shot"] > 25, "above chance"
    assert fewshot.primary(fewshot.Config()) == "top1_5way_5shot" in found


def test_episodes_hold_different_images_of_their_classes(measure):
    labels = np.repeat(np.arange(9), 25)
    _, ctx = measure(made(9, 25), made(9, 2, seed=3), shots=(5,))
    rows = fewshot._episodes(labels, 5, 5, fewshot.Config(episodes=40), ctx)
    assert rows.shape == (40, 5, 20)
    for episode in rows:
        assert len(set(episode.flatten().tolist())) == 100, "no image is there twice"
        classes = labels[episode]
        assert (classes == classes[:, :1]).all() and len(set(classes[:, 0].tolist())) == 5
    again = fewshot._episodes(labels, 5, 5, fewshot.Config(episodes=40), ctx)
    assert np.array_equal(rows, again)
    ctx.seed = 1
    assert not np.array_equal(rows, fewshot._episodes(labels, 5, 5, fewshot.Config(episodes=40), ctx))


def test_rows_are_counted_over_both_splits():
    train, test = torch.arange(6.0).view(3, 2), torch.arange(100.0, 108.0).view(4, 2)
    rows = torch.tensor([[0, 3], [6, 2]])
    assert torch.equal(fewshot._taken([train, test], rows), torch.cat([train, test])[rows])


def test_classes_with_too_few_images_are_left_out_with_a_note(measure):
    x, labels = made(6, 20)
    kept = np.flatnonzero((labels != 2) | (np.arange(len(labels)) % 20 < 4))
    _, ctx = measure((x[kept], labels[kept]), made(6, 1, seed=4), shots=(5,), ways=(0,))
    assert any("5 shots: 1 of 6 classes have too few images" in note for note in ctx.notes)
    with pytest.raises(DataError, match=r"0 of 6 classes have 45 images for 30 shots and 15 queries"):
        measure((x[kept], labels[kept]), made(6, 1, seed=4), shots=(30,), headline_shots=30)


def test_the_headline_must_be_measured(measure):
    with pytest.raises(DataError, match="headline_shots 5 is not among shots"):
        measure(made(6, 20), made(6, 10), shots=(1,))


def test_the_sources_view_stretches_and_crops():
    from PIL import Image
    from torchvision import transforms

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8))
    theirs = transforms.Compose([transforms.Resize([257, 257]), transforms.CenterCrop(224)])(image)
    assert np.array_equal(stretched_view(image, 224, resize=257), np.asarray(theirs))
    assert np.array_equal(FeatureSpec(224, 257, stretch=True).view(image), np.asarray(theirs))
    preset = build(
        fewshot.Config, {**tasks.preset_fields(tasks.get("fewshot"), "ssl_transfer"), "preset": "ssl_transfer"}
    )
    assert preset.stretch and preset.ways == (5,)


def test_features_of_usual_views_keep_their_key():
    assert set(FeatureSpec(224, 256).key()) == {"size", "resize", "pooling", "squash", "interpolation"}
    assert FeatureSpec(224, 257, stretch=True).key() != FeatureSpec(224, 257).key()
