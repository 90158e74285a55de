"""Options are parsed once, and their words parse to the same options."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.options import CellOptions, RunOptions
from model_zoo.choice import Choice

SHARED = {
    "suite": "paper",
    "profile": "smoke",
    "data_root": Path("/data sets"),
    "data": ("imagenet=/a b", "voc=-odd"),
    "out": Path("-out"),
    "choice": Choice(".", "-x."),
    "override": ("imagenet_knn.k=[5]", "data.limit=3"),
}
RUN = RunOptions(
    **SHARED, ckpt=("a=x.pth", "-weird.pth"), tasks="", baselines="random", seeds=3, jobs=2, nproc=4, dry_run=True,
    launcher="slurm", slurm=("partition=a gpus=1", "time=5"), list=True, show="imagenet_knn", estimate=True, on="a100"
)  # fmt: skip
CELL = CellOptions(**SHARED, ckpt="-odd=x.pth", cell="imagenet_knn", like="", seeds=2, workers=0, place="3/17")


@pytest.mark.parametrize("options", [RUN, RunOptions(), RunOptions(out=Path("x"), seeds=1)])
def test_run_options_survive_the_command_line(options):
    assert RunOptions.parse(options.to_argv()) == options


@pytest.mark.parametrize("options", [CELL, CellOptions(ckpt="zoo:x", cell="imagenet_linear")])
def test_cell_options_survive_the_command_line(options):
    assert CellOptions.parse(options.to_argv()) == options


@pytest.mark.parametrize("options", [RUN, CELL])
def test_the_example_sets_every_option(options):
    """A new option joins the example, and so the round trip."""
    assert [f.name for f in dataclasses.fields(options) if getattr(options, f.name) == f.default] == []


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RUN.seeds = 2
