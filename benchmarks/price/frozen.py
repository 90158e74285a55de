"""The work of cells on frozen features, counted from their configuration."""

from __future__ import annotations

from typing import Any

from backbench.data import catalogue
from benchmarks.price.work import PER_FLOP, Work, features_of, operations_at
from model_zoo.backbone import Backbone
from transfer.pooling import CELLS

_NEWTON = 25  # products with the features that a fit of SVMs takes (VOC07: 35 s on a core of 20 Gflop/s in float64)
_LBFGS = 8  # iterations of L-BFGS for a penalty, two products each (DTD: 0.22 s a penalty on such a core in float32)


def knn(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """Features of both splits, and one matrix product."""
    train, test, _ = counts
    width = backbone.feature_dim
    chunk = min(config.chunk, train)
    memory = 4.0 * (chunk * width + 3 * min(2048, test) * chunk)
    return features_of(config, backbone, train + test), Work(products=2.0 * train * test * width, memory=memory)


def linear(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """All rates on the same features, or on the same forward passes."""
    train, test, classes = counts
    held_out = min(round(train * config.holdout), config.holdout_max)
    seen = config.epochs * (train - held_out)
    width = backbone.feature_dim * CELLS[config.feature]
    weights = width * classes * len(config.rates)
    steps = seen / config.batch
    heads = Work(products=4.0 * seen * weights + 20.0 * steps * weights, memory=12.0 * weights)  # update: 20 a weight
    if config.features == "cached":
        return features_of(config, backbone, train + test), heads
    one = operations_at(config, backbone)
    images = Work(crops=seen, forward=seen * one, memory=config.batch * one * PER_FLOP / 8)
    return features_of(config, backbone, held_out + test), heads + images


def robustness(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """The linear probe, and the features of the test sets; ReaL has the images of the test split."""
    shared, heads = linear(config, backbone, counts)
    limit = config.data.limit or 10**12
    sets = [catalogue.info(f"imagenet_{name}") for name in config.sets if name != "real"]
    images = sum(min(each.counts[each.test], limit) for each in sets)
    return shared + features_of(config, backbone, images), heads


def attentive(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """All probes on the same forward passes."""
    train, test, classes = counts
    aside = int(config.holdout * train)
    batch = min(config.batch, train - aside)
    seen, one, width = config.steps * batch, operations_at(config, backbone), backbone.feature_dim
    probes = len(config.rates) * len(config.decays)
    tokens = ((config.size or backbone.input.size) / (32 if backbone.is_resnet else 16)) ** 2
    pool = 2 * tokens * width * width / config.head_width  # scores of the tokens, and their mean
    products = 6.0 * seen * probes * (pool + width * (width + classes))
    weights = probes * width * (2 * width + classes)
    memory = 16.0 * weights + batch * one * PER_FLOP / 8 + 8.0 * batch * probes * width * width / config.head_width
    images = Work(views=aside + test, crops=seen, forward=(seen + aside + test) * one)
    return Work(), images + Work(products=products + 20.0 * config.steps * weights, memory=memory)


def logistic(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """All penalties on the rows to fit on, then on all rows as far as the chosen one, taken as the middle."""
    train, test, classes = counts
    axes = min(train, backbone.feature_dim)
    fits = config.penalties * (1.5 - config.holdout)
    found = Work(products=fits * _LBFGS * 4.0 * train * axes * classes, memory=8.0 * train * axes)
    return features_of(config, backbone, train + test), found


def fewshot(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """The logistic regressions of all episodes; the nearest prototype is one product."""
    train, test, classes = counts
    found = Work()
    for ways in config.ways:
        of, episodes = ways or classes, config.episodes if ways else config.episodes_all
        for shots in config.shots:
            axes = min(of * shots, backbone.feature_dim)
            one = _LBFGS * 4.0 * of * shots * axes * of + 4.0 * of * config.queries * of * backbone.feature_dim
            found += Work(products=episodes * one)
    return features_of(config, backbone, train + test), found


def uniformity(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """Two views of every test image, and all their distances."""
    test, width = counts[1], backbone.feature_dim
    one = operations_at(config, backbone)
    memory = 4.0 * (2 * test * width + 3 * 1024 * test)
    return Work(), Work(crops=2 * test, forward=2 * test * one, products=4.0 * test * test * width, memory=memory)


def diagnostics(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """Three spectra, neighbours and clusters of the features, and LiDAR's views."""
    images, width = min(counts[1], config.images), backbone.feature_dim
    crops = min(images, config.lidar_images) * (config.lidar_views or 0)
    # Pairs: all for uniformity, all for the two neighbours, half of them for the clusters' neighbours; 25 rounds of k-means.
    pairs = 5.0 * images * images * width + 100.0 * images**1.5 * width
    grams = 6.0 * images * width * width + 2.0 * crops * width * width  # three spectra, LiDAR's covariance
    memory = 4.0 * width * (3 * images + crops) + 8.0 * width * width
    one = operations_at(config, backbone)
    own = Work(crops=crops, forward=crops * one, products=pairs, machines=grams, memory=memory)
    return features_of(config, backbone, counts[1]), own


def svm(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """All classes, costs and folds."""
    train, test, classes = counts
    width = backbone.feature_dim * CELLS[config.feature]
    if hasattr(config, "folds"):
        problems = classes * (1 + (config.folds * len(config.costs) if len(config.costs) > 1 else 0))
        rows = float(train * problems)
    else:
        rows = float(sum(config.k) * (1 + config.negatives) * config.samples * classes)
    machines = Work(machines=_NEWTON * 4.0 * rows * width, library="scikit-learn")
    return features_of(config, backbone, train + test), machines
