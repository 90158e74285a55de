"""A user's own data sets: a folder given by `--data`, or a file in an included folder, defines cells under its name."""

from pathlib import Path

import pytest
import torch
from backbones import initial

import backbench
from backbench import plugins
from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.errors import ConfigError, DataError
from benchmarks import plan, run_all, run_one
from benchmarks.records import store
from benchmarks.report import render, table
from model_zoo.architecture import Architecture

FIELDS = ["k=[1,3]", "headline_k=3", "size=32", "resize=32"]


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(initial(Architecture(name="resnet18", width=0.25)), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def test_a_folder_makes_cells_under_its_own_name(image_folder):
    named = catalogue.parse_places([f"flowers={image_folder}"])
    assert named == {"flowers": image_folder}
    cells = {name for name in plan.cell_names() if name.startswith("flowers_")}
    protocols = "attentive diagnostics fewshot finetune knn linear logistic semi1 semi10 uniformity"
    assert cells == {f"flowers_{protocol}" for protocol in protocols.split()}
    config = plan.load_cell("flowers_knn").config
    assert (config.data.name, config.data.expect, config.preset) == ("flowers", "any", "npid")
    assert plan.named_cells("flowers_knn,imagenet_knn") == ["flowers_knn", "imagenet_knn"]
    assert plan.load_cell("flowers_semi1").config.list == "drawn"
    split = catalogue.load("flowers", "test", DataPlaces(None, named))
    assert (split.dataset, split.split, len(split)) == ("flowers", "val", 12)
    assert not catalogue.is_published("flowers", {"train": split, "test": split})


def test_cells_of_a_data_set_that_no_cell_reads_are_named(checkpoint, image_folder, tmp_path, capsys):
    argv = ["--ckpt", str(checkpoint), "--data", f"flowers={image_folder}", "--out", str(tmp_path / "out"), "--dry-run"]
    assert run_all.main(argv) == 0
    assert (
        "name its cells: --tasks flowers_attentive,flowers_diagnostics,flowers_fewshot,flowers_finetune,"
        in capsys.readouterr().err
    )
    assert run_all.main([*argv, "--tasks", "flowers_knn"]) == 0
    assert "name its cells" not in capsys.readouterr().err


def test_a_cell_of_a_data_set_without_a_folder_names_the_option():
    with pytest.raises(ConfigError, match="there is no data set 'meteorites'; give its folder: --data meteorites=DIR"):
        plan.named_cells("meteorites_knn")
    with pytest.raises(ConfigError, match="did you mean 'imagenet_knn'"):
        plan.named_cells("imagent_knn")


def test_the_layout_may_be_said_and_reaches_the_other_processes(image_folder):
    named = catalogue.parse_places([f"flowers=imagefolder:{image_folder}"])
    assert named == {"flowers": image_folder}
    assert catalogue.spelled("flowers", image_folder) == f"flowers=imagefolder:{image_folder}"
    assert catalogue.spelled("imagenet", image_folder) == f"imagenet={image_folder}"


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("flowers=voc:{folder}", "has no train and test split of layout 'voc'"),
        ("flowers={folder}/train", "has no train and test split of any layout"),
        ("imagnet={folder}/nowhere", "did you mean 'imagenet'"),
        ("my-flowers={folder}", "lower-case letters"),
        ("imagenet=voc:{folder}", "'imagenet' is of layout 'imagefolder'"),
    ],
)
def test_a_folder_that_cannot_be_one_is_a_sentence(image_folder, pair, expected):
    with pytest.raises((ConfigError, DataError)) as caught:
        catalogue.parse_places([pair.format(folder=image_folder)])
    assert expected in str(caught.value)


def test_a_folder_of_two_layouts_asks_which(image_folder):
    for split in ("train", "val"):
        (image_folder / f"{split}_places205.csv").write_text("")
    with pytest.raises(DataError, match=r"fits several layouts, imagefolder and places205; say which"):
        catalogue.parse_places([f"flowers={image_folder}"])


def test_one_cell_measures_it_and_tables_name_it(image_folder, checkpoint, tmp_path):
    out = tmp_path / "out"
    argv = ["--ckpt", str(checkpoint), "--cell", "flowers_knn", "--out", str(out), "--workers", "0"]
    assert run_one.main([*argv, "--data", f"flowers=imagefolder:{image_folder}", *FIELDS]) == 0
    (record,) = store.read_all(out)
    assert (record.cell, record.data.name, record.data.is_published) == ("flowers_knn", "flowers", False)
    assert record.data.counts == {"train": 24, "test": 12, "classes": 3}
    catalogue.OWN.clear()  # another process makes the report
    found = table.gather([record])
    assert {column.data for column in found.columns} == {"flowers, 24/12 images"}
    assert "flowers, 24/12 images" in render.markdown(found)


def test_the_python_interface_takes_a_name_of_ones_own(image_folder, checkpoint):
    fields = {"k": [1, 3], "headline_k": 3, "size": 32, "resize": 32}
    result = backbench.measure(checkpoint, "flowers_knn", data={"flowers": image_folder}, workers=0, **fields)
    assert (result.cell, result.data.name) == ("flowers_knn", "flowers")


def test_all_cells_are_planned_from_the_command_line(image_folder, checkpoint, tmp_path, capsys):
    argv = ["--ckpt", str(checkpoint), "--data", f"flowers={image_folder}", "--tasks", "flowers_knn,flowers_linear"]
    assert run_all.main([*argv, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "run   tiny" in said and "flowers_knn" in said and "flowers_linear" in said and "skip" not in said


def test_a_data_set_of_a_file_makes_cells(tmp_path, image_folder):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "flowers.yaml").write_text(
        "title: Flowers\nlayout: imagefolder\ntrain: train\ntest: val\nsource: here\n"
        "counts: {train: 24, val: 12, classes: 3}\n"
    )
    plugins.include([tmp_path])
    assert {"flowers_knn", "flowers_linear"} <= set(plan.cell_names())
    config = plan.load_cell("flowers_knn").config
    assert (config.data.name, config.data.expect) == ("flowers", "published")
    places = DataPlaces(None, catalogue.parse_places([f"flowers={image_folder}"]))
    splits = {role: catalogue.load("flowers", role, places) for role in ("train", "test")}
    assert catalogue.is_published("flowers", splits)
    assert catalogue.spelled("flowers", Path("x")) == "flowers=x"


def test_voc_and_coco_folders_make_detection_cells():
    from backbench.data import demo

    root = demo.root()
    catalogue.parse_places([f"street={root / 'voc'}", f"cups={root / 'coco'}"])
    assert {"street_svm", "street_lowshot", "street_detection"} <= set(plan.cell_names())
    assert {"cups_detection", "cups_segmentation"} <= set(plan.cell_names())
    assert "street_segmentation" not in plan.cell_names()
    street = plan.load_cell("street_detection_mmdet")
    assert (street.name, street.config.engine) == ("street_detection_mmdet", "mmdet")
    assert (street.config.train, street.config.test) == ("trainval", "test")
    cups = plan.load_cell("cups_detection").config
    assert (cups.train, cups.test, cups.spec.masks, cups.spec.head) == ("train2017", "val2017", False, "fpn")
    assert plan.load_cell("cups_segmentation").config.spec.masks


def test_the_engine_is_a_field_and_its_old_name_an_alias():
    old, new = plan.load_cell("voc0712_detection_mmdet"), plan.load_cell("voc0712_detection", ["engine=mmdet"])
    assert old == new and old.name == "voc0712_detection_mmdet", "records keep the name that they have"
    assert plan.load_cell("voc_detection").name == "voc0712_detection"
    names = ["voc0712_detection", "voc0712_detection_mmdet"]
    cells, overrides = plan.load_cells(names, {names[0]: ["engine=mmdet"], names[1]: []})
    assert [cell.name for cell in cells] == ["voc0712_detection_mmdet"]
    assert overrides == {"voc0712_detection_mmdet": ["engine=mmdet"]}
    with pytest.raises(ConfigError, match="'imagenet_knn' runs on no engine"):
        plan.load_cell("imagenet_knn_mmdet")
    with pytest.raises(ConfigError, match="'knn' needs one class an image"):
        plan.load_cell("voc_knn")
