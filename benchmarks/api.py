"""The Python interface: `backbench.load`, `backbench.measure`, `backbench.compare`."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from backbench.config import as_override
from backbench.data import demo
from backbench.data.catalogue import DataPlaces, parse_places
from backbench.errors import BackbenchError
from benchmarks import measuring, plan
from benchmarks.options import CellOptions
from benchmarks.records import store
from benchmarks.records.schema import Result
from model_zoo import load as zoo
from model_zoo.backbone import Backbone
from model_zoo.choice import Choice

Data = str | Path | Mapping[str, str | Path]


def load(
    source: str | Path | nn.Module,
    *,
    name: str | None = None,
    key: str | None = None,
    prefix: str | None = None,
    arch: str | None = None,
    input: Mapping[str, Any] | None = None,
) -> Backbone:
    """Load and check a backbone from a checkpoint, a name or a module in memory.

    Args:
        source: a file, `https://...`, `zoo:NAME`, `timm:NAME`, `module:function`, `random:resnet50`, or an nn.Module: a
            torchvision or timm ResNet, or any network that returns features (N, C).
        name: the row's name in tables.
        key: the dictionary of tensors to read from a checkpoint file, like `--key`.
        prefix: the prefix of the backbone's tensors in a checkpoint file, like `--prefix`.
        arch: the architecture of a checkpoint file that is not a ResNet's, "timm:NAME", like `--arch`.
        input: the input fields of a module (size, mean, std, order); default: ImageNet's.

    Raises:
        CheckpointError: the source is not a sound backbone; one sentence says why.
    """
    if isinstance(source, nn.Module):
        from model_zoo.in_memory import of_module

        return of_module(source, name, input)
    return zoo.load(source, name=name, choice=Choice(key, prefix, arch))


def measure(
    backbone: Backbone | nn.Module | str | Path,
    cell: str,
    *,
    data: Data,
    out: str | Path | None = None,
    seed: int = 0,
    profile: Literal["full", "smoke"] = "full",
    workers: int | None = None,
    expect: Literal["published", "any"] | None = None,
    limit: int = 0,
    **fields: Any,
) -> Result:
    """Measure one backbone by one protocol; returns the record, with the numbers in `metrics`.

    Args:
        backbone: a result of `load`, or anything that `load` takes.
        cell: for example "imagenet_knn"; `backbench run --list` lists them.
        data: the folder of the cell's data set, a mapping of data set names to folders, or "demo" for rendered scenes. A
            name of your own in the mapping makes cells: {"flowers": DIR} makes "flowers_knn".
        out: a folder of results, where an identical record is reused; without it nothing is kept.
        seed: the seed of the evaluation.
        workers: processes that decode images; default: half the cores.
        expect: "any" accepts images other than the published ones; default: "published", but "any" for "demo".
        limit: the most images to use of each split; 0 for all.
        fields: fields of the cell, for example preset="wmse" or k=[5]; nested ones as mappings.

    Raises:
        ConfigError: the cell or a field is unknown; the message suggests the nearest name.
        BackbenchError: the cell cannot run or failed, with the reason.
    """
    if not isinstance(backbone, Backbone):
        backbone = load(backbone)
    named = {} if not isinstance(data, Mapping) else parse_places([f"{name}={path}" for name, path in data.items()])
    places, is_demo = _places(named or data, plan.load_cell(cell).config.data.name)
    data_fields: dict[str, Any] = {"limit": limit}
    if expect or is_demo:
        data_fields["expect"] = expect or "any"
    chosen = plan.load_cell(cell, _overrides({**fields, "data": {**data_fields, **fields.get("data", {})}}), profile)
    options = CellOptions(ckpt=backbone.source, cell=cell, profile=profile, workers=workers)
    if out is None:
        with tempfile.TemporaryDirectory(prefix="backbench-") as folder:
            options = replace(options, out=Path(folder))
            return _measured(backbone, chosen, seed, places, options)
    return _measured(backbone, chosen, seed, places, replace(options, out=Path(out)))


def _measured(backbone: Backbone, cell: plan.Cell, seed: int, places: DataPlaces, options: CellOptions) -> Result:
    result = measuring.run_seed(backbone, cell, seed, places, options)
    if result.status != "ok":
        raise BackbenchError(f"{backbone.name} {cell.name} {result.status}: {result.reason}")
    return result


def _places(data: Data, name: str) -> tuple[DataPlaces, bool]:
    """Return where the data are, and whether they are the demo's."""
    if isinstance(data, Mapping):
        return DataPlaces(None, {key: Path(path) for key, path in data.items()}), False
    if data == "demo":
        return DataPlaces(demo.root()), True
    return DataPlaces(None, {name: Path(data)}), False


def _overrides(fields: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return nested fields as words `a.b=c`."""
    words: list[str] = []
    for key, value in fields.items():
        if isinstance(value, Mapping):
            words += _overrides(value, f"{prefix}{key}.")
        else:
            words.append(f"{prefix}{key}={as_override(value)}")
    return words


@dataclass(frozen=True)
class Comparisons:
    """Rows next to each other, as `backbench compare` shows them."""

    markdown: str
    rows: tuple[
        dict[str, str], ...
    ]  # one per backbone and number, unrounded: backbone, cell, metric, mean, difference, ...

    def __str__(self) -> str:
        return self.markdown


def compare(
    *results: Result | str | Path, to: str | None = None, literature: bool = True, resamples: int = 10_000
) -> Comparisons:
    """Compare records with each other and with published numbers.

    Args:
        results: records of `measure`, or result files and folders; intervals need files with scores per item.
        to: the measured or published row that the others are compared with.
        literature: whether to add published rows of the same cells.
        resamples: resamples of the test items, for the intervals.

    Raises:
        BackbenchError: there are no results, or the row `to` does not exist.
    """
    from benchmarks.report import render, spreadsheet
    from benchmarks.report.comparison import compare as compared
    from benchmarks.report.intervals import Intervals, folder_of
    from benchmarks.report.table import gather

    paths = [Path(result) for result in results if not isinstance(result, Result)]
    found = store.read_paths(paths) if paths else {}
    table = gather([*found.values(), *(result for result in results if isinstance(result, Result))])
    if not table.rows:
        raise BackbenchError("compare: no result has a number; give records of measure(), result files or folders")
    items = {result.identity(): store.items_path(path) for path, result in found.items() if result.status == "ok"}
    intervals = Intervals(items, resamples, folder_of(paths))
    made = compared(table, render.comparable(table), intervals, to=to, with_literature=literature)
    rows = csv.DictReader(spreadsheet.comparisons_csv(made).splitlines())
    return Comparisons(render.comparisons_markdown(made, table, to=to), tuple(dict(row) for row in rows))
