"""`run --estimate`: work counted from the configuration, machines by their rates, the longest cells first."""

from __future__ import annotations

import dataclasses
import json

import pytest

from backbench.data.catalogue import DataPlaces
from backbench.errors import BackbenchError
from benchmarks import run_all
from benchmarks.plan import Cell, load_cell, load_suite
from benchmarks.price import cells, detection, machines, work
from benchmarks.price.cells import images_of, work_of
from benchmarks.price.lines import makespan, price
from benchmarks.price.machines import NAMED, Machine
from benchmarks.price.segmentation import segmenter_operations
from benchmarks.price.work import Work
from benchmarks.subjects import find_subjects
from model_zoo.choice import NO_CHOICE
from transfer import tasks
from transfer.detection.spec import DetectionSpec

NOWHERE = DataPlaces()
ROUND = Machine("round", views_s=100, crops_s=50, cores=2, exact=1e9, half=4e9, products=1e8, machines=4e10, detectors=1e9,
                start_s=7, starts={"mmdet": 4})  # fmt: skip


@pytest.fixture(scope="module")
def subject():
    return find_subjects((), "random:resnet18", 1, NO_CHOICE)[0]


@pytest.fixture(scope="module")
def resnet50():
    return find_subjects((), "random:resnet50", 1, NO_CHOICE)[0].backbones[0]


def test_operations_of_a_resnet50(resnet50):
    """4.09 G multiplications and additions at 224 px (torchvision's table of weights, GFLOPS)."""
    assert work.forward_operations(resnet50, 224) / 2 == pytest.approx(4.09e9, rel=1e-3)


@pytest.mark.parametrize(
    ("cell", "words", "expected"),
    [
        ("imagenet_knn", [], (1_281_167, 50_000, 1000)),
        ("imagenet_knn", ["data.limit=500"], (500, 500, 1000)),
        ("imagenet_semi10", [], (128_117, 50_000, 1000)),
        ("voc07_svm", [], (5011, 4952, 20)),
        ("voc0712_detection", [], (16_551, 4952, 20)),
        ("coco_instance_segmentation", [], (118_287, 5000, 80)),
    ],
)
def test_published_numbers_of_images_stand_in_for_absent_data(cell, words, expected):
    assert images_of(load_cell(cell, words), NOWHERE) == expected


def test_data_that_are_here_are_counted(image_folder):
    cell = load_cell("imagenet_knn", ["data.expect=any"])
    assert images_of(cell, DataPlaces(None, {"imagenet": image_folder})) == (24, 12, 3)


def test_work_of_neighbours(subject):
    backbone = subject.backbones[0]
    shared, each = work_of(load_cell("imagenet_knn", ["data.limit=1000"]), backbone, NOWHERE)
    assert shared.views == 2000 and shared.disk == 2000 * 512 * 4
    assert shared.forward == 2000 * work.forward_operations(backbone, 224)
    assert each.products == 2 * 1000 * 1000 * 512


def test_work_of_diagnostics(subject):
    """The features are the kNN cells'; LiDAR sees some images in many views."""
    backbone = subject.backbones[0]
    one = work.forward_operations(backbone, 224)
    shared, each = work_of(load_cell("imagenet_diagnostics", ["data.limit=2000"]), backbone, NOWHERE)
    assert shared.views == 2000 and shared.disk == 2000 * 512 * 4
    assert each.crops == 50_000 and each.forward == 50_000 * one and each.memory > 4 * 512 * 50_000
    _, cheap = work_of(load_cell("imagenet_diagnostics", ["preset=cheap", "images=500"]), backbone, NOWHERE)
    assert cheap.crops == cheap.forward == 0 and 0 < cheap.products < each.products


def test_work_of_robustness_is_the_probes_and_the_features_of_four_sets(subject):
    backbone = subject.backbones[0]
    words = ["data.limit=1000", "epochs=2"]
    shared, heads = work_of(load_cell("imagenet_robustness", words), backbone, NOWHERE)
    probe, same = work_of(load_cell("imagenet_linear", words), backbone, NOWHERE)
    assert shared.views == probe.views + 4000 and heads == same, "ReaL has the images of the test split"


def test_work_of_attentive_probes(subject):
    backbone = subject.backbones[0]
    one = work.forward_operations(backbone, 224)
    words = ["data.limit=1000", "steps=10", "batch=100"]
    shared, each = work_of(load_cell("imagenet_attentive", words), backbone, NOWHERE)
    assert shared.disk == 0 and each.crops == 1000 and each.views == 1100 and each.forward == 2100 * one
    _, alone = work_of(load_cell("imagenet_attentive", [*words, "rates=[0.1]", "decays=[0.0]"]), backbone, NOWHERE)
    assert each.products == pytest.approx(30 * alone.products)


def test_work_of_training(subject):
    backbone = subject.backbones[0]
    one = work.forward_operations(backbone, 224)
    words = ["epochs=3", "data.limit=1000"]
    _, tuned = work_of(load_cell("imagenet_semi10", [*words, "rate_encoder=0.1"]), backbone, NOWHERE)
    _, frozen = work_of(load_cell("imagenet_semi10", [*words, "rate_encoder=0"]), backbone, NOWHERE)
    assert tuned.crops == frozen.crops == 3000 and tuned.disk == 0
    assert tuned.training == 9000 * one and frozen.training == 0
    assert tuned.forward == 1000 * one and frozen.forward == 4000 * one


@pytest.mark.parametrize(("head", "masks", "published_s"), [("c4", False, 0.551), ("fpn", True, 0.261)])
def test_a_published_detector_takes_its_published_time(resnet50, head, masks, published_s):
    """Detectron2's MODEL_ZOO: seconds of an iteration of 16 images on eight V100; shorter sides of 640 to 800."""
    fields = {"head": head, "masks": masks, "iterations": 1, "sides_train": (720,), "precise_bn": 0}
    spec = DetectionSpec.model_validate(fields)
    operations = 3 * spec.batch * detection.detector_operations(spec, resnet50, 720, spec.rois)
    assert operations / (8 * 0.6 * 15.7e12) == pytest.approx(published_s, rel=0.15)


def test_operations_of_a_c4_detector_by_hand(subject):
    """On a square of 224 px: the trunk without res5, res5 for each proposal, the RPN's convolution."""
    backbone = subject.backbones[0]
    spec = DetectionSpec.model_validate(
        {"head": "c4", "iterations": 1, "sides_train": (224,), "side_test": 224, "side_max": 224}
    )
    res5 = 2 * 7 * 7 * (512 * 256 * 9 + 3 * 512 * 512 * 9 + 512 * 256)
    found = [detection.detector_operations(spec, backbone, 224, proposals) for proposals in (0, 10)]
    assert found[1] - found[0] == pytest.approx(10 * res5, rel=1e-6)
    rpn = 2 * 14 * 14 * 256 * 256 * 9
    assert found[0] == pytest.approx(work.forward_operations(backbone, 224) - res5 + rpn, rel=1e-6)


def test_work_of_a_detector(subject):
    backbone = subject.backbones[0]
    words = [
        "spec.iterations=100",
        "spec.milestones=[]",
        "spec.sides_train=[600]",
        "spec.precise_bn=20",
        "data.limit=50",
    ]
    cell = load_cell("voc0712_detection", words)
    spec = cell.config.course()
    train = detection.detector_operations(spec, backbone, 600, spec.rois)
    test = detection.detector_operations(spec, backbone, 800, 1000)
    _, each = work_of(cell, backbone, NOWHERE)
    assert each.detection == pytest.approx(16 * train * (3 * 100 + 20) + 50 * test)
    assert each.library == "detectron2"


def test_every_cell_of_the_paper_has_a_price(subject):
    for name in load_suite("paper").cells:
        cell = load_cell(name)
        one = price(subject, cell, 1, NOWHERE, NAMED["a100"])
        assert one.seconds > 15 and one.memory > 0 and one.disk >= 0, name
        other = price(subject, cell, 1, NOWHERE, NAMED["h100"])  # has fewer cores to decode with
        assert other.seconds < 1.15 * one.seconds and other.disk == one.disk


def test_every_protocol_has_a_price():
    assert set(cells._COUNTED) == set(tasks.names())


def test_work_of_logistic_regression(subject):
    """DTD: 1,880 training and 1,880 test images of its first split; the price of a penalty is the measured one."""
    backbone = subject.backbones[0]
    shared, each = work_of(load_cell("dtd_logistic"), backbone, NOWHERE)
    train, test, classes = images_of(load_cell("dtd_logistic"), NOWHERE)
    assert shared.views == train + test and shared.disk == (train + test) * 512 * 4
    one = 8 * 4 * train * 512 * classes
    assert each.products == pytest.approx(45 * (0.8 + 0.5 + 0.2) * one, rel=0.2)


def test_work_of_few_shots(subject):
    cell = load_cell("dtd_fewshot", ["ways=[5]", "shots=[1]", "episodes=600"])
    _, each = work_of(cell, subject.backbones[0], NOWHERE)
    assert each.products == 600 * (8 * 4 * 5 * 5 * 5 + 4 * 5 * 15 * 5 * 512)


def test_work_of_fine_tuning_on_a_grid(subject):
    """21 trainings of 5,000 steps of 64 crops; 20 of them are looked at on the fifth that is held out."""
    backbone = subject.backbones[0]
    shared, each = work_of(load_cell("dtd_finetune", ["holdout=0.2"]), backbone, NOWHERE)
    train, test, _ = images_of(load_cell("dtd_finetune"), NOWHERE)
    assert shared == Work() and each.crops == 21 * 5000 * 64
    assert each.views == 20 * int(0.2 * train) + test
    assert each.training == 3 * each.crops * work.forward_operations(backbone, 224)


def test_work_of_linear_segmentation(subject):
    """Windows of 512 every 341 pixels cover 512 x 683 in two; a C5 of stride 16 costs more than one of stride 32."""
    backbone = subject.backbones[0]
    _, each = work_of(load_cell("ade20k_linear_segmentation"), backbone, NOWHERE)
    assert each.crops == 40_000 * 16 and each.views == 2000
    one = each.forward / (each.crops + 2 * 2000)
    assert one > 1.1 * work.forward_operations(backbone, 512) and each.training == 0
    _, squashed = work_of(load_cell("voc12_linear_segmentation"), backbone, NOWHERE)
    assert squashed.crops == 2200 * 120 and squashed.views == 1449


def test_an_unknown_protocol_has_none(subject):
    with pytest.raises(BackbenchError, match="the work of protocol 'other' is not known"):
        work_of(Cell("mine", "other", load_cell("imagenet_knn").config), subject.backbones[0], NOWHERE)


def test_seconds_by_hand():
    """Decoding on two cores and the network overlap; products and detectors follow."""
    assert ROUND.seconds(Work(views=400, forward=1e9)) == 2
    assert ROUND.seconds(Work(views=400, crops=100, forward=9e9)) == 9
    assert ROUND.seconds(Work(views=400, forward=8e9), "bf16") == 2
    assert ROUND.seconds(Work(products=2e8, detection=5e9, machines=4e10)) == 2 + 5 + 1
    assert ROUND.start(Work(library="mmdet")) == 11 and ROUND.start(Work(library="other")) == 7
    assert ROUND.cpu_seconds(Work(views=400, crops=100, forward=9e9, products=2e8)) == 4 + 2 + 9 + 2


def test_without_a_gpu_decoding_takes_cores_from_the_network():
    """Three cores: two threads compute, up to two processes decode."""
    both = dataclasses.replace(ROUND, shared=3.0, threads=2.0)
    assert both.seconds(Work(views=400, forward=9e9)) == 9, "4 + 2 x 9 s fit into 3 x 9 s"
    assert both.seconds(Work(views=600, forward=6e9)) == 6
    assert both.seconds(Work(views=400, forward=2.5e9)) == 3, "4 + 2 x 2.5 s on three cores"


def test_seeds_share_features_of_the_same_weights(subject):
    cell = load_cell("imagenet_linear", ["data.limit=1000"])
    shared, each = work_of(cell, subject.backbones[0], NOWHERE)
    start, a, b = ROUND.start_s, ROUND.seconds(shared), ROUND.seconds(each)
    assert price(subject, cell, 1, NOWHERE, ROUND).seconds == pytest.approx(start + a + b)
    named = dataclasses.replace(subject, backbones=(dataclasses.replace(subject.backbones[0], format="test"),))
    assert price(named, cell, 3, NOWHERE, ROUND).seconds == pytest.approx(start + a + 3 * b)


@pytest.mark.parametrize(("devices", "expected"), [(1, 20), (2, 10), (3, 9), (8, 9)])
def test_the_longest_cell_goes_first(devices, expected):
    assert makespan([1, 9, 5, 3, 2], devices) == expected


def test_this_machine_is_calibrated_once(subject, monkeypatch, tmp_path):
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(machines, "calibrated", lambda backbone, size: calls.append(size) or ROUND)
    for size in (32, 32, 64, 32):
        assert machines.find("here", subject.backbones[0], size) == ROUND, "and as it was after it was read"
    assert calls == [32, 64]
    machines.find("here", subject.backbones[0], 32, again=True)
    assert calls == [32, 64, 32]
    (tmp_path / "calibration.json").write_text(json.dumps({"broken": 1}))
    machines.find("here", subject.backbones[0], 64)
    assert calls == [32, 64, 32, 64]


def test_the_command_prices_cells_without_data(capsys):
    words = ["--estimate", "--on", "a100", "--jobs", "8", "--suite", "paper", "--baselines", "random:resnet18"]
    assert run_all.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(load_suite("paper").cells) + 1
    assert all(any(name in line for line in lines) for name in load_suite("paper").cells)
    assert "on 8 x A100" in lines[-1] and "estimated from published peaks" in lines[-1]


def test_a_calibration_measures_positive_rates(subject, monkeypatch):
    monkeypatch.setattr(machines, "_IMPORTS", "pass")
    monkeypatch.setattr(machines, "_LIBRARIES", {"a library": "sum(range(3_000_000))"})
    found = machines.calibrated(subject.backbones[0], 32)
    assert found.is_measured and found.shared >= found.cores
    rates = ("views_s", "crops_s", "exact", "products", "machines", "detectors", "start_s", "threads")
    assert all(getattr(found, name) > 0 for name in rates) and found.starts["a library"] > 0


@pytest.mark.parametrize("name", ["voc12_segmentation", "ade20k_segmentation"])
def test_operations_of_a_segmentation_network_by_hand(subject, name):
    """A crop of 512 px: the trunk at the spec's strides, and the head's convolutions by their sizes."""
    backbone, spec = subject.backbones[0], load_cell(name).config.course()
    found = segmenter_operations(spec, backbone, (512, 512), 21, test=True)
    plain = work.forward_operations(backbone, 224) * (512 / 224) ** 2
    wide = spec.channels
    if spec.head == "fcn":  # C5 at stride 16: res5 has four times the cells
        head = 32 * 32 * (9 * 512 * wide + 9 * wide * wide + wide * 21)
        assert found > plain + 2 * head
    else:
        sides = (128, 64, 32)
        head = sum(
            side**2 * (channels * wide + 9 * wide**2) for channels, side in zip((64, 128, 256), sides, strict=True)
        )
        head += 16 * 16 * 9 * (512 + 4 * wide) * wide + 128**2 * (36 * wide**2 + wide * 21)
        assert found == pytest.approx(plain + 2 * head, rel=1e-3)
    _, each = work_of(load_cell(name, ["data.limit=40"]), backbone, NOWHERE)
    assert each.library == "mmseg" and each.detection > 3 * spec.batch * spec.iterations * plain
