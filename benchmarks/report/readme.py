"""Write the tables of README and docs/ from result files, between two markers; no number is typed by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backbench.errors import BackbenchError
from backbench.files import read_json, read_text
from backbench.files.atomic import atomic_write_text
from benchmarks.evidence import tables
from benchmarks.records.store import items_path, read_all, read_paths
from benchmarks.report import escape, render
from benchmarks.report.comparison import compare, first_random
from benchmarks.report.table import Table, gather
from benchmarks.speed import sentence

ROOT = Path(__file__).resolve().parent.parent.parent
MEASURED = ROOT / "benchmarks" / "measured"
PAGES = (ROOT / "README.md", ROOT / "docs" / "evidence.md", ROOT / "docs" / "measured.md")  # the pages with such tables

_KINDS = "measured|compare|speed|evidence|predictors"
_BLOCK = re.compile(rf"<!-- ({_KINDS})(?::([\w.-]+))? -->\n((?:(?!<!-- ).)*)<!-- /\1 -->", re.DOTALL)
_BEGIN = re.compile(rf"<!-- (?:{_KINDS})\b")
_NUMBER = re.compile(r"[<>~+-]?\d[\d.,]*\s*(%|\[.*\]|\(.*\)|± ?[\d.,]+.*)?")


def measured(folder: Path) -> str:
    """Return the summary table of a folder of results, and every number behind its headline means."""
    table = gather(read_all(folder))
    return render.markdown(table) + "\n" + _each(table)


def compared(folder: Path) -> str:
    """Return every headline's difference to the folder's random baseline, with its interval.

    Raises:
        BackbenchError: there is no random baseline.
    """
    results = read_paths([folder])
    table = gather(results.values())
    to = first_random(table)
    if to is None:
        raise BackbenchError(f"{folder}: no random baseline to compare with")
    items = {result.identity(): items_path(path) for path, result in results.items()}
    columns = [column for column in table.columns if column.primary]
    return render.differences_markdown(compare(table, columns, items, to=to, with_literature=False), table, to=to)


def speed(folder: Path) -> str:
    """Return the figures of the speed benchmarks, one sentence each."""
    return "".join(f"- {sentence(read_json(file))}\n" for file in sorted(folder.glob("*.json")))


def evidence(folder: Path) -> str:
    """Return the tables of the studies whose numbers are in the folder, in the order of the paper's tables."""
    found = [read_json(file) for file in sorted(folder.glob("*.json"))]
    return "\n".join(tables.markdown(made) for made in sorted(found, key=_place_in_the_paper))


def _place_in_the_paper(study: Mapping[str, Any]) -> float:
    number = re.search(r"Table (\d+)", study["source"])
    return int(number[1]) if number else math.inf


def predictors(folder: Path) -> str:
    """Return the rank correlations of diagnostics and transfer numbers that are stored in the folder."""
    from benchmarks.evidence import predictors_page  # matplotlib: slow to import

    return predictors_page.markdown(predictors_page.from_json(read_json(folder / "predictors.json")))


def update(readme: Path, measured_root: Path = MEASURED) -> str:
    """Return the page with every block rewritten: `<!-- measured:NAME -->`, `<!-- compare:NAME -->`, `<!-- speed -->`,
    `<!-- evidence -->` and `<!-- predictors -->`.

    Raises:
        BackbenchError: a block has no end or no results.
    """
    text = read_text(readme)
    made = {"measured": measured, "compare": compared, "speed": speed, "evidence": evidence, "predictors": predictors}

    def rewritten(found: re.Match[str]) -> str:
        kind, name = found[1], found[2] or found[1]
        if not (measured_root / name).is_dir():
            raise BackbenchError(f"{readme}: block '{kind}:{name}' has no folder of results")
        begin, end = found.start(3) - found.start(), found.end(3) - found.start()
        return found[0][:begin] + made[kind](measured_root / name) + found[0][end:]

    begun, whole = len(_BEGIN.findall(text)), len(_BLOCK.findall(text))
    if begun != whole:
        raise BackbenchError(
            f"{readme}: {begun} blocks begin, {whole} end: one has no end; close it with <!-- /KIND -->"
        )
    return _BLOCK.sub(rewritten, text)


def by_hand(text: str) -> list[str]:
    """Return lines outside all blocks with a result: a table cell that is a number, or a mean with its spread."""
    found = []
    for line in _BLOCK.sub("", text).splitlines():
        cells = [re.sub(r"[*_`]|</?u>", "", cell).strip() for cell in line.strip().strip("|").split("|")]
        is_row = line.lstrip().startswith("|")
        if (is_row and any(_NUMBER.fullmatch(cell) for cell in cells)) or re.search(r"\d\s*(±|\+/-)\s*\d", line):
            found.append(line)
    return found


def write(readme: Path) -> None:
    """Rewrite a page's blocks in place."""
    atomic_write_text(readme, update(readme))


def _each(table: Table) -> str:
    """List the single numbers behind every headline mean."""
    lines = []
    for column in table.columns:
        means = any(len(row.values[column].numbers) > 1 for row in table.rows if column in row.values)
        if not column.primary or not means:
            continue
        digits = 1 if column.unit == "%" else 3
        rows = [
            f"{escape.markdown(row.name)} {', '.join(f'{n:.{digits}f}' for n in row.values[column].numbers)}"
            for row in table.rows
            if column in row.values
        ]
        lines.append(f"- {escape.item(render.heading(column, table))}, one by one: {'; '.join(rows)}")
    return "\n".join(lines) + "\n"
