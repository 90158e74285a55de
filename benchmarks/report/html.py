"""One self-contained HTML page: the overview, a drawer per cell, pretraining curves, provenance.

The page is plain tables with a small script and works without it. A table library would be larger than the page, build its
rows from data in the browser, and so leave nothing to print or to read where scripts are off.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from backbench.files import read_bytes
from benchmarks.records.store import Result, run_folder
from benchmarks.report import escape, exports, made, plots, render, standing_text
from benchmarks.report.comparison import Comparison, compare
from benchmarks.report.drawers import drawers
from benchmarks.report.links import linked
from benchmarks.report.matrix import Matrix, matrix
from benchmarks.report.rank_plot import rank_plot
from benchmarks.report.scores import Items
from benchmarks.report.standing import Standing
from benchmarks.report.table import Table, made_apart

_FOLDER = Path(__file__).parent
_LARGEST_PICTURE = 64 * 2**20  # bytes


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
    version: str = "",
) -> str:
    """Return the text of the page.

    Args:
        curves: a run's name and its `metrics.jsonl`.
        out: where detectors left losses and pictures.
        comparisons: marks and differences of the columns to show; default: made without a baseline.
        baseline: the row that differences refer to.
        source: only published rows with this in their source; None: no literature.
        left_out: files without a record, each with the reason.
        standings: where the rows stand over all cells, one for each kind of numbers.
        items: the files of arrays per test item, by the record's identity.
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
        drawers=drawers(table, overview, comparisons, items or {}, source=source),
        exports=_embedded(overview),
        baseline=baseline,
        intervals=render.intervals_made(comparisons),
        legend=render.MARKS,
        standings=[_standing(standing) for standing in standings],
        reasons=render.reasons(table),
        left_out=left_out,
        curves={name: svg for name, svg in drawn.items() if svg},
        detectors=_detectors(results, out) if out else {},
        made_apart=made_apart(table),
        comparable=any(column.is_published for column in table.columns),
        origins=made.origins(measured),
        packages=made.packages(measured),
        commands=made.commands(measured),
    )  # fmt: skip


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=escape.html,
    )
    environment.filters |= {
        "linked": linked,
        "number": render.row_number,
        "difference": render.difference,
        "breakable": _breakable,
    }
    return environment


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


def _embedded(overview: Matrix) -> Markup:
    """Return all formats as JSON that cannot end the element it stands in."""
    forms = {name: asdict(form(overview)) for name, form in exports.FORMS.items()}
    text = json.dumps(forms).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(text)


def _standing(standing: Standing) -> Markup:
    return standing_text.section(standing, plots.attempt(partial(rank_plot, standing), "average ranks"))


def _detectors(results: Sequence[Result], out: Path) -> dict[tuple[str, str], list[dict[str, str | None]]]:
    """Return the losses and pictures of every run that has some, by cell and configuration."""
    found: dict[tuple[str, str], list[dict[str, str | None]]] = {}
    for result in results:
        folder = run_folder(out, result)
        pictures, losses = folder / "pictures.png", folder / "losses.jsonl"
        if pictures.exists() and (picture := plots.attempt(partial(_data_url, pictures), pictures)):
            title = f"{result.backbone.name}, {result.cell}, seed {result.seed}"
            drawn = plots.attempt(partial(plots.losses_plot, losses), losses) if losses.exists() else None
            place = (result.cell, result.task.config_sha256[:8])
            found.setdefault(place, []).append({"title": title, "losses": drawn, "pictures": picture})
    return found


def _data_url(picture: Path) -> str:
    """Return a picture as a JPEG data URL, so that the page stays one file."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(read_bytes(picture, limit=_LARGEST_PICTURE))) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=80)
    return Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
