"""The demo's two runs end in one page, and a run that fails keeps neither the other nor the page from being made."""

from __future__ import annotations

import pytest
from made_records import make_record

from benchmarks import demo, run_all
from benchmarks.records import store
from pretrain import run as pretraining

FROZEN, DETECTOR = "imagenet_knn", "voc0712_detection"


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Return a function that runs the demo where pretraining and measurements are made; it takes their exit codes."""

    def run(codes: dict[str, int]) -> tuple[int, list[str]]:
        asked = []

        def measure(words: list[str]) -> int:
            cell = words[words.index("--tasks") + 1].split(",")[0]
            asked.append(cell)
            if not codes.get(cell):
                store.write(tmp_path / "results" / "demo", make_record(40.0, cell=cell))
            return codes.get(cell, 0)

        def pretrain(_words: list[str]) -> int:
            (tmp_path / "runs" / "demo").mkdir(parents=True)
            (tmp_path / "runs" / "demo" / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.1, "loss": 1.0}\n')
            return 0

        monkeypatch.setattr(pretraining, "main", pretrain)
        monkeypatch.setattr(run_all, "main", measure)
        return demo.main(["--out", str(tmp_path)]), asked

    return run


def test_one_page_shows_both_runs(finished, tmp_path):
    assert finished({}) == (0, [FROZEN, DETECTOR])
    page = (tmp_path / "results" / "demo" / "report.html").read_text()
    assert FROZEN in page and DETECTOR in page


@pytest.mark.parametrize(("failed", "left"), [(FROZEN, DETECTOR), (DETECTOR, FROZEN)])
def test_a_run_that_fails_is_the_exit_code_and_the_other_is_on_the_page(finished, tmp_path, failed, left):
    assert finished({failed: 1}) == (1, [FROZEN, DETECTOR])
    page = (tmp_path / "results" / "demo" / "report.html").read_text()
    assert left in page


def test_ctrl_c_ends_the_demo(finished, tmp_path):
    assert finished({FROZEN: 130}) == (130, [FROZEN])
    assert not (tmp_path / "results" / "demo" / "report.html").exists()
