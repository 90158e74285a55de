"""An entry of a board: one JSON file with the records of one backbone. Its contents come from strangers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backbench.config import digest
from backbench.errors import BackbenchError
from backbench.files.atomic import atomic_write_text
from backbench.printable import printable
from benchmarks.board import checks
from benchmarks.records.reading import plain_json
from benchmarks.records.schema import Result

LARGEST = 2**21  # bytes of an entry; a record without its command takes some 3,000
MOST_RECORDS = 300

Words = Annotated[str, Field(min_length=1, max_length=80)]
_ADDRESS = r"^https://[A-Za-z0-9.-]+(/[A-Za-z0-9_./~%+@:=&?#-]*)?$"
_LONGEST_ADDRESS = 200


class Entry(BaseModel):
    """The fields of an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    board: Literal[1] = 1  # version of this layout
    name: Words  # of the backbone
    by: Words  # who submits it
    link: Annotated[str, Field(pattern=_ADDRESS, max_length=_LONGEST_ADDRESS)] | None = None
    note: Annotated[str, Field(max_length=300)] = ""
    records: Annotated[tuple[Result, ...], Field(min_length=1, max_length=MOST_RECORDS)]
    sha256: str = ""  # of all other fields: shows that a file was changed or cut, not who wrote it

    def sealed(self) -> Entry:
        """Return the entry with its hash."""
        return self.model_copy(update={"sha256": self._hash()})

    def _hash(self) -> str:
        return digest({key: value for key, value in _plain(self).items() if key != "sha256"})

    @property
    def is_whole(self) -> bool:
        """Whether the hash fits the contents."""
        return self.sha256 == self._hash()


def is_address(text: str) -> bool:
    """Return whether a text is an address that an entry or a card may show."""
    return len(text) <= _LONGEST_ADDRESS and re.fullmatch(_ADDRESS, text) is not None


def _plain(entry: Entry) -> dict[str, Any]:
    return entry.model_dump(mode="json", by_alias=True)


def make(name: str, by: str, records: Sequence[Result], *, link: str | None = None, note: str = "") -> Entry:
    """Return an entry of a backbone's records, without what says where they lie: paths and command lines.

    Raises:
        BackbenchError: a field or a record does not fit; one sentence names it.
    """
    fields = {"name": name, "by": by, "link": link, "note": note,
              "records": [_public(r).model_dump(mode="json", by_alias=True) for r in records]}  # fmt: skip
    entry = _built(fields, where="the entry").sealed()
    if why := fault(entry):
        raise BackbenchError(f"not submitted: {why}")
    return entry


def _public(record: Result) -> Result:
    backbone = record.backbone.model_copy(update={"source": ""})
    provenance = record.provenance.model_copy(update={"argv": []}) if record.provenance else None
    return record.model_copy(update={"backbone": backbone, "provenance": provenance})


def fault(entry: Entry) -> str | None:
    """Return why an entry is refused, in one clause, or None."""
    if not entry.is_whole:
        return "it was changed or cut after it was written (its sha256 does not fit): submit it again"
    for record in entry.records:
        if record.backbone.name != entry.name:
            return f"a record is of '{printable(record.backbone.name, 80)}', not of '{printable(entry.name, 80)}'"
        if why := checks.unfit(record) or checks.wrong(record):
            return f"{printable(record.cell, 80)} seed {record.seed}: {why}"
    return checks.contradiction(entry.records)


def write(path: Path, entry: Entry) -> None:
    """Write an entry atomically."""
    atomic_write_text(path, json.dumps(_plain(entry), indent=1) + "\n")


def read(path: Path) -> Entry:
    """Read and check an entry.

    Raises:
        BackbenchError: the file is too large, is not an entry, or its records do not pass the checks; one sentence says why.
    """
    entry = _built(plain_json(path, limit=LARGEST), where=str(path))
    if why := fault(entry):
        raise BackbenchError(f"{path}: {why}")
    return entry


def _built(values: Any, *, where: str) -> Entry:
    try:
        return Entry.model_validate_json(json.dumps(values))  # through JSON: a list becomes a tuple, no other change
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    place = printable(".".join(str(part) for part in first["loc"]), 80) or "its contents"
    raise BackbenchError(f"{where}: not an entry: '{place}': {printable(first['msg'])}")
