"""Parts of COCO's training images by seed: the draw, the cells, the data set, the record."""

from __future__ import annotations

import json

import numpy as np
import pytest

from backbench.config import digest
from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.errors import ConfigError, DataError
from benchmarks import plan
from benchmarks.price.cells import images_of
from transfer.detection import run
from transfer.detection.annotations import native_data
from transfer.detection.annotations.layouts import read_coco
from transfer.detection.annotations.part import Part

COUNT = 118_287  # images of train2017


@pytest.mark.parametrize(("percent", "images"), [(1, 1182), (5, 5914), (10, 11_828)])
@pytest.mark.parametrize("fold", [1, 2, 5])
def test_a_part_is_the_beginning_of_the_seeds_permutation(percent, images, fold, tmp_path):
    """The script's steps in another form: seed the global generator, permute all rows, keep the whole number of percents."""
    np.random.seed(fold)
    expected = np.random.permutation(COUNT)[: int(percent / 100.0 * COUNT)]
    found = Part(percent, fold).rows(COUNT, tmp_path)
    assert found == set(expected.tolist()) and len(found) == images
    np.random.seed(fold)
    assert found == set(np.random.choice(range(COUNT), size=images, replace=False).tolist()), "the script's own call"
    assert found != Part(percent, fold + 1).rows(COUNT, tmp_path)


def test_a_part_without_an_image_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"instances\.json: 1% of 99 images are none; give a larger share"):
        Part(1, 1).rows(99, tmp_path / "instances.json")


def as_coco(root, scenes, *, train: int = 40, test: int = 2) -> None:
    """A COCO folder whose images stand in the file in another order than that of their ids, as in COCO's own."""
    (root / "annotations").mkdir()
    for name, count, first in (("train2017", train, 0), ("val2017", test, 100)):
        record = native_data.in_coco_format(scenes(root / name, count, first=first), difficult=False)
        record["images"] = [record["images"][row] for row in np.random.default_rng(0).permutation(count)]
        (root / f"annotations/instances_{name}.json").write_text(json.dumps(record))


@pytest.mark.parametrize("fold", [1, 2])
def test_rows_count_in_the_files_order_and_images_outside_the_part_may_be_absent(fold, scenes, tmp_path):
    as_coco(tmp_path, scenes)
    listed = json.loads((tmp_path / "annotations/instances_train2017.json").read_text())["images"]
    np.random.seed(fold)
    chosen = set(np.random.choice(range(40), size=4, replace=False).tolist())
    expected = sorted(image["id"] for row, image in enumerate(listed) if row in chosen)
    whole = read_coco(tmp_path, "train2017")
    manifest = whole.manifest_sha256()
    for row, image in enumerate(listed):
        if row not in chosen:
            (tmp_path / "train2017" / image["file_name"]).unlink()
    split = read_coco(tmp_path, "train2017", part=Part(10, fold))
    assert [int(picture.id) for picture in split.pictures] == expected
    assert split.split == f"train2017.{fold}@10" and split.part_of == ("train2017", 40)
    assert {p.id: p for p in split.pictures}.items() <= {p.id: p for p in whole.pictures}.items()
    assert split.manifest_sha256() != manifest


@pytest.mark.parametrize(
    ("name", "percent"), [("coco_detection1", 1), ("coco_detection5", 5), ("coco_detection10", 10)]
)
def test_the_cells_differ_from_the_whole_in_the_images_only(name, percent):
    cell, whole = plan.load_cell(name), plan.load_cell("coco_detection")
    assert cell.config.part() == Part(percent, 1) and whole.config.part() is None
    assert cell.config.model_copy(update={"share": "100%"}) == whole.config, "the iterations are not scaled"
    assert {"share", "fold"}.isdisjoint(whole.config.model_dump(mode="json")), "records of before keep their identity"
    identities = {digest(plan.load_cell(name, [f"fold={fold}"]).config.identity()) for fold in range(5)}
    assert len(identities) == 5
    assert images_of(cell, DataPlaces())[:2] == (round(COUNT * percent / 100), 5000)


def test_a_fold_of_all_images_is_refused():
    with pytest.raises(ConfigError, match=r"fold=2 draws a part, .* set share=1%, 5% or 10%"):
        plan.load_cell("coco_detection", ["fold=2"])


@pytest.mark.parametrize("images", [40, 41])
def test_a_draw_from_the_published_images_is_a_published_part(images, scenes, tmp_path, monkeypatch):
    as_coco(tmp_path, scenes)
    info = catalogue.info("coco").model_copy(update={"counts": {"train2017": images, "val2017": 2, "classes": 10}})
    monkeypatch.setattr(catalogue, "info", lambda _name: info)
    monkeypatch.setattr(run, "info", lambda _name: info)
    places = DataPlaces(None, {"coco": tmp_path})
    cell = plan.load_cell("coco_detection10", ["fold=3"])
    if images != 40:
        with pytest.raises(DataError, match="'coco' has train2017 40, val2017 2; published: train2017 41, val2017 2"):
            cell.task.splits(cell.config, places)
        return
    splits = cell.task.splits(cell.config, places)
    assert splits["train"].official_part and not splits["test"].official_part
    assert splits["train"].split == "train2017.3@10" and catalogue.is_published("coco", splits)
    fewer = plan.load_cell("coco_detection10", ["data.limit=2", "data.expect=any"])
    limited = fewer.task.splits(fewer.config, places)
    assert limited["train"].split == "train2017.1@10[2]" and not catalogue.is_published("coco", limited)
    assert run._about(cell.config, cell.config.spec, splits["train"]) == [
        "trained on train2017.3@10: 4 of the 40 images of train2017, for all iterations"
    ]
