"""The backbones that a command line names: which source each comes from, what it is called, and what is measured once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from benchmarks.plan import Cell
    from model_zoo.backbone import Backbone

_SOURCE = re.compile(r"[A-Za-z_][\w.-]*:\w|https?://", re.IGNORECASE)  # no file


@dataclass(frozen=True, eq=False)
class Subject:
    """A backbone to measure, as `run_one` is told of it; a random baseline is one backbone per seed."""

    ckpt: str  # [NAME=]FILE, zoo:<entry>, timm:<model>, <module>:<function> or random:<architecture>
    like: str | None
    backbones: tuple[Backbone, ...]

    @property
    def name(self) -> str:
        """The row it belongs to."""
        return self.backbones[0].name


def find_subjects(ckpts: list[str], baselines: str, seeds: int) -> list[Subject]:
    """Load every checkpoint once, so that a bad one stops before any cell runs; `random` follows their architectures."""
    from core.progress import say
    from model_zoo import entries
    from model_zoo.load import load

    def random(ckpt: str, like: str | None) -> Subject:
        name, source = split_name(ckpt)
        template = load(like) if like else None
        made = (load(source, name=name, seed=seed, like=template) for seed in range(seeds))
        return Subject(ckpt, like, tuple(made))

    def from_zoo(name: str) -> Subject:
        known = {entry.name for entry in entries.all_entries()}
        if name not in known:
            close = hint if "did you mean" in (hint := nearest(name, known)) else ""
            raise ConfigError(
                f"unknown baseline '{name}'; known: random, random:<architecture>, names of zoo entries{close}"
            )
        return Subject(f"zoo:{name}", None, (load(f"zoo:{name}"),))

    subjects = []
    for ckpt in ckpts:
        name, path = split_name(ckpt)
        subjects.append(
            random(ckpt, None) if path.startswith("random:") else Subject(ckpt, None, (load(path, name=name),))
        )
        for note in subjects[-1].backbones[0].notes:
            say(f"{subjects[-1].name}: {note}")
    files = [subject for subject in subjects if subject.backbones[0].format != "random"]
    for baseline in filter(None, (b.strip() for b in baselines.split(","))):
        if baseline == "random":
            if not files:
                raise ConfigError("--baselines random follows a --ckpt; name the architecture: random:resnet50")
            if without := [s.ckpt for s in files if not s.backbones[0].is_resnet]:
                raise ConfigError(
                    f"--baselines random: {without[0]} is no ResNet, and how it is initialised cannot be guessed; give that "
                    "as another --ckpt (a function of your own, or timm:NAME?pretrained=false)"
                )
            alike = {(s.backbones[0].arch.model_dump_json(), s.backbones[0].input.model_dump_json()): s for s in files}
            for subject in alike.values():
                source = f"random:{subject.backbones[0].arch.name}"
                name = f"{source} like {subject.name}=" if len(alike) > 1 else ""  # one name is one row
                subjects.append(random(name + source, split_name(subject.ckpt)[1]))
        elif baseline.startswith("random:"):
            subjects.append(random(baseline, None))
        else:
            subjects.append(from_zoo(baseline.removeprefix("zoo:")))
    return subjects


def backbones(ckpt: str, like: str | None, seeds: int, cell: Cell) -> list[tuple[int, Backbone]]:
    """(seed, backbone) pairs: a random backbone anew for each seed, a fixed one once where the task draws nothing."""
    from model_zoo.load import load

    name, path = split_name(ckpt)
    if path.startswith("random:"):
        template = load(like) if like else None
        return by_seed([load(path, name=name, seed=seed, like=template) for seed in range(seeds)], seeds, cell)
    return by_seed([load(path, name=name)], seeds, cell)


def by_seed(made: Sequence[Backbone], seeds: int, cell: Cell) -> list[tuple[int, Backbone]]:
    """(seed, backbone) pairs of a random backbone's networks, or of the one of a checkpoint."""
    if made[0].format == "random":
        return list(enumerate(made[:seeds]))
    return [(seed, made[0]) for seed in range(1 if cell.task.deterministic(cell.config) else seeds)]


def split_name(ckpt: str) -> tuple[str | None, str]:
    """`name=path` or `path`; a path that exists is never split, nor an option (`timm:NAME?pretrained=false`).

    Of several `=` the first that a file or another source (`random:resnet50`, `module:function`) follows, else the first.
    """
    places = [i for i, c in enumerate(ckpt) if c == "=" and "?" not in ckpt[:i]]
    if not places or Path(ckpt).exists() or ckpt.lower().startswith(("https://", "http://")):
        return None, ckpt
    fit = (i for i in places if _SOURCE.match(ckpt[i + 1 :]) or Path(ckpt[i + 1 :]).is_file())
    place = next(fit, places[0])
    return ckpt[:place], ckpt[place + 1 :]


def curves_of(ckpts: list[str]) -> dict[str, Path]:
    """`metrics.jsonl` beside each checkpoint that has one: the run that made it."""
    from model_zoo.load import default_name

    found = {}
    for ckpt in ckpts:
        name, path = split_name(ckpt)
        metrics = Path(path).parent / "metrics.jsonl"
        if Path(path).is_file() and metrics.exists():
            shown = name or default_name(Path(path))
            found[shown if shown not in found else f"{shown} ({path})"] = metrics
    return found
