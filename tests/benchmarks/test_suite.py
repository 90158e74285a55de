"""Rehearse the suite: every protocol without a detector on data in the real layouts, from command to report."""

from __future__ import annotations

import pytest
from backbones import initial

from backbench.data import demo
from backbench.data.catalogue import DataPlaces
from benchmarks import plan, run_all
from benchmarks.records.store import items_path, read_all
from model_zoo import backbone as zoo
from model_zoo.architecture import Architecture, InputSpec


@pytest.mark.slow
@pytest.mark.sample(0)
def test_every_cell_of_the_paper_is_rehearsed(tmp_path, warm_cells):
    arch = Architecture(name="resnet18", width=0.25)
    zoo.save(tmp_path / "tiny.pth", initial(arch), arch, InputSpec(size=32))
    out = tmp_path / "results"
    places = DataPlaces(demo.root())
    cells = [plan.load_cell(name, (), "smoke") for name in plan.load_suite("paper").cells]
    cells = [
        cell for cell in cells if cell.task.engine_version(cell.config) is None
    ]  # the engines have their own tests
    possible = {cell.name for cell in cells if cell.task.missing(cell.config, places) is None}
    assert {"voc07_svm", "places205_linear", "inat18_linear", "stl10_linear", "imagenet_semi1"} <= possible
    arguments = [
        "--tasks",
        ",".join(cell.name for cell in cells),
        "--suite",
        "paper",
        "--profile",
        "smoke",
        "--seeds",
        "1",
        "--data-root",
        str(demo.root()),
    ]
    code = run_all.main([*arguments, "--ckpt", str(tmp_path / "tiny.pth"), "--out", str(out)])
    records = {record.cell: record for record in read_all(out)}
    assert {name: record.reason for name, record in records.items() if record.status == "failed"} == {}
    assert code == 0
    assert {name for name, record in records.items() if record.status == "ok"} == possible
    for record in records.values():
        if record.status == "ok":
            assert record.profile == "smoke" and record.data.is_demo and not record.data.is_published
    assert "REHEARSAL" in (out / "report.md").read_text(encoding="utf-8")
    kept = {path.parent.name.rpartition("-")[0] for path in out.glob("*/*/*.items.npz")}
    assert {"voc07_svm", "imagenet_knn", "imagenet_linear", "imagenet_semi10"} <= kept
    assert items_path(next(out.glob("*/voc07_svm-*/seed0.json"))).exists()
