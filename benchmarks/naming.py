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
    """A backbone as far as rows are concerned."""

    name: str
    joins: bool  # a NAME that was given, or a random baseline, which is a network for each seed
    weights: str
    arch: str  # digests: numbers of other networks or inputs never stand in one row
    input: str
    source: str = field(default="", compare=False)  # file or other origin, as it was given
    build: str = field(default="", compare=False)  # architecture and input in words

    @property
    def key(self) -> Key:
        """Equal for what stands in one row."""
        return self.name, self.joins, self.arch, self.input, "" if self.joins else self.weights


def labels(everyone: Iterable[Who]) -> dict[Key, str]:
    """The label of each row: its name, and where several rows share one, the part that tells them apart.

    First the shortest end of their paths that does (`moco/resnet18`, `version_0/checkpoints/last`), of those whose name is
    from a file; then architecture and input; then the weights' hash.
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
    """The shortest ends of the paths, of at least a folder and a name, that are as many as the paths."""
    del shown
    derived = {key: who for key, who in group.items() if not who.joins and who.source}
    whole = {key: _parts(who.source) for key, who in derived.items()}
    plain = {key: (*whole[key][:-1], _stem(whole[key][-1], who.name)) for key, who in derived.items() if whole[key]}
    parts = plain if len(set(plain.values())) == len(set(whole.values())) else whole  # alike but for the suffix
    distinct = set(parts.values())
    longest = max(map(len, distinct), default=0)
    enough = (n for n in range(2, longest) if len({p[-n:] for p in distinct}) == len(distinct))
    n = next(enough, longest)
    return {key: "/".join(p[-n:]) for key, p in parts.items() if p}


def _parts(source: str) -> tuple[str, ...]:
    path = source if "://" in source else os.path.normpath(source)
    return tuple(part for part in path.split("/") if part)


def _stem(file: str, name: str) -> str:
    """A file's name without its suffix: the part that the backbone's name was made from, else up to the last dot."""
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
    """At most `_LONGEST` characters, and still another text for another label."""
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 14]}... ({digest(label)[:8]})"
