"""Show every cell of a folder of results: done, running, waiting, failed, and why. Reads files only."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # as a plain script: the repository's root in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from backbench.errors import BackbenchError, run_cli
from backbench.files import folder_option
from backbench.printable import visible

if TYPE_CHECKING:
    from benchmarks.planned import Planned
    from benchmarks.records.schema import Result

STATES = {
    "running": "a process has the cell's lock",
    "waiting": "a launcher or SLURM will start it",
    "done": "every planned seed has its number",
    "failed": "the last attempt gave no number",
    "skipped": "it cannot run here",
    "stopped": "nothing runs it now; `backbench run` with the same options continues",
}


@dataclass(frozen=True)
class CellState:
    """A (backbone, cell) of a folder of results."""

    backbone: str
    cell: str
    state: str  # one of STATES
    reason: str  # why it failed or was skipped, who runs it, or which job waits
    seeds_done: int
    seeds: int
    folder: str
    log: str  # the file with what it said; empty if there is none


def parser(prog: str = "benchmarks/status.py") -> argparse.ArgumentParser:
    """The command line."""
    lines = "\n".join(f"  {name:<8} {what}" for name, what in STATES.items())
    p = argparse.ArgumentParser(
        prog=prog,
        description="Show every cell of a folder of results, or every run of a grid of pretrainings, from records, locks "
        "and logs.",
        epilog=f"states:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "out", nargs="?", type=folder_option, default=Path("results"), metavar="DIR", help="default: results"
    )
    p.add_argument("--json", action="store_true", help="one JSON list instead of lines")
    return p


def main(argv: list[str] | None = None, *, prog: str = "benchmarks/status.py") -> int:
    """Print the state of every cell; exit code 0 whatever the states are.

    Raises:
        BackbenchError: there is no such folder.
    """
    args = parser(prog).parse_args(argv)
    if not args.out.is_dir():
        raise BackbenchError(f"{args.out}: no such folder; give what `backbench run` wrote with --out")
    if (args.out / "grid.json").is_file():
        return _grid(args.out, args.json)
    states = list(cells(args.out))
    print(json.dumps([asdict(state) for state in states], indent=1) if args.json else text(states, args.out))
    return 0


def _grid(folder: Path, as_json: bool) -> int:
    """Print the runs of a grid of `backbench pretrain`."""
    from pretrain import table

    rows = table.rows(folder, table.queue(folder))
    print(json.dumps(rows, indent=1) if as_json else table.render(rows).rstrip())
    return 0


def cells(out: Path) -> Iterator[CellState]:
    """The state of every cell of a folder of results, in path order."""
    from backbench import slurm
    from benchmarks import planned
    from benchmarks.records import store

    records: dict[Path, list[Result]] = {}
    for path, record in store.scan_folder(out).records.items():
        records.setdefault(path.parent, []).append(record)
    plans = {file.parent: planned.read(file.parent) for file in sorted(out.glob(f"*/*/{planned.FILE}"))}
    queue = slurm.queued([plan.job for plan in plans.values() if plan and plan.launcher == "slurm"])
    for folder in sorted({*records, *plans}):
        if records.get(folder) or plans.get(folder):
            yield _cell(out, folder, records.get(folder, []), plans.get(folder), queue)


def _cell(
    out: Path, folder: Path, records: Sequence[Result], plan: Planned | None, queue: dict[str, str] | None
) -> CellState:
    seeds = set(plan.seeds) if plan else {record.seed for record in records}
    done = {record.seed for record in records if record.status == "ok"} & seeds
    state, reason = _state(out, folder, records, plan, queue, len(done) == len(seeds))
    first = records[0] if records else None
    name, cell = (plan.backbone, plan.cell) if plan else (first.backbone.name, first.cell) if first else ("", "")
    return CellState(name, cell, state, reason, len(done), len(seeds), str(folder), _log(out, folder, plan))


def _state(
    out: Path, folder: Path, records: Sequence[Result], plan: Planned | None, queue: dict[str, str] | None, done: bool
) -> tuple[str, str]:
    """The state and its reason. What happens now comes before what has happened."""
    from backbench.files import locks

    if locks.is_live(folder / ".lock"):
        return "running", locks.who(locks.read(folder / ".lock"))
    failed = next((r for r in records if r.status == "failed"), None)
    if done and failed is None:
        return "done", ""
    said = _recorded(folder, "seed*.json")
    pending, why = _launcher(out, plan, queue) if plan else (False, "")
    if pending and (plan is None or said < _recorded(folder, "planned.json")):
        return "waiting", why
    if failed is not None:
        return "failed", failed.reason or ""
    if skipped := next((r for r in records if r.status == "skipped"), None):
        return "skipped", skipped.reason or ""
    if pending:
        return "waiting", why
    return ("failed" if plan and plan.launcher == "slurm" else "stopped"), why


def _launcher(out: Path, plan: Planned, queue: dict[str, str] | None) -> tuple[bool, str]:
    """Whether what planned a cell will still run it, and what to say of it; SLURM's queue is asked where there is one."""
    from backbench import slurm
    from backbench.files import locks
    from benchmarks import planned

    if plan.launcher != "slurm":
        lock = plan.lock(out)
        alive = locks.is_live(lock)
        return alive, locks.who(locks.read(lock)) if alive else f"its launcher {plan.job} has ended"
    job = f"SLURM job {plan.job}"
    if queue is not None:
        there = queue.get(plan.job, "").lower()
        return bool(there), f"{job}: {there}" if there else f"{job} is not in the queue and left no record; see its log"
    state = slurm.state(out / planned.SLURM, plan.job)
    if state == "ended":
        return False, f"{job} ended without a record, or SLURM will start it again; see its log"
    return True, f"{job}: {'starting or ending' if state == 'running' else 'not started'}"


def _recorded(folder: Path, pattern: str) -> int:
    return max((file.stat().st_mtime_ns for file in folder.glob(pattern)), default=0)


def _log(out: Path, folder: Path, plan: Planned | None) -> str:
    """The file that a cell's lines are in; before it speaks, that of its SLURM job."""
    from backbench import slurm
    from benchmarks import planned

    logs = [folder / "log.txt"]
    if plan and plan.launcher == "slurm":
        logs.append(slurm.log_of(out / planned.SLURM, plan.job))
    return str(next((log for log in logs if log.exists()), ""))


def text(states: Sequence[CellState], out: Path) -> str:
    """A line for each cell, with its log where it is not done, and a line that counts the states."""
    lines = []
    wide = max((len(state.backbone) for state in states), default=0)
    wider = max((len(state.cell) for state in states), default=0)
    for state in states:
        seeds = f"{state.seeds_done}/{state.seeds}"
        line = f"{state.state:<8} {state.backbone:<{wide}}  {state.cell:<{wider}}  {seeds:>5}  {state.reason}".rstrip()
        lines.append(line + (f"  [{state.log}]" if state.log and state.state != "done" else ""))
    counts = Counter(state.state for state in states)
    found = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    return "\n".join(
        visible(line) for line in [*lines, f"{out}: {len(states)} cells" + (f": {found}" if found else "")]
    )


if __name__ == "__main__":
    run_cli(main, single=True)
