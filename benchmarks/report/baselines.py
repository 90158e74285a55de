"""Differences to every row that a reader of the page may choose as the baseline, each with its interval and test.

They are those of `--to ROW`, computed when the page is written. Their number is bounded: a new interval takes some 20 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.report import escape, render
from benchmarks.report.comparison import Comparison, Difference, compare
from benchmarks.report.intervals import Intervals
from benchmarks.report.matrix import Matrix
from benchmarks.report.paired import RESAMPLED
from benchmarks.report.table import Column, Table

_MOST = 2_000  # intervals to other rows than the report's baseline
_DEAR = 5  # an interval of a resampled metric counts as so many: it takes longer, and nothing when turned round


@dataclass(frozen=True)
class Chosen:
    """The differences to one row."""

    differences: dict[Column, dict[int, Difference]]  # by the row's place in the table
    said: str  # how the intervals were made


@dataclass(frozen=True)
class Choices:
    """The differences to the rows that may be chosen instead of the report's baseline."""

    to: dict[int, Chosen] = field(default_factory=dict)  # by the baseline's place in the table
    left_out: int = 0  # rows whose differences would be too many


def choices(table: Table, columns: Sequence[Column], intervals: Intervals, *, to: str | None) -> Choices:
    """Return the differences to every other row with a number, the rows with the most numbers first while there is room.

    Args:
        columns: of the overview.
        to: the report's baseline.
    """
    places = {id(row): place for place, row in enumerate(table.rows)}
    own = next((row for row in table.rows if to in (row.name, row.label)), None)
    made: dict[int, Chosen] = {}
    counts = {column: sum(column in row.values for row in table.rows) for column in columns}
    room, left_out = _MOST, 0
    others = [row for row in table.rows if row is not own and any(column in row.values for column in columns)]
    for row in sorted(others, key=lambda row: -sum(column in row.values for column in columns)):
        cost = sum(_price(column) * (counts[column] - 1) for column in columns if column in row.values)
        if cost > room:
            left_out += 1
            continue
        room -= cost
        compared = compare(table, columns, intervals, to=row, with_literature=False, with_marks=False)
        made[places[id(row)]] = Chosen(_differences(compared, places), render.intervals_made(compared))
    return Choices(made, left_out)


def _price(column: Column) -> int:
    """Return what an interval of a column counts."""
    return _DEAR if column.metric in RESAMPLED else 1


def _differences(comparisons: Sequence[Comparison], places: dict[int, int]) -> dict[Column, dict[int, Difference]]:
    return {
        c.column: {
            places[id(line.row)]: line.difference for line in c.lines if line.difference and id(line.row) in places
        }
        for c in comparisons
    }


def embedded(made: Choices, overview: Matrix) -> dict[str, object]:
    """Return what the page's script shows.

    Returns:
        `to`: by the places of baseline, column and row, `[text, is noise, place of the reason for a missing interval]`;
        `reasons`: those, the first one empty; `said`: by baseline, how its intervals were made.
    """
    reasons = {"": 0}
    to: dict[int, dict[int, dict[int, list[object]]]] = {}
    for base, chosen in made.to.items():
        by_column = to[base] = {}
        for place, head in enumerate(overview.heads):
            if head.column is None or head.column not in chosen.differences:
                continue
            by_column[place] = {
                row: [
                    render.gap(found, head.column),
                    int(found.is_noise),
                    reasons.setdefault(escape.plain(found.why), len(reasons)),
                ]
                for row, found in chosen.differences[head.column].items()
            }
    return {"to": to, "reasons": list(reasons), "said": {base: chosen.said for base, chosen in made.to.items()}}
