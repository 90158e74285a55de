"""Energy of a measurement: read where the machine counts it, absent elsewhere."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from made_records import make_record

from benchmarks.records import energy, provenance, store

CPU = torch.device("cpu")


def zone(folder: Path, name: str, kind: str, count: int, limit: int = 1_000_000_000) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for file, value in (("name", kind), ("energy_uj", count), ("max_energy_range_uj", limit)):
        (folder / name / file).write_text(f"{value}\n")


def test_packages_are_summed_and_parts_of_them_are_not(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 7)
    meter = energy.Meter(CPU, tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 8_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 2_000_100)
    zone(tmp_path, "intel-rapl:0:0", "core", 900_000_000)
    assert meter.joules() == {"cpu": 5.0}


def test_a_counter_that_starts_again(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, limit=9_999_999)
    meter = energy.Meter(CPU, tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000, limit=9_999_999)
    assert meter.joules() == {"cpu": 2.0}


@pytest.mark.parametrize("state", ["absent", "no number", "unreadable", "gone"])
def test_what_cannot_be_read_is_left_out(tmp_path, state):
    if state != "absent":
        zone(tmp_path, "intel-rapl:0", "package-0", 1)
    file = tmp_path / "intel-rapl:0" / "energy_uj"
    if state == "no number":
        file.write_text("?")
    if state == "unreadable":
        file.unlink()
        file.mkdir()
    meter = energy.Meter(CPU, tmp_path)
    if state == "gone":
        file.unlink()
    assert meter.joules() == {}


def test_the_gpus_counter(monkeypatch, tmp_path):
    counts = iter([1000, 4500])
    fake = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-1-2": "handle"}[uuid],
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counts),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="1-2"))
    meter = energy.Meter(torch.device("cuda"), tmp_path)
    assert meter.joules() == {"gpu": 3.5}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.Meter(torch.device("cuda"), tmp_path).joules() == {}


def test_a_record_keeps_it_and_a_record_without_it_is_read(tmp_path):
    collected = provenance.collect(CPU, 1.5, {"cpu": 30.0})
    assert collected.energy_j == {"cpu": 30.0} and provenance.collect(CPU, 1.5).energy_j is None
    path = store.write(tmp_path, make_record(50.0).model_copy(update={"provenance": collected}))
    assert store.read(path).provenance.energy_j == {"cpu": 30.0}
    values = json.loads(path.read_text())
    del values["provenance"]["energy_j"], values["provenance"]["tf32"]
    path.write_text(json.dumps(values))
    assert store.read(path).provenance.energy_j is None
