"""`backbench speed`: rows found by file, goals judged on the median ratio and printed when missed, one JSON a row."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from backbench.errors import BackbenchError, ConfigError
from benchmarks import speed
from benchmarks.speed import Comparison, Row, Setup, __main__, _photographs

PAIRS = [(2.0, 1.0), (3.0, 1.0), (9.0, 2.0)]  # ratios 2, 3, 4.5


def made(_setup: Setup) -> Comparison:
    return Comparison("seconds", "a size", "ours", "theirs", PAIRS, "times as long")


def breaks(_setup: Setup) -> Comparison:
    raise BackbenchError("the row broke")


@pytest.fixture
def with_rows(monkeypatch):
    """Give the command these rows and measure them in this process."""

    def use(*rows: Row) -> None:
        monkeypatch.setattr(speed, "rows", lambda: {row.name: row for row in rows})
        monkeypatch.setattr(__main__, "_apart", lambda row, setup: __main__.measure(row.name, setup))

    return use


def test_every_row_is_described():
    for name, row in speed.rows().items():
        assert name == row.name and row.what and name.replace("_", "").isalnum()


@pytest.mark.sample(4)
@pytest.mark.slow
@pytest.mark.parametrize("name", speed.rows())
def test_every_row_runs_in_quick(name):
    setup = Setup("cpu", quick=True)
    if gap := speed.rows()[name].missing(setup):
        pytest.skip(gap)
    record = __main__.measure(name, setup)
    assert record.get("error") is None
    assert "met" not in record, "tiny sizes judge no goal"
    assert json.loads(json.dumps(record))["ratio"]["median"] > 0


@pytest.mark.parametrize(
    ("bounds", "goal", "met"),
    [
        ({"at_most": 3.0}, "<= 3", True),
        ({"at_most": 2.9}, "<= 2.9", False),
        ({"at_least": 3.0}, ">= 3", True),
        ({"at_least": 3.1}, ">= 3.1", False),
        ({"at_most": 4.0, "at_least": 3.5}, "<= 4 and >= 3.5", False),
    ],
)
def test_a_goal_is_judged_on_the_median_and_a_miss_is_printed(with_rows, tmp_path, capsys, bounds, goal, met):
    with_rows(Row("made", "a row", made, **bounds))
    assert __main__.main(["--out", str(tmp_path), "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "made.json").read_text())
    assert (record["goal"], record["met"]) == (goal, met)
    assert record["ratio"] == {"median": 3.0, "min": 2.0, "max": 4.5}
    assert record["sides"] == {"ours": 3.0, "theirs": 1.0}
    assert record["machine"]["device"] and record["machine"]["threads"] >= 1
    assert f"goal {goal}: {'reached' if met else 'MISSED'}" in capsys.readouterr().out


def test_a_row_without_a_goal_and_a_row_that_breaks(with_rows, tmp_path, capsys):
    with_rows(
        Row("bad", "breaks", breaks), Row("good", "works", made), Row("gone", "no", made, missing=lambda _: "why")
    )
    assert __main__.main(["--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "bad: error: the row broke" in shown and "gone: skipped: why" in shown
    assert "goal" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["good.json"]


def test_rows_run_in_a_process_of_their_own(capfd):
    """The command measures a row in another process."""
    assert __main__.main(["--rows", "step", "--quick", "--device", "cpu"]) == 0
    assert "step: seconds per step, resnet18, 8 x 4 views of 32 px, cpu" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--rows", "stp"], ConfigError, "--rows stp: unknown row; did you mean 'step'"),
        (["--rounds", "0"], BackbenchError, "--rounds 0: give 1 or more"),
        (["--images", "/no/such"], BackbenchError, "--images /no/such: no such folder"),
    ],
)
def test_wrong_words(words, error, said):
    with pytest.raises(error, match=said):
        __main__.main(words)


def test_a_folder_without_images_is_refused(tmp_path):
    setup = Setup("cpu", images=tmp_path)
    with pytest.raises(BackbenchError, match="no images in it"), _photographs.photographs(setup, 3):
        pass


def test_rendered_images_are_jpegs_of_a_photographs_size_and_detail():
    from PIL import Image

    with _photographs.photographs(Setup("cpu"), 2) as paths:
        assert [Image.open(path).size for path in paths] == [(500, 375)] * 2
        sizes = [path.stat().st_size for path in paths]
        assert all(30_000 < size < 120_000 for size in sizes), sizes
    assert not paths[0].exists()


def test_records_made_before_goals_still_read():
    old = {**made(Setup("cpu")).figures()}
    assert speed.sentence(old).endswith("3.00 times as long (2.00 to 4.50 over 3 rounds in turn)")


def test_a_limit_stands_beside_the_ratio():
    pairs = [(8.0, 1.0), (9.0, 1.0), (10.0, 1.0)]
    figures = Comparison("seconds", "made", "ours", "theirs", pairs, "times as long", limit=8.5).figures()
    assert figures["limit"] == 8.5
    assert speed.sentence(figures).endswith("over 3 rounds in turn); limit 8.50")


def test_listing_the_rows_imports_nothing_heavy():
    code = "import sys\nfrom benchmarks import speed\nassert speed.rows()\nprint({'torch', 'cv2', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_goal_for_a_gpu_is_not_judged_on_a_cpu(with_rows, tmp_path):
    with_rows(Row("made", "a row", made, at_most=1, judged_on="cuda"))
    assert __main__.main(["--out", str(tmp_path), "--device", "cpu"]) == 0
    assert "met" not in json.loads((tmp_path / "made.json").read_text())
