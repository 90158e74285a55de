"""Zoo entries: one YAML per backbone of the literature, with the numbers published for it and their sources."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

from pydantic import Field

from core.config import Config, build, read_mapping
from core.errors import BackbenchError, nearest
from model_zoo.architecture import Architecture, InputSpec

_FOLDER = Path(__file__).resolve().parent


class PublishedNumber(Config):
    """A number of the literature: never ours."""

    cell: str  # the cell that measures the same
    metric: str
    value: Annotated[float, Field(allow_inf_nan=False)]
    variant: str | None = None  # epochs, batch, views, weights of the losses: what the source says beside the method
    source: str


class Entry(Config):
    """A backbone of the literature."""

    name: str
    method: str
    arch: Architecture
    input: InputSpec = InputSpec()
    pretrained_on: str
    url: str | None = None
    no_weights: str | None = None  # why there is no url
    published: tuple[PublishedNumber, ...] = ()


@functools.cache
def all_entries() -> tuple[Entry, ...]:
    """Every entry, by name.

    Raises:
        ConfigError: an entry does not fit; BackbenchError: its name is not its file's.
    """
    found = []
    for path in sorted(_FOLDER.glob("*.yaml")):
        entry = build(Entry, read_mapping(path), where=f"entry {path.name}")
        if entry.name != path.stem:
            raise BackbenchError(f"entry {path.name} calls itself '{entry.name}'")
        found.append(entry)
    return tuple(found)


def get(name: str) -> Entry:
    """An entry by name; an error with the nearest name otherwise."""
    by_name = {entry.name: entry for entry in all_entries()}
    if name not in by_name:
        raise BackbenchError(f"no zoo entry '{name}'{nearest(name, by_name)}")
    return by_name[name]
