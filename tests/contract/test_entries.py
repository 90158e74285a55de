"""Every zoo entry: it loads, its numbers have a source, and the numbers of the MSBReg paper are the printed ones."""

import collections
import functools
import re
from pathlib import Path

import pytest

from backbench.config import build, read_mapping
from backbench.data import catalogue
from backbench.errors import BackbenchError
from benchmarks import plan
from model_zoo import entries, formats
from pretrain import config as pretrain_config
from pretrain import recipes
from transfer.detection import engines

FILES = sorted(Path(entries.__file__).parent.glob("*.yaml"))

CELLS = {
    "imagenet_knn", "imagenet_linear", "places205_linear", "inat18_linear", "imagenet_semi1", "imagenet_semi10",
    "voc07_svm", "voc07_lowshot", "stl10_linear", "stl10_knn", "imagenet100_linear", "imagenet100_knn",
    "imagenet_uniformity", "voc0712_detection", "coco_instance_segmentation", "voc0712_detection_mmdet",
    "coco_instance_segmentation_mmdet", "voc07_logistic", "eurosat_fewshot", "voc12_segmentation",
}  # fmt: skip
# Ericsson et al. 2021, Tables 1 to 3.
MANY_SHOT = ("fgvc_aircraft", "caltech101", "stanford_cars", "cifar10", "cifar100", "dtd", "oxford_flowers", "food101",
             "oxford_pets", "sun397")  # fmt: skip
CELLS |= {f"{data}_{protocol}" for data in MANY_SHOT for protocol in ("logistic", "finetune", "fewshot")}
METRICS = {"top1", "top5", "top1_k5", "top1_k20", "top1_k200", "mAP", "mAP_11pt", "AP", "AP50", "AP75", "box_AP",
           "mask_AP", "mIoU", "mean_per_class", "top1_5way_5shot", "top1_5way_20shot", "alignment", "uniformity",
           *(f"mAP_k{k}" for k in (1, 2, 4, 8, 16))}  # fmt: skip

# Numbers printed in each table of the paper, without dashes. Tables 6 and 13 have the same rows.
NUMBERS_PER_TABLE = {1: 26, 2: 23, 3: 26, 4: 9, 5: 51, 7: 9, 8: 12, 10: 16, 11: 60, 12: 12, 13: 8}

# Numbers of each method in each table, so that a lost row is found by its method.
NUMBERS_PER_METHOD = {
    1: {"BYOL": 5, "MoCo": 2, "SimCLR": 2, "Wang and Isola": 2, "W-MSE": 5, "MSBReg": 10},
    2: {"BYOL": 3, "SimCLR": 3, "MoCo v2": 3, "W-MSE": 2, "SwAV": 6, "SimSiam": 3, "MSBReg": 3},
    3: {"SimCLR": 4, "BYOL": 4, "VICReg": 4, "SwAV": 4, "Barlow Twins": 4, "OBoW": 2, "MSBReg": 4},
    4: {"NPID": 1, "LA": 1, "PCL": 1, "VICReg": 2, "SwAV": 2, "MSBReg": 2},
    5: {"BoWNet": 5, "MoCo v2": 6, "PIRL": 5, "OBoW": 5, "BYOL": 6, "SimSiam": 3, "Barlow Twins": 6, "SwAV": 6,
        "PixPro": 3, "MSBReg": 6},
    7: {"BYOL": 6, "MSBReg": 3},
    8: {"BYOL": 4, "MSBReg": 8},
    10: {"SimCLR": 2, "MoCo": 2, "BYOL": 2, "VICReg": 2, "SwAV": 2, "Barlow Twins": 2, "OBoW": 2, "MSBReg": 2},
    11: {"MSBReg": 60},
    12: {"BYOL": 3, "BYOL+L_uniform": 3, "BYOL+L_b+L_s": 3, "MSBReg": 3},
    13: {"BYOL": 3, "BYOL+L_b": 1, "MSBReg": 4},
}  # fmt: skip

# (table, method, cell, metric, a word of the variant, value) copied from the paper's text.
PRINTED = [
    (1, "MSBReg", "imagenet100_linear", "top1", "K=8", 81.56),
    (1, "MSBReg", "imagenet100_knn", "top1_k5", "K=4", 74.30),
    (1, "MSBReg", "stl10_knn", "top1_k5", "K=8", 90.56),
    (1, "W-MSE", "stl10_linear", "top1", "", 91.75),
    (1, "BYOL", "imagenet100_linear", "top5", "", 91.18),
    (2, "BYOL", "imagenet_linear", "top1", "100 epochs", 66.5),
    (2, "MoCo v2", "imagenet_linear", "top1", "100 epochs", 67.4),
    (2, "W-MSE", "imagenet_linear", "top1", "400 epochs", 72.56),
    (2, "MSBReg", "imagenet_linear", "top1", "300 epochs", 74.6),
    (3, "MSBReg", "imagenet_semi1", "top1", "", 58.6),
    (3, "OBoW", "imagenet_semi10", "top5", "", 90.7),
    (4, "MSBReg", "imagenet_knn", "top1_k20", "", 66.2),
    (4, "MSBReg", "imagenet_knn", "top1_k200", "", 63.0),
    (4, "PCL", "imagenet_knn", "top1_k20", "", 54.5),
    (5, "SwAV", "inat18_linear", "top1", "", 48.6),
    (5, "PixPro", "voc0712_detection", "AP75", "", 67.7),
    (5, "OBoW", "voc07_svm", "mAP", "", 89.3),
    (7, "BYOL", "imagenet_linear", "top1", "multi-crop, 300 epochs", 70.3),
    (8, "MSBReg", "imagenet100_linear", "top1", "K=4 L_c+L_b+L_s", 80.38),
    (10, "VICReg", "coco_instance_segmentation", "box_AP", "", 39.4),
    (11, "MSBReg", "imagenet100_linear", "top1", "K=8 lambda_s=0.004 lambda_b=0.5,", 81.6),
    (11, "MSBReg", "imagenet100_linear", "top1", "K=2 lambda_s=0.01 lambda_b=2.0,", 70.3),
    (12, "MSBReg", "imagenet_uniformity", "uniformity", "", -3.8),
    (13, "BYOL+L_b", "stl10_linear", "top1", "", 75.3),
]  # fmt: skip


def msbreg_rows():
    for entry in entries.all_entries():
        for number in entry.published:
            table = re.match(r"MSBReg Table (\d+)", number.source)
            if table:
                yield int(table[1]), entry, number


def test_every_file_is_an_entry():
    assert FILES
    assert [entry.name for entry in entries.all_entries()] == [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_entry_is_sound(path):
    entry = build(entries.Entry, read_mapping(path))
    assert entry.name == path.stem
    assert entries.get(path.stem) == entry
    assert entry.method.strip() and entry.pretrained_on.strip()
    assert not (entry.url and entry.no_weights), "either weights or a reason why there are none"
    assert entry.url or entry.no_weights or (entry.by_hand and entry.sha256), (
        "what is made by hand is known by its hash"
    )
    assert entry.published or entry.has_weights
    if entry.has_weights:
        assert entry.licence and entry.source, "the source of the facts, and the licence of the weights"
        assert entry.format is None or entry.format in formats.modules()
    for other in entry.see:
        assert entries.get(other).url, "points to weights"
    for number in entry.published:
        assert number.source.strip()
        assert number.cell in CELLS
        assert number.metric in METRICS
        if number.metric not in ("alignment", "uniformity"):
            assert 1 < number.value < 100, "percent"


loaded = functools.cache(plan.load_cell)  # many entries have numbers of the same cells


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_said_of_the_protocol_exists(path):
    """The cell's task has the preset, the engine exists, and `frozen` appears only where an encoder can be trained."""
    for number in entries.get(path.stem).published:
        cell = loaded(number.cell)
        assert number.preset is None or number.preset in cell.task.Config.PRESETS
        assert number.engine is None or number.engine in engines.names()
        assert number.frozen is None or number.cell.startswith("imagenet_semi")
        assert number.data is None or (catalogue.info(number.data) and number.data != cell.config.data.name)
        assert number.epochs is None or "epochs" in type(cell.config).model_fields


TRAINED = [entry.name for entry in entries.all_entries() if entry.train]


@pytest.mark.parametrize("name", TRAINED)
def test_the_recipe_that_trains_it_exists_and_is_of_its_backbone_and_images(name):
    entry = entries.get(name)
    recipe, *overrides = (entry.train or "").split()
    assert recipe in recipes.names()
    config = pretrain_config.load(recipe, overrides)
    assert config.model.backbone == entry.arch.name
    assert catalogue.info(config.data.name).title == entry.pretrained_on


def test_the_papers_systems_that_are_methods_have_a_recipe():
    assert {"msbreg_r50_imagenet", "byol_r50_imagenet", "simclr_r50_imagenet", "moco_v2_r50_imagenet"} <= set(TRAINED)


def test_protocols_of_the_papers_own_rows():
    """Section 8: the encoder is frozen for 1% of the labels; for 10%, and in rivals' rows, it is not."""
    own = {n.cell: n for t, e, n in msbreg_rows() if e.method == "MSBReg" and t in (3, 5, 10)}
    said = {cell: (n.preset, n.engine, n.batch, n.epochs, n.frozen) for cell, n in own.items()}
    assert said == {
        "imagenet_semi1": ("msbreg", None, 1024, None, True),
        "imagenet_semi10": ("msbreg", None, 1024, None, False),
        "voc07_svm": (None, None, None, None, None),
        "places205_linear": ("msbreg", None, 256, 28, None),
        "inat18_linear": ("msbreg", None, 256, 84, None),
        "voc0712_detection": ("moco", "detectron2", 16, None, None),
        "coco_instance_segmentation": ("msbreg", None, 16, None, None),
    }
    assert {n.frozen for t, e, n in msbreg_rows() if t == 3 and e.method != "MSBReg"} == {False}
    assert {n.data for t, _, n in msbreg_rows() if t == 12 and n.cell == "imagenet_uniformity"} == {"imagenet100"}
    for cell, number in own.items():
        fields = plan.load_cell(cell).config.model_dump()
        assert number.epochs in (None, fields.get("epochs"))
        assert number.batch in (None, fields.get("batch") or fields.get("spec", {}).get("batch"))


def test_no_number_twice():
    for entry in entries.all_entries():
        keys = collections.Counter((n.cell, n.metric, n.variant, n.source) for n in entry.published)
        assert [(entry.name, key) for key, count in keys.items() if count > 1] == []


def test_most_baselines_have_public_weights():
    assert sum(entry.url is not None for entry in entries.all_entries()) >= 80


def test_no_two_entries_share_a_place_or_a_file():
    found = [entry for entry in entries.all_entries() if entry.url]
    assert len({entry.url for entry in found}) == len({entry.file for entry in found}) == len(found)


def test_every_method_of_the_paper_has_a_row():
    """Rows with public weights point to them; the others give a reason."""
    rows = {entry.method: entry for _, entry, _ in msbreg_rows() if entry.pretrained_on == "ImageNet"}
    with_weights = {"BYOL", "SimCLR", "MoCo", "MoCo v2", "SwAV", "SimSiam", "Barlow Twins", "VICReg", "OBoW", "PixPro"}
    with_weights |= {"PIRL", "NPID", "PCL"}
    assert set(rows) == with_weights | {"W-MSE", "BoWNet", "LA", "MSBReg"}
    assert {method for method, entry in rows.items() if entry.see} == with_weights
    assert any(entry.url and entry.method.startswith("supervised") for entry in entries.all_entries())


@pytest.mark.parametrize(
    ("name", "file", "remote"),
    [
        ("moco_v2_200ep", "moco_v2_200ep.pth.tar", "moco_v2_200ep_pretrain.pth.tar"),
        ("barlowtwins_1000ep", "barlowtwins_1000ep.pth", "resnet50.pth"),
        ("densecl_in1k_200ep", "densecl_in1k_200ep.pth", "densecl_r50_imagenet_200ep.pth"),
        ("lightly_byol_100ep", "lightly_byol_100ep.ckpt", "epoch=99-step=500400.ckpt"),
        ("obow_200ep", "obow_200ep.zip", "ImageNetFull_ResNet50_OBoW_full_feature_extractor.zip"),
    ],
)
def test_names_of_files(name, file, remote):
    assert (entries.get(name).file, entries.get(name).remote_file) == (file, remote)


def test_every_number_of_the_paper_is_there():
    counted = collections.Counter(table for table, _, _ in msbreg_rows())
    assert dict(counted) == NUMBERS_PER_TABLE
    by_method = collections.Counter((table, entry.method) for table, entry, _ in msbreg_rows())
    expected = {(table, method): n for table, methods in NUMBERS_PER_METHOD.items() for method, n in methods.items()}
    assert dict(by_method) == expected


@pytest.mark.parametrize(("table", "method", "cell", "metric", "variant", "value"), PRINTED)
def test_value_is_the_printed_one(table, method, cell, metric, variant, value):
    found = [
        number.value
        for found_table, entry, number in msbreg_rows()
        if (found_table, entry.method, number.cell, number.metric) == (table, method, cell, metric)
        and variant in (number.variant or "")
    ]
    assert value in found
    if variant and table != 2:
        assert found == [value]


def test_architectures_of_table_1_are_the_papers():
    archs = {(e.method, e.pretrained_on): e.arch.name for t, e, _ in msbreg_rows() if t == 1}
    assert archs["MSBReg", "STL-10"] == archs["W-MSE", "ImageNet-100"] == archs["BYOL", "STL-10"] == "resnet18"
    assert archs["SimCLR", "STL-10"] == archs["Wang and Isola", "ImageNet-100"] == "resnet50"


def test_table_11_is_the_whole_grid():
    seen = {number.variant.split(",")[0] for table, _, number in msbreg_rows() if table == 11}
    assert seen == {
        f"K={k} lambda_s={s} lambda_b={b}"
        for k in (2, 4, 8)
        for s in ("0", "0.002", "0.004", "0.01")
        for b in ("0", "0.25", "0.5", "1.0", "2.0")
    }


def test_unknown_entry_names_the_nearest():
    with pytest.raises(BackbenchError, match="did you mean 'msbreg_r50_imagenet'"):
        entries.get("msbreg_r50_imagnet")


def test_a_misnamed_or_misspelt_entry_is_refused(tmp_path, monkeypatch):
    text = "name: other\nmethod: X\narch: {name: resnet18}\npretrained_on: ImageNet\nno_weights: none\n"
    (tmp_path / "some.yaml").write_text(text)
    monkeypatch.setattr(entries, "_FOLDER", tmp_path)
    with pytest.raises(BackbenchError, match=r"some\.yaml has the name 'other'"):
        entries.get("some")
    assert entries.all_entries() == (), "the others can be listed"
    (tmp_path / "some.yaml").write_text(text.replace("method:", "metod:"))
    with pytest.raises(BackbenchError, match="unknown key 'metod'; did you mean 'method'"):
        entries.get("some")


# Ericsson et al. 2021, Table 1: the printed means over eleven data sets, frozen and fine-tuned, and VOC07 fine-tuned, which no
# cell measures.
MEANS = {
    "insdis_200ep": (62.29, 72.62, 71.90), "moco_v1_200ep": (62.41, 74.39, 74.91), "pcl_v1_200ep": (56.73, 79.85, 82.08),
    "pirl_200ep_pycontrast": (63.92, 71.71, 69.90), "pcl_v2_200ep": (69.13, 80.66, 82.20),
    "simclr_v1_google": (72.59, 83.13, 82.58), "moco_v2_800ep": (72.31, 77.74, 71.71),
    "simclr_v2_google": (75.07, 80.54, 78.19), "selav2_400ep": (72.09, 84.86, 84.85), "infomin_800ep": (72.21, 79.62, 76.63),
    "byol_1000ep_haiku": (77.05, 84.03, 82.70), "deepclusterv2_800ep": (78.92, 85.56, 84.90),
    "swav_800ep": (77.97, 85.33, 84.66), "tv_r50_v1_old": (73.75, 84.60, 84.76),
}  # fmt: skip


def test_every_number_of_many_shot_transfer_is_there():
    """14 networks on 11 data sets; each row has the mean that the paper prints, within its rounding."""
    found = {entry.name: [n for n in entry.published if "2011.13377" in n.source] for entry in entries.all_entries()}
    assert {name for name, numbers in found.items() if numbers} == set(MEANS)
    for name, (frozen, tuned, voc) in MEANS.items():
        by_protocol = collections.defaultdict(list)
        for number in found[name]:
            assert number.preset == "ssl_transfer"
            by_protocol[number.cell.rpartition("_")[2]].append(number.value)
        assert {protocol: len(values) for protocol, values in by_protocol.items()} == {
            "logistic": 11, "finetune": 10, "fewshot": 11,
        }  # fmt: skip
        assert sum(by_protocol["logistic"]) / 11 == pytest.approx(frozen, abs=0.006), name
        assert (sum(by_protocol["finetune"]) + voc) / 11 == pytest.approx(tuned, abs=0.006), name
