"""One table of the runs of a grid: how far each is, and its last monitored values, from its own log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backbench import jsonl, slurm
from backbench.errors import BackbenchError
from backbench.files import locks, read_json
from backbench.files.atomic import atomic_write_text

GRID = "grid.json"  # in the grid's folder: its fields and points
TABLE = "table.md"
JOBS = "jobs.json"  # in the grid's folder: the number of each run's last SLURM job
FAILED = ".failed"  # in a run's folder: why its job ended without a model
SHOWN = {
    "loss": "{:.3f}",
    "std": "{:.3f}",
    "effective_rank": "{:.1f}",
    "online_knn20": "{:.1f}",
    "online_linear": "{:.1f}",
    "online_rankme": "{:.1f}",
}


def write_grid(folder: Path, fields: Sequence[str], points: Mapping[str, Sequence[str]]) -> None:
    """Write the grid's file: its fields, and their values for each run's folder. Points of an earlier start stay in it.

    Raises:
        BackbenchError: the folder has a grid of other fields.
    """
    before: dict[str, Any] = {}
    if (folder / GRID).is_file():
        had, before = _read_grid(folder)
        if had != list(fields):
            raise BackbenchError(f"{folder}: holds a grid of {', '.join(had)}; give another --out")
    atomic_write_text(
        folder / GRID, json.dumps({"fields": list(fields), "points": {**before, **points}}, indent=1) + "\n"
    )


def _read_grid(folder: Path) -> tuple[list[str], dict[str, Any]]:
    grid = read_json(folder / GRID) if (folder / GRID).is_file() else None
    fields, points = (grid.get("fields"), grid.get("points")) if isinstance(grid, dict) else (None, None)
    if not isinstance(fields, list) or not isinstance(points, dict):
        raise BackbenchError(f"{folder}: holds no {GRID} of a grid; give the folder of `backbench pretrain key=a,b`")
    return fields, points


def queue(folder: Path) -> dict[str, str]:
    """SLURM's word (`PENDING`, `RUNNING`) for each run whose job is in its queue, as far as that can be asked here."""
    numbers = jobs(folder)
    there = slurm.queued(list(numbers.values())) or {} if numbers else {}
    return {name: there[number] for name, number in numbers.items() if number in there}


def jobs(folder: Path) -> dict[str, str]:
    """The number of the last SLURM job of each run."""
    found = read_json(folder / JOBS) if (folder / JOBS).is_file() else {}
    return {name: str(number) for name, number in found.items()} if isinstance(found, dict) else {}


def write(folder: Path, queued: Mapping[str, str] | None = None) -> str:
    """Write the table of a grid's folder beside its runs and return it, as Markdown.

    Args:
        queued: of `queue`.

    Raises:
        BackbenchError: no grid was started in the folder.
    """
    text = render(rows(folder, queued))
    atomic_write_text(folder / TABLE, text)
    return text


def rows(folder: Path, queued: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """For each run, in the grid's order: its fields, `state`, `epoch`, and the last value of each monitor that it has.

    Raises:
        BackbenchError: no grid was started in the folder.
    """
    fields, points = _read_grid(folder)
    found = []
    for name, values in points.items():
        run = _run(folder / name, (queued or {}).get(name, ""))
        found.append({**dict(zip(map(str, fields), map(str, values), strict=False)), "run": name, **run})
    return found


def _run(folder: Path, queued: str) -> dict[str, Any]:
    last: dict[str, Any] = {}
    if (folder / "metrics.jsonl").is_file():
        for _, record in jsonl.records(folder / "metrics.jsonl"):
            last |= {name: value for name, value in (record or {}).items() if isinstance(value, (int, float))}
    return {"state": _state(folder, last, queued), **{name: last[name] for name in ("epoch", *SHOWN) if name in last}}


def _state(folder: Path, last: Mapping[str, Any], queued: str) -> str:
    if locks.is_live(folder / ".lock"):
        return "running"
    if (folder / "model.pth").is_file():
        return "done"
    if queued:
        return f"in SLURM's queue: {queued.lower()}"
    if (folder / FAILED).is_file():
        return "failed: " + (folder / FAILED).read_text(encoding="utf-8", errors="replace").strip()
    return "not done" if last else "not started"


def render(found: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; a monitor that no run has gets no column."""
    names = [name for name in dict.fromkeys(name for row in found for name in row) if name not in SHOWN]
    names += [name for name in SHOWN if any(name in row for row in found)]
    lines = [names, ["---"] * len(names)]
    lines += [[_cell(name, row.get(name)) for name in names] for row in found]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return SHOWN[name].format(value) if name in SHOWN else str(value).replace("|", "\\|").replace("\n", " ")


def note_failure(folder: str, reason: str) -> None:
    """Keep why a run's job ended without a model, until the run starts again."""
    atomic_write_text(Path(folder) / FAILED, reason + "\n")
