"""The entries of a folder, each checked; those that are refused, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backbench.errors import BackbenchError
from benchmarks.board import entry
from benchmarks.board.entry import Entry


@dataclass(frozen=True)
class Collection:
    """The contents of a folder of entries."""

    entries: tuple[Entry, ...]
    refused: tuple[str, ...]  # `FILE: reason`


def read_folder(folder: Path, *, most: int) -> Collection:
    """Read every `*.json` of a folder, in the order of names; two entries never share submitter and name, or a number.

    Raises:
        BackbenchError: there are more than `most` files.
    """
    files = sorted(folder.glob("*.json"))
    if len(files) > most:
        raise BackbenchError(f"{folder}: {len(files)} entries, more than the {most} that one page can show")
    kept: list[Entry] = []
    refused: list[str] = []
    owner: dict[str, str] = {}
    for file in files:
        try:
            found = entry.read(file)
        except BackbenchError as error:
            refused.append(str(error).removeprefix(f"{folder}/"))
            continue
        keys = [f"'{found.name}' by '{found.by}'".casefold(), *(record.identity() for record in found.records)]
        taken = next((owner[key] for key in keys if key in owner), None)
        if taken:
            refused.append(
                f"{file.name}: {taken} has the same submitter and name, or one of its numbers: keep one of them"
            )
            continue
        owner |= dict.fromkeys(keys, file.name)
        kept.append(found)
    return Collection(tuple(kept), tuple(refused))
