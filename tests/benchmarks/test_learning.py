"""Learning curves and pictures of a cell's runs in its drawer, and pretrainings found beside their checkpoints."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from benchmarks import report
from benchmarks.records import store
from benchmarks.report import learning, pictures
from benchmarks.report.table import gather


def lines(*points, over="epoch", **more):
    return "".join(json.dumps({over: x, "loss": y, **more}) + "\n" for x, y in points)


@pytest.fixture
def ran(tmp_path, make):
    """Write a record with files in its run's folder."""

    def write(value, *, losses=None, picture=None, task="linear_probe", **fields):
        record = make(value, **fields)
        record = record.model_copy(update={"task": record.task.model_copy(update={"name": task})})
        store.write(tmp_path, record)
        folder = store.run_folder(tmp_path, record)
        folder.mkdir(parents=True, exist_ok=True)
        if losses is not None:
            (folder / "losses.jsonl").write_text(losses)
        if picture is not None:
            picture.save(folder / "pictures.png")
        return record

    return write


def polylines(svg):
    """The lines of a plot but for its axes and legend: the paths that are clipped to a panel."""
    return re.findall(r'<path d="[^"]*" clip-path="[^"]*"[^>]*>', svg)


def test_every_seed_is_a_line_and_every_backbone_a_colour(tmp_path, ran):
    records = [
        ran(50.0 + seed, seed=seed, name=name, weights=weights, losses=lines((1.0, 2.0), (2.0, 1.0 + seed)))
        for name, weights in (("mine", "a"), ("other", "b"), ("random:resnet50", "r"))
        for seed in (0, 1)
    ]
    table = gather(records)
    found = learning.runs(table.rows, table.columns[0], tmp_path)
    assert {name: len(runs) for name, runs in found.items()} == {
        "mine (resnet50)": 2,
        "other (resnet50)": 2,
        "random:resnet50": 2,
    }
    drawn = polylines(learning.plot(found))
    assert len(drawn) == 6
    hues = [re.search(r"stroke: (var\(--\w+)", path)[1] for path in drawn]
    assert hues[0] == hues[1] != hues[2] == hues[3] and hues[4] == hues[5] == "var(--random"


def test_a_detectors_losses_have_a_panel_each(tmp_path, ran):
    text = lines((0, 3.0), (20, 2.0), over="iteration", loss_cls=1.0, loss_box_reg=0.5, lr=0.02)
    record = ran(50.0, cell="voc0712_detection", metric="AP", losses=text)
    table = gather([record])
    svg = learning.plot(learning.runs(table.rows, table.columns[0], tmp_path))
    assert len(polylines(svg)) == 3
    words = re.findall(r">([^<>]+)</text>", svg)
    assert {"loss", "loss_cls", "loss_box_reg", "iteration"} <= set(words) and "lr" not in words


def test_many_points_are_means_over_equal_stretches():
    points = [(float(x), float(x % 2)) for x in range(1, 801)]
    thinned = learning._thinned(points)
    assert len(thinned) == 80 and [x for x, _ in thinned] == list(range(10, 801, 10))
    assert {y for _, y in thinned} == {0.5}
    assert learning._thinned(points[:80]) == points[:80] and learning._thinned([]) == []


def test_a_run_without_losses_is_not_drawn(tmp_path, ran):
    records = [ran(50.0), ran(40.0, name="b", weights="b", losses="{}\n"), ran(30.0, name="c", weights="c", losses="x")]
    table = gather(records)
    assert learning.runs(table.rows, table.columns[0], tmp_path) == {} and learning.plot({}) is None
    assert learning.CAPTION not in report.write(tmp_path).read_text()


def test_the_drawer_shows_the_curves_of_its_cell(tmp_path, ran):
    ran(50.0, losses=lines((1.0, 2.0), (2.0, 1.0)))
    assert report.write(tmp_path).read_text().count(learning.CAPTION) == 1


def embedded(page):
    """The sizes in bytes and pixels of the page's pictures, and their captions."""
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]*)" alt="([^"]*)"', page)
    data = [(base64.b64decode(text), words) for text, words in found]
    return [(len(raw), Image.open(io.BytesIO(raw)).size, words) for raw, words in data]


def test_a_large_picture_is_made_small(tmp_path, ran):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    ran(50.0, picture=Image.fromarray(noise))
    ((size, (width, height), _),) = embedded(report.write(tmp_path).read_text())
    assert size < 250_000 and 400 < width == height < 1200, "noise is the worst case: it is cut to the smallest scale"


def test_a_small_picture_keeps_its_pixels(tmp_path, ran):
    ran(50.0, task="knn", cell="imagenet_knn", metric="top1_k20", picture=Image.new("RGB", (300, 200), "red"))
    ((size, pixels, words),) = embedded(report.write(tmp_path).read_text())
    assert pixels == (300, 200) and size < 5_000
    assert words.startswith("mine, imagenet_knn, seed 0: Test images") and "a tick" in words


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("voc_detection", "objects (green)"),
        ("semantic_segmentation", "true masks"),
        ("another", "Pictures of the runs"),
    ],
)
def test_a_caption_says_what_the_picture_shows(tmp_path, ran, task, words):
    ran(50.0, task=task, picture=Image.new("RGB", (9, 9)))
    assert words in embedded(report.write(tmp_path).read_text())[0][2]


def test_the_best_backbones_and_a_random_one_have_pictures_the_others_are_counted(tmp_path, ran):
    small = Image.new("RGB", (9, 9))
    for value, name in enumerate("abcdef"):
        ran(50.0 + value, name=name, weights=name, picture=small)
    ran(10.0, name="random:resnet50", weights="9", picture=small)
    ran(60.0, name="f", weights="f", seed=1, picture=small)
    page = report.write(tmp_path).read_text()
    assert [words.split(",")[0] for _, _, words in embedded(page)] == ["f", "e", "d", "random:resnet50"]
    assert "Pictures of 3 more backbones are in the folders of their runs." in page


def test_pictures_need_a_folder_of_results(make):
    table = gather([make(50.0)])
    assert pictures.pictures(table.rows, table.columns[0], None) == pictures.Pictures()


def test_a_pretraining_beside_its_checkpoint_is_found_again(tmp_path, make):
    (run := tmp_path / "run").mkdir()
    (run / "model.pth").write_bytes(b"")
    (run / "metrics.jsonl").write_text(lines((1.0, 2.0), (2.0, 1.0)))
    out = tmp_path / "out"
    store.write(out, make(50.0, source=str(run / "model.pth")))
    store.write(out, make(40.0, name="second", weights="b", source=str(run / "model.pth")))
    page = report.write(out).read_text()
    assert page.count("<h2>Pretraining") == 1 and page.count("<figcaption>mine</figcaption>") == 1
    assert "<figcaption>second</figcaption>" not in page, "one run, one plot"
    page = report.write(out, curves={"given": run / "metrics.jsonl"}).read_text()
    assert "<figcaption>given</figcaption>" in page and "<figcaption>mine</figcaption>" not in page
    (run / "model.pth").unlink()
    assert "<h2>Pretraining" not in report.write(out).read_text(), "the checkpoint is gone: whose curves are these?"


@pytest.mark.parametrize(
    "source", ["", "random:resnet50", "\0", "x" * 5000, "https://example.org/x.pth", "~nobody/x.pth", "/"]
)
def test_a_source_that_is_no_file_has_no_curves(make, source):
    assert learning.pretrainings([make(50.0, source=source)], {}) == {}
