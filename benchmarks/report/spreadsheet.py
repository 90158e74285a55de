"""Render the table and comparisons as CSV, unrounded."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from benchmarks.report import escape
from benchmarks.report.comparison import Comparison
from benchmarks.report.literature import Published
from benchmarks.report.table import Table


def comparisons_csv(comparisons: Sequence[Comparison]) -> str:
    """Return every row of every column as CSV, unrounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["backbone", "kind", "cell", "config", "metric", "unit", "data", "manifest", "is_published", "is_demo", "profile",
         "mean", "spread", "n", "over", "mark", "difference", "low", "high", "resamples", "why", "setting",
         "not_the_same", "source", "p", "p_holm", "tested_over", "detectable"]
    )  # fmt: skip
    for comparison in comparisons:
        c = comparison.column
        for line in comparison.lines:
            v, d = line.value, line.difference
            between = d.interval if d else None
            own = line.row.number if isinstance(line.row, Published) else None
            cells = [line.row.label, "published" if own else "measured", c.cell, c.config8, c.metric, c.unit, c.data,
                 c.manifest, c.is_published, c.is_demo, c.profile, v.mean, v.spread, len(v.numbers), v.over, line.mark,
                 d.value if d else None, between.low if between else None, between.high if between else None,
                 between.resamples if between else "", d.why if d else "", own.setting if own else "",
                 "; ".join(line.flags), own.source if own else "", d.p if d else None, d.p_holm if d else None,
                 d.over if d else "", d.detectable if d else None]  # fmt: skip
            writer.writerow(escape.row(cells))
    return buffer.getvalue()


def csv_text(table: Table) -> str:
    """Return every number as CSV, one line each, unrounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["backbone", "arch", "cell", "config", "metric", "unit", "mean", "spread", "n", "over", "data", "is_published",
         "is_demo", "profile", "manifest", "engine", "version"]
    )  # fmt: skip
    for row in table.rows:
        for column, value in row.values.items():
            cells = [row.name, row.arch, column.cell, column.config8, column.metric, column.unit, value.mean, value.spread,
                 len(value.numbers), value.over, column.data, column.is_published, column.is_demo, column.profile,
                 column.manifest, column.engine, column.version]  # fmt: skip
            writer.writerow(escape.row(cells))
    return buffer.getvalue()
