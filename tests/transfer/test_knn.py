"""The kNN task against scikit-learn's classifier and a plain loop."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_splits import Rows
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from backbench.config import build
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from transfer import tasks
from transfer.protocol import RunContext
from transfer.tasks import knn


@pytest.fixture
def embedded():
    """Overlapping classes with very different norms, so that the metric matters."""
    generator = torch.Generator().manual_seed(0)

    def make(rows, classes):
        labels = torch.randint(classes, (rows,), generator=generator)
        x = torch.randn(rows, 8, generator=generator) + 0.8 * torch.nn.functional.one_hot(labels, 8)
        return x * torch.rand(rows, 1, generator=generator).add(0.2).pow(2) * 5, labels

    return make


@pytest.fixture
def classify(monkeypatch):
    def run(bank, query, classes, preset, **fields):
        parts = {"train": bank, "test": query}
        names = tuple(str(i) for i in range(classes))
        splits = {role: ImageSplit("made", role, Rows(len(x)), y.numpy(), names) for role, (x, y) in parts.items()}
        monkeypatch.setattr(knn, "extract", lambda b, split, ctx, **_: parts[split.split][0])
        config = build(knn.Config, {**tasks.preset_fields(knn, preset), "preset": preset, **fields})
        ctx = RunContext(splits=splits, seed=0, device=torch.device("cpu"), cache=None)
        return {name: metric.value for name, metric in knn.run(None, config, ctx).items()}

    return run


@pytest.mark.parametrize("k", [1, 5, 11])
def test_wmse_equals_scikit_learn(classify, embedded, k):
    bank, query = embedded(300, 2), embedded(700, 2)  # two classes, odd k: no ties
    found = classify(bank, query, 2, "wmse", k=[k], headline_k=k)
    reference = KNeighborsClassifier(k, metric="euclidean").fit(*(part.numpy() for part in bank))
    expected = 100 * reference.score(query[0].numpy(), query[1].numpy())
    assert found == {f"top1_k{k}": pytest.approx(expected)}
    assert 50 < expected < 95
    cosine = classify(bank, query, 2, "wmse", k=[k], headline_k=k, metric="cosine")
    assert cosine != found, "the metric matters on these features"


@pytest.mark.parametrize("chunk", [7, 65536])
def test_npid_equals_a_plain_loop(classify, embedded, chunk):
    bank, query = embedded(150, 4), embedded(120, 4)
    found = classify(bank, query, 4, "npid", k=[1, 10, 20], headline_k=20, chunk=chunk)
    unit = [x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x, _ in (bank, query)]
    for k in (1, 10, 20):
        for suffix, temperature in (("", 0.07), ("_T0.1", 0.1)):
            right = 0
            for row, label in zip(unit[1], query[1].tolist(), strict=True):
                cosine = unit[0] @ row
                scores = dict.fromkeys(range(4), 0.0)
                for i in np.argsort(-cosine)[:k]:
                    scores[int(bank[1][i])] += math.exp(cosine[i] / temperature)
                right += max(scores, key=scores.get) == label
            assert found[f"top1_k{k}{suffix}"] == pytest.approx(100 * right / 120)
    assert set(found) == {f"top1_k{k}{s}" for k in (1, 10, 20) for s in ("", "_T0.1", "_majority")}


def test_presets_are_those_of_the_literature():
    npid = build(knn.Config, {**tasks.preset_fields(knn, "npid"), "preset": "npid"})
    assert (npid.k, npid.metric, npid.temperature) == ((10, 20, 100, 200), "cosine", 0.07)
    wmse = build(knn.Config, {**tasks.preset_fields(knn, "wmse"), "preset": "wmse"})
    assert (wmse.k, wmse.metric, wmse.temperature) == ((5,), "euclidean", None)
    assert (knn.primary(npid), knn.primary(wmse)) == ("top1_k20", "top1_k5")
    assert knn.TASK.deterministic


def test_more_neighbours_than_images(classify, embedded):
    bank, query = embedded(30, 3), embedded(10, 3)
    with pytest.raises(DataError, match="k=31 is more than the 30 training images"):
        classify(bank, query, 3, "npid", k=[5, 31], headline_k=5)
    assert "top1_k30" in classify(bank, query, 3, "npid", k=[30], headline_k=30)


def test_headline_must_be_measured(classify, embedded):
    with pytest.raises(DataError, match="headline_k 7 is not among k"):
        classify(embedded(30, 3), embedded(10, 3), 3, "npid", k=[5], headline_k=7)


@pytest.mark.parametrize("k", [[5], [10, 200], [100, 200], [20, 200], [200]])
@pytest.mark.parametrize("headline", [0, -1])
def test_the_rehearsal_measures_its_own_headline(classify, embedded, k, headline):
    config = build(knn.Config, {"k": k, "headline_k": k[headline]})
    smaller = build(knn.Config, {**config.model_dump(mode="json"), **knn.smoke(config)})
    assert smaller.headline_k in smaller.k
    found = classify(embedded(60, 3), embedded(10, 3), 3, "npid", k=list(smaller.k), headline_k=smaller.headline_k)
    assert knn.primary(smaller) in found


def test_every_query_is_counted_once(classify, embedded):
    """513 queries, one more than a chunk. Each is in the bank, so 1-NN is right for all except the changed ones."""
    x, labels = embedded(513, 3)
    changed = labels.clone()
    changed[-1] = (changed[-1] + 1) % 3
    found = classify((x, labels), (x, changed), 3, "wmse", k=[1], headline_k=1)
    assert found["top1_k1"] == pytest.approx(100 * 512 / 513)


class _Painted(Rows):
    """Images of one colour each, with names; some cannot be read."""

    def __init__(self, colours, missing=()):
        super().__init__(len(colours))
        self.colours, self.missing = colours, missing

    def name(self, index):
        return f"{index}.png"

    def pil(self, index):
        if index in self.missing:
            raise DataError(f"{index}.png: cannot be read")
        return Image.new("RGB", (40, 30), self.colours[index])


@pytest.fixture
def shown(monkeypatch, tmp_path, embedded):
    """Run the task on painted images, with a folder for its files or without."""
    (bank, known), (query, true) = embedded(60, 3), embedded(40, 3)

    def run(*, folder=tmp_path / "run", missing=(), k=(10,)):
        names = ("cat", "a dog with a very long name", "x")
        sources = {"train": _Painted(["red"] * 60, missing), "test": _Painted(["green"] * 40)}
        labels = {"train": known.numpy(), "test": true.numpy()}
        splits = {role: ImageSplit("made", role, sources[role], labels[role], names) for role in sources}
        monkeypatch.setattr(knn, "extract", lambda b, split, ctx, **_: {"train": bank, "test": query}[split.split])
        config = build(knn.Config, {**tasks.preset_fields(knn, "npid"), "k": list(k), "headline_k": k[0]})
        ctx = RunContext(splits, 0, torch.device("cpu"), None, folder)
        return knn.run(None, config, ctx), ctx, splits

    return SimpleNamespace(run=run, bank=bank, query=query, known=known, true=true, folder=tmp_path / "run")


def test_the_nearest_training_images_of_a_few_test_images_are_kept(shown):
    metrics, _, splits = shown.run()
    told = json.loads((shown.folder / "neighbours.json").read_text())
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:6].tolist()
    assert [query["row"] for query in told["queries"]] == rows, "drawn without a look at the answers"
    bank, query = (torch.nn.functional.normalize(x.double(), dim=1) for x in (shown.bank, shown.query))
    for one in told["queries"]:
        cosine = bank @ query[one["row"]]
        nearest = cosine.argsort(descending=True)[:6].tolist()
        assert [near["row"] for near in one["nearest"]] == nearest
        assert [near["image"] for near in one["nearest"]] == [f"{row}.png" for row in nearest]
        assert [near["similarity"] for near in one["nearest"]] == pytest.approx(cosine[nearest].tolist(), abs=1e-4)
        classes = splits["train"].classes
        assert one["label"] == classes[shown.true[one["row"]]]
        assert [near["label"] for near in one["nearest"]] == [classes[shown.known[row]] for row in nearest]
        assert [near["is_same"] for near in one["nearest"]] == [
            near["label"] == one["label"] for near in one["nearest"]
        ]
    without, ctx, _ = shown.run(folder=Path())
    assert without == metrics and not ctx.keeps_files, "no number depends on the files"


def test_right_and_wrong_neighbours_differ_by_more_than_their_colour(shown):
    shown.run()
    told = json.loads((shown.folder / "neighbours.json").read_text())
    with Image.open(shown.folder / "pictures.png") as page:
        page = page.convert("RGB")
    side, gap, text = 96, 10, 15
    assert page.width == gap + (side + gap) * 7 + gap
    edges = {True: set(), False: set()}
    for line, query in enumerate(told["queries"]):
        top = text + gap // 2 + line * (side + text + gap)
        for place, near in enumerate(query["nearest"]):
            left = 2 * gap + (side + gap) * (1 + place)
            edge = [page.getpixel((left + x, top)) for x in range(side)]
            edges[near["is_same"]].add(len(set(edge)))
    assert edges == {True: {1}, False: {2}}, "a solid frame, and one that shows the image between its dashes"


def test_fewer_neighbours_than_a_row_has_room_for_are_all_shown(shown):
    shown.run(k=(2,))
    told = json.loads((shown.folder / "neighbours.json").read_text())
    assert {len(query["nearest"]) for query in told["queries"]} == {2}


def test_an_image_that_is_gone_costs_the_picture_not_the_number(shown, capsys):
    whole, _, _ = shown.run()
    (shown.folder / "pictures.png").unlink()
    found, _, _ = shown.run(missing=range(60))
    assert found == whole and not (shown.folder / "pictures.png").exists()
    assert "no picture of neighbours" in capsys.readouterr().err
