"""A price for every backbone and cell of a run, and for the whole run on several devices."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from backbench.data.catalogue import DataPlaces
from backbench.errors import BackbenchError
from backbench.progress import duration
from benchmarks.plan import Cell
from benchmarks.price.cells import work_of
from benchmarks.price.machines import Machine, find
from benchmarks.price.work import Work
from benchmarks.subjects import Subject, by_seed


@dataclass(frozen=True)
class Price:
    """Seconds of a cell's process with all its seeds, bytes on the disk, bytes on the device."""

    seconds: float
    disk: float
    memory: float


def price(subject: Subject, cell: Cell, seeds: int, places: DataPlaces, machine: Machine) -> Price:
    """The price of a (backbone, cell). Raises BackbenchError: the work is not known."""
    pairs = by_seed(subject.backbones, seeds, cell)
    shared, each = work_of(cell, subject.backbones[0], places)
    networks = len({backbone.weights_sha256 for _, backbone in pairs})  # features are computed once for each
    precision = getattr(cell.config, "precision", "fp32")
    seconds = networks * machine.seconds(shared, precision) + len(pairs) * machine.seconds(each, precision)
    whole: Work = shared + each
    return Price(machine.start(whole) + seconds, networks * shared.disk + each.disk, whole.memory)


def lines(
    subjects: Sequence[Subject],
    cells: Sequence[Cell],
    repeats: Mapping[str, int],
    places: DataPlaces,
    *,
    on: str,
    devices: int,
) -> Iterator[str]:
    """A line for each backbone and cell, then the whole run with `devices` cells at a time, the longest first."""
    from benchmarks.forecast import size_text

    prices: list[Price] = []
    machines: dict[tuple[str, int], Machine] = {}
    for subject in subjects:
        backbone = subject.backbones[0]
        for cell in cells:
            size = getattr(cell.config, "size", None) or backbone.input.size
            key = (backbone.weights_sha256, size)
            machine = machines.get(key) or machines.setdefault(key, find(on, backbone, size))
            try:
                one = price(subject, cell, repeats[cell.name], places, machine)
            except BackbenchError as error:
                yield f"unknown   {subject.name:<28} {error}"
                continue
            prices.append(one)
            yield (f"{duration(one.seconds):>9} {subject.name:<28} {cell.name}: {size_text(one.disk)} on the disk, "
                   f"{size_text(one.memory)} of memory on the device")  # fmt: skip
    if prices:
        wall = makespan([one.seconds for one in prices], devices)
        hours, name = sum(one.seconds for one in prices) / 3600, next(iter(machines.values())).name
        kind = "measured rates of this machine" if next(iter(machines.values())).is_measured else "published peaks"
        yield (f"{duration(wall)} on {devices} x {name}: {hours:.3g} device-hours; estimated from {kind}, "
               f"with data on a fast disk and nothing else running")  # fmt: skip


def makespan(seconds: Sequence[float], devices: int) -> float:
    """Seconds until the last cell ends, where each device takes the longest cell that is left."""
    ends = [0.0] * devices
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)
