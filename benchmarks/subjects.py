"""Find the backbones that a command line names: load them, name their rows, drop repeats."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from backbench.errors import ConfigError, nearest
from backbench.printable import printable
from model_zoo.choice import NO_CHOICE, Choice

if TYPE_CHECKING:
    from benchmarks.naming import Who
    from benchmarks.plan import Cell
    from model_zoo.backbone import Backbone

_SOURCE = re.compile(r"[A-Za-z_][\w.-]*:\w|https?://", re.IGNORECASE)  # no file
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_ORIGIN = re.compile(r"(random|zoo|timm|hf-hub|https?):", re.IGNORECASE)  # a source, not a name
MOST_SEEDS = 1000
_LONGEST_NAME = 100
_LONGEST_FILE = 255  # bytes


@dataclass(frozen=True, eq=False)
class Subject:
    """A backbone to measure, as `run_one` receives it; a random baseline has one backbone per seed."""

    ckpt: str  # [NAME=]FILE, zoo:<entry>, timm:<model>, <module>:<function> or random:<architecture>
    like: str | None
    backbones: tuple[Backbone, ...]
    label: str = ""  # the row's name, if others of the command have the same name

    @property
    def name(self) -> str:
        """The name of its row."""
        return self.label or self.backbones[0].name


def find_subjects(ckpts: Sequence[str], baselines: str, seeds: int, choice: Choice = NO_CHOICE) -> list[Subject]:
    """Load every checkpoint once, so that a bad one is refused before any cell runs; `random` copies their architectures.

    Args:
        choice: which network of the checkpoint files to take.

    Raises:
        ConfigError: a source lacks a name, a name lacks a source, or a baseline is unknown.
        CheckpointError: a file is not a sound checkpoint.
    """
    from backbench.progress import say

    refuse_idle(choice, ckpts)
    subjects = []
    for ckpt in ckpts:
        subjects.append(Subject(ckpt, None, tuple(read(ckpt, None, seeds, choice))))
        for note in subjects[-1].backbones[0].notes:
            say(f"{subjects[-1].name}: {note}")
    subjects = told_apart(subjects)
    files = [subject for subject in subjects if subject.backbones[0].format != "random"]
    for baseline in dict.fromkeys(filter(None, (b.strip() for b in baselines.split(",")))):
        if baseline == "random":
            subjects += _like_each(files, seeds, choice)
        elif baseline.startswith("random:"):
            subjects.append(Subject(baseline, None, tuple(read(baseline, None, seeds))))
        else:
            subjects.append(_from_zoo(baseline.removeprefix("zoo:")))
    _refuse_trained_with_random(subjects)
    return told_apart(subjects)


def refuse_idle(choice: Choice, ckpts: Sequence[str]) -> None:
    """Raise ConfigError when `--key`, `--prefix` or `--arch` is given and no checkpoint is a file: they apply only to files."""
    from model_zoo.load import is_file

    if choice != NO_CHOICE and not any(is_file(split_name(ckpt)[1]) for ckpt in ckpts):
        raise ConfigError(
            "--key, --prefix and --arch apply only to checkpoint files, and no --ckpt is a file; leave them out"
        )


def read(ckpt: str, like: str | None, seeds: int, choice: Choice = NO_CHOICE) -> list[Backbone]:
    """Load the backbone of `[NAME=]SOURCE`; a random one has a network for each seed. `choice` applies only to files."""
    from model_zoo.load import is_file, load

    name, source = named_source(ckpt)
    if source.startswith("random:"):
        template = load(like, choice=choice if is_file(like) else NO_CHOICE) if like else None
        made = [load(source, name=name, seed=seed, like=template) for seed in range(seeds)]
    else:
        made = [load(source, name=name, choice=choice if is_file(source) else NO_CHOICE)]
    return [_called(backbone, ckpt, named=name is not None, source=source) for backbone in made]


def _called(backbone: Backbone, ckpt: str, *, named: bool, source: str) -> Backbone:
    name = backbone.name.encode("utf-8", "backslashreplace").decode()  # a file name may have bytes that are not text
    if backbone.format != "random" and _ORIGIN.match(name):
        raise ConfigError(f"--ckpt {printable(ckpt)}: its name '{printable(name)}' would read like a source; "
                          f"give it a name: --ckpt NAME={printable(source)}")  # fmt: skip
    home = str(Path.home())
    source = source.encode("utf-8", "backslashreplace").decode().replace(f"{home}/", "~/")
    return replace(backbone, name=name, named=named, source=source)


def _like_each(files: Sequence[Subject], seeds: int, choice: Choice) -> list[Subject]:
    """Make a random baseline for each architecture and input of the checkpoints."""
    if not files:
        raise ConfigError("--baselines random follows a --ckpt; name the architecture: random:resnet50")
    if without := [s.ckpt for s in files if not s.backbones[0].is_resnet]:
        raise ConfigError(
            f"--baselines random: {printable(without[0])} is not a ResNet, so its initialisation is unknown; give "
            "that as another --ckpt (a function of your own, or timm:NAME?pretrained=false)"
        )
    alike = {(s.backbones[0].arch.model_dump_json(), s.backbones[0].input.model_dump_json()): s for s in files}
    found = []
    for subject in alike.values():
        source = f"random:{subject.backbones[0].arch.name}"
        ckpt = f"{source} like {subject.name}={source}" if len(alike) > 1 else source  # one name makes one row
        like = split_name(subject.ckpt)[1]
        found.append(Subject(ckpt, like, tuple(read(ckpt, like, seeds, choice))))
    return found


def _from_zoo(name: str) -> Subject:
    from model_zoo import entries

    known = {entry.name for entry in entries.all_entries()}
    if name not in known:
        close = hint if "did you mean" in (hint := nearest(name, known)) else ""
        raise ConfigError(
            f"unknown baseline '{printable(name)}'; known: random, random:<architecture>, names of zoo entries{close}"
        )
    return Subject(f"zoo:{name}", None, tuple(read(f"zoo:{name}", None, 1)))


def _refuse_trained_with_random(subjects: Sequence[Subject]) -> None:
    """Raise ConfigError for a row of trained and random networks: their mean is meaningless."""
    random = {s.backbones[0].name for s in subjects if s.backbones[0].format == "random"}
    for subject in subjects:
        if subject.backbones[0].format != "random" and subject.backbones[0].name in random:
            raise ConfigError(
                f"--ckpt {printable(subject.ckpt)}: a random network has the same name; give it another NAME="
            )


def who(backbone: Backbone) -> Who:
    """Return the fields of a backbone that decide its row."""
    from backbench.config import digest
    from benchmarks.naming import Who
    from benchmarks.report.table import in_words

    record = backbone.record()
    return Who(
        name=backbone.name,
        joins=backbone.named or backbone.format == "random",
        weights=backbone.weights_sha256,
        arch=digest(record["arch"]),
        input=digest(record["input"]),
        source=backbone.source,
        build=in_words(record["arch"], record["input"]),
    )


def told_apart(subjects: Sequence[Subject]) -> list[Subject]:
    """Name the row of each, without repeats; say which rows have the same weights."""
    from backbench.progress import say
    from benchmarks.naming import labels

    whos = [who(subject.backbones[0]) for subject in subjects]
    names = labels(whos)
    kept: dict[tuple[object, ...], Subject] = {}
    same: dict[tuple[str, str, str], Subject] = {}
    for subject, one in zip(subjects, whos, strict=True):
        labelled = replace(subject, label=names[one.key])
        network = (one.weights, one.arch, one.input)
        if (one.key, network) in kept:
            first = kept[one.key, network]
            say(f"{subject.ckpt}: the same weights as {first.ckpt}, under one name: measured once")
            continue
        kept[one.key, network] = labelled
        if network in same and not subject.label:
            say(f"{labelled.name}: the same weights as {same[network].name}")
        same.setdefault(network, labelled)
    return list(kept.values())


def backbones(
    ckpt: str, like: str | None, seeds: int, cell: Cell, choice: Choice = NO_CHOICE
) -> list[tuple[int, Backbone]]:
    """Return (seed, backbone) pairs: a new random backbone per seed; a fixed one only once if the task is deterministic."""
    return by_seed(read(ckpt, like, seeds, choice), seeds, cell)


def by_seed(made: Sequence[Backbone], seeds: int, cell: Cell) -> list[tuple[int, Backbone]]:
    """Return (seed, backbone) pairs: every network of a random baseline, or the one network of a checkpoint."""
    if made[0].format == "random":
        return list(enumerate(made[:seeds]))
    return [(seed, made[0]) for seed in range(1 if cell.task.deterministic else seeds)]


def split_name(ckpt: str) -> tuple[str | None, str]:
    """Split `name=path`; an existing path is never split, nor are options (`timm:NAME?pretrained=false`).

    Of several `=` it takes the first that a file or a source (`random:resnet50`, `module:function`) follows, else the first.
    """
    places = [i for i, c in enumerate(ckpt) if c == "=" and "?" not in ckpt[:i]]
    if not places or _exists(ckpt) or _ADDRESS.match(ckpt):
        return None, ckpt
    fit = (i for i in places if _SOURCE.match(ckpt[i + 1 :]) or _exists(ckpt[i + 1 :]))
    place = next(fit, places[0])
    return ckpt[:place], ckpt[place + 1 :]


def named_source(ckpt: str) -> tuple[str | None, str]:
    """Like `split_name`; the name is normalised (one kind of space, one kind of accent), so that rows compare it.

    Raises:
        ConfigError: one side of the `=` is empty, or the name cannot be shown in a table or reads like a source.
    """
    name, source = split_name(ckpt)
    if not source.strip() or "\0" in ckpt:
        raise ConfigError(f"--ckpt '{printable(ckpt)}': not a checkpoint; expected FILE or NAME=FILE")
    if not _ADDRESS.match(source) and max(map(len, os.fsencode(source).split(b"/"))) > _LONGEST_FILE:
        raise ConfigError(f"--ckpt {printable(ckpt)}: a file name of more than {_LONGEST_FILE} bytes cannot exist")
    if name is None:
        return None, source
    where = f"--ckpt {printable(ckpt)}"
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    if not name:
        raise ConfigError(f"{where}: no name before the '='; expected FILE or NAME=FILE")
    if printable(name, len(name)) != name:
        raise ConfigError(f"{where}: the name has characters that cannot be shown; choose another NAME=FILE")
    if _ORIGIN.match(name) and not source.startswith("random:"):
        raise ConfigError(f"{where}: '{name.partition(':')[0]}:' begins a source, not a name; choose another NAME=FILE")
    if len(name) > _LONGEST_NAME and not source.startswith("random:"):
        raise ConfigError(f"{where}: the name has {len(name)} characters, at most {_LONGEST_NAME} fit a table")
    return name, source


def _exists(path: str) -> bool:
    try:
        return bool(path) and Path(path).exists()
    except (OSError, ValueError):  # the name is too long or empty
        return False


def curves_of(subjects: Sequence[Subject]) -> Mapping[str, Path]:
    """Return the `metrics.jsonl` next to each checkpoint that has one, by the name of its row."""
    found: dict[str, Path] = {}
    for subject in subjects:
        path = split_name(subject.ckpt)[1]
        metrics = Path(path).parent / "metrics.jsonl"
        if subject.backbones[0].format != "random" and _exists(path) and _exists(str(metrics)):
            several = subject.name in found  # several checkpoints with one NAME
            found[f"{subject.name} ({path})" if several else subject.name] = metrics
    return found
