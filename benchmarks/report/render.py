"""Render the table as Markdown. Only this module, `spreadsheet` and `html` turn numbers into text."""

from __future__ import annotations

from collections.abc import Sequence

from backbench.diagnostics import DIAGNOSTICS
from benchmarks.records import store
from benchmarks.report import escape
from benchmarks.report.averages import Average
from benchmarks.report.comparison import Comparison, Difference, Line, cells_of
from benchmarks.report.literature import Published, literature, published
from benchmarks.report.paired import LEVEL, SEED
from benchmarks.report.table import Column, Row, Table, Value

# What a summary shows beside the headlines: what the tables of the field hold, and the diagnostics.
_PLAIN_METRICS = {
    "top5",
    "top1_k200",
    "mAP_11pt",
    "alignment",
    "AP50",
    "AP75",
    "box_AP50",
    "mask_AP",
    "lidar",
    *DIAGNOSTICS,
}

LEVEL_WITH_BEST = "≈"
TOLD = "†"
MARKS = (
    f"Best in bold face and second best underlined, only where the lead is beyond the noise (5%); {LEVEL_WITH_BEST}: not told "
    "from the highest. Nothing is marked where the noise is unknown."
)


def number(value: Value, column: Column) -> str:
    """`54.9 ± 1.2 (3)`: three decimals for raw metrics, one for percent; how many numbers it is the mean of."""
    digits = 1 if column.unit == "%" else 3
    text = f"{value.mean:.{digits}f}"
    if value.spread is not None:
        text += f" ± {value.spread:.{digits}f} ({len(value.numbers)} {value.over})"
    return text


def shown(table: Table) -> tuple[Column, ...]:
    """Return the columns of the summary: each cell's headline and plain metrics; variants are only in the CSV."""
    return tuple(c for c in table.columns if c.primary or c.metric in _PLAIN_METRICS)


def comparable(table: Table) -> tuple[Column, ...]:
    """Return the columns of a comparison: those of the summary, and all others with a published number."""
    summary = shown(table)
    return tuple(c for c in table.columns if c in summary or published(c.cell, c.metric))


def heading(column: Column, table: Table) -> str:
    """Return cell and metric, the demo or rehearsal mark, and the fields that tell two configurations apart."""
    alike = {
        (c.config8, c.engine, c.task, c.version): c
        for c in table.columns
        if (c.cell, c.metric, c.data) == (column.cell, column.metric, column.data)
    }
    told_apart = f" [{_difference(column, list(alike.values()))}]" if len(alike) > 1 else ""
    kind = store.marks(is_demo=column.is_demo, profile=column.profile)
    return f"{column.cell} {column.metric}{told_apart}{kind}"


def _difference(column: Column, alike: list[Column]) -> str:
    """Return `features=augmented, epochs=10`: the fields that differ between the columns; a hash if there are many."""
    own, *others = (
        {**dict(c.fields), "version": c.engine, "task": c.task, "protocol": f"version {c.version}"}
        for c in (column, *alike)
    )
    text = ", ".join(f"{k}={v.strip(chr(34))}" for k, v in own.items() if any(o.get(k) != v for o in others))
    return text if 0 < len(text) <= 80 else column.config8


def sections(table: Table) -> list[tuple[str, list[Column]]]:
    """Group the columns by data: numbers from different data never share a table."""
    by_title: dict[str, list[Column]] = {}
    for column in shown(table):
        by_title.setdefault(data_title(column, table), []).append(column)
    return list(by_title.items())


def data_title(column: Column, table: Table) -> str:
    """Return the data's name, with the manifest if other data have the same name."""
    alone = {c.manifest for c in shown(table) if c.data == column.data} <= {column.manifest}
    return column.data if alone else f"{column.data}, manifest {column.manifest}"


def markdown(table: Table, comparisons: Sequence[Comparison] = ()) -> str:
    """Return a table per data set, and the cells without a number; comparisons, if given, mark the best."""
    names = {(c.column, id(line.row)): line.mark for c in comparisons for line in c.lines}
    if not table.rows and not table.absent:
        return "No results yet.\n"
    parts = []
    for title, columns in sections(table):
        lines = [
            f"**{escape.markdown(title)}**{'' if columns[0].is_published else ' (not the published data set)'}",
            "",
        ]
        lines.append("| backbone | " + " | ".join(escape.markdown(heading(c, table)) for c in columns) + " |")
        lines.append("|---|" + "---|" * len(columns))
        for row in table.rows:
            if any(column in row.values for column in columns):
                cells = [marked(_cell(row, c), names.get((c, id(row)), "")) for c in columns]
                lines.append(f"| {escape.markdown(row.label)} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n")
    if table.absent:
        parts.append(absent_markdown(table))
    return "\n".join(parts)


def absent_markdown(table: Table) -> str:
    """List the cells without a number, and why."""
    return "Without a number:\n\n" + "\n".join(f"- {escape.item(words)}" for words in reasons(table)) + "\n"


def reasons(table: Table) -> list[str]:
    """Return a sentence for each backbone and cell without a number."""
    return list(dict.fromkeys(f"{a.name}, {a.cell}: {a.status}: {a.reason}" for a in table.absent))


def _cell(row: Row, column: Column) -> str:
    return number(row.values[column], column) if column in row.values else "-"


def literature_markdown(table: Table) -> str:
    """Return the literature's rows, separate from ours."""
    groups = literature(table)
    if not groups:
        return ""
    lines = ["", "## Published in the literature (whole data sets; not measured here)", "", MARKS, ""]
    lines += ["| cell | method | value | setting | not the same here | source |", "|---|---|---|---|---|---|"]
    for name, rows in groups:
        for row, flags, mark in rows:
            value = marked(f"*{row.number.value}*", mark)
            words = [name, row.label, row.number.setting, "; ".join(flags), row.number.source]
            cells = [escape.markdown(word) for word in words]
            lines.append("| " + " | ".join([*cells[:2], value, *cells[2:]]) + " |")
    if not any(column.is_published for column in table.columns):
        lines += ["", "None of our numbers above was measured on these data: they cannot be compared."]
    return "\n".join(lines) + "\n"


def marked(text: str, mark: str) -> str:
    """Format the best in bold, the second best underlined, and what is not told from the highest with a sign."""
    return {"best": f"**{text}**", "second": f"<u>{text}</u>", "level": f"{text} {LEVEL_WITH_BEST}"}.get(mark, text)


def gap(found: Difference, column: Column) -> str:
    """Return `+3.1 [+1.2, +5.0] †` in the metric's unit, without the interval or empty where there is none."""
    digits = 1 if column.unit == "%" else 3
    if found.value is None:
        return ""
    between = f" [{found.interval.low:+.{digits}f}, {found.interval.high:+.{digits}f}]" if found.interval else ""
    return f"{found.value:+.{digits}f}{between}{f' {TOLD}' if found.is_told else ''}"


def difference(found: Difference, column: Column) -> str:
    """Return the gap, or with it the reason for a missing interval or difference."""
    if found.value is None:
        return f"- ({found.why})"
    return f"{gap(found, column)} (no interval: {found.why})" if found.why else gap(found, column)


def detectable(comparison: Comparison) -> str:
    """Say which difference a column could show; empty where no test can tell."""
    found = [line.difference for line in comparison.lines if line.difference and line.difference.detectable is not None]
    if not found:
        return ""
    digits = 1 if comparison.column.unit == "%" else 3
    widest = max(found, key=lambda difference: difference.detectable or 0.0)
    return f"A true difference of {widest.detectable:.{digits}f} is found in 4 of 5 cases (over {widest.over})."


def differences_markdown(comparisons: Sequence[Comparison], table: Table, *, to: str) -> str:
    """List every measured row's difference to the baseline, one line each."""
    rows = [
        "| "
        + " | ".join(
            escape.markdown(words)
            for words in (
                heading(c.column, table),
                data_title(c.column, table),
                line.row.label,
                difference(line.difference, c.column),
            )
        )
        + " |"
        for c in comparisons
        for line in c.lines
        if line.difference
    ]
    if not rows:
        return ""
    lines = [
        f"**Difference to {escape.markdown(to)}**",
        "",
        "| cell | data | backbone | difference |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join([*lines, "", intervals_made(comparisons)]).rstrip() + "\n"


def intervals_made(comparisons: Sequence[Comparison]) -> str:
    """Say how the intervals were made; empty if there are none."""
    found = [line.difference.interval for c in comparisons for line in c.lines if line.difference]
    made = sorted({(i.resamples, i.items) for i in found if i}, reverse=True)
    if not made:
        return told_apart(comparisons)
    counts = ", ".join(f"{resamples} of {items} items" for resamples, items in made)
    return (
        f"In brackets: {LEVEL:.0%} paired bootstrap intervals over test items (resamples: {counts}; seed {SEED}); what other "
        f"seeds or pretrainings would change is not in them. {told_apart(comparisons)}"
    ).rstrip()


def told_apart(comparisons: Sequence[Comparison]) -> str:
    """Say what the dagger means and how many differences were tested; empty if none were."""
    tested = [
        line.difference for c in comparisons for line in c.lines if line.difference and line.difference.p is not None
    ]
    if not tested:
        return ""
    return (
        f"{TOLD}: beyond the noise (5%, Holm's correction for {len(tested)} tested differences; over test items, and over "
        "seeds or pretrainings where there are several)."
    )


def comparisons_markdown(comparisons: Sequence[Comparison], table: Table, *, to: str | None) -> str:
    """Return a table for each column: value, difference to the baseline, conditions of published rows that differ."""
    about = (
        f" Difference: to {escape.markdown(to)}; a published number has no scores per test item, so no interval."
        if to
        else ""
    )
    parts = [f"{MARKS} Published numbers are in italics.{about}\n"]
    if made := intervals_made(comparisons):
        parts.append(made + "\n")
    for comparison in comparisons:
        column = comparison.column
        kind = "" if column.is_published else " (not the published data set)"
        heads = ["backbone", "value", *(["difference"] if to else []), "setting", "not the same here", "source"]
        beside = any(isinstance(line.row, Published) for line in comparison.lines)
        heads = heads if beside else heads[:-3]
        title, data = escape.markdown(heading(column, table)), escape.markdown(data_title(column, table))
        lines = [f"**{title}**, {data}{kind}", ""]
        lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        lines += ["| " + " | ".join(cells) + " |" for cells in comparison_rows(comparison, to=to, beside=beside)]
        if said := detectable(comparison):
            lines += ["", said]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def comparison_rows(comparison: Comparison, *, to: str | None, beside: bool) -> list[list[str]]:
    """Return the cells of a column's rows as Markdown."""
    rows = []
    for line in comparison.lines:
        cells = [escape.markdown(line.row.label), marked(row_number(line, comparison.column), line.mark)]
        words: list[str] = []
        if to:
            words.append(difference(line.difference, comparison.column) if line.difference else "baseline")
        if beside:
            own = line.row.number if isinstance(line.row, Published) else None
            words += [own.setting, "; ".join(line.flags), own.source] if own else ["", "", "here"]
        rows.append([*cells, *(escape.markdown(word) for word in words)])
    return rows


def row_number(line: Line, column: Column) -> str:
    """Format a published number as printed, in italics; a measured one with its spread."""
    return f"*{line.value.mean}*" if isinstance(line.row, Published) else number(line.value, column)


def averages_markdown(found: Sequence[Average], columns: Sequence[Column], table: Table) -> str:
    """Return headline numbers side by side, with their average if a row has all of them."""
    twice = len(cells_of(columns)) < len(columns)
    once = "; a cell that was measured in several ways counts once, by their mean" if twice else ""
    lines = [f"**Average** over the headline numbers, for rows that have all of them{once}", ""]
    heads = [heading(c, table) for c in columns]
    heads = [h if heads.count(h) == 1 else f"{h}, {data_title(c, table)}" for h, c in zip(heads, columns, strict=True)]
    lines.append("| backbone | " + " | ".join(escape.markdown(head) for head in heads) + " | average |")
    lines.append("|---|" + "---|" * (len(columns) + 1))
    for row in found:
        cells = ["-" if v is None else f"{v.mean:.1f}" for v in row.values]
        mean = "-" if row.mean is None else marked(f"{row.mean:.1f}", row.mark)
        setting = f", {row.row.number.variant}" if isinstance(row.row, Published) and row.row.number.variant else ""
        lines.append(f"| {escape.markdown(row.row.label + setting)} | " + " | ".join([*cells, mean]) + " |")
    return "\n".join(lines) + "\n"
