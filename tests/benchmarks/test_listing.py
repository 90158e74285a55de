"""`run --list` and `run --show`."""

from __future__ import annotations

import pytest

from backbench.errors import ConfigError
from benchmarks import plan, run_all


def test_the_list_holds_every_cell_suite_and_preset(capsys):
    assert run_all.main(["--list"]) == 0
    shown = capsys.readouterr().out
    for name in (*plan.cell_names(), *plan.suite_names(), "wmse", "npid"):
        assert name in shown


def test_a_cell_is_shown_with_values_and_comments(capsys):
    assert run_all.main(["--show", "imagenet_knn", "imagenet_knn.preset=wmse"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "[5]" in lines["imagenet_knn.k"]
    assert "has one vote" in lines["imagenet_knn.temperature"]
    assert "images per split" in lines["imagenet_knn.data.limit"]


@pytest.mark.parametrize("name", plan.cell_names())
@pytest.mark.sample(30)
def test_what_is_shown_can_be_said(name, capsys):
    """Each shown value, given as an override, gives the same cell."""
    assert run_all.main(["--show", name]) == 0
    rows = [line.split("  ")[0:] for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name}.")]
    said = [f"{row[0].strip()}={next(w for w in row[1:] if w.strip()).strip()}" for row in rows]
    again = plan.load_cell(name, plan.split_overrides(said, [name])[name])
    assert again.config == plan.load_cell(name).config


def test_an_unknown_cell_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'imagenet_knn'"):
        run_all.main(["--show", "imagenet_kn"])
