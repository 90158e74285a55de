"""A model card: Markdown with YAML front matter, whose `model-index` model hubs read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backbench.data import catalogue
from backbench.yaml_text import write_yaml
from benchmarks.records.schema import Result
from benchmarks.report import escape, literature, render
from benchmarks.report.table import Column, Row, Table, gather

# The hub's words for what the cells measure; other tasks evaluate features.
_TASKS = {
    "linear_probe": "image-classification",
    "semi_supervised": "image-classification",
    "knn": "image-classification",
    "voc_detection": "object-detection",
    "coco_instance_segmentation": "image-segmentation",
    "linear_segmentation": "image-segmentation",
    "semantic_segmentation": "image-segmentation",
}
_METRICS = {"top1": "accuracy", "top5": "accuracy", "mAP": "mean_average_precision", "AP": "mean_average_precision",
            "box_AP": "mean_average_precision", "mask_AP": "mean_average_precision", "mIoU": "mean_iou"}  # fmt: skip


def card(name: str, results: Sequence[Result], *, licence: str | None = None, link: str | None = None) -> str:
    """Return the card of one backbone.

    Args:
        results: its records with numbers.
        licence: of the weights, as the hub spells it (`mit`); left out unless given.
        link: the address of the paper or the code.
    """
    table = gather(results)
    lines = ["---", _front_matter(name, table, licence, link).rstrip(), "---", "", f"# {escape.markdown(name)}", ""]
    hashes = sorted({r.backbone.weights_sha256 for r in results})
    lines += [f"Weights (SHA-256 of the tensors): {', '.join(f'`{_hexadecimal(sha)}`' for sha in hashes)}.", ""]
    if link:
        lines += [f"Source: {escape.markdown(link)}", ""]
    lines += ["Measured with backbench. Each number is the mean ± standard deviation over what is in brackets, always of the "
              "last epoch.", ""]  # fmt: skip
    for row in table.rows:
        lines += _numbers(row, table)
    lines += _published(table)
    return "\n".join(lines).rstrip() + "\n"


def _hexadecimal(sha: str) -> str:
    return "".join(c for c in sha if c in "0123456789abcdef")


def _front_matter(name: str, table: Table, licence: str | None, link: str | None) -> str:
    values: dict[str, Any] = {"license": escape.plain(licence)} if licence else {}
    values |= {"tags": ["backbench", "image-feature-extraction", "self-supervised-learning"],
               "pipeline_tag": "image-feature-extraction"}  # fmt: skip
    source = {"source": {"name": "backbench record", "url": link}} if link else {}
    found = [
        {**_result(row, column, table), **source}
        for row in table.rows
        for column in row.values
        if column in render.shown(table)
    ]
    values["model-index"] = [{"name": escape.plain(name), "results": found}]
    return write_yaml(values)


def _result(row: Row, column: Column, table: Table) -> dict[str, Any]:
    value = row.values[column]
    splits = {record.data.test for record in value.records if record.data}
    return {
        "task": {
            "type": _TASKS.get(column.task, "image-feature-extraction"),
            "name": escape.plain(render.heading(column, table)),
        },
        "dataset": {
            "type": escape.plain(column.dataset),
            "name": escape.plain(column.data if not column.is_published else _title(column.dataset)),
            "split": escape.plain(", ".join(sorted(splits))),
        },
        "metrics": [
            {
                "type": _METRICS.get(column.metric.partition("_k")[0], escape.plain(column.metric)),
                "name": escape.plain(column.metric),
                "value": value.mean,
            }
        ],
    }


def _title(dataset: str) -> str:
    known = catalogue.described().found
    return known[dataset].title if dataset in known else dataset


def _numbers(row: Row, table: Table) -> list[str]:
    lines = [f"## {escape.markdown(row.label)}", "", "| cell | data | value | protocol |", "|---|---|---|---|"]
    for column in render.shown(table):
        if column not in row.values:
            continue
        kind = "" if column.is_published else " (not the published data set)"
        protocol = f"{column.task} version {column.version}, configuration {column.config8}"
        words = [render.heading(column, table), f"{render.data_title(column, table)}{kind}",
                 render.number(row.values[column], column), ", ".join(filter(None, (protocol, column.engine)))]  # fmt: skip
        lines.append(f"| {' | '.join(map(escape.markdown, words))} |")
    return [*lines, ""]


def _published(table: Table) -> list[str]:
    """Return the literature's numbers of the same cells on the same data, and where they are from."""
    keys = {(literature.filed_under(c.cell), c.metric) for c in table.columns if c.is_published and c.profile == "full"}
    rows = [
        [f"{cell} {metric}", found.label, str(found.number.value), found.number.setting, found.number.source]
        for cell, metric in sorted(keys)
        for found in literature.published(cell, metric)
        if not found.number.data
    ]
    if not rows:
        return []
    lines = ["## Published in the literature (not measured here)", "", "| cell | method | value | setting | source |",
             "|---|---|---|---|---|"]  # fmt: skip
    return [*lines, *(f"| {' | '.join(map(escape.markdown, row))} |" for row in rows), ""]
