"""The state of every cell of a folder of results, from its files alone."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import pytest
import warm
from backbones import initial

from backbench.errors import BackbenchError
from backbench.files.locks import held
from benchmarks import planned, status
from benchmarks.records import store
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import save


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results"


def plan(out, folder, *, launcher="local", job="gone-1", seeds=(0,)):
    folder.mkdir(parents=True, exist_ok=True)
    values = asdict(planned.Planned("net", "imagenet_knn", seeds, launcher, job))
    (folder / planned.FILE).write_text(json.dumps(values))
    return planned.read(folder)


def only(out):
    (found,) = status.cells(out)
    return found


def test_records_alone_say_done_failed_and_skipped(out, make, absent, capsys):
    store.write(out, make(50.0, cell="imagenet_knn"))
    store.write(out, absent("failed", cell="imagenet_linear", reason="no memory"))
    store.write(out, absent("skipped", cell="voc07_svm", reason="no data"))
    found = {state.cell: (state.state, state.reason) for state in status.cells(out)}
    assert found == {
        "imagenet_knn": ("done", ""),
        "imagenet_linear": ("failed", "no memory"),
        "voc07_svm": ("skipped", "no data"),
    }
    assert status.main([str(out)]) == 0
    assert f"{out}: 3 cells: 1 done, 1 failed, 1 skipped" in capsys.readouterr().out


def test_a_plan_waits_as_long_as_its_launcher_lives(out):
    known = plan(out, out / "net-1" / "cell-1", seeds=(0, 1))
    with held(known.lock(out)):
        assert only(out).state == "waiting" and f"process {os.getpid()} " in only(out).reason
        with held(out / "net-1" / "cell-1" / ".lock"):
            assert only(out).state == "running"
    assert only(out).state == "stopped" and "its launcher gone-1 has ended" in only(out).reason


def test_one_of_two_seeds_is_not_done(out, make):
    path = store.write(out, make(50.0, cell="imagenet_knn", seed=0))
    plan(out, path.parent, seeds=(0, 1))
    assert (only(out).state, only(out).seeds_done, only(out).seeds) == ("stopped", 1, 2)


def test_a_failure_of_before_gives_way_to_the_attempt_that_waits(out, absent):
    path = store.write(out, absent("failed", cell="imagenet_knn", reason="no memory"))
    known = plan(out, path.parent)
    os.utime(path, ns=(0, 0))
    with held(known.lock(out)):
        assert only(out).state == "waiting"
        os.utime(path)
        assert only(out).state == "failed"


def test_slurm_jobs_are_known_by_their_files_where_no_queue_can_be_asked(out):
    plan(out, out / "net-1" / "cell-1", launcher="slurm", job="7_0")
    jobs = out / planned.SLURM
    assert only(out).state == "waiting" and only(out).reason == "SLURM job 7_0: not started"
    with held(jobs / "7_0.lock"):
        assert only(out).state == "waiting" and "starting" in only(out).reason
    (jobs / "7_0_0_log.out").write_text("x")
    assert only(out).state == "failed" and "SLURM job 7_0 ended without a record" in only(out).reason
    assert only(out).log == str((jobs / "7_0_0_log.out").resolve())
    (jobs / "7_0.requeued").touch()
    assert only(out).state == "waiting"


def test_a_damaged_plan_is_no_plan(out, make):
    path = store.write(out, make(50.0))
    for text in ("{", "[]", '{"seeds": [0]}', '{"seeds": 3}'):
        (path.parent / planned.FILE).write_text(text)
        assert only(out).state == "done"


def test_json_has_every_field(out, make, capsys):
    store.write(out, make(50.0))
    status.main([str(out), "--json"])
    (cell,) = json.loads(capsys.readouterr().out)
    assert cell == asdict(only(out))


def test_a_folder_that_is_not_there_is_a_sentence(out):
    with pytest.raises(BackbenchError, match="no such folder; give what `backbench run` wrote with --out"):
        status.main([str(out)])


@pytest.mark.slow
def test_two_launchers_on_one_folder_measure_a_cell_once(out, image_folder, tmp_path):
    small = Architecture(name="resnet18", width=0.25)
    save(tmp_path / "photos.pth", initial(small), small, InputSpec(size=32))
    words = ["benchmarks/run_one.py", "--ckpt", str(tmp_path / "photos.pth"), "--cell", "imagenet_knn", "--out", str(out),
             "--data", f"imagenet={image_folder}", "--workers", "0", "data.expect=any", "k=[1]", "headline_k=1"]  # fmt: skip
    said = [(tmp_path / f"said{number}").open("w+b") for number in range(2)]
    both = [warm.Process(words, stderr=file.fileno(), cwd=warm.ROOT) for file in said]
    assert [process.wait(120) for process in both] == [0, 0]
    texts = []
    for file in said:
        file.seek(0)
        texts.append(file.read().decode())
    assert sorted("an identical result exists" in text for text in texts) == [False, True], texts
    assert only(out).state == "done"
