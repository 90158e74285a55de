"""One self-contained HTML page: the overview, a drawer per cell, pretraining curves, provenance.

The page is plain tables with a small script and works without it. A table library would be larger than the page, build its
rows from data in the browser, and so leave nothing to print or to read where scripts are off.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from benchmarks.records.store import Result
from benchmarks.report import baselines, escape, exports, made, plots, render, standing_text
from benchmarks.report.baselines import Choices
from benchmarks.report.comparison import Comparison, compare
from benchmarks.report.drawers import drawers
from benchmarks.report.links import linked
from benchmarks.report.matrix import Matrix, matrix
from benchmarks.report.rank_plot import rank_plot
from benchmarks.report.scores import Items
from benchmarks.report.standing import Standing
from benchmarks.report.table import Table, made_apart
from benchmarks.report.templates import environment

_FOLDER = Path(__file__).parent


def page(
    table: Table,
    results: Sequence[Result],
    *,
    suite: str,
    curves: Mapping[str, Path] | None = None,
    out: Path | None = None,
    comparisons: Sequence[Comparison] | None = None,
    baseline: str | None = None,
    source: str | None = "",
    left_out: Sequence[str] = (),
    standings: Sequence[Standing] = (),
    items: Items | None = None,
    choices: Choices | None = None,
    version: str = "",
) -> str:
    """Return the text of the page.

    Args:
        curves: a run's name and its `metrics.jsonl`.
        out: the folder of results, in which runs left losses and pictures.
        comparisons: marks and differences of the columns to show; default: made without a baseline.
        baseline: the row that differences refer to.
        source: only published rows with this in their source; None: no literature.
        left_out: files without a record, each with the reason.
        standings: where the rows stand over all cells, one for each kind of numbers.
        items: the files of arrays per test item, by the record's identity.
        choices: the differences to the rows that a reader may choose; default: none.
        version: of the served records; the page asks its server for another one. Empty: it makes no request at all.
    """
    if comparisons is None:
        comparisons = compare(table, render.shown(table), {}, with_literature=False)
    overview = matrix(table, comparisons, standings, source=source)
    measured = [r for r in results if r.status == "ok"]
    drawn = {name: plots.attempt(partial(plots.pretraining_plot, path), path) for name, path in (curves or {}).items()}
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    return _environment().get_template("page.html.j2").render(
        suite=suite,
        version=version,
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=_policy(script, is_served=bool(version)),
        is_demo=any(column.is_demo for column in table.columns),
        is_smoke=any(column.profile == "smoke" for column in table.columns),
        matrix=overview,
        groups=_groups(overview),
        drawers=drawers(table, overview, comparisons, items or {}, source=source, out=out),
        exports=_embedded({name: asdict(form(overview)) for name, form in exports.FORMS.items()}),
        differences=_embedded(baselines.embedded(choices or Choices(), overview)),
        has_choices=bool(choices and choices.to),
        untested=choices.left_out if choices else 0,
        baseline=baseline,
        intervals=render.intervals_made(comparisons),
        legend=render.MARKS,
        standings=[_standing(standing) for standing in standings],
        reasons=render.reasons(table),
        left_out=left_out,
        curves={name: svg for name, svg in drawn.items() if svg},
        made_apart=made_apart(table),
        comparable=any(column.is_published for column in table.columns),
        origins=made.origins(measured),
        packages=made.packages(measured),
        commands=made.commands(measured),
    )  # fmt: skip


def _environment() -> Environment:
    templates = environment(_FOLDER)
    templates.filters |= {
        "linked": linked,
        "number": render.row_number,
        "difference": render.difference,
        "breakable": _breakable,
    }
    return templates


def _breakable(words: str) -> Markup:
    """Return a name that a narrow column may break behind an underscore."""
    return Markup("_<wbr>").join(escape.plain(words).split("_"))


def _policy(script: str, *, is_served: bool) -> str:
    """Return the page's Content-Security-Policy: only its own script runs, and nothing is requested."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    asks = "connect-src 'self'; " if is_served else ""
    return f"default-src 'none'; {asks}style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"


def _groups(overview: Matrix) -> list[tuple[str, int]]:
    """Return the tasks of the overview and how many columns each spans."""
    names = [head.group for head in overview.heads]
    return [(name, names.count(name)) for name in dict.fromkeys(names)]


def _embedded(value: object) -> Markup:
    """Return a value as JSON that cannot end the element it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _standing(standing: Standing) -> Markup:
    return standing_text.section(standing, plots.attempt(partial(rank_plot, standing), "average ranks"))
