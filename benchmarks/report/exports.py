"""The overview as LaTeX, Markdown, CSV or JSON: cells of text and what stands between them.

The page copies what it shows by the same pieces (`page.js`), so that only this module escapes and formats.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.report import escape, render
from benchmarks.report.matrix import Entry, Head, Matrix, MatrixRow


@dataclass(frozen=True)
class Glue:
    """What stands between the cells of a format; the middle one of three is repeated for each column but the first."""

    before_head: tuple[str, str, str]
    after_head: tuple[str, str, str]
    before_row: str
    between_cells: str
    after_row: str
    between_rows: str
    end: str


@dataclass(frozen=True)
class Export:
    """A format's cells: the head, then a list per row; the first cell names the backbone."""

    glue: Glue
    head: list[str]
    rows: list[list[str]]


def text(export: Export, rows: Sequence[int], columns: Sequence[int]) -> str:
    """Return these rows and columns as one text."""
    glue, repeated = export.glue, len(columns)

    def line(cells: Sequence[str]) -> str:
        chosen = [cells[0], *(cells[column + 1] for column in columns)]
        return glue.before_row + glue.between_cells.join(chosen) + glue.after_row

    def around(three: tuple[str, str, str]) -> str:
        return three[0] + three[1] * repeated + three[2]

    head = line(export.head) if export.head else ""
    body = glue.between_rows.join(line(export.rows[row]) for row in rows)
    return around(glue.before_head) + head + around(glue.after_head) + body + glue.end


def as_shown(form: str, matrix: Matrix) -> str:
    """Return what the page shows at first: the measured rows, the headline metrics, the average rank."""
    rows = [place for place, row in enumerate(matrix.rows) if row.kind != "published"]
    columns = [place for place, head in enumerate(matrix.heads) if head.is_headline]
    ranks = [len(matrix.heads)] if matrix.has_ranks else []
    return text(FORMS[form](matrix), rows, [*columns, *ranks])


def latex(matrix: Matrix) -> Export:
    """The paper's style: best in bold, second best underlined, rules of the package booktabs."""
    glue = Glue(("\\begin{tabular}{l", "c", "}\n\\toprule\n"), ("\\midrule\n", "", ""), "", " & ", " \\\\\n", "",
                "\\bottomrule\n\\end{tabular}\n")  # fmt: skip

    def cell(entry: Entry, head: Head) -> str:
        del head
        marked = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "level": r"%s$^\approx$"}
        shown = marked.get(entry.mark, "%s") % escape.latex(entry.text)
        return f"{shown} {{\\scriptsize {escape.latex(entry.spread)}}}" if entry.spread else shown

    return _export(matrix, glue, escape.latex, cell, lambda rank: f"{rank:.2f}" if rank else "--")


def markdown(matrix: Matrix) -> Export:
    """One Markdown table."""
    glue = Glue(("", "", ""), ("|---|", "---|", "\n"), "| ", " | ", " |\n", "", "")

    def cell(entry: Entry, head: Head) -> str:
        del head
        words = " ".join(filter(None, (entry.text, entry.spread)))
        return render.marked(escape.markdown(words), entry.mark)

    return _export(matrix, glue, escape.markdown, cell, lambda rank: f"{rank:.2f}" if rank else "–")


def csv_cells(matrix: Matrix) -> Export:
    """One line per backbone, numbers unrounded; an empty cell has no number."""
    glue = Glue(("", "", ""), ("", "", ""), "", ",", "\n", "", "")

    def cell(entry: Entry, head: Head) -> str:
        del head
        if entry.state in ("failed", "skipped"):
            return entry.state
        return repr(entry.mean) if entry.mean is not None else _quoted(entry.text if entry.state == "published" else "")

    return _export(matrix, glue, _quoted, cell, lambda rank: repr(rank) if rank else "")


def json_cells(matrix: Matrix) -> Export:
    """A list of backbones, each with its numbers by column; unrounded, with intervals and reasons."""
    glue = Glue(("[\n", "", ""), ("", "", ""), " {", ", ", "}", ",\n", "\n]\n")

    def cell(entry: Entry, head: Head) -> str:
        return f"{json.dumps(head.name)}: {json.dumps(_fields(entry))}"

    made = _export(matrix, glue, lambda words: f'"backbone": {json.dumps(escape.plain(words))}', cell,
                   lambda rank: f'"average rank": {json.dumps(rank)}')  # fmt: skip
    return Export(glue, [], made.rows)


FORMS: dict[str, Callable[[Matrix], Export]] = {
    "latex": latex,
    "markdown": markdown,
    "csv": csv_cells,
    "json": json_cells,
}


def _export(
    matrix: Matrix,
    glue: Glue,
    word: Callable[[str], str],
    cell: Callable[[Entry, Head], str],
    rank: Callable[[float | None], str],
) -> Export:
    def row(of: MatrixRow) -> list[str]:
        cells = [cell(entry, head) for entry, head in zip(of.entries, matrix.heads, strict=True)]
        return [word(of.label), *cells, rank(of.rank)]

    head = ["backbone", *(head.name for head in matrix.heads), "average rank"]
    return Export(glue, [word(name) for name in head], [row(of) for of in matrix.rows])


def _fields(entry: Entry) -> dict[str, object]:
    """Return a number with all that is known about it."""
    fields: dict[str, object] = {"state": entry.state, "mean": entry.mean}
    if entry.line is not None:
        value, found = entry.line.value, entry.line.difference
        fields |= {"spread": value.spread, "n": len(value.numbers), "over": value.over, "mark": entry.mark}
        if found is not None:
            between = found.interval
            fields |= {"difference": found.value, "low": between.low if between else None,
                       "high": between.high if between else None}  # fmt: skip
    elif entry.state == "published":
        fields["text"] = entry.text
    return fields | ({"why": escape.plain(entry.why)} if entry.why else {})


def _quoted(words: str) -> str:
    """Return a CSV cell that no spreadsheet reads as a formula."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow([escape.csv(words)])
    return buffer.getvalue()
