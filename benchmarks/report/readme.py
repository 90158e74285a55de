"""The README's tables, written from result files between two markers. Nothing in them is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.report import render
from benchmarks.report.table import Table, gather
from benchmarks.result import read_all
from benchmarks.speed import sentence
from core.artifacts import atomic_write_text
from core.errors import BackbenchError

ROOT = Path(__file__).resolve().parent.parent.parent
MEASURED = ROOT / "benchmarks" / "measured"


def block(measured: Path) -> str:
    """Summary table of a folder of results, and every number that its headline means are made of."""
    table = gather(read_all(measured))
    return render.markdown(table) + "\n" + _each(table)


def update(readme: Path, measured_root: Path = MEASURED) -> str:
    """The README's text with every `<!-- measured:NAME -->` block made anew from `measured/NAME`.

    Raises:
        BackbenchError: a block without its end, or without results.
    """
    text = readme.read_text(encoding="utf-8")
    parts = text.split("<!-- measured:")
    made = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition(" -->")
        _, end, after = rest.partition("<!-- /measured -->")
        if not end or not (measured_root / name).is_dir():
            raise BackbenchError(f"{readme}: block 'measured:{name}' has no end or no folder of results")
        made.append(f"<!-- measured:{name} -->\n{block(measured_root / name)}{end}{after}")
    return _speed("".join(made), measured_root / "speed")


def _speed(text: str, folder: Path) -> str:
    """The `<!-- speed -->` block made anew from the figures of the speed benchmarks."""
    before, begin, rest = text.partition("<!-- speed -->\n")
    _, end, after = rest.partition("<!-- /speed -->")
    if not end:
        return text
    lines = [f"- {sentence(json.loads(file.read_text()))}\n" for file in sorted(folder.glob("*.json"))]
    return before + begin + "".join(lines) + end + after


def write(readme: Path) -> None:
    """Rewrite the README's blocks in place."""
    atomic_write_text(readme, update(readme))


def _each(table: Table) -> str:
    """The single numbers behind every headline mean."""
    lines = []
    for column in table.columns:
        if not column.primary:
            continue
        digits = 1 if column.unit == "%" else 3
        rows = [
            f"{row.name} {', '.join(f'{n:.{digits}f}' for n in row.values[column].numbers)}"
            for row in table.rows
            if column in row.values
        ]
        lines.append(f"- {render.heading(column, table)}, one by one: {'; '.join(rows)}")
    return "\n".join(lines) + "\n"
