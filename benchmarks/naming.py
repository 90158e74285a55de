"""Names of rows: a NAME that the user gives joins backbones in one row; names taken from files never do."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from backbench.config import digest

Key = tuple[str, bool, str, str, str]
_LONGEST = 120  # characters of a row's name


@dataclass(frozen=True)
class Who:
    """The fields of a backbone that decide its row."""

    name: str
    joins: bool  # the user gave the NAME, or it is a random baseline with one network per seed
    weights: str
    arch: str  # digests: numbers of different networks or inputs never share a row
    input: str
    source: str = field(default="", compare=False)  # file or other origin, as it was given
    build: str = field(default="", compare=False)  # architecture and input in words

    @property
    def key(self) -> Key:
        """The same key for backbones that share a row."""
        return self.name, self.joins, self.arch, self.input, "" if self.joins else self.weights


def labels(everyone: Iterable[Who]) -> dict[Key, str]:
    """Return the label of each row: its name, plus what tells it apart from rows with the same name.

    That is the shortest end of their paths that differs (`moco/resnet18`, `version_0/checkpoints/last`) for names taken
    from files; else architecture and input; else the hash of the weights.
    """
    rows = {who.key: who for who in everyone}
    shown = {key: who.name for key, who in rows.items()}
    steps: tuple[Callable[[Mapping[Key, Who], Mapping[Key, str]], dict[Key, str]], ...]
    steps = (_by_folder, _by_build, _by_weights)
    for step in steps:
        alike: dict[str, dict[Key, Who]] = {}
        for key, who in rows.items():
            alike.setdefault(unicodedata.normalize("NFC", shown[key]).casefold(), {})[key] = who
        for group in alike.values():
            if len(group) > 1:
                shown |= step(group, shown)
    return {key: _shortened(label) for key, label in shown.items()}


def _by_folder(group: Mapping[Key, Who], shown: Mapping[Key, str]) -> dict[Key, str]:
    """Return the shortest ends of the paths, with at least a folder and a name, that are all different."""
    del shown
    derived = {key: who for key, who in group.items() if not who.joins and who.source}
    whole = {key: _parts(who.source) for key, who in derived.items()}
    plain = {key: (*whole[key][:-1], _stem(whole[key][-1], who.name)) for key, who in derived.items() if whole[key]}
    parts = plain if len(set(plain.values())) == len(set(whole.values())) else whole  # they differ only in the suffix
    distinct = set(parts.values())
    longest = max(map(len, distinct), default=0)
    enough = (n for n in range(2, longest) if len({p[-n:] for p in distinct}) == len(distinct))
    n = next(enough, longest)
    return {key: "/".join(p[-n:]) for key, p in parts.items() if p}


def _parts(source: str) -> tuple[str, ...]:
    path = source if "://" in source else os.path.normpath(source)
    return tuple(part for part in path.split("/") if part)


def _stem(file: str, name: str) -> str:
    """Return a file's name without its suffix: the part the backbone was named after, else up to the last dot."""
    if file.startswith(name):
        return name
    return file if file.endswith(name) else os.path.splitext(file)[0] or file  # noqa: PTH122 (may be no path)


def _by_build(group: Mapping[Key, Who], shown: Mapping[Key, str]) -> dict[Key, str]:
    if len({(who.arch, who.input) for who in group.values()}) == 1:
        return {}
    return {key: f"{shown[key]} ({who.build} {digest([who.arch, who.input])[:4]})" for key, who in group.items()}


def _by_weights(group: Mapping[Key, Who], shown: Mapping[Key, str]) -> dict[Key, str]:
    return {key: f"{shown[key]} ({who.weights[:8]})" for key, who in group.items() if not who.joins}


def _shortened(label: str) -> str:
    """Shorten a label to `_LONGEST` characters; different labels stay different."""
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 14]}... ({digest(label)[:8]})"
