"""Options of `run_all` and `run_one`: parsed once into frozen values, and converted back to words for a child process."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from backbench import launcher_options, plugins, trackers
from backbench.files import folder_option
from model_zoo.choice import NO_CHOICE, Choice, add_options, of_arguments, spelled


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that both commands share."""

    suite: str | None = None
    profile: Literal["full", "smoke"] = "full"
    data_root: Path | None = None
    data: tuple[str, ...] = ()
    out: Path = Path("results")
    choice: Choice = NO_CHOICE
    override: tuple[str, ...] = ()

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        """Return the options of a parsed command line."""
        said: dict[str, Any] = {"choice": of_arguments(args)}
        for field in fields(cls):
            if field.name != "choice":
                value = getattr(args, field.name)
                said[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**said)

    def to_argv(self) -> list[str]:
        """Return the words that parse to equal options; options at their default are left out."""
        words: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("choice", "override") and value != field.default:
                words += _spelled("--" + field.name.replace("_", "-"), value)
        return [*words, *spelled(self.choice), *self.override]


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Options of `run_all`: several backbones, several cells."""

    ckpt: tuple[str, ...] = ()
    tasks: str | None = None
    baselines: str = ""
    seeds: int | None = None
    jobs: int = 0
    nproc: int = 1
    launcher: Literal["local", "slurm"] = "local"
    slurm: tuple[str, ...] = ()
    dry_run: bool = False
    estimate: bool = False
    on: str = "here"
    list: bool = False
    show: str | None = None

    @classmethod
    def parse(cls, argv: Sequence[str] | None = None, *, prog: str = "benchmarks/run_all.py") -> RunOptions:
        """Parse a command line; argparse answers `--help` and wrong words."""
        return cls.from_arguments(run_parser(prog).parse_intermixed_args(argv))


@dataclass(frozen=True, kw_only=True)
class CellOptions(Options):
    """Options of `run_one`: one backbone, one cell."""

    ckpt: str
    cell: str
    like: str | None = None
    seeds: int = 1
    workers: int | None = None
    place: str | None = None

    @classmethod
    def parse(cls, argv: Sequence[str] | None = None, *, prog: str = "benchmarks/run_one.py") -> CellOptions:
        """Parse a command line; argparse answers `--help` and wrong words."""
        return cls.from_arguments(cell_parser(prog).parse_intermixed_args(argv))


def _spelled(option: str, value: object) -> Iterator[str]:
    if value is True:
        yield option
        return
    for word in value if isinstance(value, tuple) else (value,):
        text = str(word)
        yield from [f"{option}={text}"] if text.startswith("-") or not text else [option, text]


def run_parser(prog: str = "benchmarks/run_all.py") -> argparse.ArgumentParser:
    """Return the parser of `run_all`."""
    p = argparse.ArgumentParser(
        prog=prog,
        description="Measure how well checkpoints transfer. Without data it runs the built-in demo suite, and says so.",
        epilog="Existing results are reused only when weights, protocol, data and seed are identical. "
        "--list shows every cell, preset and suite; --show CELL shows the fields of a cell.",
    )
    p.add_argument("--ckpt", action="append", default=[], metavar="[NAME=]FILE", help="or https://..., zoo:NAME, timm:NAME, "
                   "module:function; can be repeated; checkpoints with the same NAME form one row, with mean and "
                   "spread")  # fmt: skip
    add_options(p, "every checkpoint file that --ckpt names")
    p.add_argument("--suite", help="demo, demo_all, paper or your own (default: paper when data are given, else demo)")
    p.add_argument("--tasks", metavar="a,b", help="only these cells")
    _add_shared(p)
    p.add_argument("--baselines", default="", metavar="a,b", help="random: the same architecture, with new weights for "
                   "each seed; or names of zoo entries")  # fmt: skip
    p.add_argument("--seeds", type=int, metavar="N", help="seeds of the evaluation (default: the suite's)")
    p.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="cells at the same time (default: one per GPU, or 1)"
    )
    p.add_argument(
        "--nproc", type=int, default=1, metavar="N", help="processes (GPUs) of this machine that share one cell"
    )
    launcher_options.add_options(p)
    trackers.add_option(p)
    p.add_argument("--dry-run", action="store_true", help="list what would run, and why the rest would not")
    p.add_argument("--estimate", action="store_true", help="say what time, disk and memory every cell takes, data here or "
                   "not; `--jobs N` is the number of devices")  # fmt: skip
    p.add_argument("--on", choices=["here", "a100", "h100"], default="here", help="the machine of --estimate (default: this "
                   "one, calibrated once)")  # fmt: skip
    p.add_argument("--list", action="store_true", help="list cells, presets and suites, then exit")
    p.add_argument("--show", metavar="CELL", help="list the fields of a cell with their values, then exit")
    p.add_argument("override", nargs="*", metavar="cell.field=value", help="fields of cells; --show CELL lists them")
    return p


def cell_parser(prog: str = "benchmarks/run_one.py") -> argparse.ArgumentParser:
    """Return the parser of `run_one`; `run_all` starts one such command for each cell."""
    p = argparse.ArgumentParser(
        prog=prog, description="Measure one (backbone, cell) for all its seeds. Every number comes from this command."
    )
    p.add_argument("--ckpt", required=True, metavar="[NAME=]FILE", help="a checkpoint, https://..., zoo:NAME, timm:NAME, "
                   "module:function or random:resnet50")  # fmt: skip
    add_options(p, "a checkpoint file that --ckpt or --like names")
    p.add_argument("--like", metavar="FILE", help="take a random backbone's architecture and input from here")
    p.add_argument("--cell", required=True)
    p.add_argument("--suite", help="name of the suite, for the record")
    _add_shared(p)
    p.add_argument("--seeds", type=int, default=1, metavar="N")
    p.add_argument("--place", metavar="I/N", help="number of this cell in the run, shown before its lines")
    p.add_argument("--workers", type=int, default=None, help="processes that decode images")
    p.add_argument("override", nargs="*", metavar="field=value", help="fields of the cell")
    return p


def _add_shared(p: argparse.ArgumentParser) -> None:
    plugins.add_option(p)
    p.add_argument("--profile", choices=["full", "smoke"], default="full", help="smoke: a few steps of every cell")
    p.add_argument("--data-root", type=Path, metavar="DIR", help="folder with one subfolder per data set, by name")
    p.add_argument("--data", action="append", default=[], metavar="name=PATH", help="a data set in another place, or your own: "
                   "NAME=DIR or NAME=LAYOUT:DIR makes the cells NAME_knn, NAME_linear, ...")  # fmt: skip
    p.add_argument("--out", type=folder_option, default=Path("results"), metavar="DIR",
                   help="folder of the results and the report (default: results)")  # fmt: skip
