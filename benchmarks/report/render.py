"""The table as Markdown and CSV. The only place, with `html`, that turns numbers into text."""

from __future__ import annotations

import csv
import io

from benchmarks.report.table import Column, Row, Table, Value
from model_zoo import entries
from model_zoo.entries import PublishedNumber


def number(value: Value, column: Column) -> str:
    """`54.9 ± 1.2 (3)`: two decimals for raw metrics, one for percent; how many numbers it is the mean of."""
    digits = 1 if column.unit == "%" else 3
    text = f"{value.mean:.{digits}f}"
    if value.spread is not None:
        text += f" ± {value.spread:.{digits}f} ({len(value.numbers)} {value.over})"
    return text


def shown(table: Table) -> tuple[Column, ...]:
    """Columns of the summary: each cell's headline and its plain metrics; variants of a metric only in the CSV."""
    return tuple(c for c in table.columns if c.primary or c.metric in ("top5", "top1_k200", "mAP_11pt", "alignment"))


def heading(column: Column, table: Table) -> str:
    """Cell and metric, marked when the number is a demo's or a rehearsal's; with what tells two configurations apart."""
    alike = {
        c.config8: c for c in table.columns if (c.cell, c.metric, c.data) == (column.cell, column.metric, column.data)
    }
    marks = f" [{_difference(column, list(alike.values()))}]" if len(alike) > 1 else ""
    marks += (" DEMO" if column.is_demo else "") + (" REHEARSAL" if column.profile == "smoke" else "")
    return f"{column.cell} {column.metric}{marks}"


def _difference(column: Column, alike: list[Column]) -> str:
    """`features=augmented, epochs=10`: the fields that are not the same in all of them; a hash where there are many."""
    others = [dict(c.fields) for c in alike]
    own = [(k, v) for k, v in column.fields if any(other.get(k) != v for other in others)]
    text = ", ".join(f"{key}={value.strip(chr(34))}" for key, value in own)
    return text if 0 < len(text) <= 60 else column.config8


def sections(table: Table) -> list[tuple[str, list[Column]]]:
    """Columns to show by their data: numbers of different data never share a table."""
    keys = dict.fromkeys((column.data, column.manifest) for column in shown(table))
    titles = [data for data, _ in keys]
    return [
        (
            data if titles.count(data) == 1 else f"{data}, manifest {manifest}",
            [column for column in shown(table) if (column.data, column.manifest) == (data, manifest)],
        )
        for data, manifest in keys
    ]


def markdown(table: Table) -> str:
    """A table per data set, and what has no number."""
    if not table.rows and not table.absent:
        return "No results yet.\n"
    parts = []
    for title, columns in sections(table):
        lines = [f"**{_plain(title)}**{'' if columns[0].is_published else ' (not the published data set)'}", ""]
        lines.append("| backbone | " + " | ".join(heading(c, table) for c in columns) + " |")
        lines.append("|---|" + "---|" * len(columns))
        for row in table.rows:
            if any(column in row.values for column in columns):
                lines.append(f"| {_plain(label(row))} | " + " | ".join(_cell(row, c) for c in columns) + " |")
        parts.append("\n".join(lines) + "\n")
    if table.absent:
        lines = [f"- {_plain(a.name)}, {a.cell}: {a.status}: {_plain(a.reason)}" for a in table.absent]
        parts.append("Without a number:\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def label(row: Row) -> str:
    """The row's name with its architecture."""
    return row.name if row.arch in row.name else f"{row.name} ({row.arch})"


def _plain(text: str) -> str:
    """Text that cannot break a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _cell(row: Row, column: Column) -> str:
    return number(row.values[column], column) if column in row.values else "-"


def literature(table: Table) -> list[tuple[str, list[tuple[str, PublishedNumber]]]]:
    """Published numbers of the cells in the table, by `cell metric`: (method, number), best first."""
    wanted = {(column.cell, column.metric) for column in table.columns}
    found: dict[tuple[str, str], list[tuple[str, PublishedNumber]]] = {}
    for entry in entries.all_entries():
        for published in entry.published:
            if (published.cell, published.metric) in wanted:
                found.setdefault((published.cell, published.metric), []).append(
                    (f"{entry.method} ({entry.arch.name})", published)
                )
    return [
        (f"{cell} {metric}", sorted(rows, key=lambda item: -item[1].value))
        for (cell, metric), rows in sorted(found.items())
    ]


def literature_markdown(table: Table) -> str:
    """The literature's rows, apart from ours."""
    groups = literature(table)
    if not groups:
        return ""
    lines = ["", "## Published in the literature (whole data sets; not measured here)", ""]
    lines += ["| cell | method | value | setting | source |", "|---|---|---|---|---|"]
    for name, rows in groups:
        for method, published in rows:
            setting = published.variant or ""
            lines.append(f"| {name} | {method} | *{published.value:g}* | {setting} | {published.source} |")
    if not any(column.is_published for column in table.columns):
        lines += ["", "None of our numbers above was measured on these data: they cannot be compared."]
    return "\n".join(lines) + "\n"


def csv_text(table: Table) -> str:
    """Every number, one line each, unrounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["backbone", "arch", "cell", "config", "metric", "unit", "mean", "spread", "n", "over", "data", "is_published",
         "is_demo", "profile"]
    )  # fmt: skip
    for row in table.rows:
        for column, value in row.values.items():
            spread = "" if value.spread is None else repr(value.spread)
            writer.writerow(
                [row.name, row.arch, column.cell, column.config8, column.metric, column.unit, repr(value.mean), spread,
                 len(value.numbers), value.over, column.data, column.is_published, column.is_demo, column.profile]
            )  # fmt: skip
    return buffer.getvalue()
