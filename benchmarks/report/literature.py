"""Find the published numbers that belong to a column, and how their protocols differ."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from backbench.config import indifferent_keys
from backbench.data import catalogue
from backbench.errors import ConfigError
from benchmarks.records.renamed import base_and_engine
from benchmarks.report.noise import without_items
from benchmarks.report.table import Column, Table, Value, architecture, flat, is_share
from benchmarks.statistics.marks import marks
from model_zoo import entries
from model_zoo.entries import Entry, PublishedNumber

# Where a column's configuration holds what a source may state; the first that is set.
_FIELDS = {"preset": ("preset",), "engine": ("engine",), "batch": ("batch", "spec.batch"), "epochs": ("epochs",)}
# Fields that change no published number, or that the data's own record tells.
_TOLD_ELSEWHERE = {"preset", "data.expect", "data.limit", "extra_columns"}


@dataclass(frozen=True)
class Published:
    """A published number and the entry it belongs to."""

    entry: Entry
    number: PublishedNumber

    @property
    def label(self) -> str:
        """Method and architecture."""
        return f"{self.entry.method} ({self.arch})"

    @property
    def arch(self) -> str:
        """Like a measured row's name."""
        return architecture(self.entry.arch.model_dump(mode="json"))

    @property
    def value(self) -> Value:
        """The number as a table's value, without a spread."""
        items = _test_images(self.number.cell) if not self.number.data and is_share(self.number.metric) else 0
        return Value(self.number.value, None, (self.number.value,), "", items)

    def is_called(self, name: str) -> bool:
        """Return whether `NAME` is the entry or its method and, for `NAME@TEXT`, TEXT is in its setting or source."""
        name, _, text = name.partition("@")
        own = (self.entry.name, self.entry.method.lower(), self.label.lower())
        return name.lower() in own and text.lower() in f"{self.number.setting} {self.number.source}".lower()


def published(cell: str, metric: str, *, source: str = "") -> list[Published]:
    """Return the numbers of a cell and metric, in the entries' order.

    Args:
        source: only numbers with this in their source.
    """
    filed = filed_under(cell)
    return [
        Published(entry, number)
        for entry in entries.all_entries()
        for number in entry.published
        if (number.cell, number.metric) == (filed, metric) and source.lower() in number.source.lower()
    ]


@functools.cache
def _test_images(cell: str) -> int:
    """Return how many test images the published data set of a cell has; 0 if it is unknown."""
    known = catalogue.described().found
    data = max((name for name in known if cell.startswith(f"{name}_")), key=len, default=None)
    return known[data].counts.get(known[data].test, 0) if data is not None else 0


def filed_under(cell: str) -> str:
    """Return the cell that published numbers are filed under: the same for all engines."""
    return base_and_engine(cell)[0]


def literature(table: Table, *, source: str = "") -> list[tuple[str, list[tuple[Published, tuple[str, ...], str]]]]:
    """Return published numbers by `cell metric`, best first: (number, conditions that differ, mark)."""
    groups: dict[tuple[str, str], list[Column]] = {}
    for column in table.columns:
        groups.setdefault((column.cell, column.metric), []).append(column)
    found = []
    for (cell, metric), columns in sorted(groups.items()):
        higher = columns[0].higher_is_better
        rows = sorted(
            published(cell, metric, source=source), key=lambda p: -p.number.value if higher else p.number.value
        )
        marked = marked_rows(metric, rows, higher=higher)
        archs = archs_of(table, columns)
        if rows:
            found.append(
                (
                    f"{cell} {metric}",
                    [(row, flags(row, columns, archs), mark) for row, mark in zip(rows, marked, strict=True)],
                )
            )
    return found


def marked_rows(metric: str, rows: Sequence[Published], *, higher: bool) -> list[str]:
    """Mark published rows; for most metrics the noise of a published number is unknown, and nothing is marked."""
    noise, values = without_items(), [row.value for row in rows]
    return marks([v.mean for v in values], lambda i, j: noise.p(metric, values[i], values[j]), higher=higher)


def archs_of(table: Table, columns: Sequence[Column]) -> set[str]:
    """Return the architectures measured in these columns."""
    return {row.arch for row in table.rows if any(column in row.values for column in columns)}


def flags(row: Published, columns: Sequence[Column], archs: set[str]) -> tuple[str, ...]:
    """Return what differs from the measured columns, and the conditions that the source does not state."""
    number = row.number
    found = [] if archs == {row.arch} else [f"{row.arch} (here {_names(archs)})"]
    measured = number.data or f"the published {columns[0].dataset}"
    here = {column.dataset if column.is_published else column.data for column in columns}
    if number.data or not all(column.is_published for column in columns):
        found.append(f"on {measured} (here {_names(here)})")
    unstated = []
    for name, places in _FIELDS.items():
        mine = {own for column in columns if (own := _field(column, places)) is not None}
        stated = getattr(number, name)
        if not mine:
            continue
        if stated is None:
            unstated.append(name)
        elif mine != {str(stated)}:
            found.append(f"{name} {stated} (here {_names(mine)})")
    frozen = {_frozen(column) for column in columns} - {None}
    if frozen and number.frozen is None:
        unstated.append("whether the encoder was frozen")
    elif frozen and frozen != {number.frozen}:
        words = {True: "frozen", False: "fine-tuned"}
        found.append(f"encoder {words[bool(number.frozen)]} (here {_names({words[bool(m)] for m in frozen})})")
    other = sorted({text for column in columns if column.is_published for text in changed(column)})
    if other:
        found.append(f"here other than the preset: {', '.join(other[:6])}{', ...' if len(other) > 6 else ''}")
    return (*found, f"not stated: {', '.join(unstated)}") if unstated else tuple(found)


def changed(column: Column) -> tuple[str, ...]:
    """Return `field=value` for each field that differs from the cell's preset."""
    preset = _field(column, ["preset"])
    return () if preset is None else _changed(column.cell, preset, column.fields)


@functools.cache
def _changed(name: str, preset: str, fields: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    from benchmarks import plan  # loads the tasks, which only published data next to published numbers need

    if not plan.is_cell(name):
        return ()
    try:
        cell = plan.load_cell(name, [f"preset={preset}"])
    except ConfigError:
        return (f"preset {preset}, which is no more",)
    fresh = dict(flat(cell.config.every_field()))
    mine = {
        **dict(flat(cell.config.later_fields())),
        **dict(fields),
    }  # a field that a record lacks has the value it had then
    told = _TOLD_ELSEWHERE | set(indifferent_keys(type(cell.config)))
    return tuple(f"{k}={v}" for k, v in sorted(mine.items()) if k in fresh and fresh[k] != v and k not in told)


def _field(column: Column, places: Sequence[str]) -> str | None:
    """Return a field of the configuration as a source would state it."""
    fields = dict(column.fields)
    set_ones = [str(json.loads(fields[place])) for place in places if fields.get(place, "null") != "null"]
    return set_ones[0] if set_ones else None


def _frozen(column: Column) -> bool | None:
    """Return whether the encoder was frozen, for protocols that may train it."""
    rate = dict(column.fields).get("rate_encoder")
    return None if rate is None else json.loads(rate) == 0


def _names(found: set[str]) -> str:
    return " and ".join(sorted(found))
