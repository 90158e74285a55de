"""Render where backbones stand as Markdown and as a section of the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from benchmarks.report import escape
from benchmarks.report.standing import Standing
from benchmarks.report.templates import environment
from benchmarks.statistics import LEVEL
from benchmarks.statistics.marks import Tally
from benchmarks.statistics.ranks import Ranking

WINS = (
    "Wins – losses – not told apart, in how many cells the row's number is beyond the noise above the other's (5%, each pair "
    "by itself; over test items, and over seeds or pretrainings where there are several)."
)


def markdown(standing: Standing) -> str:
    """Return average ranks and the matrix of wins and losses."""
    heads = ["", "backbone", *(["average rank"] if standing.ranking else []), *_numbers(standing)]
    lines = [f"**Standing** {over(standing)}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for place, row in enumerate(standing.rows):
        rank = [f"{standing.ranking.ranks[place]:.2f}"] if standing.ranking else []
        cells = [str(place + 1), escape.markdown(row.label), *rank, *_cells(standing, place)]
        lines.append(f"| {' | '.join(cells)} |")
    said = [f"Numbered columns: {WINS[0].lower()}{WINS[1:]}"]
    if standing.ranking:
        said.append(about_ranks(standing.ranking))
    return "\n".join([*lines, "", *said]) + "\n"


def section(standing: Standing, drawn: str | None) -> Markup:
    """Return the section of the page.

    Args:
        drawn: the diagram of the ranks as SVG, if there is one.
    """
    template = environment(Path(__file__).parent).get_template("standing.html.j2")
    rows = [
        {"label": row.label, "cells": _cells(standing, place)}
        for place, row in enumerate(standing.rows[: len(standing.wins)])
    ]
    return Markup(
        template.render(
            over=over(standing),
            ranks=about_ranks(standing.ranking) if standing.ranking else "",
            drawn=Markup(drawn) if drawn else "",
            wins=WINS,
            numbers=_numbers(standing),
            rows=rows,
            more=len(standing.rows) - len(rows),
        )
    )


def over(standing: Standing) -> str:
    """Say what the standing is made of."""
    kinds = {(column.is_demo, column.profile) for column in standing.columns}
    mark = " DEMO" if any(demo for demo, _ in kinds) else ""
    mark += " REHEARSAL" if any(profile == "smoke" for _, profile in kinds) else ""
    data = f"{len(standing.data)} data sets" if len(standing.data) > 1 else "one data set"
    return f"over {len(standing.columns)} headline numbers on {data}, for rows that have all of them{mark}"


def about_ranks(found: Ranking) -> str:
    """Say what the ranks show."""
    text = f"Average rank: over {found.blocks} data sets, cells of one data set by their mean; 1 is best. "
    if found.p >= LEVEL:
        return f"{text}Friedman's test finds no difference between the rows (p {found.p:.2g}): no rank is told from another."
    return (
        f"{text}Friedman's test finds a difference (p {found.p:.2g}); ranks that differ by less than {found.critical:.2f} are "
        "not told apart (Nemenyi's critical difference, 5%)."
    )


def _numbers(standing: Standing) -> list[str]:
    return [str(place + 1) for place in range(len(standing.wins))]


def _cells(standing: Standing, place: int) -> list[str]:
    """Return a row's cells of the matrix; empty below its last row."""
    row: Sequence[Tally | None] = standing.wins[place] if place < len(standing.wins) else ()
    return [f"{t.won} – {t.lost} – {t.level}" if t else "" for t in row] or [""] * len(standing.wins)
