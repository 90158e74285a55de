"""Average precision: by hand, against loops over thresholds, and independent of the order of the images."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from transfer.metrics import ResampledAreaAp, area_ap, class_aps, eleven_point_ap


def curve(scores, positive):
    """Return (recall as a fraction, precision) at every distinct score, by counting."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        taken = [bool(p) for s, p in zip(scores, positive, strict=True) if s >= threshold]
        points.append((sum(taken), sum(taken) / len(taken)))
    return points


def area_by_loop(scores, positive):
    """Sum, over whole steps of recall, of the best precision at that recall or more."""
    total = int(np.sum(positive))
    points = curve(scores, positive)
    return sum(max(p for hits, p in points if hits >= step) for step in range(1, total + 1)) / total


def eleven_by_loop(scores, positive):
    total = int(np.sum(positive))
    points = curve(scores, positive)
    return sum(max(p for hits, p in points if 10 * hits >= tenth * total) for tenth in range(11)) / 11


def area_one_by_one(scores, positive):
    """As in the references: image by image, recall 0 prepended, the envelope from the end, the steps of recall."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    recall, precision, hits = [0.0], [0.0], 0
    for taken, i in enumerate(order, start=1):
        hits += int(positive[i])
        recall.append(hits / sum(positive))
        precision.append(hits / taken)
    recall.append(1.0)
    precision.append(0.0)
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


def made(seed, distinct):
    """200 images, a fifth positive and scored a little higher; `distinct` values of the score, 0 for no ties."""
    rng = np.random.default_rng(seed)
    positive = rng.random(200) < 0.2
    scores = rng.normal(size=200) + 0.7 * positive
    return (np.round(scores * distinct) / distinct if distinct else scores), positive


@pytest.mark.parametrize(
    ("positive", "area", "eleven"),
    [
        ([1, 1, 0, 0], 1.0, 1.0),
        ([0, 0, 1], 1 / 3, 1 / 3),
        ([1, 0, 1], (1 + 2 / 3) / 2, (6 * 1 + 5 * 2 / 3) / 11),  # recall 0 to 0.5 at precision 1, then at 2/3
        ([0, 1, 1], 2 / 3, 2 / 3),  # interpolated: 1/2 at recall 0.5 counts as the later 2/3
        ([1], 1.0, 1.0),
    ],
)
def test_by_hand(positive, area, eleven):
    scores = -np.arange(len(positive), dtype=float)
    assert area_ap(scores, np.array(positive, bool)) == pytest.approx(area)
    assert eleven_point_ap(scores, np.array(positive, bool)) == pytest.approx(eleven)


def test_recall_of_three_in_ten_is_three_tenths():
    positive = np.array([1, 1, 1] + [0] * 20 + [1] * 7, bool)  # precision 1 down to 3 of 10, then at most 10/30
    assert eleven_point_ap(-np.arange(30.0), positive) == pytest.approx((4 * 1 + 7 * 10 / 30) / 11)


@pytest.mark.parametrize("distinct", [0, 1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_equals_a_loop_over_thresholds(seed, distinct):
    scores, positive = made(seed, distinct)
    assert area_ap(scores, positive) == pytest.approx(area_by_loop(scores, positive), abs=1e-12)
    assert eleven_point_ap(scores, positive) == pytest.approx(eleven_by_loop(scores, positive), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_references_way_where_no_scores_are_equal(seed):
    scores, positive = made(seed, 0)
    area = area_ap(scores, positive)
    assert area == pytest.approx(area_one_by_one(scores, positive), abs=1e-12)
    assert area > average_precision_score(positive, scores) + 1e-4, "interpolated: not scikit-learn's"


@pytest.mark.parametrize("ap", [area_ap, eleven_point_ap])
def test_equal_scores_enter_together(ap):
    assert ap(np.zeros(8), np.array([1, 1, 0, 0, 0, 0, 0, 0], bool)) == pytest.approx(0.25)
    assert ap(np.zeros(8), np.array([0, 0, 0, 0, 0, 0, 1, 1], bool)) == pytest.approx(0.25)


@pytest.mark.parametrize("ap", [area_ap, eleven_point_ap])
def test_the_order_of_the_images_changes_nothing(ap):
    scores, positive = made(0, 2)
    expected = ap(scores, positive)
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(scores))
        assert ap(scores[order], positive[order]) == expected
    reversed_by_one = {
        round(area_one_by_one(scores[o], positive[o]), 9) for o in (np.arange(200), np.arange(200)[::-1])
    }
    assert len(reversed_by_one) == 2, "these ties matter when images are taken one by one"


@pytest.mark.parametrize("ap", [area_ap, eleven_point_ap])
def test_what_has_no_value_is_refused(ap):
    with pytest.raises(ValueError, match="without a positive"):
        ap(np.array([0.5, 0.1]), np.array([False, False]))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            ap(np.array([bad, 0.1]), np.array([True, False]))


def test_images_labelled_zero_do_not_count_for_their_class():
    scores = np.array([[4.0, 1.0], [3.0, 2.0], [2.0, 3.0], [1.0, 4.0]])
    labels = np.array([[0, -1], [1, 1], [-1, 0], [1, 1]], np.int8)
    found = class_aps(area_ap, scores, labels)
    assert found.tolist() == pytest.approx([(1 + 2 / 3) / 2, 1.0])  # without image 0; without image 2


@pytest.mark.parametrize("ties", [False, True])
def test_resamples_at_once_are_resamples_one_by_one(ties):
    generator = np.random.default_rng(0)
    scores = generator.normal(size=60).round(1 if ties else 9)
    positive = generator.random(60) < 0.2
    rows = generator.integers(60, size=(40, 60))
    times = np.stack([np.bincount(row, minlength=60) for row in rows], axis=1)
    counted = generator.random(60) < 0.8
    found = ResampledAreaAp(scores, positive, counted)(times)
    kept = [row[counted[row]] for row in rows]
    assert found == pytest.approx([area_ap(scores[row], positive[row]) for row in kept], abs=1e-12)
    once = ResampledAreaAp(scores, positive, np.ones(60, bool))(np.ones((60, 1), int))
    assert once == pytest.approx(area_ap(scores, positive))


def test_a_resample_without_a_positive_has_no_average_precision():
    scores, positive, all_of_them = np.array([3.0, 2.0, 1.0]), np.array([True, False, False]), np.ones(3, bool)
    found = ResampledAreaAp(scores, positive, all_of_them)(np.array([[0, 1], [2, 2], [1, 0]]))
    assert np.isnan(found[0]) and found[1] == 1.0
    for positive, counted in ((np.zeros(3, bool), all_of_them), (np.ones(3, bool), np.zeros(3, bool))):
        assert np.isnan(ResampledAreaAp(scores, positive, counted)(np.ones((3, 2), int))).all()
